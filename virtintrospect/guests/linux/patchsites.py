"""Where a kernel for x86-64 rewrites its own code, from the tables that it does so by.

The tables are read out of the kernel's image as its package has it, not out of the guest: what
the guest says there proves nothing. Addresses are those of the guest, its slide included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.kernelimage import KernelImage

#: Bytes of one table at most.
_LARGEST = 64 << 20
#: CALL, JMP and NOP5; RET with what fills its place; a prefix in front of a call or a jump.
_CALL, _PREFIXED = 5, 6
#: Numbers that the kernel writes into its code at boot (arch/x86/include/asm/runtime-const.h,
#: 6.11): tables of them.
_MOST_CONSTANTS = 64
#: Calls in ftrace's own code that are rewritten for whoever traces (arch/x86/kernel/ftrace.c).
FTRACE_CALLS = ("ftrace_call", "ftrace_regs_call", "ftrace_graph_call")


class Sites(NamedTuple):
    """Places of one kind: where each begins, and how many bytes of it are rewritten."""

    kind: str
    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


#: Tables of 32-bit offsets to places, each from its own address: the symbol at their start, the
#: one at their end, and how many bytes are rewritten (arch/x86/kernel/alternative.c).
_OFFSETS = (
    ("__retpoline_sites", "__retpoline_sites_end", _PREFIXED),
    ("__return_sites", "__return_sites_end", _CALL),
    ("__call_sites", "__call_sites_end", _CALL),
    ("__ibt_endbr_seal", "__ibt_endbr_seal_end", 4),
    ("__smp_locks", "__smp_locks_end", 1),
)


def patch_sites(guest: LinuxGuest, image: KernelImage, slide: int) -> Iterator[Sites]:
    """All places in the kernel's text that it may rewrite.

    :param image: the same build of the kernel.
    :param slide: how much higher than it was linked the guest's kernel lies.
    :raises CorruptDataError: the image has no such tables where the symbols say.
    """
    tables = _Tables(guest, image, slide)
    for first, last, size in _OFFSETS:
        place, offsets = tables.rows(first, last, "<i4", 4)
        if len(offsets):
            yield _same(first.strip("_"), place + offsets["f0"], size)
    for symbol in guest.symbols.search("__start_runtime_*", _MOST_CONSTANTS):
        last = symbol.name.replace("__start_", "__stop_", 1)
        place, offsets = tables.rows(symbol.name, last, "<i4", 4)
        size = 1 if "_shift_" in symbol.name else 8
        if len(offsets):
            yield _same("runtime_constant", place + offsets["f0"], size)
    yield from _alternatives(guest, tables)
    yield from _paravirt(guest, tables)
    place, rows = tables.rows("__start___jump_table", "__stop___jump_table", "<i4,<i4,<i8", 16)
    if len(rows):
        yield _jumps(place + rows["f0"], image, slide)
    place, rows = tables.rows("__start_static_call_sites", "__stop_static_call_sites", "<i4,<i4", 8)
    if len(rows):
        yield _same("static_call", place + rows["f0"], _PREFIXED)
    _, rows = tables.rows("__start_mcount_loc", "__stop_mcount_loc", "<i8", 8)
    if len(rows):
        yield _same("ftrace", rows["f0"][rows["f0"] != 0] + slide, _CALL)
    for name in FTRACE_CALLS:
        if (call := guest.symbols.get(name)) is not None:
            yield _range("ftrace", call, call + _CALL)
    start, end = (guest.symbols.get(f"__static_call_text_{side}") for side in ("start", "end"))
    if start is not None and end is not None:
        yield _range("static_call_text", start, end)


class _Tables:
    """Arrays of structures in the image, by the guest's symbols."""

    def __init__(self, guest: LinuxGuest, image: KernelImage, slide: int) -> None:
        self._symbols = guest.symbols
        self._image = image
        self.slide = slide

    def rows(
        self, first: str, last: str, dtype: str, size: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]:
        """Address of each row in the guest, and the rows; none where there is no such table."""
        import numpy as np

        start, end = self._symbols.get(first), self._symbols.get(last)
        if start is None or end is None:
            start = end = 0
        if not 0 <= end - start <= _LARGEST:
            raise CorruptDataError(f"the table {first} has no end", start)
        # The last row may lack the padding behind it.
        count = -(-(end - start) // size)
        data = self._image.read(start - self.slide, end - start) if count else b""
        data = data.ljust(count * size, b"\0")
        base = dtype if "," in dtype else f"{dtype},"
        kind = np.dtype(base)
        raw = np.frombuffer(data, dtype=np.uint8).reshape(count, size)[:, : kind.itemsize]
        rows = np.ascontiguousarray(raw).reshape(-1).view(kind)
        places = _signed(start) + size * np.arange(count, dtype=np.int64)
        return places, rows


def _signed(address: int) -> int:
    return address - (1 << 64) if address >> 63 else address


def _same(kind: str, starts: npt.NDArray[np.int64], size: int) -> Sites:
    import numpy as np

    return Sites(kind, starts.astype(np.int64), np.full(len(starts), size, dtype=np.int64))


def _range(kind: str, start: int, end: int) -> Sites:
    import numpy as np

    size = min(max(end - start, 0), _LARGEST)
    return Sites(kind, np.array([_signed(start)]), np.array([size]))


def _alternatives(guest: LinuxGuest, tables: _Tables) -> Iterator[Sites]:
    """``struct alt_instr``: the place is an offset from its own member, the first."""
    import numpy as np

    if "alt_instr" not in guest.types:
        return
    size = guest.types.sizeof("alt_instr")
    at = guest.types.offsetof("alt_instr", "instrlen")
    if not 4 < at < size <= 64:
        raise CorruptDataError(f"an alt_instr of {size} bytes", 0)
    dtype = f"<i4,V{at - 4},u1"
    place, rows = tables.rows("__alt_instructions", "__alt_instructions_end", dtype, size)
    if len(rows):
        yield Sites("alternative", place + rows["f0"], rows["f2"].astype(np.int64))


def _paravirt(guest: LinuxGuest, tables: _Tables) -> Iterator[Sites]:
    """``struct paravirt_patch_site``, until 6.7: a pointer as it was linked."""
    import numpy as np

    if "paravirt_patch_site" not in guest.types:
        return
    size = guest.types.sizeof("paravirt_patch_site")
    at = guest.types.offsetof("paravirt_patch_site", "len")
    if not 8 <= at < size <= 64:
        raise CorruptDataError(f"a paravirt_patch_site of {size} bytes", 0)
    middle = f"V{at - 8}," if at > 8 else ""
    _, rows = tables.rows("__parainstructions", "__parainstructions_end", f"<i8,{middle}u1", size)
    if len(rows):
        last = "f2" if middle else "f1"
        yield Sites("paravirt", rows["f0"] + tables.slide, rows[last].astype(np.int64))


def _jumps(starts: npt.NDArray[np.int64], image: KernelImage, slide: int) -> Sites:
    """Static branches: 2 bytes where the image has a short jump, else 5."""
    import numpy as np

    sizes = np.full(len(starts), _CALL, dtype=np.int64)
    for index, start in enumerate(starts.tolist()):
        try:
            begin = image.read((start - slide) % (1 << 64), 2)
        except CorruptDataError:
            continue  # in code that is thrown away after the boot, perhaps elsewhere
        if begin[:1] == b"\xeb" or begin == b"\x66\x90":
            sizes[index] = 2
    return Sites("jump_label", starts.astype(np.int64), sizes)
