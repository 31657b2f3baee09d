"""ELF cores of whole guests, as ``virsh dump --memory-only`` writes them (QEMU's dump/dump.c).

Parsed by hand: it is two structures, and pyelftools costs 30 ms to import and believes what
the file says of itself. QEMU's files are odd: e_ehsize is 8, LOAD offsets are not aligned to
pages, a 32-bit PAE guest gives ELF64 with EM_386, and from 65,535 segments on their count is
in the first section header (PN_XNUM, elf(5)).
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory.file import FileImage, Part

_ET_CORE = 4
_MACHINES = {3: "i386", 62: "x86-64"}
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM = 0xFFFF

#: More segments than any dump has: guests have tens, filtered dumps some ten thousands.
_MOST_SEGMENTS = 1 << 20
#: Notes grow with the number of CPUs, by some 800 bytes each.
_MOST_NOTE_BYTES = 16 << 20
_MOST_NOTES = 1 << 16
#: x86-64 has at most 52 bits of physical address.
_ADDRESS_LIMIT = 1 << 52


class Note(NamedTuple):
    """An ELF note: QEMU's CPU states (``QEMU``), registers (``CORE``), ``VMCOREINFO``."""

    name: str
    type: int
    desc: bytes


class _Class(NamedTuple):
    """Sizes and formats of ELF32 or ELF64; header fields without e_ident."""

    header: struct.Struct
    segment: struct.Struct
    #: Offset of sh_info in a section header.
    section_info: int


_ELF32 = _Class(struct.Struct("<HHIIIIIHHHHHH"), struct.Struct("<IIIIIIII"), 28)
_ELF64 = _Class(struct.Struct("<HHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), 44)


class _Segment(NamedTuple):
    type: int
    offset: int
    paddr: int
    file_size: int
    memory_size: int
    #: Where the program header itself is in the file.
    header_at: int


class ElfCore(FileImage):
    """A guest's memory in an ELF core.

    :param size: bytes of the file.
    :raises ImageFormatError: it is truncated, contradicts itself, or is another kind of ELF.
    """

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        reader = _Reader(path, descriptor, size)
        segments = reader.segments()
        loads = [s for s in segments if s.type == _PT_LOAD and s.memory_size]
        if not loads:
            raise ImageFormatError(path, 0, "this ELF core holds no memory (no PT_LOAD)")
        super().__init__(path, descriptor, reader.parts(loads))
        #: Architecture of the guest as the file names it: ``x86-64`` or ``i386``.
        self.machine = reader.machine
        #: All notes of the file, in order.
        self.notes: list[Note] = reader.notes([s for s in segments if s.type == _PT_NOTE])


class _Reader:
    """Reads the ELF structures of one file."""

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size = size
        ident = self._read(0, 16, "the ELF header")
        if ident[4] not in (1, 2) or ident[5] != 1:
            raise self._error(4, "ELF class or byte order is not supported (only little-endian)")
        self._class = _ELF32 if ident[4] == 1 else _ELF64
        layout = self._class.header
        fields = layout.unpack(self._read(16, layout.size, "the ELF header"))
        kind, machine, _, _, self._phoff, self._shoff, _, _, phentsize, self._phnum, *_ = fields
        if kind != _ET_CORE:
            raise self._error(
                16,
                f"no memory image: an ELF file of type {kind}, not a core (4)",
                "`virsh dump --memory-only DOMAIN FILE` makes one",
            )
        if machine not in _MACHINES:
            raise self._error(
                18,
                f"an ELF core of machine {machine}: not supported yet",
                "x86-64 and i386 guests can be read",
            )
        if phentsize != self._class.segment.size:
            raise self._error(16, f"program headers of {phentsize} bytes make no sense")
        self.machine = _MACHINES[machine]

    def segments(self) -> list[_Segment]:
        """All program headers."""
        count = self._phnum
        if count == _PN_XNUM:
            at = self._shoff + self._class.section_info
            count = int.from_bytes(self._read(at, 4, "the number of segments"), "little")
        layout = self._class.segment
        if count > _MOST_SEGMENTS:
            raise self._error(self._phoff, f"{count} segments make no sense")
        table = self._read(self._phoff, count * layout.size, "the program headers")
        found = []
        for index, fields in enumerate(layout.iter_unpack(table)):
            if layout is _ELF64.segment:
                kind, _, offset, _, paddr, file_size, memory_size, _ = fields
            else:
                kind, offset, _, paddr, file_size, memory_size, _, _ = fields
            at = self._phoff + index * layout.size
            found.append(_Segment(kind, offset, paddr, file_size, memory_size, at))
        return found

    def parts(self, loads: list[_Segment]) -> list[Part]:
        """The memory of the PT_LOAD segments, checked against the file and each other."""
        parts: list[Part] = []
        for load in sorted(loads, key=lambda segment: segment.paddr):
            what = f"segment of guest-physical {load.paddr:#x}"
            if load.file_size > load.memory_size:
                raise self._error(load.header_at, f"{what} is larger in the file than in memory")
            if load.paddr + load.memory_size > _ADDRESS_LIMIT:
                raise self._error(load.header_at, f"{what} ends above 52 bits of address")
            if load.offset + load.file_size > self._size:
                raise self._error(
                    self._size,
                    f"truncated: {what} needs {load.offset + load.file_size:#x} bytes of file",
                    "the dump was not finished, or the copy of it",
                )
            if parts and load.paddr < parts[-1].end:
                raise self._error(
                    load.header_at,
                    f"{what} overlaps the one before",
                    "a core of a process is no image of a guest",
                )
            end = load.paddr + load.memory_size
            parts.append(Part(load.paddr, end, load.offset, load.file_size))
        return parts

    def notes(self, segments: list[_Segment]) -> list[Note]:
        """The notes of the PT_NOTE segments."""
        found: list[Note] = []
        for segment in segments:
            if segment.file_size > _MOST_NOTE_BYTES:
                raise self._error(segment.header_at, f"notes of {segment.file_size:#x} bytes")
            data = self._read(segment.offset, segment.file_size, "the notes")
            at = 0
            while at + 12 <= len(data) and len(found) < _MOST_NOTES:
                name_size, desc_size, kind = struct.unpack_from("<III", data, at)
                desc_at = at + 12 + -(-name_size // 4) * 4
                if desc_at + desc_size > len(data):
                    raise self._error(segment.offset + at, "a note reaches beyond its segment")
                name = data[at + 12 : at + 12 + name_size].rstrip(b"\0").decode("ascii", "replace")
                found.append(Note(name, kind, data[desc_at : desc_at + desc_size]))
                at = desc_at + -(-desc_size // 4) * 4
        return found

    def _read(self, offset: int, size: int, what: str) -> bytes:
        """Bytes of the file; checked against its length before anything is allocated."""
        if offset + size > self._size:
            raise self._error(self._size, f"truncated: {what} would be at {offset:#x}")
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise self._error(offset + len(data), "the file was cut short while in use")
        return data

    def _error(self, offset: int, problem: str, hint: str = "") -> ImageFormatError:
        return ImageFormatError(self._path, offset, problem, hint=hint)
