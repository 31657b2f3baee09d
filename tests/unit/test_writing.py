"""Changing memory: what is written, what is refused, and that a refusal changes nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests.lab.images import write_avml, write_kdump, write_lime, write_stream
from tests.unit.images import BuiltMemory, PageTables
from tests.unit.memory.test_formats import Sample
from tests.unit.memory.test_image import elf
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.cli.main import run
from virtintrospect.driver import Access, Capability
from virtintrospect.errors import (
    FaultError,
    NotWritableError,
    UnsupportedError,
    UsageError,
    VirtIntrospectError,
)
from virtintrospect.imagetarget import ImageTarget, open_image_target
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.memory.base import MAX_WRITE
from virtintrospect.memory.image import open_image
from virtintrospect.space import AddressSpace
from virtintrospect.translation import LinearRange

MIB = 1 << 20
IN_PLACE = Access(write=True, in_place=True)


class Ram(PhysicalMemory):
    """Two regions that touch and one apart, some of it ROM; ``lossy`` bytes do not change."""

    def __init__(self) -> None:
        self.regions = (Region(0, 0x2000), Region(0x2000, 0x4000), Region(0x8000, 0x9000))
        self.rom = (Region(0x3000, 0x3800),)
        self.writable = True
        self.data = bytearray(0x9000)
        self.lossy: set[int] = set()

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        assert self.regions[index].start <= paddr <= self.regions[index].end - size
        return bytes(self.data[paddr : paddr + size])

    def _write_within(self, index: int, paddr: int, data: bytes) -> None:
        assert self.regions[index].start <= paddr <= self.regions[index].end - len(data)
        for at, byte in enumerate(data, paddr):
            if at not in self.lossy:
                self.data[at] = byte


def test_across_regions_that_touch() -> None:
    ram = Ram()
    ram.write(0x1FFE, b"abcd")
    assert ram.read(0x1FFE, 4) == b"abcd"
    ram.write(0x100, b"")


@pytest.mark.parametrize(
    ("paddr", "size", "error", "address"),
    [
        (0x3FFC, 8, FaultError, 0x4000),  # past the end of a region
        (0x7FFC, 8, FaultError, 0x7FFC),
        (0x8FFF, 2, FaultError, 0x9000),
        (1 << 52, 1, FaultError, 1 << 52),
        (-8, 4, FaultError, -8),
        (0x2FFE, 4, NotWritableError, 0x3000),
        (0x37FF, 4, NotWritableError, 0x37FF),
    ],
)
def test_refusals_change_nothing(
    paddr: int, size: int, error: type[VirtIntrospectError], address: int
) -> None:
    ram = Ram()
    with pytest.raises(error) as caught:
        ram.write(paddr, b"x" * size)
    assert caught.value.address == address  # type: ignore[attr-defined]
    assert not any(ram.data)


def test_not_opened_for_writing_and_too_much() -> None:
    ram = Ram()
    with pytest.raises(UsageError, match="at most"):
        ram.write(0, bytes(MAX_WRITE + 1))
    ram.writable = False
    with pytest.raises(UsageError, match="not opened for writing") as caught:
        ram.write(0, b"x")
    assert "--allow-write" in caught.value.hint


def test_what_does_not_stay_is_told() -> None:
    ram = Ram()
    ram.lossy = {0x105}
    with pytest.raises(NotWritableError, match=r"0x78 was written, 0x00 is read back") as caught:
        ram.write(0x100, b"x" * 16)
    assert caught.value.address == 0x105


# -- address spaces ----------------------------------------------------------------------------

USER = 0x40_0000
DIRECT = 0xFFFF_8880_0000_0000


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(1 << 20)


@pytest.fixture
def space(memory: BuiltMemory) -> AddressSpace:
    """Three pages: two that may be written, and one that may not; and a direct map."""
    tables = PageTables(memory, X86_64_4LEVEL, 0x1000)
    tables.map(USER, 0x50000, flags=0x67)
    tables.map(USER + 0x1000, 0x30000, flags=0x67)
    tables.map(USER + 0x2000, 0x60000, flags=0x65)
    tables.map(DIRECT + 0x50000, 0x50000, flags=0x63)
    memory.writable = True
    linear = LinearRange(DIRECT, DIRECT + (1 << 20), 0)
    return AddressSpace(memory, X86_64_4LEVEL, tables.root, linear=[linear])


def test_crosses_pages(space: AddressSpace, memory: BuiltMemory) -> None:
    space.write(USER + 0xFFE, b"abcd")
    assert memory.read(0x50FFE, 2) == b"ab"
    assert memory.read(0x30000, 2) == b"cd"
    space.write_integer(DIRECT + 0x50008, -2, 4, signed=True)
    assert memory.read(0x50008, 4) == b"\xfe\xff\xff\xff"
    space.write_integer(USER, 1 << 63)
    assert space.read_u64(USER) == 1 << 63


@pytest.mark.parametrize("size", [0x1002, 0x2004])
def test_a_page_that_cannot_be_written_refuses_the_whole(
    space: AddressSpace, memory: BuiltMemory, size: int
) -> None:
    before = bytes(memory.data)
    with pytest.raises(NotWritableError, match="read-only") as caught:
        space.write(USER + 0xFFF, b"x" * size)
    assert (caught.value.address, caught.value.kind) == (USER + 0x2000, "virtual")
    with pytest.raises(FaultError) as fault:
        space.write(USER + 0xFFF, b"x" * 0x3000, force=True)
    assert (fault.value.address, fault.value.kind) == (USER + 0x3000, "virtual")
    assert memory.data == before
    space.write(USER + 0x1FFF, b"xy", force=True)
    assert memory.read(0x60000, 1) == b"y"


def test_linear_ranges_say_nothing_of_rights(space: AddressSpace, memory: BuiltMemory) -> None:
    assert space.read(DIRECT + 0x60000, 4) == bytes(4)
    with pytest.raises(FaultError):  # the tables do not map it
        space.write(DIRECT + 0x60000, b"x")
    memory.broken.add(0x1000)
    with pytest.raises(FaultError, match="virtual") as caught:
        space.write(USER, b"x")
    assert "page table" in caught.value.hint


def test_bad_numbers(space: AddressSpace) -> None:
    for value, size in ((256, 1), (-1, 8), (1 << 64, 8)):
        with pytest.raises(UsageError, match="does not fit"):
            space.write_integer(USER, value, size)
    with pytest.raises(UsageError):
        space.write_integer(USER, 0, 3)
    with pytest.raises(UsageError, match="at most"):
        space.write(USER, bytes(MAX_WRITE + 1))


# -- images ------------------------------------------------------------------------------------


def raw(_: PhysicalMemory, path: Path) -> None:
    path.write_bytes(bytes(MIB))


def core(_: PhysicalMemory, path: Path) -> None:
    head = elf([(0, 0x2000, 4096, 0x1000), (0x10000, 0x1000, 8192, 0x1000)])
    path.write_bytes(head.ljust(4096, b"\0") + bytes(0x2000))


@pytest.mark.parametrize("make", [raw, core, write_lime])
def test_images_that_hold_memory_as_it_is(
    tmp_path: Path, make: Callable[[PhysicalMemory, Path], None]
) -> None:
    path = tmp_path / "image"
    make(Sample(Region(0, 0x2000), Region(0x10000, 0x12000)), path)
    size = path.stat().st_size
    with open_image_target(path, IN_PLACE) as target:
        target.require(Capability.WRITE)
        target.write(0x10010, b"changed")
        with pytest.raises(FaultError):
            target.write(target.memory.end - 1, b"ab")
    assert path.stat().st_size == size
    with open_image(path) as image:
        assert image.read(0x10010, 8)[:7] == b"changed"
        assert not image.writable


def test_memory_that_the_file_has_no_room_for(tmp_path: Path) -> None:
    path = tmp_path / "core"
    core(Sample(), path)
    before = path.read_bytes()
    with open_image(path, in_place=True) as image:
        assert image.read(0x1000, 4) == bytes(4)
        with pytest.raises(NotWritableError, match="not in the file") as caught:
            image.write(0xFFE, b"abcd")
        assert caught.value.address == 0x1000
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda memory, path: write_kdump(memory, path, "zlib"),
        write_avml,
        write_stream,
        lambda _, path: path.write_bytes(gzip.compress(bytes(MIB))),
    ],
    ids=["kdump", "avml", "stream", "gzip"],
)
def test_images_that_cannot_be_changed(
    tmp_path: Path, make: Callable[[PhysicalMemory, Path], None]
) -> None:
    path = tmp_path / "image"
    make(Sample(Region(0, 104 * 4096)), path)
    before = path.read_bytes()
    with open_image_target(path, IN_PLACE) as target:
        with pytest.raises(UnsupportedError, match="its format does not hold memory as it is"):
            target.require(Capability.WRITE)
        with pytest.raises(UsageError):
            target.write(0x1000, b"x")
    assert path.read_bytes() == before


@pytest.mark.parametrize("access", [Access(), Access(write=True), Access(in_place=True)])
def test_images_need_both_options(tmp_path: Path, access: Access) -> None:
    path = tmp_path / "image"
    raw(Sample(), path)
    path.chmod(0o400)
    with ImageTarget(path, access) as target:
        with pytest.raises(UnsupportedError, match="cannot change memory") as caught:
            target.require(Capability.WRITE)
        assert "--in-place" in caught.value.hint
        with pytest.raises(UsageError, match="not opened for writing"):
            target.write(0, b"x")


# -- the command -------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * (MIB // 256))
    return str(path)


WRITE = ["--allow-write", "--in-place", "--physical"]


@pytest.mark.parametrize(
    ("how", "data"),
    [
        (["de ad beef"], b"\xde\xad\xbe\xef"),
        (["0x0102"], b"\1\2"),
        (["--u8", "255"], b"\xff"),
        (["--u16", "0x102"], b"\2\1"),
        (["--u32", "-2"], b"\xfe\xff\xff\xff"),
        (["--u64", "0x8000000000000000"], bytes(7) + b"\x80"),
        (["--text", "J\u00fcrgen"], "J\u00fcrgen".encode()),
    ],
)
def test_command(
    image: str, how: list[str], data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["-o", "json", "write", image, "0x1010", *how, *WRITE]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    before = bytes(range(0x10, 0x10 + len(data)))
    assert row == {"address": "0x1010", "before": before.hex(), "data": data.hex()}
    assert Path(image).read_bytes()[0x1010:][: len(data)] == data
    # What was there is in the form that the command takes.
    assert run(["write", image, "0x1010", row["before"], *WRITE]) == 0
    assert Path(image).read_bytes() == bytes(range(256)) * (MIB // 256)


def test_command_with_a_file(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"z" * 5000)
    assert run(["-o", "json", "write", image, "0x800", "--file", str(content), *WRITE]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 313
    assert Path(image).read_bytes()[0x800:][:5001] == b"z" * 5000 + b"\x88"


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["0"], 2, "must be given once"),
        (["0", "00", "--u8", "1"], 2, "must be given once"),
        (["0", "0"], 2, "are no bytes"),
        (["0", "xy"], 2, "are no bytes"),
        (["0", ""], 2, "nothing to write"),
        (["0", "--text", ""], 2, "nothing to write"),
        (["0", "--u8", "256"], 2, "does not fit"),
        (["0", "--u8", "-129"], 2, "does not fit"),
        (["0", "--u16", "x"], 2, "is no number"),
        (["0", "--file", "/proc/no-such-file"], 3, "No such file"),
        (["0", "--file", "/"], 3, "directory"),
        (["0", "--file", "/dev/zero"], 2, "at most"),
        (["0", "00", "--pid", "1"], 2, "exclude each other"),
        (["nonsense", "00"], 2, "physical address"),
        (["0x100000", "00"], 4, "no memory"),
        (["0xfffff", "0000"], 4, "no memory"),
        (["0", "00", "--pause"], 2, "cannot stop the guest"),
    ],
)
def test_bad_commands_change_nothing(
    image: str, arguments: list[str], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["write", image, *arguments, *WRITE]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert word in captured.err
    assert Path(image).read_bytes() == bytes(range(256)) * (MIB // 256)


@pytest.mark.parametrize("options", [[], ["--allow-write"], ["--in-place"]])
def test_command_without_leave(
    image: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["write", image, "0", "00", "--physical", *options]) == 2
    assert "--allow-write" in capsys.readouterr().err
