"""A kernel's image as its package has it: a vmlinux, or the vmlinuz of an x86 kernel.

The vmlinuz (Documentation/arch/x86/boot.rst) holds the vmlinux, compressed, and behind it what
the boot loader needs no more.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from virtintrospect.errors import CorruptDataError, NoSuchTargetError, UsageError

#: Larger files, and larger kernels, are none.
_LARGEST_FILE, _LARGEST_KERNEL = 1 << 30, 512 << 20
_MAX_SEGMENTS = 64
_PT_LOAD, _PT_NOTE = 1, 4
_NT_GNU_BUILD_ID = 3
_ELF = b"\x7fELF"
#: Magic of LZ4's legacy format, and bytes that a block of it unpacks to at most.
_LZ4, _LZ4_BLOCK = b"\x02\x21\x4c\x18", 8 << 20


class Segment(NamedTuple):
    """A part of the image, by its address as it was linked."""

    vaddr: int
    data: memoryview


class KernelImage(NamedTuple):
    """An unpacked vmlinux."""

    path: Path
    build_id: bytes
    segments: tuple[Segment, ...]

    def read(self, vaddr: int, size: int) -> bytes:
        """Bytes at an address as it was linked.

        :raises CorruptDataError: the image has none there.
        """
        for start, data in self.segments:
            if start <= vaddr and vaddr + size <= start + len(data):
                return bytes(data[vaddr - start : vaddr - start + size])
        raise CorruptDataError(f"{self.path} has nothing at this address", vaddr)


def load(path: Path) -> KernelImage:
    """Read a kernel's image.

    :raises NoSuchTargetError: the file cannot be read.
    :raises UsageError: it is no kernel of a kind that is known here.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UsageError(f"{path} is too large for a kernel")
        content = path.read_bytes()
    except OSError as error:
        raise NoSuchTargetError(f"cannot read {path}: {error.strerror}") from error
    try:
        if not content.startswith(_ELF):
            content = _unpacked(content)
        return _parse(path, content)
    except (
        ValueError,
        OverflowError,
        struct.error,
        lzma.LZMAError,
        zlib.error,
        ImportError,
    ) as error:
        raise UsageError(
            f"{path} is no kernel image that can be read: {error}",
            hint="take the vmlinux, or the vmlinuz of an x86 kernel; LZ4 and Zstandard need "
            "pip install 'virtintrospect[images]'",
        ) from error


def _unpacked(content: bytes) -> bytes:
    """The vmlinux in a bzImage, by its setup header."""
    if content[0x202:0x206] != b"HdrS":
        raise ValueError("neither ELF nor a bzImage")
    offset, length = struct.unpack_from("<II", content, 0x248)
    start = (content[0x1F1] + 1) * 512 + offset
    packed = content[start : start + length]
    if len(packed) != length or length < 16:
        raise ValueError("it is truncated")
    (size,) = struct.unpack_from("<I", packed, length - 4)
    if not 0 < size <= _LARGEST_KERNEL:
        raise ValueError(f"a kernel of {size} bytes")
    for magic, unpack in _FORMATS.items():
        if packed.startswith(magic):
            return unpack(packed, size)
    raise ValueError("compressed in a way that is not known here")


def _gzip(packed: bytes, size: int) -> bytes:
    return zlib.decompressobj(31).decompress(packed, size)


def _xz(packed: bytes, size: int) -> bytes:
    return lzma.LZMADecompressor(memlimit=1 << 29).decompress(packed, size)


def _lz4(packed: bytes, size: int) -> bytes:
    from cramjam import DecompressionError, lz4

    out, at = bytearray(), len(_LZ4)
    while at + 4 <= len(packed) and len(out) < size:
        (length,) = struct.unpack_from("<I", packed, at)
        at += 4
        room = bytearray(min(_LZ4_BLOCK, size - len(out)))
        try:
            written = lz4.decompress_block_into(packed[at : at + length], room)
        except DecompressionError as error:
            raise ValueError(str(error)) from error
        out += room[:written]
        at += length
    return bytes(out)


def _zstd(packed: bytes, size: int) -> bytes:
    from cramjam import DecompressionError, zstd

    out = bytearray(size)
    try:
        written = zstd.decompress_into(packed[:-4], out)
    except DecompressionError as error:
        raise ValueError(str(error)) from error
    return bytes(out[:written])


_FORMATS: dict[bytes, Callable[[bytes, int], bytes]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\0": _xz,
    _LZ4: _lz4,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def _parse(path: Path, content: bytes) -> KernelImage:
    """Segments and build id of a 64-bit little-endian ELF file, by its program headers."""
    if not content.startswith(_ELF) or content[4:6] != b"\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file in it")
    (table,) = struct.unpack_from("<Q", content, 32)
    entry, count = struct.unpack_from("<HH", content, 54)
    view = memoryview(content)
    segments, build_id = [], b""
    for number in range(min(count, _MAX_SEGMENTS)):
        kind, _, offset, vaddr, _, size, _, _ = struct.unpack_from(
            "<IIQQQQQQ", content, table + entry * number
        )
        data = view[offset : offset + size]
        if kind == _PT_LOAD and len(data) == size:
            segments.append(Segment(vaddr, data))
        elif kind == _PT_NOTE:
            build_id = build_id or _build_id(bytes(data[: 1 << 16]))
    return KernelImage(path, build_id, tuple(segments))


def _build_id(notes: bytes) -> bytes:
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        start = at + 12 + -(-name // 4) * 4
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0" and size <= 64:
            return notes[start : start + size]
        at = start + -(-size // 4) * 4
    return b""
