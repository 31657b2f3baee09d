"""RAM in QEMU's migration stream, which ``virsh save`` and ``snapshot --memspec`` put in a file.

Source: migration/savevm.c, migration/ram.c (stream version 3), docs/devel/migration.rst; libvirt's
src/qemu/qemu_saveimage.h for what is in front of it. The stream is read once to find where each
page is; a page that comes twice counts as it came last. What follows RAM, the devices' state, is
not read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory import pc, virt
from virtintrospect.memory.base import PAGE_SIZE, PhysicalMemory, Region, merge
from virtintrospect.memory.source import Source

MAGIC = b"QEVM"
#: libvirt's header: magic, version, length of the XML, running, compression, …; and its size.
SAVED, UNFINISHED = b"LibvirtQemudSave", b"LibvirtQemudPart"
_SAVED_HEADER = struct.Struct("<16sIIII")
_SAVED_HEADER_SIZE = 92
_COMPRESSIONS = {1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd", 6: "sparse"}

#: Kinds of sections (QEMU_VM_… in migration/savevm.h).
_EOF, _START, _PART, _END, _FULL, _SUBSECTION, _CONFIGURATION, _FOOTER = (
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x07, 0x7E,
)  # fmt: skip
#: What a record of RAM is (RAM_SAVE_FLAG_…), in the low bits of its address.
_ZERO, _SIZES, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_FLAGS = PAGE_SIZE - 1
#: The block is guest RAM as a whole, or the RAM of a NUMA node.
_RAM, _NODE = "pc.ram", "ram-node"
#: RAM of machines of other architectures, and which these are.
_FOREIGN_RAM = {"mach-virt.ram": "aarch64", "riscv_virt_board.ram": "riscv64"}

_MOST_BLOCKS = 4096
#: Largest guest that is believed, in bytes.
_LARGEST = 1 << 44
#: Bytes that are read of the file at once while it is searched.
_AT_ONCE = 1 << 22
_LONGEST_NAME = 256
#: Mark of a page that is one byte again and again.
_FILLED = 1 << 63


class _Block(NamedTuple):
    """A RAM block of QEMU: of each page the offset in the file, 0 where it is all zeros."""

    name: str
    size: int
    pages: memoryview


class StreamImage(PhysicalMemory):
    """Guest memory in a migration stream.

    :param source: the file, which is taken over.
    :param start: offset of the stream in it.
    :raises ImageFormatError: it is truncated, contradicts itself, or is of a machine whose
        memory map is not known.
    """

    def __init__(self, source: Source, start: int = 0) -> None:
        self._source = source
        reader = _Stream(source, start)
        reader.run()
        blocks = _guest_ram(reader.blocks)
        placed = _ranges(reader, sum(block.size for block in blocks))
        if not blocks or placed is None:
            raise ImageFormatError(
                source.path, start, f"the memory map of machine {reader.machine!r} is not known"
            )
        self._parts = list(_placed(blocks, placed))
        self.regions = tuple(region for region, _, _ in self._parts)

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        region, block, offset = self._parts[index]
        at = paddr - region.start + offset
        parts = []
        while size > 0:
            step = min(size, PAGE_SIZE - at % PAGE_SIZE)
            place = block.pages[at // PAGE_SIZE]
            if place >= _FILLED:
                parts.append(bytes([place & 0xFF]) * step)
            elif place:
                parts.append(self._source.read(place + at % PAGE_SIZE, step, "a page"))
            else:
                parts.append(bytes(step))
            at += step
            size -= step
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def resident(self) -> Iterator[Region]:
        """Ranges of the pages that are not zeros."""
        return merge(self._data())

    def _data(self) -> Iterator[Region]:
        import numpy as np

        for region, block, offset in self._parts:
            first, last = offset // PAGE_SIZE, (offset + region.size) // PAGE_SIZE
            there = np.flatnonzero(np.frombuffer(block.pages, dtype=np.uint64)[first:last])
            if not len(there):
                continue
            breaks = np.flatnonzero(np.diff(there) != 1) + 1
            for run in np.split(there, breaks):
                start = region.start + int(run[0]) * PAGE_SIZE
                yield Region(start, start + len(run) * PAGE_SIZE)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._source.close()


def open_saved(source: Source) -> StreamImage:
    """What ``virsh save`` wrote: libvirt's header, the domain's XML, and the stream."""
    header = source.read(0, _SAVED_HEADER.size, "libvirt's header")
    magic, version, length, _, compression = _SAVED_HEADER.unpack(header)
    if magic == UNFINISHED:
        raise ImageFormatError(source.path, 0, "`virsh save` was not finished")
    if version > 2 and version >> 24:
        raise ImageFormatError(source.path, 16, "saved on a machine of the other byte order")
    if compression:
        name = _COMPRESSIONS.get(compression, f"method {compression}")
        raise ImageFormatError(
            source.path,
            28,
            f"a domain saved with compression ({name}): not supported",
            hint="save it with save_image_format = 'raw' in /etc/libvirt/qemu.conf",
        )
    return StreamImage(source, _SAVED_HEADER_SIZE + length)


def _guest_ram(blocks: dict[str, _Block]) -> list[_Block]:
    """The blocks that RAM at boot consists of, in their order; DIMMs are left out."""
    for name in (_RAM, *_FOREIGN_RAM):
        if name in blocks:
            return [blocks[name]]
    nodes = [name for name in blocks if name.startswith(_NODE) and name[8:].isdecimal()]
    return [blocks[name] for name in sorted(nodes, key=lambda name: int(name[8:]))]


def _ranges(reader: _Stream, size: int) -> list[tuple[int, int, int]] | None:
    """Where RAM is: start, end, offset in all of RAM; ``None`` where the machine is not known."""
    for name, architecture in _FOREIGN_RAM.items():
        if name in reader.blocks:
            start = virt.ram_start(architecture, reader.machine)
            return None if start is None else [(start, start + size, 0)]
    low = pc.low_memory(reader.machine, size)
    return None if low is None else pc.ranges(size, low)


def _placed(
    blocks: list[_Block], ranges: list[tuple[int, int, int]]
) -> Iterator[tuple[Region, _Block, int]]:
    """Guest-physical ranges with their block and the offset in it."""
    for start, end, offset in ranges:
        at, base = start, 0
        for block in blocks:
            inside = max(offset + at - start - base, 0)
            if inside < block.size and at < end:
                stop = min(end, at + block.size - inside)
                yield Region(at, stop), block, inside
                at = stop
            base += block.size


class _Stream:
    """Reads a stream up to the end of RAM."""

    def __init__(self, source: Source, start: int) -> None:
        self._source = source
        self._at = start
        self._buffer = b""
        self._buffer_at = start
        self.machine = ""
        self.blocks: dict[str, _Block] = {}
        self._current: _Block | None = None

    def run(self) -> None:
        if self._take(4) != MAGIC or self._number(4) != 3:
            raise self._error("no migration stream of version 3")
        names: dict[int, str] = {}
        while True:
            kind = self._number(1)
            if kind == _CONFIGURATION:
                self._configuration()
            elif kind == _START:
                number = self._number(4)
                names[number] = self._name()
                self._take(8)  # instance, version
                self._section(names[number])
            elif kind in (_PART, _END):
                number = self._number(4)
                self._section(names.get(number, ""))
                if kind == _END and names[number] == "ram":
                    return
            elif kind == _FOOTER:
                self._take(4)
            elif kind == _FULL and "ram" in names.values():
                return  # a background snapshot has no end of RAM: devices follow all pages
            elif kind in (_FULL, _EOF):
                raise self._error("the stream has no end of RAM")
            else:
                raise self._error(f"section of kind {kind:#x}")
            if len(names) > _MOST_BLOCKS:
                raise self._error("too many sections")

    def _configuration(self) -> None:
        self.machine = self._text(self._number(4))
        while self._peek() == _SUBSECTION:
            self._number(1)
            name = self._name()
            self._take(4)  # version
            if name == "configuration/capabilities":
                for _ in range(min(self._number(4), _LONGEST_NAME)):
                    self._name()
            elif name == "configuration/uuid":
                self._take(16)
            elif name == "configuration/target-page-bits":
                self._take(4)
            else:
                raise self._error(f"configuration {name!r} is not known")

    def _section(self, name: str) -> None:
        if name != "ram":
            raise self._error(f"section {name!r} is not known")
        while True:
            word = self._number(8)
            flags, address = word & _FLAGS, word & ~_FLAGS
            kind = flags & ~_CONTINUE
            if kind == _EOS:
                return
            if kind == _SIZES:
                self._sizes(address)
                continue
            if kind not in (_ZERO, _PAGE):
                raise self._error(f"record of RAM with flags {flags:#x} (compressed, multifd, …)")
            if not flags & _CONTINUE:
                self._current = self.blocks.get(self._name())
            block = self._current
            if block is None or address >= block.size:
                raise self._error(f"page {address:#x} of a block that is not there")
            if kind == _ZERO:
                fill = self._number(1)
                block.pages[address // PAGE_SIZE] = _FILLED | fill if fill else 0
            else:
                block.pages[address // PAGE_SIZE] = self._at
                self._skip(PAGE_SIZE)

    def _sizes(self, total: int) -> None:
        """Names and sizes of all blocks; only what is touched of an index takes up memory."""
        while total > 0:
            name, size = self._name(), self._number(8)
            if not 0 < size <= min(total, _LARGEST) or size % PAGE_SIZE:
                raise self._error(f"block {name!r} of {size:#x} bytes")
            if len(self.blocks) >= _MOST_BLOCKS or total > _LARGEST:
                raise self._error("more RAM than any guest has")
            try:
                # Private: of shared memory, looking at a page would take one.
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                pages = mmap.mmap(-1, size // PAGE_SIZE * 8, flags=flags)
            except OSError as error:
                raise self._error(f"block {name!r} of {size:#x} bytes: {error.strerror}") from error
            index = memoryview(pages).cast("Q")
            self.blocks[name] = _Block(name, size, index)
            total -= size

    # -- bytes ----------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        at = self._at - self._buffer_at
        if not 0 <= at <= len(self._buffer) - size:
            left = self._source.size - self._at
            self._source.check(self._at, size, "the stream goes on and")
            self._buffer = self._source.read(self._at, min(_AT_ONCE, left))
            self._buffer_at, at = self._at, 0
        self._at += size
        return self._buffer[at : at + size]

    def _skip(self, size: int) -> None:
        self._source.check(self._at, size, "a page")
        self._at += size

    def _peek(self) -> int:
        byte = self._take(1)
        self._at -= 1
        return byte[0]

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _name(self) -> str:
        return self._text(self._number(1))

    def _text(self, size: int) -> str:
        if size > _LONGEST_NAME:
            raise self._error(f"a name of {size} bytes")
        return self._take(size).decode("ascii", "backslashreplace")

    def _error(self, problem: str) -> ImageFormatError:
        return ImageFormatError(self._source.path, self._at, problem)
