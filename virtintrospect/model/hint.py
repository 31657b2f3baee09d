"""Advice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hint:
    """One row of ``hints``: what an operator might change, and the numbers that say so."""

    #: memory, cpu, io or tasks.
    resource: str
    #: What to do, in a word: shrink, grow, reclaim, watch, …
    action: str
    #: What there is now and what there should be: bytes of memory, or a number of vCPUs.
    current: int | None
    recommended: int | None
    #: The command that does it; ``None`` where no command can.
    virsh: str | None
    #: One sentence.
    reason: str
    #: ``name=value`` of each number that it comes from, with the time span last. Bytes,
    #: events, and percent.
    evidence: tuple[str, ...]
    #: 0 to 1: how much time and how many samples speak for it.
    confidence: float
    #: What would show that it is wrong.
    refuted_by: str
