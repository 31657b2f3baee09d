"""Pages of RAM piece by piece, for the ways in that try each as a page table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from virtintrospect.errors import FaultError
from virtintrospect.memory import PhysicalMemory

#: Bytes that are looked at in one go: a whole number of pages of any size.
_PIECE = 8 << 20


def pieces(memory: PhysicalMemory, most: int, page: int = 4096) -> Iterator[range]:
    """Addresses of the resident pages in the first ``most`` bytes of RAM.

    :param page: bytes of a page, a power of two.
    """
    left = most
    for region in memory.resident():
        start = -(-region.start // page) * page
        end = min(region.end, start + left) // page * page
        left -= max(0, end - start)
        for piece in range(start, end, _PIECE):
            yield range(piece, min(piece + _PIECE, end), page)
        if left <= 0:
            return


def pages(memory: PhysicalMemory, most: int, page: int = 4096) -> Iterator[tuple[int, Any]]:
    """What is in them: the address of the first, and an array with a row of words for each.

    What cannot be read is left out.
    """
    import numpy as np

    for piece in pieces(memory, most, page):
        start, size = piece.start, piece.stop - piece.start
        try:
            data = memory.view(start, size) or memory.read(start, size)
        except FaultError:
            continue
        yield start, np.frombuffer(data, dtype="<u8").reshape(-1, page // 8)
