"""What a dump of a guest's memory was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acquisition:
    """The record of one dump."""

    file: str
    #: ``raw``, ``elf`` or ``lime``.
    format: str
    #: Bytes of the file, holes included.
    size: int
    #: Bytes of guest memory that were written: pages that are there and not all zeros.
    resident: int
    #: Bytes of guest memory that are holes of the file: absent pages and pages of zeros.
    holes: int
    #: Bytes of guest memory that could not be read and are zeros in the file.
    unreadable: int
    #: Of the whole file as any other program reads it; ``None`` where none was wanted.
    sha256: str | None
    #: From the first byte copied to the file under its name, all runs together.
    seconds: float
    #: How long the guest stood still for it, in milliseconds; 0 where it ran on.
    pause_ms: float
    #: Runs that it took: 1, and one more for each time that it was resumed.
    runs: int
