"""Memory images, built byte by byte: what is read, and what is refused where."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import descriptors
from virtintrospect.errors import (
    AccessDeniedError,
    FaultError,
    ImageFormatError,
    MemoryAccessError,
    NoSuchTargetError,
    VirtIntrospectError,
)
from virtintrospect.memory import Region
from virtintrospect.memory.cpunotes import Note
from virtintrospect.memory.elfcore import ElfCore
from virtintrospect.memory.image import open_image

MIB = 1 << 20
Load = tuple[int, int, int, int]  # paddr, memory size, file offset, file size


def elf(
    loads: list[Load],
    notes: bytes = b"",
    *,
    bits: int = 64,
    machine: int = 62,
    kind: int = 4,
    phnum: int | None = None,
    sh_info: int | None = None,
) -> bytes:
    """Headers as QEMU writes them: e_ehsize is 8, notes behind the program headers."""
    header_size, segment_size = (64, 56) if bits == 64 else (52, 32)
    count = len(loads) + 1
    notes_at = header_size + count * segment_size
    sections_at = notes_at + len(notes)
    segments = [(4, notes_at, 0, len(notes), len(notes))]
    segments += [(1, offset, paddr, in_file, size) for paddr, size, offset, in_file in loads]
    ident = b"\x7fELF" + bytes([2 if bits == 64 else 1, 1, 1]) + bytes(9)
    body = struct.pack(
        "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH",
        kind, machine, 1, 0, header_size, sections_at, 0, 8, segment_size,
        count if phnum is None else phnum, 0, 0, 0,
    )  # fmt: skip
    table = bytearray()
    for type_, offset, paddr, in_file, size in segments:
        if bits == 64:
            table += struct.pack("<IIQQQQQQ", type_, 0, offset, 0, paddr, in_file, size, 0)
        else:
            table += struct.pack("<IIIIIIII", type_, offset, 0, paddr, in_file, size, 0, 0)
    section = bytes(44) + struct.pack("<I", sh_info or 0) + bytes(16)
    return ident + body + table + notes + (section if sh_info is not None else b"")


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    padded = name + b"\0" * (4 - len(name) % 4 if len(name) % 4 else 0)
    return struct.pack("<III", len(name), len(desc), kind) + padded + desc + bytes(-len(desc) % 4)


def write(folder: Path, content: bytes, tail: bytes = b"") -> Path:
    path = folder / "image"
    path.write_bytes(content + tail)
    return path


def test_elf(tmp_path: Path) -> None:
    notes = note(b"QEMU\0", 0, b"state") + note(b"VMCOREINFO\0", 0, b"OSRELEASE=6.1\n")
    low, high = bytes(range(256)) * 16, b"\xaa" * 8192
    start = 1001  # not aligned, as QEMU's are
    head = elf([(1 << 32, 8192, start + 4096, 8192), (0, 4096, start, 4096)], notes)
    path = write(tmp_path, head + bytes(start - len(head)), low + high)
    with open_image(path) as image:
        assert isinstance(image, ElfCore)
        assert image.regions == (Region(0, 4096), Region(1 << 32, (1 << 32) + 8192))
        assert image.notes == [Note("QEMU", 0, b"state"), Note("VMCOREINFO", 0, b"OSRELEASE=6.1\n")]
        assert image.read(10, 4) == low[10:14]
        assert image.read((1 << 32) + 4090, 12) == b"\xaa" * 12
        assert image.gather([0, 1 << 32], 2) == b"\0\1\xaa\xaa"
        assert list(image.resident()) == list(image.regions)
        assert image.view(0, 8) is None
        with pytest.raises(FaultError):
            image.read(4090, 10)
    with pytest.raises(MemoryAccessError):
        image.read(0, 4)


@pytest.mark.parametrize(("bits", "machine"), [(64, 62), (64, 3), (32, 3)])
def test_classes(tmp_path: Path, bits: int, machine: int) -> None:
    head = elf([(0, 4096, 4096, 4096)], bits=bits, machine=machine)
    path = write(tmp_path, head.ljust(4096, b"\0"), b"\x5a" * 4096)
    with open_image(path) as image:
        assert image.read(4000, 2) == b"ZZ"


def test_memory_that_is_not_in_the_file(tmp_path: Path) -> None:
    head = elf([(0, 3 * 4096, 4096, 4096)])
    path = write(tmp_path, head.ljust(4096, b"\0"), b"\x5a" * 4096)
    with open_image(path) as image:
        assert image.read(4094, 4) == b"ZZ\0\0"
        assert image.read(8192, 4096) == bytes(4096)
        assert list(image.resident()) == [Region(0, 4096)]


def test_more_segments_than_the_header_can_count(tmp_path: Path) -> None:
    count = 65540
    loads = [(number << 12, 4096, 64, 4096) for number in range(count)]
    head = elf(loads, phnum=0xFFFF, sh_info=count + 1)
    with open_image(write(tmp_path, head)) as image:
        assert len(image.regions) == count


def test_kernel_image_twice(tmp_path: Path) -> None:
    """As in /proc/vmcore: where the kernel runs, and within the RAM it is in."""
    head = bytearray(elf([(8192, 4096, 4096, 4096), (4096, 4 * 4096, 8192, 4 * 4096)]))
    struct.pack_into("<Q", head, 64 + 56 + 16, 0xFFFF_FFFF_8100_0000)
    body = b"\x5a" * 4096 + b"".join(bytes([n]) * 4096 for n in range(4))
    with open_image(write(tmp_path, bytes(head).ljust(4096, b"\0"), body)) as image:
        assert image.regions == (Region(4096, 5 * 4096),)
        assert image.read(8191, 2) == b"\0\1"
    struct.pack_into("<Q", head, 64 + 56 + 16, 0x400000)  # a program's segment
    with pytest.raises(ImageFormatError, match="overlaps"):
        open_image(write(tmp_path, bytes(head).ljust(4096, b"\0"), body))


BROKEN = {
    "truncated header": (b"\x7fELF\x02\x01", 6),
    "big-endian": (b"\x7fELF\x02\x02" + bytes(5000), 4),
    "program": (elf([], kind=3), 16),
    "powerpc": (elf([(0, 4096, 0, 0)], machine=21), 18),
    "no memory": (elf([]), 0),
    "absurd count": (elf([(0, 4096, 0, 0)], phnum=0xFFFF, sh_info=0xFFFFFFFF), 64),
    "table outside": (elf([(0, 4096, 0, 0)], phnum=5000), len(elf([(0, 4096, 0, 0)]))),
    "PN_XNUM without sections": (elf([(0, 0, 0, 0)], phnum=0xFFFF), None),
    "beyond the end": (elf([(0, 4096, 64, 1 << 62)]), 64 + 56),
    "truncated": (elf([(0, 1 << 30, 64, 1 << 30)]), len(elf([(0, 0, 0, 0)]))),
    "overlap": (elf([(0, 8192, 0, 64), (4096, 4096, 0, 64)]), 64 + 2 * 56),
    "above 52 bits": (elf([(1 << 52, 4096, 0, 0)]), 64 + 56),
    "wraps around": (elf([((1 << 64) - 4096, 8192, 0, 0)]), 64 + 56),
    "lying note": (elf([(0, 4096, 0, 0)], struct.pack("<III", 4, 1 << 31, 0) + bytes(8)), 176),
}


@pytest.mark.parametrize(("content", "offset"), BROKEN.values(), ids=BROKEN)
def test_broken_elf(tmp_path: Path, content: bytes, offset: int | None) -> None:
    before = descriptors()
    with pytest.raises(ImageFormatError) as caught:
        open_image(write(tmp_path, content))
    if offset is not None:
        assert caught.value.offset == offset
    assert descriptors() - before == set()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_change_of_a_header_is_survived(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(
        elf([(0, 4096, 176, 16), (8192, 4096, 176, 16)], note(b"A\0", 1, b"x" * 40))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = write(tmp_path, bytes(content[: data.draw(st.integers(4, len(content)))]))
    try:
        with open_image(path) as image:
            for region in image.regions[:4]:
                image.read(region.start, min(region.size, 64))
            list(image.resident())
    except VirtIntrospectError:
        pass


def test_raw_with_holes(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(4 * MIB)
        file.write(b"\xbb" * 4096)
    with open_image(path) as image:
        assert image.regions == (Region(0, 8 * MIB),)
        assert list(image.resident()) == [Region(4 * MIB, 4 * MIB + 4096)]
        assert image.read(4 * MIB - 1, 3) == b"\0\xbb\xbb"
        with pytest.raises(FaultError):
            image.read(8 * MIB - 4, 8)


def test_cut_short_while_open(tmp_path: Path) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"x" * 2 * MIB)
    with open_image(path) as image:
        os.truncate(path, MIB + 5)
        with pytest.raises(ImageFormatError) as caught:
            image.read(MIB, 4096)
        assert caught.value.offset == MIB + 5


@pytest.mark.parametrize(
    ("start", "word"),
    [
        (b"\x04\x22\x4d\x18", "lz4"), (b"\x89LZO\0\r\n\x1a\n", "lzop"),
        (b"QFI\xfb", "qcow2"), (b"\x7fVirtualBox", "VirtualBox"),
    ],
)  # fmt: skip
def test_other_formats_are_named(tmp_path: Path, start: bytes, word: str) -> None:
    with pytest.raises(ImageFormatError, match=word) as caught:
        open_image(write(tmp_path, start.ljust(2 * MIB, b"\0")))
    assert caught.value.hint


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello\n")
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "empty", "text", "pipe"):
        with pytest.raises(ImageFormatError, match="no memory image"):
            open_image(tmp_path / name)
    with pytest.raises(ImageFormatError, match="not a core"):
        open_image("/bin/ls")
    for missing in ("nothing", "text/below", "a\0b", "n" * 5000):
        with pytest.raises(NoSuchTargetError):
            open_image(f"{tmp_path}/{missing}")


def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(bytes(MIB))
    path.chmod(0)
    tmp_path.chmod(0o755)
    if os.geteuid():
        with pytest.raises(AccessDeniedError):
            open_image(path)
        return
    # Root may read everything: let a child without privileges try.
    child = os.fork()
    if child == 0:
        status = 1
        try:
            descriptor = os.open(tmp_path, os.O_RDONLY)
            os.fchdir(descriptor)
            os.setresuid(65534, 65534, 65534)
            try:
                open_image("secret")
            except AccessDeniedError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
