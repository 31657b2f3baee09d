"""Translation in the tables of 32-bit ARM (synthetic: one entry of each kind)."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import PagingMode, walk
from virtintrospect.arch.arm import ARM_LPAE, ARM_SHORT, ARM_SHORT_LINUX
from virtintrospect.arch.leaves import EXECUTABLE, PRESENT, USER, WRITABLE, leaves
from virtintrospect.arch.paging import NOT_MAPPED, translate_many, translator

ROOT, TABLE, LAST = 0x4000, 0x8400, 0x9000
VADDR = 0xC123_4567
#: Kind of entry: that of the first level, of the second (0: none), where it leads, page size.
SHORT = {
    "small": (TABLE | 0b01, 0x1234_5000 | 0b10, 0x1234_5567, 1 << 12),
    "small, not executable": (TABLE | 0b01, 0x1234_5000 | 0b11, 0x1234_5567, 1 << 12),
    "large": (TABLE | 0b01, 0x1234_0000 | 0b01, 0x1234_4567, 1 << 16),
    "section": (0x1230_0000 | 0b10, 0, 0x1233_4567, 1 << 20),
    "supersection": (0x1200_0000 | 1 << 18 | 0b10, 0, 0x1223_4567, 1 << 24),
    "supersection above 4 GiB": (0x1200_0000 | 5 << 20 | 3 << 5 | 1 << 18 | 0b10, 0,
                                 3 << 36 | 5 << 32 | 0x1200_0000 | VADDR & 0x00FF_FFFF, 1 << 24),
    "fault": (0, 0, None, 0),
    "fault in the second": (TABLE | 0b01, 0x1234_5000, None, 0),
}  # fmt: skip
LONG = {
    "page": (TABLE & -0x1000 | 3, LAST | 3, 0x81_2345_6000 | 3, 0x81_2345_6567, 1 << 12),
    "block of 2 MiB": (TABLE & -0x1000 | 3, 0x81_2340_0000 | 1, 0, 0x81_2343_4567, 1 << 21),
    "block of 1 GiB": (0x81_4000_0000 | 1, 0, 0, 0x81_4123_4567, 1 << 30),
    "fault": (0, 0, 0, None, 0),
    "fault in the second": (TABLE & -0x1000 | 3, 0, 0, None, 0),
    "no page in the last": (TABLE & -0x1000 | 3, LAST | 3, 0x81_2345_6000 | 1, None, 0),
}


def short(first: int, second: int) -> BuiltMemory:
    memory = BuiltMemory(1 << 16)
    memory.write(ROOT + 4 * (VADDR >> 20), first.to_bytes(4, "little"))
    memory.write(TABLE + 4 * (VADDR >> 12 & 255), second.to_bytes(4, "little"))
    return memory


def check(memory: BuiltMemory, mode: PagingMode, paddr: int | None, size: int) -> None:
    """One by one, compiled, and in bulk: all the same."""
    told = walk(memory, mode, ROOT, VADDR)
    assert (told.paddr, told.page_size) == (paddr, size)
    fast = translator(memory.reader(mode.entry_size), mode)(ROOT, VADDR)
    assert fast == ((-1, 0) if paddr is None else (paddr, size))
    addresses = np.array([VADDR, 1 << 32 | VADDR], dtype=np.uint64)
    bulk = translate_many(memory, mode, ROOT, addresses).tolist()
    assert bulk == [NOT_MAPPED if paddr is None else paddr, NOT_MAPPED]


@pytest.mark.parametrize("kind", SHORT)
def test_short_descriptors(kind: str) -> None:
    first, second, paddr, size = SHORT[kind]
    check(short(first, second), ARM_SHORT, paddr, size)


@pytest.mark.parametrize("kind", LONG)
def test_long_descriptors(kind: str) -> None:
    first, second, third, paddr, size = LONG[kind]
    memory = BuiltMemory(1 << 16)
    memory.write_u64(ROOT + 8 * (VADDR >> 30), first)
    memory.write_u64((TABLE & -0x1000) + 8 * (VADDR >> 21 & 511), second)
    memory.write_u64(LAST + 8 * (VADDR >> 12 & 511), third)
    check(memory, ARM_LPAE, paddr, size)


@pytest.mark.parametrize(
    ("first", "second", "writable", "user", "executable"),
    [
        (TABLE | 0b01, 0x1000 | 0b10 | 1 << 4, True, False, True),  # AP 001
        (TABLE | 0b01, 0x1000 | 0b11 | 1 << 4 | 1 << 5, True, True, False),  # AP 011, XN
        (TABLE | 0b01, 0x1000 | 0b10 | 1 << 4 | 1 << 5 | 1 << 9, False, True, True),  # AP 111
        (TABLE | 0b01, 0x1_0000 | 0b01 | 1 << 4 | 1 << 15, True, False, False),  # 64 KiB, XN
        (0x10_0000 | 0b10 | 1 << 10, 0, True, False, True),  # a section
        (0x10_0000 | 0b10 | 1 << 10 | 1 << 11 | 1 << 15 | 1 << 4, 0, False, True, False),
    ],
)
def test_rights_of_short_descriptors(
    first: int, second: int, writable: bool, user: bool, executable: bool
) -> None:
    told = walk(short(first, second), ARM_SHORT, ROOT, VADDR)
    assert (told.writable, told.user, told.executable) == (writable, user, executable)


@pytest.mark.parametrize(
    ("entry", "paddr", "rights"),
    [
        (0x1234_5303, 0x1234_5567, (True, True, False)),  # USER, XN
        (0x1234_5181, 0x1234_5567, (False, True, True)),  # at rest: not young, RDONLY
        (0x1234_5903, 0x1234_5567, None),  # PROT_NONE
        (0x1234_5102, None, None),  # swapped out
    ],
)
def test_tables_that_linux_keeps_beside(
    entry: int, paddr: int | None, rights: tuple[bool, bool, bool] | None
) -> None:
    """2048 bytes before those that the processor reads, which has nothing of a page at rest."""
    hardware = TABLE & -0x1000 | 0x800
    memory = short(hardware | 0b01, 0)
    memory.write((hardware ^ 0x800) + 4 * (VADDR >> 12 & 255), entry.to_bytes(4, "little"))
    check(memory, ARM_SHORT_LINUX, paddr, 4096 if paddr else 0)
    check(memory, ARM_SHORT, None, 0)
    pages = [f for _, f in leaves(memory, ARM_SHORT_LINUX, [ROOT], 0, 1 << 32, 9) if len(f.root)]
    assert len(pages) == (paddr is not None)
    for found in pages if rights else ():
        told = walk(memory, ARM_SHORT_LINUX, ROOT, VADDR)
        assert (told.writable, told.user, told.executable) == rights
        bits = zip((WRITABLE, USER, EXECUTABLE), rights, strict=True)
        assert found.rights.tolist() == [PRESENT | sum(bit for bit, has in bits if has)]


def test_what_ttbr_holds_besides_is_ignored() -> None:
    memory = short(0x1230_0000 | 0b10, 0)
    assert walk(memory, ARM_SHORT, ROOT | 0x4A, VADDR).paddr == 0x1233_4567
