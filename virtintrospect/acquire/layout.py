"""What is where in the file of a dump: raw, ELF core, LiME.

All three are sparse: a page without data is a hole of the file, at the place where it belongs.
Sources: elf(5); QEMU's dump/dump.c; LiME's doc/README.md (struct lime_mem_range_header).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from virtintrospect.errors import UsageError
from virtintrospect.memory.base import PAGE_SIZE, Region
from virtintrospect.memory.cpunotes import Note
from virtintrospect.memory.file import Part
from virtintrospect.memory.lime import HEADER, MAGIC

#: ``e_machine`` by the name that ``uname -m`` gives (elf(5), linux/elf-em.h).
_MACHINES = {
    "x86_64": 62, "i386": 3, "i486": 3, "i586": 3, "i686": 3, "aarch64": 183, "armv7l": 40,
    "riscv64": 243,
}  # fmt: skip
_X86_64 = 62
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_PT_LOAD, _PT_NOTE = 1, 4
_READ_WRITE_EXECUTE = 7
#: Bytes that firmware has at most; and how far from RAM it must be to be left out of a raw image.
_FIRMWARE, _FAR = 16 << 20, 256 << 20
#: Segments that fit ``e_phnum`` without the extension PN_XNUM; a live guest has some ten.
_MOST_SEGMENTS = 0xFFFE


class Layout(NamedTuple):
    """A file that is to be written: bytes of its own, and ranges of guest memory."""

    format: str
    #: Bytes of the whole file.
    size: int
    #: Headers: offset in the file, and what is there.
    heads: tuple[tuple[int, bytes], ...]
    #: Guest-physical ranges and where they are in the file, both rising.
    parts: tuple[Part, ...]


def _raw(regions: Sequence[Region], _: Sequence[Note], __: str) -> Layout:
    """The offset is the address. Firmware far above all RAM is left out.

    It would make the file of a small guest 4 GiB large, as a program sees it that knows no holes.
    """
    while len(regions) > 1:
        gap = regions[-1].start - regions[-2].end
        if regions[-1].size > _FIRMWARE or gap < _FAR:
            break
        regions = regions[:-1]
    parts = tuple(Part(r.start, r.end, r.start, r.size) for r in regions)
    return Layout("raw", parts[-1].end, (), parts)


def _lime(regions: Sequence[Region], _: Sequence[Note], __: str) -> Layout:
    heads, parts, offset = [], [], 0
    for start, end in regions:
        heads.append((offset, HEADER.pack(MAGIC, 1, start, end - 1)))
        offset += HEADER.size
        parts.append(Part(start, end, offset, end - start))
        offset += end - start
    return Layout("lime", offset, tuple(heads), tuple(parts))


def _elf(regions: Sequence[Region], notes: Sequence[Note], machine: str) -> Layout:
    """Header, program headers and notes in front, then each range from a page's border on."""
    if len(regions) > _MOST_SEGMENTS:
        raise UsageError(
            f"{len(regions)} ranges of memory are too many for an ELF core",
            hint="--format lime takes any number",
        )
    packed = b"".join(_packed(note) for note in notes)
    notes_at = _HEADER.size + (1 + len(regions)) * _SEGMENT.size
    offset = _whole_pages(notes_at + len(packed))
    segments = [_SEGMENT.pack(_PT_NOTE, 0, notes_at, 0, 0, len(packed), len(packed), 4)]
    parts = []
    for start, end in regions:
        size = end - start
        parts.append(Part(start, end, offset, size))
        # As QEMU does, no virtual address: kernels tell by VMCOREINFO where they are. And no
        # alignment, by which crash(8) tells such a dump from netdump's.
        segments.append(
            _SEGMENT.pack(
                _PT_LOAD, _READ_WRITE_EXECUTE, offset, 0, start, size, size, 0
            )
        )  # fmt: skip
        offset += _whole_pages(size)
    header = _HEADER.pack(
        b"\x7fELF\x02\x01\x01", 4, _MACHINES.get(machine, _X86_64), 1, 0, _HEADER.size, 0, 0,
        _HEADER.size, _SEGMENT.size, len(segments), 0, 0, 0,
    )  # fmt: skip
    head = header + b"".join(segments) + packed
    return Layout("elf", parts[-1].offset + parts[-1].length, ((0, head),), tuple(parts))


def _packed(note: Note) -> bytes:
    name = note.name.encode("ascii", "replace") + b"\0"
    head = struct.pack("<III", len(name), len(note.desc), note.type)
    return head + _padded(name) + _padded(note.desc)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


_LAYOUTS: dict[str, Callable[[Sequence[Region], Sequence[Note], str], Layout]] = {
    "elf": _elf,
    "raw": _raw,
    "lime": _lime,
}

#: Names of the formats, the one to take first in front.
FORMATS = tuple(_LAYOUTS)


def lay_out(name: str, regions: Sequence[Region], notes: Sequence[Note], machine: str) -> Layout:
    """The file for these ranges of memory.

    :param name: one of :data:`FORMATS`.
    :param regions: guest-physical ranges, rising, without overlap; joined where they touch.
    :param notes: for an ELF core; the other formats cannot have any.
    :param machine: the guest's architecture by its ``uname -m``, for an ELF core.
    :raises UsageError: no such format; no memory, or too many ranges of it for the format.
    """
    if name not in _LAYOUTS:
        raise UsageError(f"dumps have no format {name!r}", hint=f"there are: {', '.join(FORMATS)}")
    if not regions:
        raise UsageError("this target has no memory that could be dumped")
    return _LAYOUTS[name](regions, notes, machine)
