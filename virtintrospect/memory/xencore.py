"""Cores of Xen guests, as ``xl dump-core`` writes them: ELF with sections and no segments.

Source: Xen's docs/misc/dump-core-format.txt; xen/include/public/arch-x86/xen-x86_64.h for the
registers. ``.xen_pages`` has the pages, in the order of a table of their frames:

* a guest with hardware virtualisation (HVM, PVH) has ``.xen_pfn``, its own frames;
* a paravirtual one has ``.xen_p2m``: of each page the frame that the guest calls it by, and the
  frame of the machine. Memory is by the guest's frames, as its kernel's records are. Its page
  tables and its CR3 hold frames of the machine: :attr:`XenCore.frames` turns these round.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from virtintrospect.errors import ImageFormatError
from virtintrospect.memory.base import PAGE_SIZE
from virtintrospect.memory.file import FileImage, Part
from virtintrospect.memory.source import Source

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PAGES, _PFN, _P2M, _STATUS, _NOTES = (
    ".xen_pages", ".xen_pfn", ".xen_p2m", ".xen_prstatus", ".note.Xen",
)  # fmt: skip
#: XEN_ELFNOTE_DUMPCORE_HEADER: magic, vCPUs, pages, size of a page.
_HEADER_NOTE, _HEADER = 0x2000001, struct.Struct("<QQQQ")
_PARAVIRTUAL, _HARDWARE = 0xF00FEBED, 0xF00FEBEE
_PAGE_SHIFT = 12
#: Above all addresses that x86-64 has: no image has memory there.
_NOWHERE = 1 << 52
#: A page that the guest does not have (INVALID_PFN of libxc's xc_core.h).
_NONE = (1 << 64) - 1

_MOST_SECTIONS = 256
_LONGEST_NAMES = 1 << 16
_LARGEST_NOTES = 1 << 16
#: 512 GiB of guest: the tables of frames are read as a whole, some 4 GiB at most.
_MOST_PAGES = 1 << 27
#: Runs of pages that are together in the file and in memory. A paravirtual guest has many.
_MOST_RUNS = 1 << 22
#: x86-64 has at most 52 bits of physical address.
_MOST_FRAMES = 1 << 40
_MOST_CPUS = 4096

#: struct vcpu_guest_context of x86-64: its size, and where the registers are in it.
_CONTEXT_SIZE, _USER_AT, _CONTROL_AT, _BASES_AT = 5168, 520, 4984, 5144
#: struct cpu_user_regs: 15 registers, two words that are none, rip, cs, rflags, rsp, ss, ….
_USER = struct.Struct("<15Q8xQH6xQQHHHHHHHHHHHHHHHHHHHH")
_USER_NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
    "rsi", "rdi", "rip", "cs", "rflags", "rsp",
)  # fmt: skip
_SELECTORS = ("ss", "es", "ds", "fs", "gs")
_CONTROL = struct.Struct("<5Q")
#: fs_base, gs_base_kernel (of the one that is not in use), gs_base_user.
_BASES = struct.Struct("<3Q")
#: e_phnum and e_shnum of an ELF64 header.
_COUNTS_AT, _COUNTS = 56, struct.Struct("<H2xH")


def is_xen_core(start: bytes) -> bool:
    """Whether a file may be one, by its first 64 bytes: ELF64, no segments, but sections."""
    if len(start) < 64 or not start.startswith(b"\x7fELF\x02\x01"):
        return False
    segments, sections = _COUNTS.unpack_from(start, _COUNTS_AT)
    return not segments and bool(sections)


class _Section(NamedTuple):
    offset: int
    size: int


class XenCore(FileImage):
    """A Xen guest's memory.

    :param size: bytes of the file.
    :raises ImageFormatError: it is truncated or contradicts itself.
    """

    def __init__(self, path: str, descriptor: int, size: int) -> None:
        source = Source(path, descriptor, size)
        reader = _Reader(source, descriptor)
        cpus, pages, paravirtual = reader.header()
        self.paravirtual = paravirtual
        where = reader.need(_PAGES, pages * PAGE_SIZE)
        own, machine = reader.frames(pages, paravirtual=paravirtual)
        super().__init__(path, descriptor, reader.parts(own, where.offset))
        #: What turns addresses in page tables into guest-physical ones; ``None`` where they are.
        self.frames = None if machine is None else P2m(own, machine)
        #: Registers of each vCPU; CR3 of a paravirtual guest is a machine address.
        self.registers: list[dict[str, int]] = reader.registers(cpus)


class P2m:
    """From the machine's frames to a paravirtual guest's own.

    :param own: the guest's frame of each page; all bits set where it has none.
    :param machine: the machine's.
    """

    def __init__(self, own: npt.NDArray[Any], machine: npt.NDArray[Any]) -> None:
        import numpy as np

        order = np.argsort(machine, kind="stable")
        self._machine, self._own = machine[order], own[order]

    def physical(self, address: int) -> int:
        """The guest-physical address of a machine address; one where nothing lies if none is."""
        import numpy as np

        return int(self.physical_many(np.array([address], dtype=np.uint64))[0])

    def physical_many(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """As :meth:`physical`, for an array."""
        import numpy as np

        shift = np.uint64(_PAGE_SHIFT)
        wanted = addresses >> shift
        places = np.minimum(np.searchsorted(self._machine, wanted), len(self._machine) - 1)
        own = self._own[places]
        known = (self._machine[places] == wanted) & (own != np.uint64(_NONE))
        within = addresses & np.uint64(PAGE_SIZE - 1)
        found: npt.NDArray[np.uint64] = np.where(
            known, own << shift | within, np.uint64(_NOWHERE) | within
        )
        return found


class _Reader:
    """Reads sections and tables of one file."""

    def __init__(self, source: Source, descriptor: int) -> None:
        self._source = source
        self._stream = io.BufferedReader(io.FileIO(descriptor, closefd=False))
        try:
            self._elf = ELFFile(self._stream)
        except (ELFError, OSError, OverflowError, ValueError) as error:
            raise self._error(4, f"no ELF file: {error}") from error
        if not self._elf.little_endian or self._elf.header.e_type != "ET_CORE":
            raise self._error(16, "an ELF file without segments, and no core of a Xen guest")
        self._sections = self._find_sections()

    def _find_sections(self) -> dict[str, _Section]:
        header, layout = self._elf.header, self._elf.structs.Elf_Shdr
        count, table = header.e_shnum, header.e_shoff
        if not 0 < count <= _MOST_SECTIONS or header.e_shentsize != layout.sizeof():
            raise self._error(60, f"{count} sections make no sense")
        if header.e_shstrndx >= count:
            raise self._error(62, "no names of sections")
        self._source.check(table, count * layout.sizeof(), "the table of sections")
        try:
            entries = [
                struct_parse(layout, self._stream, table + number * layout.sizeof())
                for number in range(count)
            ]
        except ELFError as error:
            raise self._error(table, f"the sections cannot be read: {error}") from error
        where = entries[header.e_shstrndx]
        size = min(where.sh_size, _LONGEST_NAMES)
        names = self._source.read(where.sh_offset, size, "names of sections")
        return {
            names[entry.sh_name :].split(b"\0", 1)[0][:64].decode("ascii", "replace"): _Section(
                entry.sh_offset, entry.sh_size
            )
            for entry in entries
        }

    def need(self, name: str, size: int) -> _Section:
        """A section that must be there and hold so many bytes."""
        section = self._sections.get(name)
        if section is None:
            raise self._error(0, f"an ELF core without segments and without {name}")
        if section.size < size:
            raise self._error(section.offset, f"{name} has {section.size:#x} bytes, not {size:#x}")
        self._source.check(section.offset, size, name)
        return section

    def header(self) -> tuple[int, int, bool]:
        """How many vCPUs and pages there are, and whether the guest is paravirtual."""
        section = self.need(_NOTES, 12)
        notes = self._source.read(section.offset, min(section.size, _LARGEST_NOTES), _NOTES)
        at = 0
        while at + 12 <= len(notes):
            name_size, size, kind = struct.unpack_from("<III", notes, at)
            at += 12 + -(-name_size // 4) * 4
            if kind == _HEADER_NOTE and size >= _HEADER.size and at + size <= len(notes):
                magic, cpus, pages, page_size = _HEADER.unpack_from(notes, at)
                break
            at += -(-size // 4) * 4
        else:
            raise self._error(section.offset, "a Xen core without its header note")
        if magic not in (_PARAVIRTUAL, _HARDWARE) or page_size != PAGE_SIZE:
            raise self._error(
                section.offset, f"magic {magic:#x} or pages of {page_size} bytes are not known"
            )
        if not 0 < pages <= _MOST_PAGES or cpus > _MOST_CPUS:
            raise self._error(section.offset, f"{pages} pages and {cpus} CPUs make no sense")
        return cpus, pages, magic == _PARAVIRTUAL

    def frames(
        self, pages: int, *, paravirtual: bool
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        """The guest's frame of each page, and the machine's where that is another."""
        import numpy as np

        if not paravirtual:
            section = self.need(_PFN, pages * 8)
            return self._numbers(section, pages), None
        section = self.need(_P2M, pages * 16)
        both = self._numbers(section, pages * 2).reshape(-1, 2)
        there = both[:, 0] != np.uint64(_NONE)
        both = np.where(there[:, None], both, np.uint64(_NONE))
        return both[:, 0], both[:, 1]

    def _numbers(self, section: _Section, count: int) -> npt.NDArray[Any]:
        import numpy as np

        found = np.empty(count, dtype=np.uint64)
        step = 1 << 20
        for first in range(0, count, step):
            size = min(step, count - first)
            data = self._source.read(section.offset + first * 8, size * 8, "frames")
            found[first : first + size] = np.frombuffer(data, dtype="<u8")
        return found

    def parts(self, frames: npt.NDArray[Any], pages_at: int) -> list[Part]:
        """Runs of pages that follow each other by frame and in the file."""
        import numpy as np

        order = np.argsort(frames, kind="stable")
        ranked = frames[order]
        there = int(np.searchsorted(ranked, np.uint64(_NONE)))
        order, ranked = order[:there], ranked[:there]
        if not there:
            raise self._error(pages_at, "this Xen core holds no memory")
        if int(ranked[-1]) >= _MOST_FRAMES:
            raise self._error(pages_at, f"frame {int(ranked[-1]):#x} makes no sense")
        if (ranked[1:] == ranked[:-1]).any():
            raise self._error(pages_at, "a frame is there twice")
        breaks = np.flatnonzero((np.diff(ranked) != 1) | (np.diff(order) != 1)) + 1
        if len(breaks) >= _MOST_RUNS:
            raise self._error(pages_at, "memory is in more pieces than can be dealt with")
        firsts = np.concatenate(([0], breaks))
        counts = np.diff(np.concatenate((firsts, [there])))
        return [
            Part(start, start + size, pages_at + place * PAGE_SIZE, size)
            for start, place, size in zip(
                (ranked[firsts] * np.uint64(PAGE_SIZE)).tolist(),
                order[firsts].tolist(),
                (counts * PAGE_SIZE).tolist(),
                strict=True,
            )
        ]

    def registers(self, cpus: int) -> list[dict[str, int]]:
        """Registers of each vCPU, of x86-64 guests; none where they have another form."""
        section = self._sections.get(_STATUS)
        if section is None or not cpus or section.size != cpus * _CONTEXT_SIZE:
            return []
        data = self._source.read(section.offset, section.size, _STATUS)
        return [_decode(data[at : at + _CONTEXT_SIZE]) for at in range(0, len(data), _CONTEXT_SIZE)]

    def _error(self, offset: int, problem: str) -> ImageFormatError:
        return ImageFormatError(self._source.path, offset, problem)


def _decode(context: bytes) -> dict[str, int]:
    numbers = _USER.unpack_from(context, _USER_AT)
    values = dict(zip(_USER_NAMES, numbers, strict=False))
    # Each selector has eight bytes.
    values |= zip(_SELECTORS, numbers[len(_USER_NAMES) :: 4], strict=False)
    values |= {f"cr{n}": v for n, v in enumerate(_CONTROL.unpack_from(context, _CONTROL_AT))}
    values["fs_base"], values["kernel_gs_base"], values["gs_base"] = _BASES.unpack_from(
        context, _BASES_AT
    )
    return values
