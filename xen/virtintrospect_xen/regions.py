"""Where an HVM or PVH guest has memory.

Its highest frame is far above its memory's end (Xen's own pages of it lie below 4 GiB), and
nothing tells the map of another domain. So frames are tried: one in each 2 MiB, then towards
the borders.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtintrospect.memory import Region
from virtintrospect_xen.window import Mapper

_PAGE = 4096
#: Frames from one that is tried to the next.
_STEP = 512
_A_CALL = 256


def find_regions(mapper: Mapper, frames: int) -> tuple[Region, ...]:
    """Ranges with memory among the first ``frames`` frames.

    What is smaller than 2 MiB may be missed, except around what is found.
    """
    tried = range(0, frames, _STEP)
    there = [present for start in range(0, len(tried), _A_CALL)
             for present in _present(mapper, tried[start : start + _A_CALL])]  # fmt: skip
    found: list[Region] = []
    for index, present in enumerate(there):
        if not present:
            continue
        before = index == 0 or there[index - 1]
        after = index + 1 < len(there) and there[index + 1]
        first = tried[index]
        start = first if before else _border(mapper, tried[index - 1], first)
        end = first + _STEP if after else _border(mapper, first, min(first + _STEP, frames))
        if found and found[-1].end == start * _PAGE:
            found[-1] = Region(found[-1].start, end * _PAGE)
        else:
            found.append(Region(start * _PAGE, end * _PAGE))
    return tuple(found)


def _border(mapper: Mapper, first: int, end: int) -> int:
    """The frame between two others where memory begins or ends (the last such)."""
    present = _present(mapper, range(first, end))
    for index in range(len(present) - 1, 0, -1):
        if present[index] != present[index - 1]:
            return first + index
    return end


def _present(mapper: Mapper, frames: Sequence[int]) -> list[bool]:
    try:
        address, errors = mapper.map(frames)
    except OSError:
        return [False] * len(frames)
    Mapper.unmap(address, len(frames))
    return [not error for error in errors]
