"""Translation in tables of 32-bit x86, without PAE and with (synthetic: one entry of each kind)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import X86_LEGACY, X86_PAE, PagingMode, Walk, walk
from virtintrospect.arch.leaves import EXECUTABLE, PRESENT, USER, leaves
from virtintrospect.arch.paging import NOT_MAPPED, translate_many, translator
from virtintrospect.errors import FaultError
from virtintrospect.space import AddressSpace

VADDR = 0xC123_4567
#: Top table, and where the tables below it are; of PAE not at the start of a page.
ROOTS = {X86_LEGACY.name: 0x1000, X86_PAE.name: 0x1FE0}
BELOW = (0x2000, 0x3000)
HIGH = 0x0000_000F_8765_4000


def built(mode: PagingMode, above: int, entry: int, vaddr: int = VADDR) -> tuple[BuiltMemory, int]:
    """Memory in which the tables lead to one entry, ``above`` levels above the last."""
    memory, table = BuiltMemory(1 << 20), ROOTS[mode.name]
    last = len(mode.levels) - 1 - above
    for number, level in enumerate(mode.levels[: last + 1]):
        slot = table + mode.entry_size * (vaddr >> level.shift & (1 << level.bits) - 1)
        bits = 1 if mode is X86_PAE and not number else 0x67
        value = entry if number == last else BELOW[number] | bits
        memory.write(slot, value.to_bytes(mode.entry_size, "little"))
        table = BELOW[min(number, 1)]
    return memory, ROOTS[mode.name]


def translate(memory: BuiltMemory, mode: PagingMode, root: int, vaddr: int = VADDR) -> Walk:
    """By all three walkers, which must agree."""
    told = walk(memory, mode, root, vaddr)
    fast = translator(memory.reader(mode.entry_size), mode)(root, vaddr)
    assert fast == ((-1, 0) if told.paddr is None else (told.paddr, told.page_size))
    several = np.array([vaddr, vaddr ^ 0x1000, 1 << 40], dtype=np.uint64)
    bulk = translate_many(memory, mode, root, several)
    assert int(bulk[0]) == (NOT_MAPPED if told.paddr is None else told.paddr)
    assert int(bulk[2]) == NOT_MAPPED
    return told


@pytest.mark.parametrize(
    ("above", "entry", "paddr", "size"),
    [
        (0, 0x0876_5067, 0x876_5567, 1 << 12),
        (1, 0x0840_00E7, 0x863_4567, 1 << 22),
        (1, 0x0840_00E7 | 5 << 13, 0x5_0863_4567, 1 << 22),  # PSE-36
        (1, 0x0860_00E7, None, 0),  # bit 21 of a large page is reserved
        (0, 0x0876_5066, None, 0),
        (0, 0x0876_5166, 0x876_5567, 1 << 12),  # PROT_NONE
        (1, 0x0876_5166, None, 0),
    ],
)
def test_without_pae(above: int, entry: int, paddr: int | None, size: int) -> None:
    memory, root = built(X86_LEGACY, above, entry)
    found = translate(memory, X86_LEGACY, root | 0x18)  # PWT and PCD of CR3
    assert (found.paddr, found.page_size) == (paddr, size)
    assert found.present == (paddr is not None and bool(entry & 1))
    assert found.executable == (paddr is not None)  # there is no bit for it


@pytest.mark.parametrize(
    ("above", "entry", "paddr", "size"),
    [
        (0, HIGH | 0x67, HIGH | 0x567, 1 << 12),
        (0, 1 << 63 | HIGH | 0x67, HIGH | 0x567, 1 << 12),
        (1, 0xF_8760_00E7, 0xF_8763_4567, 1 << 21),
        (1, 0xF_8760_20E7, None, 0),  # reserved
        (0, 1 << 52 | HIGH | 0x67, None, 0),
        (0, 1 << 62 | HIGH | 0x67, None, 0),
        (2, 0x2003, None, 0),  # rights in a top entry
        (2, 1 << 63 | 0x2001, None, 0),
        (0, ~HIGH & 0xFFF_FFFF_F000 | 0x100, HIGH | 0x567, 1 << 12),  # PROT_NONE, inverted
        (0, HIGH | 0x66, None, 0),
    ],
)
def test_with_pae(above: int, entry: int, paddr: int | None, size: int) -> None:
    memory, root = built(X86_PAE, above, entry)
    found = translate(memory, X86_PAE, root | 0x18)
    assert (found.paddr, found.page_size) == (paddr, size)
    assert found.executable == (paddr is not None and not entry >> 63)
    # The top entry has no rights to take away.
    assert found.writable == (paddr is not None and bool(entry & 2))


def test_qemu_marks_top_entries_as_used() -> None:
    memory, root = built(X86_PAE, 0, HIGH | 0x67)
    memory.data[root + 24] |= 0x20
    assert translate(memory, X86_PAE, root).paddr == HIGH | 0x567


@pytest.mark.parametrize("mode", [X86_LEGACY, X86_PAE], ids=lambda mode: mode.name)
def test_addresses_have_32_bits(mode: PagingMode) -> None:
    memory, root = built(mode, 0, 0x0876_5067, 0xFFFF_F000)
    assert translate(memory, mode, root, 0xFFFF_FFFF).paddr == 0x876_5FFF
    assert translate(memory, mode, root, 0xFFFF_FFFF_FFFF_FFFF).paddr is None
    assert translate(memory, mode, root, 1 << 32).paddr is None


@pytest.mark.parametrize("mode", [X86_LEGACY, X86_PAE], ids=lambda mode: mode.name)
def test_a_table_that_points_to_itself_ends(mode: PagingMode) -> None:
    table = BELOW[-1] if mode is X86_PAE else 0x1000
    memory = BuiltMemory(1 << 20)
    memory.write_u64(0x1FE0, *[BELOW[-1] | 1] * 4)
    for slot in range(table, table + 4096, mode.entry_size):
        memory.write(slot, (table | 0x67).to_bytes(mode.entry_size, "little"))
    root = ROOTS[mode.name]
    found = translate(memory, mode, root)
    assert found.paddr == table | VADDR & 0xFFF
    assert len(found.steps) == len(mode.levels)


@pytest.mark.parametrize("mode", [X86_LEGACY, X86_PAE], ids=lambda mode: mode.name)
def test_a_table_beyond_memory(mode: PagingMode) -> None:
    memory, root = built(mode, 1, 0x7FFF_F067)
    with pytest.raises(FaultError) as caught:
        walk(memory, mode, root, VADDR)
    assert caught.value.address >= 0x7FFF_F000
    bulk = translate_many(memory, mode, root, np.array([VADDR], dtype=np.uint64))
    assert bulk.tolist() == [NOT_MAPPED]


def test_pointers_of_32_bits() -> None:
    memory, root = built(X86_LEGACY, 0, 0x8067)
    memory.write(0x8000, (0xDEAD_BEEF).to_bytes(4, "little") * 1023 + b"\1\2\3\4")
    space = AddressSpace(memory, X86_LEGACY, root, pointer_size=4)
    page = VADDR & -4096
    assert space.read_pointer(page) == 0xDEAD_BEEF
    assert space.read_u64(page) == 0xDEAD_BEEF_DEAD_BEEF
    assert space.read_pointer(page + 0xFFC) == 0x0403_0201
    assert space.pointers(page + 0xFF8, 2) == (0xDEAD_BEEF, 0x0403_0201)
    faults: list[int] = []
    assert space.gather_pointers([page, 0x1000, page + 0xFFC], faults) == (
        0xDEAD_BEEF, 0, 0x0403_0201,
    )  # fmt: skip
    assert faults == [1]
    with pytest.raises(FaultError):
        space.read_pointer(page + 0xFFE)
    assert space.last == 0xFFFF_FFFF


@pytest.mark.parametrize("mode", [X86_LEGACY, X86_PAE], ids=lambda mode: mode.name)
def test_all_pages_at_once(mode: PagingMode) -> None:
    memory, root = built(mode, 0, 0x0876_5065)
    batches = [found for _, found in leaves(memory, mode, [root], 0, 1 << 32, 16)]
    pages = [
        (int(v), int(p), int(s), int(r))
        for found in batches
        for v, p, s, r in zip(found.vaddr, found.paddr, found.shift, found.rights, strict=True)
    ]
    assert pages == [(VADDR & -4096, 0x0876_5000, 12, USER | EXECUTABLE | PRESENT)]
