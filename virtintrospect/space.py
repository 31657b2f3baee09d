"""Virtual address spaces: memory, a paging mode and a top table."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.arch.paging import (
    NOT_MAPPED,
    PagingMode,
    Walk,
    translate_many,
    translator,
    walk,
)
from virtintrospect.errors import FaultError, UsageError
from virtintrospect.memory import PhysicalMemory
from virtintrospect.memory.base import MAX_READ

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_PAGE = 4096


def as_addresses(values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """An array of addresses.

    :raises UsageError: one of them has more than 64 bits, or is negative.
    """
    import numpy as np

    try:
        return np.ascontiguousarray(values, dtype=np.uint64)
    except (OverflowError, ValueError, TypeError) as error:
        raise UsageError(f"addresses are numbers of 64 bits: {error}") from error


class LinearRange(NamedTuple):
    """Virtual addresses ``[start, end)`` that map to ``paddr``, ``paddr + 1``, … in one run.

    Whoever makes one has checked it against the page tables (see
    :meth:`AddressSpace.verify`); reads within it need no walk.
    """

    start: int
    end: int
    paddr: int


class AddressSpace:
    """The virtual memory behind one top table.

    :param memory: guest-physical memory.
    :param mode: format of the page tables.
    :param root: physical address of the top table, as in CR3 (what else CR3 holds is ignored).
    :param linear: ranges known to be linear (direct map, kernel image); the walker serves the
        rest, and nothing of what it finds is kept: a guest may change its tables at any time.
    :param pointer_size: bytes of a pointer and of an ``unsigned long``, 4 or 8.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        mode: PagingMode,
        root: int,
        *,
        linear: Iterable[LinearRange] = (),
        pointer_size: int = 8,
    ) -> None:
        self.memory = memory
        self.mode = mode
        self.root = root & mode.root_mask
        self.linear = tuple(linear)
        self.pointer_size = pointer_size
        self._translate = translator(memory.reader(mode.entry_size), mode)
        #: Reads the 64-bit number at a virtual address.
        self.read_u64: Callable[[int], int] = self._compile_read(8)
        #: Reads the pointer, or ``unsigned long``, at a virtual address.
        self.read_pointer: Callable[[int], int] = (
            self.read_u64 if pointer_size == 8 else self._compile_read(pointer_size)
        )
        self._pointer = "Q" if pointer_size == 8 else "I"
        #: The highest address; sums of addresses wrap around behind it.
        self.last = (1 << 8 * pointer_size) - 1

    def with_root(self, root: int) -> AddressSpace:
        """The same memory and mode under another top table, without linear ranges."""
        return AddressSpace(self.memory, self.mode, root, pointer_size=self.pointer_size)

    # -- translation ------------------------------------------------------------------------

    def translate(self, vaddr: int) -> int:
        """Guest-physical address of ``vaddr``.

        :raises FaultError: the address has no page, or a page table lies outside of memory.
        """
        for start, end, paddr in self.linear:
            if start <= vaddr < end:
                return vaddr - start + paddr
        paddr = self._translate(self.root, vaddr)[0]
        if paddr < 0:
            raise FaultError(vaddr, 1, kind="virtual")
        return paddr

    def translate_many(self, vaddrs: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """Guest-physical addresses of an array of virtual ones, all at once.

        :returns: unsigned 64-bit numbers; ``0xffff_ffff_ffff_ffff`` where there is no page.
        :raises UsageError: an address has more than 64 bits, or is negative.
        """
        import numpy as np

        addresses = as_addresses(vaddrs)
        result = np.full(addresses.shape, NOT_MAPPED, dtype=np.uint64)
        rest = np.ones(addresses.shape, dtype=bool)
        for start, end, paddr in self.linear:
            inside = (addresses >= np.uint64(start)) & (addresses <= np.uint64(end - 1))
            result[inside] = addresses[inside] - np.uint64(start) + np.uint64(paddr)
            rest &= ~inside
        if rest.any():
            walked = translate_many(self.memory, self.mode, self.root, addresses[rest])
            result[rest] = walked
        return result

    def walk(self, vaddr: int) -> Walk:
        """Translate through the page tables alone and tell every step."""
        return walk(self.memory, self.mode, self.root, vaddr)

    def verify(self, linear: LinearRange) -> bool:
        """Whether the page tables agree with a linear range at its start."""
        try:
            return self._translate(self.root, linear.start)[0] == linear.paddr
        except FaultError:
            return False

    # -- reading ----------------------------------------------------------------------------

    def read(self, vaddr: int, size: int) -> bytes:
        """Read ``size`` bytes.

        :raises FaultError: a page of the range is not mapped or has no memory; its
            ``address`` is virtual.
        """
        if size < 0 or size > MAX_READ:
            raise FaultError(vaddr, size, kind="virtual", hint=f"at most {MAX_READ} bytes")
        for start, end, paddr in self.linear:
            if start <= vaddr and vaddr + size <= end:
                return self._physical(vaddr, vaddr - start + paddr, size)
        parts = []
        while size > 0:
            paddr, page_size = self._page(vaddr, size)
            step = min(size, page_size - (vaddr & (page_size - 1)))
            parts.append(self._physical(vaddr, paddr, step))
            vaddr += step
            size -= step
        return b"".join(parts)

    def gather(self, vaddrs: Sequence[int], size: int, faults: list[int] | None = None) -> bytes:
        """Read ``size`` bytes at each of ``vaddrs``.

        :param faults: where given, a range that cannot be read does not raise: its bytes are
            zeros and its index is appended here.
        :returns: ``len(vaddrs) * size`` bytes.
        :raises FaultError: a range cannot be read and ``faults`` is not given.
        """
        for start, end, paddr in self.linear[:1]:  # most structures: all in the direct map
            shift, last = paddr - start, end - size
            paddrs = [vaddr + shift for vaddr in vaddrs if start <= vaddr <= last]
            if len(paddrs) == len(vaddrs):
                return self.memory.gather(paddrs, size, faults)
        paddrs = []
        patches: list[tuple[int, bytes]] = []
        for position, vaddr in enumerate(vaddrs):
            try:
                paddrs.append(self._contiguous(vaddr, size))
                continue
            except FaultError:
                paddrs.append(-1)  # not in one piece: read by itself, laid in below
            try:
                patches.append((position, self.read(vaddr, size)))
            except FaultError:
                if faults is None:
                    raise
                faults.append(position)
        if not patches and -1 not in paddrs:
            return self.memory.gather(paddrs, size, faults)
        return self._patched(vaddrs, paddrs, size, patches, faults)

    def pointers(self, vaddr: int, count: int) -> tuple[int, ...]:
        """``count`` pointers, or numbers of that size, one behind the other.

        :raises FaultError: as :meth:`read`.
        """
        data = self.read(vaddr, count * self.pointer_size)
        return struct.unpack(f"<{count}{self._pointer}", data)

    def gather_pointers(
        self, vaddrs: Sequence[int], faults: list[int] | None = None
    ) -> tuple[int, ...]:
        """The pointer at each of ``vaddrs``; ``faults`` is as that of :meth:`gather`."""
        data = self.gather(vaddrs, self.pointer_size, faults)
        return struct.unpack(f"<{len(vaddrs)}{self._pointer}", data)

    def string(self, vaddr: int, limit: int = 4096) -> bytes:
        """The NUL-terminated string at ``vaddr``, without its NUL, cut at ``limit`` bytes.

        Where memory ends before the NUL, what is there is given; a fault at the very first
        byte raises.
        """
        parts: list[bytes] = []
        left = limit
        while left > 0:
            step = min(left, _PAGE - (vaddr & (_PAGE - 1)), 256)
            try:
                chunk = self.read(vaddr, step)
            except FaultError:
                if not parts:
                    raise
                break
            end = chunk.find(b"\0")
            if end >= 0:
                parts.append(chunk[:end])
                break
            parts.append(chunk)
            vaddr += step
            left -= step
        return b"".join(parts)

    def integer(self, vaddr: int, size: int = 8, *, signed: bool = False) -> int:
        """The little-endian number of 1, 2, 4 or 8 bytes at ``vaddr``; a pointer has 8.

        :raises FaultError: a page of it is not mapped or has no memory.
        :raises UsageError: there are no numbers of that size.
        """
        if size not in (1, 2, 4, 8):
            raise UsageError(f"a number has 1, 2, 4 or 8 bytes, not {size}")
        return int.from_bytes(self.read(vaddr, size), "little", signed=signed)

    def unicode_string(self, vaddr: int) -> bytes:
        """The text of the 64-bit Windows ``UNICODE_STRING`` at ``vaddr``, as UTF-8.

        The structure is the length in bytes and the room, 16 bits each, and a pointer to
        UTF-16 at offset 8; the text has at most 64 KiB. What is no UTF-16 becomes U+FFFD.

        :raises FaultError: the structure or its text cannot be read.
        """
        header = self.read(vaddr, 16)
        length = int.from_bytes(header[:2], "little")
        text = self.read(int.from_bytes(header[8:], "little"), length) if length else b""
        return text.decode("utf-16-le", "replace").encode()

    def strings(self, vaddrs: Sequence[int], limit: int = 256) -> list[bytes | None]:
        """The strings at many addresses; ``None`` where one cannot be read."""
        result: list[bytes | None] = []
        for vaddr in vaddrs:
            try:
                result.append(self.string(vaddr, limit))
            except FaultError:
                result.append(None)
        return result

    def read_available(self, vaddr: int, size: int) -> list[tuple[int, bytes]]:
        """What can be read of a range: pieces as ``(vaddr, bytes)``, in order.

        User memory is often partly swapped out; what is there is still worth showing.
        """
        pieces: list[tuple[int, bytes]] = []
        end = vaddr + min(max(size, 0), MAX_READ)
        while vaddr < end:
            step = min(end - vaddr, _PAGE - (vaddr & (_PAGE - 1)))
            with suppress(FaultError):
                pieces.append((vaddr, self.read(vaddr, step)))
            vaddr += step
        return pieces

    # -- inside -----------------------------------------------------------------------------

    def _page(self, vaddr: int, size: int) -> tuple[int, int]:
        """Physical address and page size behind ``vaddr``; ``size`` is for the error."""
        try:
            paddr, page_size = self._translate(self.root, vaddr)
        except FaultError as error:
            raise FaultError(
                vaddr,
                size,
                kind="virtual",
                hint=f"its page table at {error.address:#x} has no memory",
            ) from error
        if paddr < 0:
            raise FaultError(vaddr, size, kind="virtual")
        return paddr, page_size

    def _contiguous(self, vaddr: int, size: int) -> int:
        """Physical address of a range that lies in one piece; a FaultError where it does not."""
        for start, end, paddr in self.linear:
            if start <= vaddr and vaddr + size <= end:
                return vaddr - start + paddr
        paddr, page_size = self._page(vaddr, size)
        if (vaddr & (page_size - 1)) + size > page_size:
            raise FaultError(vaddr, size, kind="virtual")
        return paddr

    def _physical(self, vaddr: int, paddr: int, size: int) -> bytes:
        try:
            return self.memory.read(paddr, size)
        except FaultError as error:
            where = vaddr + error.address - paddr
            raise FaultError(where, size, kind="virtual") from error

    def _patched(
        self,
        vaddrs: Sequence[int],
        paddrs: list[int],
        size: int,
        patches: list[tuple[int, bytes]],
        faults: list[int] | None,
    ) -> bytes:
        """Gather the ranges that are in one piece and lay the others between them."""
        whole = [position for position, paddr in enumerate(paddrs) if paddr >= 0]
        inner: list[int] | None = None if faults is None else []
        data = self.memory.gather([paddrs[position] for position in whole], size, inner)
        out = bytearray(len(vaddrs) * size)
        for index, position in enumerate(whole):
            out[position * size : (position + 1) * size] = data[index * size : (index + 1) * size]
        for position, piece in patches:
            out[position * size : (position + 1) * size] = piece
        if faults is not None and inner:
            faults.extend(whole[index] for index in inner)
        return bytes(out)

    def _compile_read(self, size: int) -> Callable[[int], int]:
        """A function for the most frequent read, with everything it needs bound once."""
        # There are two linear ranges at most, direct map and image; a loop over them would cost
        # as much as the read.
        none = LinearRange(0, 0, 0)
        first, second, *_ = (*self.linear, none, none)
        first_start, first_end, first_shift = first.start, first.end, first.paddr - first.start
        start, end, shift = second.start, second.end, second.paddr - second.start
        read_physical = self.memory.reader(size)
        translate = self.translate
        read = self.read
        last = _PAGE - size

        def read_number(vaddr: int) -> int:
            if first_start <= vaddr < first_end:
                paddr = vaddr + first_shift
            elif start <= vaddr < end:
                paddr = vaddr + shift
            elif vaddr & (_PAGE - 1) > last:
                return int.from_bytes(read(vaddr, size), "little")
            else:
                paddr = -1
            try:
                return read_physical(translate(vaddr) if paddr < 0 else paddr)
            except FaultError as error:
                raise FaultError(vaddr, size, kind="virtual") from error

        return read_number
