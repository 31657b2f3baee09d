from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtintrospect.errors import CorruptDataError, NotFoundError, VirtIntrospectError
from virtintrospect.memory.base import PhysicalMemory, Region
from virtintrospect.symbols import vmcoreinfo

TEXT = b"""OSRELEASE=6.1.0-50-cloud-amd64
BUILD-ID=256b7d531349c3a14d7071d6679c1bde961fcd09
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffffb3013700
OFFSET(printk_info.seq)=0
SIZE(page)=64
LENGTH(mem_section)=2048
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(VMALLOC_START)=0xff7f941c00000000
NUMBER(phys_base)=-549453824
KERNELOFFSET=30a00000
"""


class Ram(PhysicalMemory):
    """Memory with two regions, the first of which cannot be viewed."""

    def __init__(self, first: bytes, second: bytes) -> None:
        self.parts = [first, second]
        start = 1 << 32
        self.regions = (Region(0, len(first)), Region(start, start + len(second)))

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        start = paddr - self.regions[index].start
        return self.parts[index][start : start + size]

    def view(self, paddr: int, size: int) -> memoryview | None:
        return memoryview(self.read(paddr, size)) if paddr >> 32 else None

    def resident(self) -> Iterator[Region]:
        yield from self.regions


def test_fields() -> None:
    info = vmcoreinfo.parse(TEXT + b"\0" * 100)
    assert info.release == "6.1.0-50-cloud-amd64"
    assert info.build_id == bytes.fromhex("256b7d531349c3a14d7071d6679c1bde961fcd09")
    assert info.kernel_offset == 0x30A00000
    assert info.symbol("init_uts_ns") == 0xFFFFFFFFB3013700
    assert info.number("phys_base") == -549453824
    assert info.number("VMALLOC_START") == 0xFF7F941C00000000
    assert (info.offset("printk_info.seq"), info.size("page"), info.length("mem_section")) == (
        0,
        64,
        2048,
    )
    assert info.fields["PAGESIZE"] == "4096"


def test_what_is_missing_or_nonsense_is_an_error_of_its_own() -> None:
    info = vmcoreinfo.parse(
        b"OSRELEASE=1\nno line\n=x\n\xff=1\nSYMBOL(a)=zz\nNUMBER(b)=0x\nBUILD-ID=1"
    )
    assert info.build_id is None
    assert info.kernel_offset is None
    with pytest.raises(NotFoundError, match=r"NUMBER\(c\)"):
        info.number("c")
    with pytest.raises(CorruptDataError):
        info.symbol("a")
    with pytest.raises(CorruptDataError):
        info.number("b")
    with pytest.raises(CorruptDataError):
        vmcoreinfo.parse(b"BUILD-ID=1")


def test_find_sees_page_starts_in_all_memory() -> None:
    page = TEXT.ljust(4096, b"\0")
    first = bytearray(5 << 20)
    for start in (0x3000, 0x8800, (4 << 20) + 0x1000):
        first[start : start + 4096] = page
    second = bytes(0x2000) + page + b"OSRELEAST".ljust(4096, b"\0") + page
    found = list(vmcoreinfo.find(Ram(bytes(first), second)))
    addresses = [0x3000, 0x401000, (1 << 32) + 0x2000, (1 << 32) + 0x4000]
    assert [paddr for paddr, _ in found] == addresses
    assert all(content == page for _, content in found)


@given(st.binary(max_size=300), st.integers(0, len(TEXT)))
def test_any_text(junk: bytes, cut: int) -> None:
    info = vmcoreinfo.parse(b"OSRELEASE=" + TEXT[10:cut] + junk + TEXT[cut:])
    for read in (info.number, info.symbol, info.offset, info.size):
        for name in ("phys_base", "init_uts_ns", "page", "printk_info.seq"):
            try:
                assert isinstance(read(name), int)
            except VirtIntrospectError:
                continue
