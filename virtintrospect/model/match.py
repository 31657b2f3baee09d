"""Something that was searched for in guest memory, and found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """One place where a pattern is."""

    #: Guest-physical address of its first byte.
    paddr: int
    #: Virtual address of it, in the process that was searched.
    vaddr: int | None
    #: Bytes that it is long.
    size: int
    #: Which of several patterns it is: an encoding of the text, or a rule and its string.
    name: str
    #: Its bytes, the first 256 of a longer one.
    data: bytes
    #: What stands before and behind it.
    before: bytes
    after: bytes
