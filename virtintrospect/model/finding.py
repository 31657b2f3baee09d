"""Judgement: something in a guest that should not be as it is."""

from __future__ import annotations

from dataclasses import dataclass

#: From least to most urgent.
SEVERITIES = ("info", "low", "medium", "high", "critical")


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of ``check``. Texts may have the guest's own words in them."""

    #: Id of the rule that made it; docs/rules.md describes them all.
    rule: str
    #: One of :data:`SEVERITIES`.
    severity: str
    #: What it is about: a process, a module, a hook. It stays the same as long as the matter does.
    subject: bytes
    #: One sentence: what is wrong with it.
    detail: bytes
    #: ``name=value`` of what was seen, separated by spaces; a space in a value is ``\\x20``.
    evidence: bytes
    #: What to do.
    remedy: str
