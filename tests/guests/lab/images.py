"""Writers of image formats that nothing installed here writes, from another image's pages.

QEMU in Debian writes ELF and kdump with zlib. AVML and LiME run inside a guest; kdump with LZO,
Snappy or Zstandard comes from makedumpfile or from QEMU built with them. What they write is
described in the modules that read it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from virtintrospect.memory import PhysicalMemory

_PAGE = 4096


def write_lime(memory: PhysicalMemory, path: Path) -> None:
    """LiME's format, version 1."""
    with path.open("wb") as file:
        for region in reversed(memory.regions):  # the order does not matter
            file.write(struct.pack("<4sIQQ8x", b"EMiL", 1, region.start, region.end - 1))
            for address in range(region.start, region.end, 1 << 20):
                file.write(memory.read(address, min(1 << 20, region.end - address)))


def write_avml(memory: PhysicalMemory, path: Path) -> None:
    """AVML's format, version 2: a Snappy stream a range."""
    from cramjam import snappy

    with path.open("wb") as file:
        for region in memory.regions:
            file.write(struct.pack("<4sIQQ8x", b"AVML", 2, region.start, region.end - 1))
            begin = file.tell()
            file.write(b"\xff\x06\x00\x00sNaPpY")
            for number, address in enumerate(range(region.start, region.end, 65536)):
                data = memory.read(address, min(65536, region.end - address))
                body = bytes(snappy.compress_raw(data))
                plain = number % 100 == 1 or len(body) >= len(data)
                body = bytes(4) + (data if plain else body)  # the checksum is not looked at
                file.write(bytes([plain]) + len(body).to_bytes(3, "little") + body)
                if number % 1000 == 5:
                    file.write(b"\xfe\x03\x00\x00pad")
            file.write(struct.pack("<Q", file.tell() - begin))


def write_kdump(memory: PhysicalMemory, path: Path, codec: str) -> None:
    """A kdump-compressed dump (header version 6), zero pages left out."""
    compress, flag = _codec(codec)
    frames = memory.end // _PAGE
    bitmap = -(-frames // (8 * _PAGE)) * _PAGE
    ram, there = bytearray(bitmap), bytearray(bitmap)
    pages: list[tuple[int, bytes]] = []
    for region in memory.regions:
        for frame in range(region.start // _PAGE, region.end // _PAGE):
            ram[frame // 8] |= 1 << frame % 8
    for region in memory.resident():
        for address in range(region.start, region.end, _PAGE):
            data = memory.read(address, _PAGE)
            if data.count(0) != _PAGE:
                there[address // _PAGE // 8] |= 1 << address // _PAGE % 8
                packed = compress(data)
                pages.append((flag, packed) if len(packed) < _PAGE else (0, data))
    blocks = 2 * bitmap // _PAGE
    header = struct.pack(
        "<8si390s6x16sIiiiII", b"KDUMP   ", 6, b"x86_64", b"", 0, _PAGE, 1, blocks, frames, 0
    )
    sub_header = struct.pack("<QiiQQQQQQQQQQQ", *(0,) * 13, frames)
    position = (2 + blocks) * _PAGE + 24 * len(pages)
    with path.open("wb") as file:
        file.write(header.ljust(_PAGE, b"\0") + sub_header.ljust(_PAGE, b"\0") + ram + there)
        for kind, data in pages:
            file.write(struct.pack("<qIIQ", position, len(data), kind, 0))
            position += len(data)
        for _, data in pages:
            file.write(data)


def _codec(name: str) -> tuple[Callable[[bytes], bytes], int]:
    if name == "zlib":
        return zlib.compress, 0x01
    if name == "lzo":
        from lzallright import LZOCompressor

        return lambda data: bytes(LZOCompressor().compress(data)), 0x02
    from cramjam import snappy, zstd

    if name == "snappy":
        return lambda data: bytes(snappy.compress_raw(data)), 0x04
    return lambda data: bytes(zstd.compress(data)), 0x20


def write_stream(memory: PhysicalMemory, path: Path, *, saved: bool = False) -> None:
    """A QEMU migration stream (version 3) of RAM below VGA's window; ``saved``: as by virsh."""
    size = memory.end

    def text(value: bytes) -> bytes:
        return bytes([len(value)]) + value

    machine = b"pc-q35-7.2"
    out = bytearray(struct.pack(">4sIBI", b"QEVM", 3, 7, len(machine)) + machine)
    out += b"\x05" + text(b"configuration/target-page-bits") + struct.pack(">II", 1, 12)
    out += struct.pack(">BI", 1, 2) + text(b"ram") + struct.pack(">II", 0, 4)
    out += struct.pack(">Q", size + _PAGE | 0x04)
    for name, length in ((b"pc.ram", size), (b"vga.vram", _PAGE)):
        out += text(name) + struct.pack(">Q", length)
    out += struct.pack(">Q", 0x10) + struct.pack(">BI", 0x7E, 2)
    out += struct.pack(">BI", 2, 2)
    # A page of another block, and a first version of page 1 that is sent again below.
    out += struct.pack(">Q", 0x02) + text(b"vga.vram") + b"\0"
    out += struct.pack(">Q", _PAGE | 0x08) + text(b"pc.ram") + b"old." * (_PAGE // 4)
    for address in range(0, size, _PAGE):
        data = memory.read(address, _PAGE)
        if data == data[:1] * _PAGE:
            out += struct.pack(">Q", address | 0x02 | 0x20) + data[:1]
        else:
            out += struct.pack(">Q", address | 0x08 | 0x20) + data
    out += struct.pack(">Q", 0x10) + struct.pack(">BI", 0x7E, 2)
    out += struct.pack(">BIQ", 3, 2, 0x10) + struct.pack(">BI", 0x7E, 2) + b"\x04devices"
    xml = b"<domain/>\0"
    header = struct.pack("<16sIIII", b"LibvirtQemudSave", 2, len(xml), 1, 0).ljust(92, b"\0")
    path.write_bytes((header + xml if saved else b"") + out)
