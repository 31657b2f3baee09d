"""Translation on hand-made page tables (synthetic: one entry of each kind)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory, PageTables
from virtintrospect.arch import X86_64_4LEVEL, X86_64_5LEVEL, PagingMode, walk
from virtintrospect.arch.paging import NOT_MAPPED, translate_many, translator
from virtintrospect.errors import FaultError

MODES = [X86_64_4LEVEL, X86_64_5LEVEL]
KERNEL = 0xFFFF_FFFF_8100_0000


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def tables(request: pytest.FixtureRequest) -> PageTables:
    return PageTables(BuiltMemory(1 << 20), request.param, 0x1000)


def translate(tables: PageTables, vaddr: int) -> tuple[int, int]:
    """By the fast walker, after checking that the telling one and the bulk one agree."""
    memory = tables.memory
    fast = translator(memory.read_u64, tables.mode, memory.frames)(tables.root, vaddr)
    told = walk(tables.memory, tables.mode, tables.root, vaddr)
    bulk = translate_many(
        tables.memory, tables.mode, tables.root, np.array([vaddr], dtype=np.uint64)
    )
    assert fast == ((-1, 0) if told.paddr is None else (told.paddr, told.page_size))
    assert int(bulk[0]) == (NOT_MAPPED if told.paddr is None else told.paddr)
    return fast


@pytest.mark.parametrize("size", [1 << 12, 1 << 21, 1 << 30])
def test_page_sizes(tables: PageTables, size: int) -> None:
    tables.map(0xFFFF_8880_4000_0000, 0x4000_0000, size=size)
    assert translate(tables, 0xFFFF_8880_4000_0123) == (0x4000_0123, size)


def test_large_page_ignores_low_frame_bits(tables: PageTables) -> None:
    # Bit 12 of a large page's entry is PAT, not part of its address (Intel SDM 4.5.4).
    tables.map(KERNEL, 0x20_0000, size=1 << 21, flags=0x1063)
    assert translate(tables, KERNEL + 5) == (0x20_0005, 1 << 21)


class _Mirrored:
    """Machine addresses: guest-physical ones with the low bits of their frame turned round."""

    def physical(self, address: int) -> int:
        return address ^ 0xFF000

    def physical_many(self, addresses: np.ndarray) -> np.ndarray:
        return addresses ^ np.uint64(0xFF000)


def test_tables_that_hold_machine_addresses() -> None:
    """As those of a Xen PV guest: every address in an entry is turned round, at each level."""
    turn = _Mirrored().physical
    tables = PageTables(BuiltMemory(1 << 20), X86_64_4LEVEL, 0x1000)
    for vaddr in (KERNEL, KERNEL + 0x1000, 0x7000):
        tables.map(vaddr, 0x5000 + (vaddr & 0xF000))
    memory = tables.memory
    memory.frames = _Mirrored()
    pages = range(0, 1 << 20, 4096)
    content = {page: memory.read(page, 4096) for page in pages}
    for page, data in content.items():
        entries = np.frombuffer(data, "<u8").copy()
        entries[entries & np.uint64(1) == 1] ^= np.uint64(0xFF000)
        memory.write(page, entries.tobytes())
    assert turn(turn(0x5000)) == 0x5000
    assert translate(tables, KERNEL + 0x12) == (0x5012, 4096)
    assert translate(tables, KERNEL + 0x1012) == (0x6012, 4096)
    assert translate(tables, 0x7008) == (0xC008, 4096)
    assert translate(tables, 0x8000) == (-1, 0)


def test_not_mapped(tables: PageTables) -> None:
    tables.map(KERNEL, 0x5000)
    assert translate(tables, KERNEL + 0x1000) == (-1, 0)


def test_not_canonical(tables: PageTables) -> None:
    tables.map(0, 0x5000)
    assert translate(tables, 1 << 62) == (-1, 0)


def test_swapped_out_page_is_absent(tables: PageTables) -> None:
    tables.entry(0x1000, 0xABCDE << 14 | 0x2)
    assert translate(tables, 0x1000) == (-1, 0)


def test_l1tf_inverted_prot_none_page_is_there(tables: PageTables) -> None:
    paddr = 0x7_5000
    tables.entry(0x1000, ~paddr & tables.mode.frame | 0x100)
    assert translate(tables, 0x1004) == (paddr + 4, 4096)
    assert not walk(tables.memory, tables.mode, tables.root, 0x1004).present


def test_pcid_bits_of_cr3_are_ignored(tables: PageTables) -> None:
    tables.map(KERNEL, 0x5000)
    tables.root |= 0x8000_0000_0000_0ABC
    assert translate(tables, KERNEL) == (0x5000, 4096)


def test_table_outside_of_memory(tables: PageTables) -> None:
    tables.entry(KERNEL, 0xDEAD_0000_0000 | 0x63, size=1 << 21)
    with pytest.raises(FaultError) as caught:
        walk(tables.memory, tables.mode, tables.root, KERNEL)
    assert caught.value.address >= 0xDEAD_0000_0000


def test_bulk_takes_a_table_outside_of_memory_for_not_mapped(tables: PageTables) -> None:
    tables.entry(KERNEL, 0xDEAD_0000_0000 | 0x63, size=1 << 21)
    tables.map(0x1000, 0x5000)
    found = translate_many(
        tables.memory, tables.mode, tables.root, np.array([KERNEL, 0x1000], dtype=np.uint64)
    )
    assert found.tolist() == [NOT_MAPPED, 0x5000]


def test_rights_are_those_of_all_levels(tables: PageTables) -> None:
    tables.map(0x1000, 0x5000, flags=0x67)
    found = walk(tables.memory, tables.mode, tables.root, 0x1000)
    assert (found.writable, found.user, found.executable, found.present) == (True,) * 4
    tables.map(0x2000, 0x5000, flags=0x8000_0000_0000_0061)
    found = walk(tables.memory, tables.mode, tables.root, 0x2000)
    assert (found.writable, found.user, found.executable) == (False, False, False)
    assert [step.level for step in found.steps] == [level.name for level in tables.mode.levels]


def test_table_that_points_to_itself_ends(tables: PageTables) -> None:
    # A recursive top table: the walk has as many steps as there are levels, whatever it says.
    tables.memory.write_u64(tables.root + 8 * 511, tables.root | 0x63)
    assert translate(tables, 0xFFFF_FFFF_FFFF_F000) == (tables.root, 4096)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_one_root_for_each_address(mode: PagingMode) -> None:
    memory = BuiltMemory(1 << 20)
    one, two = PageTables(memory, mode, 0x1000), PageTables(memory, mode, 0x40000)
    one.map(0x1000, 0x5000)
    two.map(0x1000, 0x6000)
    roots = np.array([one.root, two.root], dtype=np.uint64)
    vaddrs = np.array([0x1000, 0x1000], dtype=np.uint64)
    assert translate_many(memory, mode, roots, vaddrs).tolist() == [0x5000, 0x6000]
