"""Environments of processes, from their own memory (``environ_read()``, fs/proc/base.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.process import find_user_process
from virtintrospect.model import EnvironmentVariable

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Most of an environment that is shown: more than fits on a stack of the usual 8 MiB, a quarter
#: of which is for arguments and environment.
MAX_ENVIRONMENT = 4 << 20


def environment(guest: LinuxGuest, pid: int) -> list[EnvironmentVariable]:
    """The rows of ``env``, in the order in which the process has them.

    Of pages that are swapped out or absent nothing is shown, and a problem tells how much is
    missing: a variable that ends in such a page is cut, one that begins there left out.

    :raises NoSuchTargetError: there is no such process, or it has no memory of its own.
    """
    process = find_user_process(guest, pid, {"start": "mm.env_start", "end": "mm.env_end"})
    start, end = process["start"] or 0, process["end"] or 0
    size = min(max(end - start, 0), MAX_ENVIRONMENT)
    if size < end - start:
        guest.note(f"the environment of process {pid} has {end - start} bytes, {size} read", start)
    pieces = guest.user_space(process["pgd"]).read_available(start, size)
    missing = size - sum(len(piece) for _, piece in pieces)
    if missing:
        guest.note(f"{missing} bytes of the environment of process {pid} are not in memory", start)
    budget = Budget()
    found = [
        _variable(entry)
        for entry in _entries(pieces, start)
        if entry and budget.follow(1) and budget.keep(len(entry))
    ]
    guest.note_all([budget.problem])
    return found


def _entries(pieces: list[tuple[int, bytes]], start: int) -> list[bytes]:
    """NUL-terminated strings of what could be read."""
    runs: list[tuple[int, list[bytes]]] = []
    end = -1
    for vaddr, piece in pieces:
        if vaddr != end:
            runs.append((vaddr, []))
        runs[-1][1].append(piece)
        end = vaddr + len(piece)
    entries: list[bytes] = []
    for first, parts in runs:
        text = b"".join(parts)
        # What comes first may have begun in memory that is not there.
        entries += (text if first == start else text.partition(b"\0")[2]).split(b"\0")
    return entries


def _variable(entry: bytes) -> EnvironmentVariable:
    name, equals, value = entry.partition(b"=")
    return EnvironmentVariable(name, value if equals else None)
