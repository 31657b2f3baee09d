"""What is where in the file of a dump: raw, ELF core, LiME.

All three are sparse: a page without data is a hole of the file, at the place where it belongs.
An ELF core has no place for large ranges that the host has not got: they all show the same zeros.
Sources: elf(5); QEMU's dump/dump.c; LiME's doc/README.md (struct lime_mem_range_header).
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from virtintrospect.errors import UsageError
from virtintrospect.memory.base import PAGE_SIZE, PhysicalMemory, Region
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
#: Segments that fit ``e_phnum`` without the extension PN_XNUM; a live guest has some ten ranges.
_MOST_SEGMENTS = 0xFFFE
#: Least bytes of a range without data that an ELF core has no place for, and how many of them.
_LEAST_GAP, _MOST_GAPS = 1 << 20, 1000
#: Bytes of zeros that an ELF core shows in their place, at least; and how often, at most, about.
_ZEROS, _MOST_ZEROS = 4 << 20, 1024


class Layout(NamedTuple):
    """A file that is to be written: bytes of its own, and ranges of guest memory."""

    format: str
    #: Bytes of the whole file.
    size: int
    #: Headers: offset in the file, and what is there.
    heads: tuple[tuple[int, bytes], ...]
    #: Guest-physical ranges that may have data and where they are in the file, both rising.
    parts: tuple[Part, ...]
    #: All ranges of guest memory that the file shows.
    regions: tuple[Region, ...]


def outline(memory: PhysicalMemory) -> list[Region]:
    """The ranges in which the host has memory, roughly: small gaps and most of many are in them."""
    gaps: list[Region] = []
    first = last = None
    for start, end in memory.populated():
        first = start if first is None else first
        if last is not None and start - last >= _LEAST_GAP:
            gaps.append(Region(last, start))
            if len(gaps) > 8 * _MOST_GAPS:
                gaps = heapq.nlargest(_MOST_GAPS, gaps, key=lambda gap: gap.size)
        last = end
    if first is None or last is None:
        return []
    gaps = sorted(heapq.nlargest(_MOST_GAPS, gaps, key=lambda gap: gap.size))
    starts = [first, *(gap.end for gap in gaps)]
    return [Region(*run) for run in zip(starts, [*(gap.start for gap in gaps), last], strict=True)]


def _raw(regions: Sequence[Region], *_: object) -> Layout:
    """The offset is the address. Firmware far above all RAM is left out.

    It would make the file of a small guest 4 GiB large, as a program sees it that knows no holes.
    """
    while len(regions) > 1:
        gap = regions[-1].start - regions[-2].end
        if regions[-1].size > _FIRMWARE or gap < _FAR:
            break
        regions = regions[:-1]
    parts = tuple(Part(r.start, r.end, r.start, r.size) for r in regions)
    return Layout("raw", parts[-1].end, (), parts, tuple(regions))


def _lime(regions: Sequence[Region], *_: object) -> Layout:
    heads, parts, offset = [], [], 0
    for start, end in regions:
        heads.append((offset, HEADER.pack(MAGIC, 1, start, end - 1)))
        offset += HEADER.size
        parts.append(Part(start, end, offset, end - start))
        offset += end - start
    return Layout("lime", offset, tuple(heads), tuple(parts), tuple(regions))


def _elf(
    regions: Sequence[Region], runs: Sequence[Region], notes: Sequence[Note], machine: str
) -> Layout:
    """Header, program headers and notes in front, then each range from a page's border on.

    Last come the zeros that ranges without data show, in pieces of that size: programs that take
    ``p_memsz`` above ``p_filesz`` for memory that is not there find these all the same, and who
    copies or hashes the file has no more than the data to read.
    """
    pieces, zeros = _pieces(regions, runs)
    if len(pieces) > _MOST_SEGMENTS:
        raise UsageError(
            f"{len(pieces)} ranges of memory are too many for an ELF core",
            hint="--format lime takes any number",
        )
    packed = b"".join(_packed(note) for note in notes)
    notes_at = _HEADER.size + (1 + len(pieces)) * _SEGMENT.size
    offset = _whole_pages(notes_at + len(packed))
    zeros_at = offset + sum(_whole_pages(end - start) for start, end, data in pieces if data)
    segments = [_SEGMENT.pack(_PT_NOTE, 0, notes_at, 0, 0, len(packed), len(packed), 4)]
    parts = []
    for start, end, data in pieces:
        size = end - start
        # As QEMU does, no virtual address: kernels tell by VMCOREINFO where they are. And no
        # alignment, by which crash(8) tells such a dump from netdump's.
        segments.append(
            _SEGMENT.pack(
                _PT_LOAD, _READ_WRITE_EXECUTE, offset if data else zeros_at, 0, start, size, size,
                0,
            )
        )  # fmt: skip
        if data:
            parts.append(Part(start, end, offset, size))
            offset += _whole_pages(size)
    header = _HEADER.pack(
        b"\x7fELF\x02\x01\x01", 4, _MACHINES.get(machine, _X86_64), 1, 0, _HEADER.size, 0, 0,
        _HEADER.size, _SEGMENT.size, len(segments), 0, 0, 0,
    )  # fmt: skip
    head = header + b"".join(segments) + packed
    size = zeros_at + zeros if zeros or not parts else parts[-1].offset + parts[-1].length
    return Layout("elf", size, ((0, head),), tuple(parts), tuple(regions))


class _Piece(NamedTuple):
    start: int
    end: int
    data: bool


def _pieces(regions: Sequence[Region], runs: Sequence[Region]) -> tuple[list[_Piece], int]:
    """Each range cut into what has data and what has none; and how many zeros these need."""
    found: list[_Piece] = []
    index = 0
    for start, end in regions:
        while index < len(runs) and runs[index].end <= start:
            index += 1
        at, number = start, index
        while at < end:
            run = runs[number] if number < len(runs) else Region(end, end)
            if run.start > at:
                found.append(_Piece(at, min(run.start, end), False))
            if run.start < end:
                found.append(_Piece(max(run.start, at), min(run.end, end), True))
            at, number = min(run.end, end), number + 1
    gaps = [piece.end - piece.start for piece in found if not piece.data]
    if not gaps:
        return found, 0
    zeros = min(max(_ZEROS, -(-sum(gaps) // _MOST_ZEROS // _ZEROS) * _ZEROS), max(gaps))
    cut = [
        _Piece(at, min(at + (end - start if data else zeros), end), data)
        for start, end, data in found
        for at in range(start, end, end - start if data else zeros)
    ]
    return cut, zeros


def _packed(note: Note) -> bytes:
    name = note.name.encode("ascii", "replace") + b"\0"
    head = struct.pack("<III", len(name), len(note.desc), note.type)
    return head + _padded(name) + _padded(note.desc)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _whole_pages(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE


_LAYOUTS: dict[str, Callable[[Sequence[Region], Sequence[Region], Sequence[Note], str], Layout]] = {
    "elf": _elf,
    "raw": _raw,
    "lime": _lime,
}

#: Names of the formats, the one to take first in front.
FORMATS = tuple(_LAYOUTS)


def lay_out(
    name: str,
    regions: Sequence[Region],
    runs: Sequence[Region],
    notes: Sequence[Note],
    machine: str,
) -> Layout:
    """The file for these ranges of memory.

    :param name: one of :data:`FORMATS`.
    :param regions: guest-physical ranges, rising, without overlap; joined where they touch.
    :param runs: what may have data, as :func:`outline` gives it: an ELF core is no larger.
    :param notes: for an ELF core; the other formats cannot have any.
    :param machine: the guest's architecture by its ``uname -m``, for an ELF core.
    :raises UsageError: no such format; no memory, or too many ranges of it for the format.
    """
    if name not in _LAYOUTS:
        raise UsageError(f"dumps have no format {name!r}", hint=f"there are: {', '.join(FORMATS)}")
    if not regions:
        raise UsageError("this target has no memory that could be dumped")
    return _LAYOUTS[name](regions, runs, notes, machine)
