"""ELF cores of whole guests, as ``virsh dump --memory-only`` writes them (QEMU's dump/dump.c).

pyelftools knows the structures; what they say is checked here, since a file may lie, before
anything is read or allocated by it. QEMU's files are odd: e_ehsize is 8, LOAD offsets are not
aligned to pages, a 32-bit PAE guest gives ELF64 with EM_386, and from 65,535 segments on their
count is in the first section header (PN_XNUM, elf(5)).
"""

from __future__ import annotations

import io
import os
from typing import Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory.cpunotes import Note
from virtintrospect.memory.file import FileImage, Part

_MACHINES = {
    "EM_386": "i386",
    "EM_X86_64": "x86-64",
    "EM_AARCH64": "aarch64",
    "EM_ARM": "arm",
    "EM_RISCV": "riscv64",
}
_PN_XNUM = 0xFFFF
#: Bytes of an ELF64 header, the larger one.
_HEADER = 64

#: More segments than any dump has: guests have tens, filtered dumps some ten thousands.
_MOST_SEGMENTS = 1 << 18
#: Notes grow with the number of CPUs, by some 800 bytes each.
_MOST_NOTE_BYTES = 16 << 20
_MOST_NOTES = 1 << 16
#: x86-64 has at most 52 bits of physical address.
_ADDRESS_LIMIT = 1 << 52


class _Segment(NamedTuple):
    type: str | int
    offset: int
    paddr: int
    file_size: int
    memory_size: int
    vaddr: int
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
        loads = [s for s in segments if s.type == "PT_LOAD" and s.memory_size]
        if not loads:
            raise ImageFormatError(path, 0, "this ELF core holds no memory (no PT_LOAD)")
        super().__init__(path, descriptor, reader.parts(loads))
        #: Architecture of the guest, as the file names it: one of the values of _MACHINES.
        self.machine = reader.machine
        #: All notes of the file, in order.
        self.notes: list[Note] = reader.notes([s for s in segments if s.type == "PT_NOTE"])


class _Reader:
    """Reads the ELF structures of one file."""

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        self._path = path
        self._size = size
        self._stream = io.BufferedReader(io.FileIO(descriptor, closefd=False))
        self._within(0, _HEADER, "the ELF header")
        try:
            elf = ELFFile(self._stream)
        except ELFError as error:
            raise self._error(4, f"no ELF file: {error}") from error
        if not elf.little_endian:
            raise self._error(4, "big-endian ELF files are not supported")
        self._header, self._structs = elf.header, elf.structs
        if self._header.e_type != "ET_CORE":
            raise self._error(
                16,
                f"no memory image: an ELF file of type {self._header.e_type}, not a core",
                "`virsh dump --memory-only DOMAIN FILE` makes one",
            )
        if self._header.e_machine not in _MACHINES:
            raise self._error(
                18,
                f"an ELF core of machine {self._header.e_machine}: not supported yet",
                f"guests of {', '.join(_MACHINES.values())} can be read",
            )
        if self._header.e_phentsize != self._structs.Elf_Phdr.sizeof():
            raise self._error(
                16, f"program headers of {self._header.e_phentsize} bytes make no sense"
            )
        self.machine = _MACHINES[self._header.e_machine]

    def segments(self) -> list[_Segment]:
        """All program headers."""
        count, table = self._header.e_phnum, self._header.e_phoff
        if count == _PN_XNUM:
            section = self._parse(
                self._structs.Elf_Shdr, self._header.e_shoff, "the number of segments"
            )
            count = section.sh_info
        if count > _MOST_SEGMENTS:
            raise self._error(table, f"{count} segments make no sense")
        layout = self._structs.Elf_Phdr
        self._within(table, count * layout.sizeof(), "the table of program headers")
        found = []
        for at in range(table, table + count * layout.sizeof(), layout.sizeof()):
            entry = self._parse(layout, at, "a program header")
            found.append(
                _Segment(entry.p_type, entry.p_offset, entry.p_paddr, entry.p_filesz,
                         entry.p_memsz, entry.p_vaddr, at)
            )  # fmt: skip
        return found

    def parts(self, loads: list[_Segment]) -> list[Part]:
        """The memory of the PT_LOAD segments, checked against the file and each other."""
        parts: list[Part] = []
        for load in sorted(loads, key=lambda segment: (segment.paddr, -segment.memory_size)):
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
                if load.vaddr >> 63 and load.paddr + load.memory_size <= parts[-1].end:
                    continue  # /proc/vmcore has the kernel's image twice, the same bytes
                raise self._error(
                    load.header_at,
                    f"{what} overlaps the one before",
                    "a core of a process is no image of a guest",
                )
            end = load.paddr + load.memory_size
            parts.append(Part(load.paddr, end, load.offset, load.file_size))
        return parts

    def notes(self, segments: list[_Segment]) -> list[Note]:
        """The notes of the PT_NOTE segments.

        pyelftools' own ``iter_notes`` also decodes what is in them, by counts that the file
        chooses.
        """
        found: list[Note] = []
        layout = self._structs.Elf_Nhdr
        for segment in segments:
            if segment.file_size > _MOST_NOTE_BYTES:
                raise self._error(segment.header_at, f"notes of {segment.file_size:#x} bytes")
            at, end = segment.offset, segment.offset + segment.file_size
            self._within(at, segment.file_size, "the notes")
            while at + layout.sizeof() <= end and len(found) < _MOST_NOTES:
                entry = self._parse(layout, at, "a note")
                name_at = at + layout.sizeof()
                desc_at = name_at + -(-entry.n_namesz // 4) * 4
                if desc_at + entry.n_descsz > end:
                    raise self._error(at, "a note reaches beyond its segment")
                name = self._read(name_at, entry.n_namesz).rstrip(b"\0").decode("ascii", "replace")
                # The enumerations of types are those of other systems' notes.
                kind = int.from_bytes(self._read(at + 8, 4), "little")
                found.append(Note(name, kind, self._read(desc_at, entry.n_descsz)))
                at = desc_at + -(-entry.n_descsz // 4) * 4
        return found

    def _parse(self, layout: Any, offset: int, what: str) -> Any:
        self._within(offset, layout.sizeof(), what)
        try:
            return struct_parse(layout, self._stream, offset)
        except ELFError as error:
            raise self._error(offset, f"{what} cannot be read: {error}") from error

    def _within(self, offset: int, size: int, what: str) -> None:
        """Check a range against the file's length before anything is done with it."""
        if offset + size > self._size:
            raise self._error(self._size, f"truncated: {what} would be at {offset:#x}")

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._stream.fileno(), size, offset)
        if len(data) != size:
            raise self._error(offset + len(data), "the file was cut short while in use")
        return data

    def _error(self, offset: int, problem: str, hint: str = "") -> ImageFormatError:
        return ImageFormatError(self._path, offset, problem, hint=hint)
