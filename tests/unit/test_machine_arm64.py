"""Kernel images in AArch64 tables of every granule (synthetic; 4 KiB ones are real elsewhere)."""

from __future__ import annotations

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.arch import PagingMode
from virtintrospect.arch.arm64 import aarch64
from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.machine import KernelMapping, arm64
from virtintrospect.translation import LinearRange

RAM = 1 << 30
TEXT = 0xFFFF_C000_0801_0000
#: Bits of a page: code, read-only data, data (arch/arm64/include/asm/pgtable-prot.h).
CODE, RODATA, DATA = 1 << 54 | 1 << 7, 3 << 53 | 1 << 7, 3 << 53
COMMON = 3 | 1 << 10 | 3 << 8


class Tables:
    """Maps pages into memory at :data:`RAM`."""

    def __init__(self, memory: BuiltMemory, mode: PagingMode) -> None:
        self.memory, self.mode = memory, mode
        self._next = RAM
        self.root = self._table()

    def map(self, vaddr: int, paddr: int, flags: int) -> None:
        table = self.root
        for level in self.mode.levels:
            slot = table + 8 * ((vaddr >> level.shift) & ((1 << level.bits) - 1))
            if level is self.mode.levels[-1]:
                self.memory.write_u64(slot, paddr | flags | (COMMON & ~(3 << 8)))
                return
            entry = self.memory.read_u64(slot)
            if not entry:
                entry = self._table() | 3
                self.memory.write_u64(slot, entry)
            table = entry & 0x0000_FFFF_FFFF_0000

    def _table(self) -> int:
        self._next += 1 << 16
        return self._next


def built(shift: int, bits: int) -> tuple[BuiltMemory, Tables]:
    """3 MiB of code, 1 MiB of read-only data, a hole, 1 MiB of data; and the direct map."""
    memory = BuiltMemory(16 << 20, start=RAM)
    tables = Tables(memory, aarch64(shift, bits)._replace(low=False))
    page = 1 << shift
    for first, size, flags in ((0, 3, CODE), (3, 1, RODATA), (5, 1, DATA)):
        for at in range(first << 20, (first + size) << 20, page):
            tables.map(TEXT + at, RAM + (8 << 20) + at, flags)
    tables.map((1 << 64) - (1 << bits), RAM, DATA)
    return memory, tables


@pytest.mark.parametrize(("shift", "bits"), [(12, 48), (12, 52), (14, 48), (16, 48), (16, 52)])
def test_image_of_every_granule(shift: int, bits: int) -> None:
    memory, tables = built(shift, bits)
    images = list(arm64.kernel_images(memory, tables.mode, tables.root))
    start, paddr = TEXT - (64 << 10), RAM + (8 << 20) - (64 << 10)
    assert images == [
        LinearRange(start, TEXT + (6 << 20), paddr),
        LinearRange(TEXT, TEXT + (6 << 20), paddr + (64 << 10)),
    ]
    mapping = KernelMapping(tables.mode, tables.root, images[0], "hand", arm64.ARM64)
    assert arm64.ARM64.maps(memory, mapping)
    rodata = LinearRange(TEXT + (3 << 20), TEXT + (4 << 20), RAM + (11 << 20))
    assert arm64.ARM64.read_only_data(memory, mapping) == [rodata]


def test_image_with_its_header_mapped() -> None:
    """Before 5.12 the header is mapped, too: then the image begins with the code."""
    memory, tables = built(12, 48)
    memory.write(RAM + (8 << 20) + 56, b"ARM\x64")
    first, _ = arm64.kernel_images(memory, tables.mode, tables.root)
    assert first.start == TEXT


@pytest.mark.parametrize(
    ("shift", "bits"), [(12, 48), (12, 52), (14, 47), (14, 48), (14, 52), (16, 48), (16, 52)]
)
def test_a_page_table_leads_there(shift: int, bits: int) -> None:
    memory, tables = built(shift, bits)
    tables.map((1 << 64) - (2 << 20), RAM, DATA)  # the fixed map, at the end of the addresses
    found = next(arm64.by_page_table(memory, 1 << 62))
    assert (found.mode, found.root) == (tables.mode, tables.root)
    assert found.image.start == TEXT - (64 << 10)


class Registers:
    """TTBR1_EL1 and TCR_EL1 of the only CPU."""

    vcpus = 1

    def __init__(self, root: int, control: int) -> None:
        self.values = {"ttbr1_el1": root, "tcr_el1": control}

    def registers(self, vcpu: int) -> dict[str, int]:
        return self.values if vcpu == 0 else {}


@pytest.mark.parametrize(
    ("shift", "bits", "size"), [(12, 48, 2), (14, 47, 1), (14, 52, 1), (16, 48, 3), (16, 52, 3)]
)
def test_registers_lead_there(shift: int, bits: int, size: int) -> None:
    """TCR_EL1 has the size of pages in TG1 (31:30), that of addresses in T1SZ (21:16)."""
    memory, tables = built(shift, bits)
    registers = Registers(tables.root | 7 << 48 | 1, size << 30 | 64 - bits << 16)
    found = next(arm64.by_registers(memory, registers))
    assert (found.mode, found.root) == (tables.mode, tables.root)


@pytest.mark.parametrize(("shift", "bits"), [(12, 48), (14, 48), (16, 48), (16, 52)])
def test_vmcoreinfo_leads_there(shift: int, bits: int) -> None:
    memory, tables = built(shift, bits)
    offset = TEXT - RAM - (8 << 20)
    memory.write(
        RAM + (15 << 20),
        f"OSRELEASE=6.1\nPAGESIZE={1 << shift}\nSYMBOL(swapper_pg_dir)={tables.root + offset:x}\n"
        f"NUMBER(VA_BITS)={bits}\nNUMBER(kimage_voffset)={offset:#x}\n"
        f"NUMBER(TCR_EL1_T1SZ)={64 - bits:#x}\n\0".encode(),
    )
    found = next(arm64.by_vmcoreinfo(memory))
    assert (found.root, found.image.start) == (tables.root, TEXT - (64 << 10))


def test_an_image_at_the_very_end_of_the_addresses() -> None:
    """No kernel's; its end is behind the last address, and not address 0."""
    memory = BuiltMemory(1 << 20, start=RAM)
    mode = aarch64(12, 48)._replace(low=False)
    for table in (0, 1):
        memory.write_u64(RAM + (table << 12) + 8 * 511, RAM + (table + 1 << 12) | 3)
    memory.write_u64(RAM + (2 << 12) + 8 * 511, RAM | CODE | 1)
    assert next(arm64.kernel_images(memory, mode, RAM)).end == 1 << 64


def test_tables_that_lead_to_themselves_end() -> None:
    """Every entry leads back to the table: the levels end it, and the number of tables."""
    memory = BuiltMemory(1 << 20, start=RAM)
    memory.write_u64(RAM, *[RAM | 3] * 512)
    mode = aarch64(12, 48)._replace(low=False)
    assert list(arm64.kernel_images(memory, mode, RAM)) == []


def test_tables_outside_of_memory_are_no_candidates() -> None:
    memory = BuiltMemory(1 << 20, start=RAM)
    memory.write_u64(RAM + 8 * 511, 1 << 40 | 3)
    mode = aarch64(12, 48)._replace(low=False)
    with pytest.raises(FaultError):
        list(arm64.kernel_images(memory, mode, RAM))
    assert list(arm64.by_page_table(memory, 1 << 62)) == []
