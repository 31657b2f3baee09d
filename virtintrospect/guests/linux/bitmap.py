"""Bitmaps of the kernel: ``struct cpumask`` and the like (include/linux/cpumask.h)."""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtintrospect.guests.linux.kernel import LinuxKernel

#: CONFIG_NR_CPUS is at most this on x86-64 (arch/x86/Kconfig, NR_CPUS_RANGE_END).
MAX_CPUS = 8192


def read(guest: LinuxKernel, symbol: str) -> list[int]:
    """Numbers of the bits that are set in a global ``struct cpumask``.

    Distributions build with 512 to 8192 CPUs, so the type says how long the mask is.
    """
    size = min(guest.types.sizeof("cpumask"), MAX_CPUS // 8)
    return list(_bits(bytes(guest.kernel.read(guest.symbols.address(symbol), size))))


@lru_cache(maxsize=64)
def _bits(mask: bytes) -> tuple[int, ...]:
    """Numbers of the bits that are set: the same few masks are asked for again and again."""
    bits = int.from_bytes(mask, "little")
    return tuple(number for number in range(bits.bit_length()) if bits >> number & 1)


@lru_cache(maxsize=64)
def spell(bits: int) -> str:
    """A bitmap as the kernel prints it as a list (``%*pbl``): ``0-3,7``."""
    numbers = (number for number in range(bits.bit_length()) if bits >> number & 1)
    ranges = []
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        first, last = members[0], members[-1]
        ranges.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(ranges)
