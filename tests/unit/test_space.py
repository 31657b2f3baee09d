"""Address spaces over hand-made memory (synthetic)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory, PageTables
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.errors import FaultError, UsageError
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

DIRECT = 0xFFFF_8880_0000_0000
USER = 0x40_0000


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(1 << 20)


@pytest.fixture
def space(memory: BuiltMemory) -> AddressSpace:
    """Two user pages that are neighbours in virtual memory only, and a direct map."""
    tables = PageTables(memory, X86_64_4LEVEL, 0x1000)
    tables.map(USER, 0x50000)
    tables.map(USER + 0x1000, 0x30000)
    memory.write(0x50FF8, b"left    ")
    memory.write(0x30000, b"right\0")
    linear = LinearRange(DIRECT, DIRECT + (1 << 20), 0)
    return AddressSpace(memory, X86_64_4LEVEL, tables.root, linear=[linear])


def test_read_crosses_pages(space: AddressSpace) -> None:
    assert space.read(USER + 0xFF8, 13) == b"left    right"


def test_string_crosses_pages_and_ends_at_its_nul(space: AddressSpace) -> None:
    assert space.string(USER + 0xFF8) == b"left    right"
    assert space.string(USER + 0xFF8, limit=3) == b"lef"


def test_string_gives_what_is_there(space: AddressSpace, memory: BuiltMemory) -> None:
    memory.write(0x30000, b"x" * 4096)
    assert space.string(USER + 0x1FF0) == b"x" * 16
    with pytest.raises(FaultError):
        space.string(USER + 0x2000)


def test_fault_tells_the_virtual_address(space: AddressSpace) -> None:
    with pytest.raises(FaultError) as caught:
        space.read(USER + 0x1FFC, 8)
    assert (caught.value.address, caught.value.kind) == (USER + 0x2000, "virtual")


def test_gather_mixes_direct_map_and_tables(space: AddressSpace, memory: BuiltMemory) -> None:
    memory.write(0x70000, b"direct!!")
    wanted = [USER, DIRECT + 0x70000, USER + 0xFFC]
    assert space.gather(wanted, 8) == b"\0" * 8 + b"direct!!" + b"    righ"


def test_gather_reports_faults_and_goes_on(space: AddressSpace) -> None:
    faults: list[int] = []
    data = space.gather([USER + 0xFF8, 0xDEAD000, DIRECT + (1 << 30), USER], 4, faults)
    assert sorted(faults) == [1, 2]
    assert data == b"left" + bytes(12)
    with pytest.raises(FaultError):
        space.gather([0xDEAD000], 4)


def test_gather_reports_physical_faults(space: AddressSpace, memory: BuiltMemory) -> None:
    memory.broken.add(0x30000)
    faults: list[int] = []
    space.gather([USER, USER + 0x1000, DIRECT + 0x30000], 8, faults)
    assert sorted(faults) == [1, 2]


def test_read_u64_across_a_page_boundary(space: AddressSpace) -> None:
    assert space.read_u64(USER + 0xFFC) == int.from_bytes(b"    righ", "little")
    with pytest.raises(FaultError):
        space.read_u64(USER + 0x1FFC)


def test_read_available_leaves_out_what_is_absent(space: AddressSpace) -> None:
    pieces = space.read_available(USER - 0x1000, 0x4000)
    assert [(vaddr, len(data)) for vaddr, data in pieces] == [
        (USER, 0x1000),
        (USER + 0x1000, 0x1000),
    ]


def test_sizes_from_a_guest_are_bounded(space: AddressSpace) -> None:
    with pytest.raises(FaultError):
        space.read(DIRECT, 1 << 62)
    with pytest.raises(FaultError):
        space.read(DIRECT, -1)


def test_translate_many_agrees_with_translate(space: AddressSpace) -> None:
    wanted = [USER, USER + 0x1000, DIRECT + 0x1234, USER + 0x5000]
    found = space.translate_many(np.array(wanted, dtype=np.uint64)).tolist()
    assert found[:3] == [space.translate(vaddr) for vaddr in wanted[:3]]
    assert found[3] == 0xFFFF_FFFF_FFFF_FFFF


def test_integers_of_every_size(space: AddressSpace, memory: BuiltMemory) -> None:
    memory.write(0x50FFC, b"\xf0\xff\xff\xff")
    memory.write(0x30000, b"\xff\xff\xff\xff")
    at = USER + 0xFFC  # the last one crosses into the next page
    sizes = (1, 2, 4, 8)
    assert [space.integer(at, size) for size in sizes] == [0xF0, 0xFFF0, 2**32 - 16, 2**64 - 16]
    assert [space.integer(at, size, signed=True) for size in sizes] == [-16] * 4
    with pytest.raises(UsageError):
        space.integer(at, 3)
    with pytest.raises(FaultError):
        space.integer(USER + 0x1FFC, 8)


def test_wide_string(space: AddressSpace, memory: BuiltMemory) -> None:
    text = "kernel32 \u00e9 \U0001f600"
    raw = text.encode("utf-16-le")
    memory.write(0x50FF0, raw[:16])
    memory.write(0x30000, raw[16:] + bytes(2))
    assert space.wide_string(USER + 0xFF0) == text.encode()
    assert space.wide_string(USER + 0xFF0, limit=12) == b"kernel"
    memory.write(0x50FF7, raw[:9])  # characters that lie on two pages
    memory.write(0x30000, raw[9:] + bytes(2))
    assert space.wide_string(USER + 0xFF7) == text.encode()
    memory.write(0x30FF8, b"e\0n\0d\0.\0")
    assert space.wide_string(USER + 0x1FF8) == b"end."
    with pytest.raises(FaultError):
        space.wide_string(USER + 0x2000)


def test_unicode_string(space: AddressSpace, memory: BuiltMemory) -> None:
    def claim(length: int, buffer: int) -> None:
        lengths = length.to_bytes(2, "little") * 2
        memory.write(0x70000, lengths + bytes(4) + buffer.to_bytes(8, "little"))

    text = "smss.exe \u00e9 \U0001f600"
    raw = text.encode("utf-16-le")
    memory.write(0x50000, raw)
    claim(len(raw), USER)
    assert space.unicode_string(DIRECT + 0x70000) == text.encode()
    claim(len(raw) - 2, USER)  # half of a surrogate pair
    assert space.unicode_string(DIRECT + 0x70000) == (text[:-1] + "\ufffd").encode()
    claim(0, 0)
    assert space.unicode_string(DIRECT + 0x70000) == b""
    claim(0xFFFF, USER)
    with pytest.raises(FaultError):
        space.unicode_string(DIRECT + 0x70000)
