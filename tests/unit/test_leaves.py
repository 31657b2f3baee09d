"""All pages of address spaces at once, and memory as runs, windows and arrays (synthetic)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory, PageTables
from virtintrospect.arch import X86_64_4LEVEL, X86_64_5LEVEL
from virtintrospect.arch.arm64 import aarch64
from virtintrospect.arch.leaves import EXECUTABLE, PRESENT, USER, WRITABLE, leaves
from virtintrospect.errors import CorruptDataError, FaultError, UsageError
from virtintrospect.memory.base import MAX_READ
from virtintrospect.space import AddressSpace
from virtintrospect.translation import Run

LOW, HIGH = 0x40_0000, 0xFFFF_FFFF_8000_0000


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(1 << 20)


@pytest.mark.parametrize("mode", [X86_64_4LEVEL, X86_64_5LEVEL])
def test_pages_agree_with_walks(memory: BuiltMemory, mode: object) -> None:
    tables = PageTables(memory, mode, 0x1000)  # type: ignore[arg-type]
    wanted = [(LOW, 0x5_0000), (LOW + 0x1000, 0x3_0000), (LOW + 0x7000, 0x3_1000)]
    for vaddr, paddr in wanted:
        tables.map(vaddr, paddr, flags=0x67)
    tables.map(HIGH, 0x20_0000, size=2 << 20, flags=0x63)
    tables.entry(LOW + 0x2000, ~0x9_0000 & 0xF_FFFF_FFFF_F000 | 0x100)  # PROT_NONE, inverted
    tables.entry(LOW + 0x3000, 0x1234 << 12)  # swapped out
    space = AddressSpace(memory, tables.mode, tables.root)
    found = space.pages()
    assert found.vaddr.tolist() == [LOW, LOW + 0x1000, LOW + 0x2000, LOW + 0x7000, HIGH]
    for vaddr, paddr, shift, rights, entry in zip(*(c.tolist() for c in found[1:]), strict=True):
        walk = space.walk(vaddr)
        assert (walk.paddr, walk.page_size) == (paddr, 1 << shift)
        assert walk.steps[-1].entry == entry
        assert walk.writable == bool(rights & WRITABLE)
        assert walk.user == bool(rights & USER)
        assert walk.executable == bool(rights & EXECUTABLE)
        assert walk.present == bool(rights & PRESENT)
    assert space.pages(LOW + 0x1000, LOW + 0x7000).vaddr.tolist() == [LOW + 0x1000, LOW + 0x2000]
    assert space.pages(HIGH + 0x5000, HIGH + 0x6000).vaddr.tolist() == [HIGH]
    assert space.pages(0x1000, 0x2000).vaddr.tolist() == []


def test_several_address_spaces(memory: BuiltMemory) -> None:
    roots = []
    for number in range(3):
        tables = PageTables(memory, X86_64_4LEVEL, 0x1_0000 * (number + 1))
        tables.map(LOW, 0x8_0000 + 0x1000 * number)
        roots.append(tables.root)
    batches = list(leaves(memory, X86_64_4LEVEL, roots, 0, 1 << 47, 100))
    found = sorted(
        (root, paddr)
        for _, some in batches
        for root, paddr in zip(some.root.tolist(), some.paddr.tolist(), strict=True)
    )
    assert found == [(0, 0x8_0000), (1, 0x8_1000), (2, 0x8_2000)]
    assert sum(len(tables.paddr) for tables, _ in batches) == 12
    assert [tables.level for tables, _ in batches] == ["PGD", "PUD", "PMD", "PTE"]


def test_larger_tables_count_as_several() -> None:
    """A table of 64 KiB is sixteen of 4 KiB: a guest must not have more read by larger pages."""
    memory = BuiltMemory(1 << 17)
    memory.write_u64(1 << 16, *[1 << 16 | 3] * 8192)
    with pytest.raises(CorruptDataError, match="more than 100 page tables"):
        AddressSpace(memory, aarch64(16, 48), 1 << 16).pages(limit=1600)
    assert memory.reads < 200


def test_tables_without_end(memory: BuiltMemory) -> None:
    """A table that is its own next level, 512 times over."""
    memory.write_u64(0x1000, *[0x1067] * 512)
    space = AddressSpace(memory, X86_64_4LEVEL, 0x1000)
    with pytest.raises(CorruptDataError):
        space.pages(limit=5000)
    assert len(space.pages(0, 1 << 20).vaddr) == 256


def test_tables_outside_of_memory(memory: BuiltMemory) -> None:
    memory.write_u64(0x1000, 0xFFFF_F000_0067)
    assert len(AddressSpace(memory, X86_64_4LEVEL, 0x1000).pages().vaddr) == 0


@pytest.fixture
def space(memory: BuiltMemory) -> AddressSpace:
    """Three pages, two of them neighbours in physical memory, a hole, and one more."""
    tables = PageTables(memory, X86_64_4LEVEL, 0x1000)
    for vaddr, paddr in ((0, 0x5_0000), (0x1000, 0x5_1000), (0x2000, 0x3_0000), (0x4000, 0x5_2000)):
        tables.map(LOW + vaddr, paddr)
    memory.write_u64(0x5_0FF8, 1, 2)
    return AddressSpace(memory, tables.mode, tables.root)


def test_runs(space: AddressSpace) -> None:
    assert space.runs(LOW + 0x10, 0x4FF0) == [
        Run(LOW + 0x10, 0x5_0010, 0x1FF0),
        Run(LOW + 0x2000, 0x3_0000, 0x1000),
        Run(LOW + 0x4000, 0x5_2000, 0x1000),
    ]
    assert space.runs(LOW + 0xFFF, 2) == [Run(LOW + 0xFFF, 0x5_0FFF, 2)]
    assert space.runs(LOW, 0) == []
    assert space.runs(LOW - 0x1000, 0x1000) == []
    for vaddr, size in ((-1, 8), (1 << 64, 8), ((1 << 64) - 4, 8), (0, 1 << 50)):
        with pytest.raises(UsageError):
            space.runs(vaddr, size)


def test_array(space: AddressSpace) -> None:
    assert space.array(LOW + 0xFF8, "<u8", 2).tolist() == [1, 2]
    pair = space.array(LOW + 0xFF8, [("a", "<u4"), ("b", "<u4")], 2)
    assert pair["a"].tolist() == [1, 2]
    assert len(space.array(LOW, "u1", 0)) == 0
    with pytest.raises(FaultError):
        space.array(LOW + 0x2FF8, np.uint64, 2)
    with pytest.raises(FaultError):
        space.array(LOW, "u1", MAX_READ + 1)
    for kind, count in (("nonsense", 1), ("O", 1), ("u8", -1), ("V0", 1)):
        with pytest.raises(UsageError):
            space.array(LOW, kind, count)


def test_view(space: AddressSpace, memory: BuiltMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def view(paddr: int, size: int) -> memoryview:
        return memoryview(memory.data)[paddr : paddr + size]

    monkeypatch.setattr(memory, "view", view)
    window = space.view(LOW + 0xFF8, 16)
    assert window is not None
    assert window[8] == 2
    assert space.view(LOW + 0x1FFF, 2) is None  # its two bytes are not neighbours
    for vaddr in (LOW + 0x2FFF, LOW + 0x3000):
        with pytest.raises(FaultError) as caught:
            space.view(vaddr, 2)
        assert caught.value.address == LOW + 0x3000
