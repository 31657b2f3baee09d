"""Per-CPU variables (include/linux/percpu-defs.h): one copy at each CPU's offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from virtintrospect.guests.linux import bitmap

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest


def online(guest: LinuxGuest) -> dict[int, int]:
    """Offset of each CPU that is online, by its number, in ascending order.

    :raises FaultError: the masks or the offsets cannot be read.
    :raises SymbolNotFoundError: the kernel has no such tables.
    """
    return _offsets(guest, "__cpu_online_mask")


def present(guest: LinuxGuest) -> dict[int, int]:
    """As :func:`online`, of each CPU that is there, online or not."""
    return _offsets(guest, "__cpu_present_mask")


def _offsets(guest: LinuxGuest, mask: str) -> dict[int, int]:
    possible = bitmap.read(guest, "__cpu_possible_mask")
    offsets = dict(zip(possible, guest.cpu_offsets, strict=False))
    return {number: offsets[number] for number in bitmap.read(guest, mask) if number in offsets}


def addresses(guest: LinuxGuest, base: int, offsets: Sequence[int]) -> list[int]:
    """Addresses of the CPUs' copies of what ``base`` stands for."""
    return [(base + offset) & guest.kernel.last for offset in offsets]


def sums(guest: LinuxGuest, base: int, offsets: Sequence[int], count: int) -> list[int]:
    """Sums over CPUs of an array of ``count`` unsigned longs."""
    rows = [guest.kernel.pointers(place, count) for place in addresses(guest, base, offsets)]
    last = guest.kernel.last
    return [sum(column) & last for column in zip(*rows, strict=True)] or [0] * count
