"""Finding a 32-bit ARM kernel by its tables (synthetic): other splits, and what is no kernel."""

from __future__ import annotations

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import PagingMode
from virtintrospect.arch.arm import ARM_LPAE, ARM_SHORT
from virtintrospect.guests.linux.machine.arm import ARM, by_page_table
from virtintrospect.translation import LinearRange

RAM, SIZE = 1 << 30, 48 << 20
MODES = [ARM_LPAE, ARM_SHORT]
#: Offsets into RAM: ``_text``, where code and constants begin and end to be protected.
TEXT, STEXT, RODATA, INIT = 0x20_8000, 0x40_0000, 0x80_0000, 0xA0_0000
TABLES = {ARM_LPAE.name: 0x5000, ARM_SHORT.name: 0x4000}


def root_of(mode: PagingMode) -> int:
    return RAM + TEXT - TABLES[mode.name]


def kernel(mode: PagingMode, base: int = 0xC000_0000, *, protected: bool = True) -> BuiltMemory:
    """Low memory in sections, as mark_rodata_ro() leaves it."""
    memory, root = BuiltMemory(SIZE, start=RAM), root_of(mode)
    section = 1 << mode.levels[-2].shift
    if mode is ARM_LPAE:
        memory.write_u64(root, *(root + 0x1000 * n | 3 for n in range(1, 5)))
    for place in range(0, SIZE, section):
        fixed = protected and STEXT <= place < INIT
        code = STEXT <= place < RODATA
        if mode is ARM_LPAE:
            entry = RAM + place | 0x711 | (0x80 if fixed else 0) | (0 if code else 1 << 54)
            slot = root + 0x1000 + (base + place >> 21) * 8
        else:
            entry = RAM + place | 0x1_140E | (1 << 15 if fixed else 0) | (0 if code else 1 << 4)
            slot = root + (base + place >> 20) * 4
        memory.write(slot, entry.to_bytes(mode.entry_size, "little"))
    return memory


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("base", [0xC000_0000, 0x8000_0000, 0x4000_0000])
def test_the_image_is_behind_the_table(mode: PagingMode, base: int) -> None:
    memory = kernel(mode, base)
    (mapping,) = by_page_table(memory, SIZE)
    assert (mapping.mode, mapping.root) == (mode, root_of(mode))
    assert mapping.image == LinearRange(base + TEXT, base + INIT, RAM + TEXT)
    assert ARM.maps(memory, mapping)
    (constants,) = ARM.read_only_data(memory, mapping)
    assert constants == LinearRange(base + RODATA, base + INIT, RAM + RODATA)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_nothing_is_protected_while_the_kernel_boots(mode: PagingMode) -> None:
    assert list(by_page_table(kernel(mode, protected=False), SIZE)) == []


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_kernel_has_gone(mode: PagingMode) -> None:
    memory = kernel(mode)
    (mapping,) = by_page_table(memory, SIZE)
    memory.write(mapping.root, bytes(0x5000))
    assert not ARM.maps(memory, mapping)


def test_tables_outside_of_memory() -> None:
    memory = kernel(ARM_LPAE)
    memory.broken.add(root_of(ARM_LPAE) + 0x4000)
    assert list(by_page_table(memory, SIZE)) == []
    full = BuiltMemory(1 << 20, start=RAM)
    full.data[:] = b"\xff" * (1 << 20)
    assert list(by_page_table(full, SIZE)) == []
