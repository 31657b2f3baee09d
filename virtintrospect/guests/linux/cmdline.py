"""Command lines of processes, from their own memory (``get_mm_cmdline()``, fs/proc/base.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.arch.paging import NOT_MAPPED, translate_many
from virtintrospect.errors import FaultError
from virtintrospect.translation import as_addresses

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Most of a command line that is shown; the kernel allows a quarter of the stack's limit.
MAX_CMDLINE = 32 << 10


class Arguments(NamedTuple):
    """``mm_struct``: where arguments and, right behind them, the environment lie."""

    start: int | None
    end: int | None
    environment_end: int | None


class CommandLine(NamedTuple):
    """Arguments, joined by single spaces; ``None`` where they cannot be read."""

    text: bytes | None
    #: Bytes of them that are swapped out or absent.
    missing: int = 0


_UNKNOWN = CommandLine(None)


def foresee(guest: LinuxGuest, those: Sequence[tuple[int, Arguments]]) -> None:
    """Have the pages with the arguments of many processes read together, where that saves time.

    :param those: ``mm_struct.pgd`` of each process and its arguments.
    """
    if not guest.memory.slow or not those:
        return
    import numpy as np

    kernel = guest.kernel
    roots = kernel.translate_many([pgd for pgd, _ in those])
    for edge in ("start", "environment_end"):
        vaddrs = as_addresses([getattr(where, edge) or 0 for _, where in those])
        paddrs = translate_many(guest.memory, kernel.mode, roots, vaddrs)
        guest.memory.prefetch(paddrs[paddrs != np.uint64(NOT_MAPPED)].tolist(), 1)


def command_line(
    guest: LinuxGuest, pgd: int | None, where: Arguments, budget: Budget
) -> CommandLine:
    """A process's arguments.

    Programs that set their title write over their arguments, and on into their environment:
    where the last byte of the arguments is no NUL, the title goes on until the first one.
    Pages that are swapped out or absent are left out; there an argument ends.
    """
    if not pgd or where.start is None or where.end is None:
        return _UNKNOWN
    size = min(where.end - where.start, MAX_CMDLINE)
    if size <= 0:
        return CommandLine(b"")
    if budget.late():
        return _UNKNOWN
    try:
        space = guest.user_space(pgd)
        pieces = space.read_available(where.start, size)
        missing = size - sum(len(piece) for _, piece in pieces)
        if not pieces:
            return CommandLine(None, missing)
        text = _joined(pieces)
        whole = size < MAX_CMDLINE and pieces[-1][0] + len(pieces[-1][1]) == where.end
        if whole and text[-1:] != b"\0":
            text = _title(text, space.string(where.end, _rest(where)) if _rest(where) else b"")
    except FaultError:
        return _UNKNOWN
    text = text.rstrip(b"\0").replace(b"\0", b" ")
    return CommandLine(text if budget.keep(len(text)) else None, missing)


def _joined(pieces: list[tuple[int, bytes]]) -> bytes:
    """Pieces of text; a NUL stands for whatever is missing between two of them."""
    text, end = bytearray(), pieces[0][0]
    for vaddr, piece in pieces:
        if vaddr != end and text[-1:] != b"\0":
            text.append(0)
        text += piece
        end = vaddr + len(piece)
    return bytes(text)


def _rest(where: Arguments) -> int:
    """Bytes behind the arguments that a title may have grown into."""
    if where.end is None or where.environment_end is None:
        return 0
    return min(max(where.environment_end - where.end, 0), MAX_CMDLINE)


def _title(arguments: bytes, environment: bytes) -> bytes:
    """A title that overwrote the arguments: it ends at its first NUL."""
    return (arguments + environment).split(b"\0", 1)[0]
