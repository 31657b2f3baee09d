"""Nested tables, and memory behind them (synthetic: one entry of each kind)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory, PageTables
from virtintrospect import nested
from virtintrospect.arch import X86_64_4LEVEL, PagingMode, walk
from virtintrospect.arch.nested import ept, npt
from virtintrospect.arch.paging import NOT_MAPPED, translate_many, translator
from virtintrospect.errors import FaultError, MemoryAccessError, NoSuchTargetError, UsageError
from virtintrospect.memory import Region
from virtintrospect.model import InnerGuest
from virtintrospect.nested import NestedMemory
from virtintrospect.space import AddressSpace

PLACE = 0x1_2345_6123
MODES = [npt(4), npt(5), ept(4), ept(5)]


def built(mode: PagingMode, above: int, entry: int, place: int = PLACE) -> BuiltMemory:
    memory = BuiltMemory(1 << 20)
    last = len(mode.levels) - 1 - above
    for number, level in enumerate(mode.levels[: last + 1]):
        slot = (1 + number << 12) + 8 * (place >> level.shift & 511)
        memory.write_u64(slot, entry if number == last else (2 + number << 12) | 7)
    return memory


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("above", "entry", "paddr", "size"),
    [
        (0, 0x876_5007, 0x876_5123, 1 << 12),
        (1, 0x860_0087, 0x865_6123, 1 << 21),
        (2, 0x4000_0087, 0x6345_6123, 1 << 30),
        (0, 0x876_5000, None, 0),
    ],
)
def test_entries(mode: PagingMode, above: int, entry: int, paddr: int | None, size: int) -> None:
    memory = built(mode, above, entry)
    told = walk(memory, mode, 0x1000, PLACE)
    assert (told.paddr, told.page_size) == (paddr, size)
    assert translator(memory.read_u64, mode)(0x1000, PLACE) == (
        (-1, 0) if paddr is None else (paddr, size)
    )
    bulk = translate_many(memory, mode, 0x1000, np.array([PLACE, 1 << 62], dtype=np.uint64))
    assert bulk.tolist() == [NOT_MAPPED if paddr is None else paddr, NOT_MAPPED]


@pytest.mark.parametrize(
    ("entry", "rights"),
    [
        (0x876_5001, (False, False)),
        (0x876_5003, (True, False)),
        (0x876_5004, (False, True)),  # executable only
        (0x876_5005, (False, True)),
        (0x876_5006, None),  # written and not read: KVM's mark of a device
        (0x876_5002, None),
    ],
)
def test_rights_of_ept(entry: int, rights: tuple[bool, bool] | None) -> None:
    found = walk(built(ept(4), 0, entry), ept(4), 0x1000, PLACE)
    assert ((found.writable, found.executable) if found.paddr else None) == rights


def test_the_upper_half_is_no_copy_of_the_lower() -> None:
    top = (1 << 48) - 4096
    memory = built(npt(4), 0, 0x876_5007, top)
    assert walk(memory, npt(4), 0x1000, top).paddr == 0x876_5000
    assert walk(memory, npt(4), 0x1000, 0xFFFF_FFFF_FFFF_F000).paddr is None


# -- a guest inside a guest -----------------------------------------------------------------


@pytest.fixture
def outer() -> BuiltMemory:
    """Inner pages 0 to 15 at 0x80000 of the outer guest, and 0x40_0000 at 0x90000."""
    memory, mode = BuiltMemory(1 << 20), npt(4)
    memory.write_u64(0x1000, 0x2007)
    memory.write_u64(0x2000, 0x3007)
    memory.write_u64(0x3000, 0x4007, 0, 0x5007)
    memory.write_u64(0x4000, *(0x8_0007 + (page << 12) for page in range(16)))
    memory.write_u64(0x5000, 0x9_0007, (1 << 51) | 7, 0xFFF_FFFF_F007)  # devices
    assert mode.levels[0].name == "P4D"
    return memory


def test_regions_and_reads(outer: BuiltMemory) -> None:
    memory = NestedMemory(outer, npt(4), 0x1000)
    assert memory.regions == (Region(0, 2 << 20), Region(4 << 20, 6 << 20))
    assert list(memory.resident()) == [Region(0, 0x1_0000), Region(4 << 20, (4 << 20) + 4096)]
    outer.write(0x8_1FFC, b"abcdefgh")
    assert memory.read(0x1FFC, 8) == b"abcdefgh"
    assert memory.gather([0x1FFC, 0x1FFE], 2) == b"abcd"
    with pytest.raises(FaultError) as caught:
        memory.read(0xFFFC, 8)
    assert caught.value.address == 0x1_0000
    faults: list[int] = []
    assert memory.gather([0x1_0000, 0x1FFC, 3 << 20], 2, faults) == b"\0\0ab\0\0"
    assert faults == [0, 2]


def test_addresses_go_through_both_tables(outer: BuiltMemory) -> None:
    memory = NestedMemory(outer, npt(4), 0x1000)
    tables = PageTables(BuiltMemory(0x1_0000), X86_64_4LEVEL, 0x2000)
    tables.map(0xFFFF_8880_0000_5000, 0xA000)
    outer.write(0x8_0000, bytes(tables.memory.data))
    outer.write(0x8_A123, b"here")
    space = AddressSpace(memory, X86_64_4LEVEL, tables.root)
    assert space.read(0xFFFF_8880_0000_5123, 4) == b"here"
    assert space.translate(0xFFFF_8880_0000_5123) == 0xA123


def test_inner_guests_by_pid_and_name() -> None:
    def inner(pid: int, name: bytes | None, mode: str | None = "npt-4-level") -> InnerGuest:
        return InnerGuest(pid, name, None, b"qemu", 1, mode, 0x1000 * pid, 1)

    found = [
        inner(1, b"a"),
        inner(2, b"b\x1b["),
        inner(3, b"a"),
        inner(4, None),
        inner(5, b"c", None),
    ]
    assert nested.choose(found, "2")[1] == 0x2000
    assert nested.choose(found, "4") == (npt(4), 0x4000)
    with pytest.raises(UsageError, match="several inner guests"):
        nested.choose(found, "a")
    with pytest.raises(MemoryAccessError, match="no nested tables"):
        nested.choose(found, "c")
    with pytest.raises(NoSuchTargetError) as caught:
        nested.choose(found, "d")
    assert "2 (b\\x1b[)" in caught.value.hint
    with pytest.raises(NoSuchTargetError, match=r"no guest .d."):
        nested.choose([], "d")


def test_tables_that_lead_to_themselves_or_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "_MOST_TABLES", 1 << 11)
    memory = BuiltMemory(1 << 20)
    memory.write_u64(0x1000, *[0x1007] * 512)
    found = NestedMemory(memory, npt(4), 0x1000)
    assert 0 < len(found.regions) < 3  # one page over and over, as far as tables are looked at
    assert sum(region.size for region in found.regions) <= 4 << 30
    assert sum(region.size for region in found.resident()) <= 4 << 30
    # Half of the entries lead nowhere: no two pages touch each other.
    memory.write_u64(0x1000, *[0x1007, 0] * 256)
    found = NestedMemory(memory, npt(5), 0x1000)
    assert len(found.regions) <= 1 << 12
    memory = BuiltMemory(1 << 20)
    memory.write_u64(0x1000, 0xFFFF_F007)
    assert NestedMemory(memory, npt(4), 0x1000).regions == ()
    assert NestedMemory(memory, npt(5), 0xFFFF_F000).regions == ()
