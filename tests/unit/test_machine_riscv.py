"""Kernel images in RISC-V tables (synthetic; those of a real kernel are tested elsewhere)."""

from __future__ import annotations

from tests.unit.images import BuiltMemory
from virtintrospect.arch.riscv import SV39
from virtintrospect.guests.linux.machine import riscv
from virtintrospect.translation import LinearRange

#: Valid, readable, executable, accessed, dirty.
CODE = 0xCB


def test_an_image_at_the_very_end_of_the_addresses() -> None:
    """What other kernels have in memory may look so; its end is no address below its start."""
    memory, last = BuiltMemory(1 << 20), (1 << 64) - (1 << 30)
    memory.write_u64(8 * 511, CODE)
    image = riscv.kernel_image(memory, SV39, 0)
    assert image == LinearRange(last, last + (256 << 20), 0)
    memory.write_u64(8 * 511, 0x1000 >> 2 | 1)
    memory.write_u64(0x1000 + 8 * 510, *[block << 19 | CODE for block in (0, 1)])
    image = riscv.kernel_image(memory, SV39, 0)
    assert image == LinearRange((1 << 64) - (4 << 20), 1 << 64, 0)
