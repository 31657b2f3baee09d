"""Find the kernel's page tables and its image in physical memory, with nothing known before.

How is the architecture's affair (:mod:`~virtintrospect.guests.linux.machine`); here is the
order: what costs the same however large the guest comes first, for every architecture that the
target may have. Each way yields candidates, and identification decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from virtintrospect.driver import Target
from virtintrospect.guests.linux.machine import KernelMapping, machines_for
from virtintrospect.memory.raw import RawImage

__all__ = ["KernelMapping", "candidates", "tried"]

#: Candidates altogether that are tried.
_MAX_TRIES = 32


def candidates(target: Target, *, thorough: bool = True) -> Iterator[KernelMapping]:
    """Every place where a kernel may be mapped, most likely first, without repetition.

    :param thorough: also try the ways whose cost grows with the guest's memory.
    """
    seen: set[tuple[str, int, int]] = set()
    for mapping in _all(target, thorough=thorough):
        key = (mapping.mode.name, mapping.image.start, mapping.image.paddr)
        if key not in seen:
            seen.add(key)
            yield mapping
        if len(seen) >= _MAX_TRIES:
            return


def _all(target: Target, *, thorough: bool) -> Iterator[KernelMapping]:
    machines = machines_for(target)
    for machine in machines:
        yield from machine.quick(target)
    for machine in machines if thorough else ():
        yield from machine.thorough(target)
    if isinstance(target.memory, RawImage):
        yield from _moved(target, target.memory, thorough=thorough)


def _moved(target: Target, image: RawImage, *, thorough: bool) -> Iterator[KernelMapping]:
    """A raw image does not say where RAM begins: try where it may; the last try stays."""
    for machine in machines_for(target):
        for start in machine.ram_starts:
            image.move(start)
            yield from machine.quick(target)
            if thorough:
                yield from machine.thorough(target)
    image.move(0)


def tried(target: Target, *, thorough: bool) -> str:
    """What :func:`candidates` looks at, for the message when nothing is found."""
    ways = []
    for machine in machines_for(target):
        more = f", {machine.thorough_ways}" if thorough and machine.thorough_ways else ""
        ways.append(f"{machine.name}: {machine.quick_ways}{more}")
    return "; ".join(ways)
