"""A vmlinux: the kernel as an ELF file, with symbols, DWARF or BTF, and its build id.

Distributions ship it in debug packages (Debian: ``linux-image-…-dbg``, /usr/lib/debug/boot).
pyelftools knows the structures of ELF; sizes and places are checked here before they are used.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import IO, Any, cast

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols import dwarf
from virtintrospect.symbols.brought import Brought, Progress
from virtintrospect.symbols.btf import MAX_SIZE as MAX_BTF
from virtintrospect.symbols.dwarf_units import Sections
from virtintrospect.symbols.imported import MAX_BUILD_ID
from virtintrospect.symbols.systemmap import MAX_SYMBOLS
from virtintrospect.symbols.table_build import Entry, build_table

#: Largest section that is unpacked from a compressed one; others stay in the mapped file.
MAX_SECTION = 1 << 30

_MOST_SECTIONS = 1 << 12
_MAX_NOTES = 1 << 16
_MAX_NAME = 512
_SECTIONS = (".debug_info", ".debug_abbrev", ".debug_str", ".debug_line_str", ".debug_str_offsets")
#: NT_GNU_BUILD_ID, and the name of whoever defines it.
_BUILD_ID_TYPE, _GNU = 3, b"GNU\0"
#: Symbols that name no place of the kernel: of a section, of a source file.
_STT_SECTION, _STT_FILE = 3, 4
_SHN_UNDEFINED, _SHN_ABSOLUTE, _SHN_RESERVED = 0, 0xFFF1, 0xFF00
_SHF_WRITE, _SHF_EXECUTE = 1, 4
_EMPTY = memoryview(b"")


def looks_like(data: memoryview) -> bool:
    """Whether it is an ELF file."""
    return bytes(data[:4]) == b"\x7fELF"


def read(data: memoryview, progress: Progress | None = None) -> Brought:
    """What a vmlinux says.

    BTF is preferred to DWARF where it has both, for the same kernel made it.

    :param data: the whole file, best mapped: only what is needed is touched.
    :param progress: called while DWARF is read, which takes long.
    :raises CorruptDataError: it is no vmlinux, or damaged.
    """
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        return _Vmlinux(data, ELFFile(cast("IO[bytes]", _Stream(data)))).read(progress)
    except (
        ELFError, ConstructError, struct.error, ValueError, KeyError, IndexError, TypeError,
        AttributeError, OverflowError, AssertionError,
    ) as problem:  # fmt: skip
        # pyelftools raises these for files that contradict themselves.
        raise CorruptDataError(f"vmlinux: a damaged ELF file ({problem!r:.100})", 0) from problem


class _Vmlinux:
    def __init__(self, data: memoryview, elf: Any) -> None:
        self._data = data
        self._elf = elf
        self._order = "<" if elf.little_endian else ">"
        if elf.header["e_type"] not in ("ET_EXEC", "ET_DYN"):
            raise CorruptDataError(
                f"vmlinux: an ELF file of type {elf.header['e_type']}, not a whole kernel",
                16,
                hint="modules and object files do not serve; give the kernel's own vmlinux",
            )
        if elf.num_sections() > _MOST_SECTIONS:
            raise CorruptDataError("vmlinux: more sections than any kernel has", 0)
        self._sections = list(elf.iter_sections())
        self._by_name = {section.name: section for section in reversed(self._sections)}

    def read(self, progress: Progress | None) -> Brought:
        build_id, note = self._build_id()
        entries = list(self._symbols())
        types, form = self._types(progress)
        whole = any(entry.name == b"_text" for entry in entries)
        symbols = build_table(entries, self._elf.elfclass) if whole else None
        banner = b""
        if symbols is not None and (address := symbols.get("linux_banner")) is not None:
            banner = self._bytes_at(address, _MAX_NAME).split(b"\0", 1)[0].rstrip(b"\n")
        if types is None and symbols is None:
            raise CorruptDataError(
                "vmlinux: it has neither types nor symbols",
                0,
                hint="it was stripped; the distribution's debug package has the whole one",
            )
        return Brought(
            format=form,
            types=types,
            symbols=symbols,
            pointer_size=self._elf.elfclass // 8,
            build_id=build_id,
            note=note,
            banner=banner,
        )

    def _types(self, progress: Progress | None) -> tuple[bytes | None, str]:
        btf = self._content(".BTF")
        if len(btf) > 24:
            if len(btf) > MAX_BTF:
                raise CorruptDataError("vmlinux: more BTF than any kernel has", 0)
            return bytes(btf), "ELF with BTF"
        info, abbreviations, *strings = (self._content(name) for name in _SECTIONS)
        if not info:
            return None, "ELF without types"
        sections = Sections(info, abbreviations, *strings)
        return dwarf.read_types(sections, self._order, progress), "ELF with DWARF"

    def _content(self, name: str) -> memoryview:
        """A section's content; empty where there is none. Older kernels' may be ``.zdebug_*``."""
        section = self._by_name.get(name)
        if section is None and name.startswith(".debug"):
            section = self._by_name.get(f".z{name[1:]}")
        if section is None or section.header["sh_type"] == "SHT_NOBITS":
            return _EMPTY
        start, size = section.header["sh_offset"], section.header["sh_size"]
        if start + size > len(self._data):
            raise CorruptDataError(f"vmlinux: {section.name} reaches beyond the file's end", start)
        raw = self._data[start : start + size]
        if section.name.startswith(".z"):
            return _inflated(raw[12:], int.from_bytes(raw[4:12], "big"), section.name)
        if section.compressed:
            head = 24 if self._elf.elfclass == 64 else 12
            if section.header["sh_flags"] and self._compression(raw) != 1:
                raise CorruptDataError(
                    f"vmlinux: {section.name} is packed in a way that is not known",
                    start,
                    hint="objcopy --decompress-debug-sections",
                )
            return _inflated(raw[head:], section.data_size, section.name)
        return raw

    def _compression(self, raw: memoryview) -> int:
        """``ch_type``: 1 is zlib."""
        return int(struct.unpack_from(f"{self._order}I", raw)[0])

    def _build_id(self) -> tuple[bytes, int]:
        """The build id, and the address of its note."""
        for section in self._sections:
            if section.header["sh_type"] != "SHT_NOTE":
                continue
            data = bytes(self._content(section.name)[:_MAX_NOTES])
            at = 0
            while at + 12 <= len(data):
                names, size, kind = struct.unpack_from(f"{self._order}3I", data, at)
                start = at + 12 + -(-names // 4) * 4
                if (
                    kind == _BUILD_ID_TYPE
                    and data[at + 12 : at + 12 + names] == _GNU
                    and 0 < size <= MAX_BUILD_ID
                    and start + size <= len(data)
                ):
                    return data[start : start + size], section.header["sh_addr"] + at
                at = start + -(-size // 4) * 4
        return b"", 0

    def _symbols(self) -> Iterator[Entry]:
        table = self._by_name.get(".symtab")
        if table is None or table.header["sh_type"] != "SHT_SYMTAB":
            return
        link = table.header["sh_link"]
        if not 0 < link < len(self._sections):
            raise CorruptDataError("vmlinux: the symbols have no names", 0)
        names = self._content(self._sections[link].name)
        raw = self._content(".symtab")
        form = struct.Struct(f"{self._order}{'IBBHQQ' if self._elf.elfclass == 64 else 'IIIBBH'}")
        if len(raw) // form.size > MAX_SYMBOLS:
            raise CorruptDataError("vmlinux: more symbols than any kernel has", 0)
        letters = [_letter(section.header) for section in self._sections]
        text = bytes(names)
        for fields in form.iter_unpack(raw[: len(raw) // form.size * form.size]):
            if self._elf.elfclass == 64:
                name, info, _, index, address, _ = fields
            else:
                name, address, _, info, _, index = fields
            if index == _SHN_UNDEFINED or info & 15 in (_STT_SECTION, _STT_FILE):
                continue
            end = text.find(b"\0", name, name + _MAX_NAME)
            label = text[name:end] if end > name else b""
            if not label or label.startswith((b".L", b"$")):
                continue
            if index == _SHN_ABSOLUTE and not info >> 4:
                continue  # a constant of an assembler file
            if index == _SHN_ABSOLUTE:
                letter = b"a"
            else:
                letter = letters[index] if index < len(letters) else b"?"
            yield Entry(address, letter.upper() if info >> 4 else letter, label)

    def _bytes_at(self, address: int, size: int) -> bytes:
        """Bytes of the kernel's image in the file; empty where it has none there."""
        for section in self._sections:
            header = section.header
            offset = address - header["sh_addr"]
            if header["sh_addr"] and 0 <= offset < header["sh_size"]:
                return bytes(self._content(section.name)[offset : offset + size])
        return b""


def _letter(header: Any) -> bytes:
    """As nm(1) has it, in lower case: a local symbol."""
    if header["sh_type"] == "SHT_NOBITS":
        return b"b"
    flags = header["sh_flags"]
    return b"t" if flags & _SHF_EXECUTE else b"d" if flags & _SHF_WRITE else b"r"


def _inflated(data: memoryview, size: int, name: str) -> memoryview:
    import zlib

    if not 0 <= size <= MAX_SECTION:
        raise CorruptDataError(f"vmlinux: {name} would have {size} bytes", 0)
    try:
        found = zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as problem:
        raise CorruptDataError(f"vmlinux: {name} is damaged ({problem})", 0) from problem
    if len(found) != size:
        raise CorruptDataError(f"vmlinux: {name} unpacks to another size than it says", 0)
    return memoryview(found)


class _Stream(io.RawIOBase):
    """A file over bytes that are there already, for pyelftools; reads copy what is asked for."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Where it stands."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        end = len(self._data) if size < 0 else self._at + size
        found = bytes(self._data[self._at : end])
        self._at += len(found)
        return found
