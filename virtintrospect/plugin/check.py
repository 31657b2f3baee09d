"""What ``doctor`` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    #: What was looked at: libvirt, hooks, memory, …
    check: str
    #: ``ok``; ``note``: good to know; ``warning``: something may fail; ``problem``: it does.
    status: str
    subject: str
    detail: str
    #: What to do.
    advice: str | None = None
