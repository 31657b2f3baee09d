"""Bitmaps of the kernel: ``struct cpumask`` and the like (include/linux/cpumask.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: CONFIG_NR_CPUS is at most this on x86-64 (arch/x86/Kconfig, NR_CPUS_RANGE_END).
MAX_CPUS = 8192


def read(guest: LinuxGuest, symbol: str) -> list[int]:
    """Numbers of the bits that are set in a global ``struct cpumask``.

    Distributions build with 512 to 8192 CPUs, so the type says how long the mask is.
    """
    size = min(guest.types.sizeof("cpumask"), MAX_CPUS // 8)
    bits = int.from_bytes(guest.kernel.read(guest.symbols.address(symbol), size), "little")
    return [number for number in range(size * 8) if bits >> number & 1]
