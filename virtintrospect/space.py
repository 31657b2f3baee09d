"""Virtual address spaces: memory, a paging mode and a top table."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from virtintrospect.arch.paging import UNTRANSLATED, PagingMode, Walk
from virtintrospect.errors import FaultError, NotWritableError, UsageError
from virtintrospect.memory import PhysicalMemory
from virtintrospect.memory.base import MAX_READ, MAX_WRITE
from virtintrospect.translation import LinearRange, Translation, without_table

if TYPE_CHECKING:
    import numpy.typing as npt

_PAGE = 4096


def physical_space(memory: PhysicalMemory) -> AddressSpace:
    """Guest-physical memory with all that an address space can do: numbers, strings, arrays."""
    return AddressSpace(memory, UNTRANSLATED, 0, linear=[LinearRange(0, memory.end, 0)])


class AddressSpace(Translation):
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
        super().__init__(memory, mode, root, linear=linear)
        self.pointer_size = pointer_size
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

    def wide_string(self, vaddr: int, limit: int = 8192) -> bytes:
        """The UTF-16 string at ``vaddr`` that ends with a zero character, as UTF-8.

        :param limit: bytes in memory that are read at most. What is no UTF-16 becomes U+FFFD.
        :raises FaultError: its first character cannot be read; where memory ends later, what
            is there is given.
        """
        text = b""
        while len(text) < limit:
            step = min(limit - len(text), _PAGE - (vaddr & (_PAGE - 1)), 256)
            try:
                # A character may lie on two pages, if its address is odd.
                text += self.read(vaddr, max(step & ~1, 2))
            except FaultError:
                if not text:
                    raise
                break
            end = next((i for i in range(0, len(text), 2) if text[i : i + 2] == b"\0\0"), -1)
            if end >= 0:
                text = text[:end]
                break
            vaddr += max(step & ~1, 2)
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

    def view(self, vaddr: int, size: int) -> memoryview | None:
        """A zero-copy, read-only window on live memory, or ``None`` where none can be had.

        As :meth:`PhysicalMemory.view <virtintrospect.memory.base.PhysicalMemory.view>`; the
        range must also be contiguous in guest-physical memory.

        :raises FaultError: a page of the range is not mapped.
        """
        runs = self.runs(vaddr, size)
        if sum(run.size for run in runs) < size:
            end = next((run.vaddr + run.size for run in runs if run.vaddr == vaddr), vaddr)
            raise FaultError(end, size, kind="virtual")
        return self.memory.view(runs[0].paddr, size) if len(runs) == 1 else None

    def array(self, vaddr: int, dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
        """``count`` elements of any numpy type from ``vaddr`` on, as a copy.

        :raises FaultError: a page of the range is not mapped or has no memory.
        :raises UsageError: numpy has no such type, or it holds Python objects.
        """
        import numpy as np

        try:
            kind = np.dtype(dtype)
            if kind.hasobject or kind.itemsize == 0 or count < 0:
                raise UsageError(f"memory has no {count} elements of {dtype!r}")
        except (TypeError, ValueError) as error:
            raise UsageError(f"no numpy type: {dtype!r}") from error
        return np.frombuffer(self.read(vaddr, kind.itemsize * count), dtype=kind)

    # -- writing ----------------------------------------------------------------------------

    def write(self, vaddr: int, data: bytes, *, force: bool = False) -> None:
        """Write bytes, and make sure by reading them back.

        Everything is checked before the first byte is written. A page that the guest's tables
        map read-only is refused: it may be one that others share (the page of zeros, a page
        of a file, memory after a fork), and writing past the tables would change it for all.

        :param vaddr: where; the range may cross pages.
        :param force: also write where the tables do not allow it.
        :raises UsageError: the memory was not opened for writing, or there are more than
            :data:`~virtintrospect.memory.base.MAX_WRITE` bytes.
        :raises FaultError: a page of the range is not mapped or has no memory; its
            ``address`` is virtual.
        :raises NotWritableError: a page is mapped read-only or is absent; or what was written
            is not what is read back. Its ``address`` is virtual where the tables forbid it.
        """
        if len(data) > MAX_WRITE:
            raise UsageError(f"one write takes at most {MAX_WRITE} bytes", hint="write in pieces")
        pieces: list[tuple[int, bytes]] = []
        done = 0
        while done < len(data):
            found = self._writable_page(vaddr + done, len(data), force=force)
            step = min(len(data) - done, found.page_size - ((vaddr + done) % found.page_size))
            assert found.paddr is not None  # _writable_page has raised otherwise
            self.memory.check_write(found.paddr, step)
            pieces.append((found.paddr, data[done : done + step]))
            done += step
        for paddr, piece in pieces:
            self.memory.write(paddr, piece)

    def write_integer(
        self, vaddr: int, value: int, size: int = 8, *, signed: bool = False, force: bool = False
    ) -> None:
        """Write a little-endian number of 1, 2, 4 or 8 bytes; raises as :meth:`write`.

        :raises UsageError: there are no numbers of that size, or the value does not fit.
        """
        if size not in (1, 2, 4, 8):
            raise UsageError(f"a number has 1, 2, 4 or 8 bytes, not {size}")
        try:
            data = value.to_bytes(size, "little", signed=signed)
        except OverflowError as error:
            raise UsageError(f"{value:#x} does not fit into {size} bytes") from error
        self.write(vaddr, data, force=force)

    # -- inside -----------------------------------------------------------------------------

    def _writable_page(self, vaddr: int, size: int, *, force: bool) -> Walk:
        """The page behind ``vaddr``, walked for: linear ranges say nothing of rights."""
        try:
            found = self.walk(vaddr)
        except FaultError as error:
            raise without_table(vaddr, size, error) from error
        if found.paddr is None:
            raise FaultError(vaddr, size, kind="virtual")
        if not force and not (found.writable and found.present):
            raise NotWritableError(
                vaddr,
                "the guest maps this page read-only, and others may share it",
                kind="virtual",
                hint="--force (force=True) writes to it all the same",
            )
        return found

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
