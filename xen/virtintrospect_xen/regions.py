"""Where an HVM or PVH guest has memory.

Its highest frame is far above its memory's end (Xen's own pages of it lie below 4 GiB), and
nothing tells the map of another domain. So frames are tried: one in each 2 MiB, then all between
one that is there and one that is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from virtintrospect.memory import Region
from virtintrospect.memory.base import merge
from virtintrospect_xen.window import Mapper

_PAGE = 4096
#: Frames from one that is tried to the next: at first, and where too little memory is found so.
_STEPS = (512, 64)
_A_CALL = 256


def find_regions(mapper: Mapper, frames: int, pages: int) -> tuple[Region, ...]:
    """Ranges with memory among the first ``frames`` frames.

    Holes of less than 4 MiB may lie in them. What is smaller than that may be missed (256 KiB in
    a guest that a balloon has torn to pieces), except around what is found.

    :param pages: how many the guest has; where 2 MiB and more of them are not found, the search
        is made again with a finer step.
    """
    found: tuple[Region, ...] = ()
    for step in _STEPS:
        found = tuple(merge(_search(mapper, frames, step)))
        if sum(region.size for region in found) >= (pages - _STEPS[0]) * _PAGE:
            break
    return found


def _search(mapper: Mapper, frames: int, step: int) -> Iterator[Region]:
    tried = range(0, frames, step)
    there = [present for start in range(0, len(tried), _A_CALL)
             for present in _present(mapper, tried[start : start + _A_CALL])]  # fmt: skip
    for first, present, next_present in zip(tried, there, [*there[1:], False], strict=True):
        if present and next_present:
            yield Region(first * _PAGE, (first + step) * _PAGE)
        elif present or next_present:
            yield from _between(mapper, range(first, min(first + step, frames)))


def _between(mapper: Mapper, frames: range) -> Iterator[Region]:
    """From the first to the last frame that is there.

    One range, whatever the holes in it: a guest that gives back every other page must not make
    us keep as many ranges.
    """
    found = [frame for frame, present in zip(frames, _present(mapper, frames), strict=True)
             if present]  # fmt: skip
    if found:
        yield Region(found[0] * _PAGE, (found[-1] + 1) * _PAGE)


def _present(mapper: Mapper, frames: Sequence[int]) -> list[bool]:
    try:
        address, errors = mapper.map(frames)
    except OSError:
        return [False] * len(frames)
    Mapper.unmap(address, len(frames))
    return [not error for error in errors]
