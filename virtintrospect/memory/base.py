"""What every source of guest-physical memory offers."""

from __future__ import annotations

import abc
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from virtintrospect.errors import FaultError, NotWritableError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Granularity of residency: the smallest page of every supported architecture.
PAGE_SIZE = 4096

#: Most bytes that one :meth:`PhysicalMemory.read` may ask for. Sizes often come from the
#: guest; nothing of a size that the guest chose is allocated.
MAX_READ = 256 << 20

#: Most bytes of one :meth:`PhysicalMemory.write`: what was there is kept to compare with.
MAX_WRITE = 16 << 20


class Region(NamedTuple):
    """A half-open range ``[start, end)`` of guest-physical addresses, in bytes."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.end - self.start


class Mapped(NamedTuple):
    """A block of guest RAM that is mapped into this process in one piece."""

    #: The block's bytes, read-only; index 0 is guest-physical :attr:`start`.
    buffer: memoryview
    start: int
    end: int
    #: One byte a 4 KiB page of the block: non-zero where reading touches no absent page.
    #: Kept up to date in place by the memory that owns it.
    present: bytearray


class MachineFrames(Protocol):
    """What turns the addresses in page tables and CR3 into guest-physical ones.

    Only where these differ: a Xen PV guest's tables hold the machine's own frame numbers.
    """

    def physical(self, address: int) -> int:
        """The guest-physical address of ``address``; one where nothing lies when there is none."""

    def physical_many(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """As :meth:`physical`, for an array."""


class PhysicalMemory(abc.ABC):
    """Guest-physical memory: live RAM or a memory image.

    A subclass sets :attr:`regions` and implements :meth:`_read_within`; it overrides
    :meth:`gather`, :meth:`view` and :meth:`resident` where it can do better. One that can be
    changed sets :attr:`writable` where it was opened so, and implements :meth:`_write_within`.

    Rules for every implementation:

    * a read gives exactly the bytes asked for, or :exc:`~virtintrospect.errors.FaultError`;
    * a page that the host has not allocated reads as zeros and **is not touched**: looking at
      a guest must never make it use more of the host's memory. A write to such a page is
      refused for the same reason;
    * a write that is refused has changed nothing.
    """

    #: Where there is RAM (or ROM): sorted, not overlapping, adjacent ranges not merged.
    regions: tuple[Region, ...] = ()
    #: Each read is a slow call: whoever knows beforehand what will be read says so by
    #: :meth:`prefetch`.
    slow: bool = False
    #: What the guest itself cannot write, within :attr:`regions`; so neither do we.
    rom: tuple[Region, ...] = ()
    #: Whether :meth:`write` may be used: the user allowed it, and this kind of memory can.
    writable: bool = False
    #: Where page tables hold other addresses than guest-physical ones: what turns them round.
    frames: MachineFrames | None = None

    @abc.abstractmethod
    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        """Read a range that lies wholly inside ``regions[index]``."""

    def read(self, paddr: int, size: int) -> bytes:
        """Read ``size`` bytes at guest-physical ``paddr``.

        A range may cross regions that touch each other.

        :raises FaultError: some byte of the range has no memory, or ``size`` is above
            :data:`MAX_READ`.
        """
        if size < 0 or size > MAX_READ:
            raise FaultError(paddr, size, hint=f"one read gives at most {MAX_READ} bytes")
        parts = []
        while size > 0:
            index = self.region_index(paddr)
            if index < 0:
                raise FaultError(paddr, size)
            step = min(size, self.regions[index].end - paddr)
            parts.append(self._read_within(index, paddr, step))
            paddr += step
            size -= step
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, paddr: int, out: memoryview) -> None:
        """Read as many bytes as ``out`` has, into it; raises as :meth:`read`."""
        out[:] = self.read(paddr, len(out))

    def write(self, paddr: int, data: bytes) -> None:
        """Write at guest-physical ``paddr``, and make sure by reading it back.

        A range may cross regions that touch each other. Everything is checked before the first
        byte is written. A number of 1, 2, 4 or 8 bytes at a multiple of its size appears to
        the guest in one piece where its RAM is mapped here; anything else, byte by byte.

        :raises UsageError: the memory was not opened for writing, or there are more than
            :data:`MAX_WRITE` bytes.
        :raises FaultError: some byte of the range has no memory.
        :raises NotWritableError: some byte is ROM, or lies on a page that is absent: the host
            has not got it. Or, after the write, it reads back as something else.
        """
        self.check_write(paddr, len(data))
        done = 0
        for index, at, step in self._pieces_of(paddr, len(data)):
            self._write_within(index, at, data[done : done + step])
            done += step
        found = self.read(paddr, len(data))
        if found != data:
            wrong = next(i for i, (a, b) in enumerate(zip(found, data, strict=True)) if a != b)
            raise NotWritableError(
                paddr + wrong,
                f"{data[wrong]:#04x} was written, {found[wrong]:#04x} is read back",
                hint="the guest may have written there, too: pause it meanwhile",
            )

    def check_write(self, paddr: int, size: int) -> None:
        """Raise what :meth:`write` would, before anything is written; for several ranges."""
        if not self.writable:
            raise UsageError(
                "this memory was not opened for writing",
                hint="allow it: --allow-write, and --in-place for images; or "
                "Access(write=True, in_place=True)",
            )
        if size > MAX_WRITE:
            raise UsageError(f"one write takes at most {MAX_WRITE} bytes", hint="write in pieces")
        pieces = list(self._pieces_of(paddr, size))
        for region in self.rom:
            if paddr < region.end and region.start < paddr + size:
                raise NotWritableError(
                    max(paddr, region.start), "ROM, which the guest cannot write either"
                )
        for index, at, step in pieces:
            self._check_write_within(index, at, step)

    def _pieces_of(self, paddr: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Cut a range at the borders of regions: index of the region, address, bytes."""
        whole = size
        while size > 0:
            index = self.region_index(paddr)
            if index < 0:
                raise FaultError(paddr, whole)
            step = min(size, self.regions[index].end - paddr)
            yield index, paddr, step
            paddr += step
            size -= step

    def _check_write_within(  # noqa: B027 (not every memory has more to say)
        self, index: int, paddr: int, size: int
    ) -> None:
        """Refuse what cannot be written of a range that lies wholly inside ``regions[index]``."""

    def _write_within(self, index: int, paddr: int, data: bytes) -> None:
        """Write a range that lies wholly inside ``regions[index]``, and was checked."""
        raise NotImplementedError

    def gather(self, paddrs: Sequence[int], size: int, faults: list[int] | None = None) -> bytes:
        """Read ``size`` bytes at each of ``paddrs``; the primitive of everything in bulk.

        :param paddrs: guest-physical addresses, in any order.
        :param faults: where given, a range without memory does not raise: its bytes are zeros
            and its index is appended here.
        :returns: ``len(paddrs) * size`` bytes, in the order of ``paddrs``.
        :raises FaultError: a range has no memory and ``faults`` is not given.
        """
        parts = []
        for position, paddr in enumerate(paddrs):
            try:
                parts.append(self.read(paddr, size))
            except FaultError as fault:
                parts.append(zeros_for(fault, position, size, faults))
        return b"".join(parts)

    def view(self, paddr: int, size: int) -> memoryview | None:  # noqa: ARG002
        """A zero-copy, read-only window on live memory, or ``None`` where none can be had.

        The window shows the guest's memory as it changes. ``None`` when the range is not
        mapped in one piece, or when some page of it is not resident (touching it would
        allocate host memory). A window must not be used after :meth:`close`.
        """
        return None

    def mapped(self, paddr: int) -> Mapped | None:  # noqa: ARG002
        """The whole mapped block around ``paddr``; ``None`` where RAM is not mapped.

        For hot loops that cannot afford a call a read. The caller must check ``present``, and
        must fall back to :meth:`read` for pages that are not.
        """
        return None

    def read_u64(self, paddr: int) -> int:
        """The little-endian 64-bit number at ``paddr``; raises as :meth:`read`."""
        return int.from_bytes(self.read(paddr, 8), "little")

    def reader_u64(self) -> Callable[[int], int]:
        """:meth:`read_u64` as a function, for callers that read one number after the other.

        A memory that can spare them look-ups gives another one; it says and raises the same.
        """
        return self.read_u64

    def reader(self, size: int) -> Callable[[int], int]:
        """A function that reads the little-endian number of 4 or 8 bytes at an address.

        It raises as :meth:`read`.
        """
        if size == 8:
            return self.reader_u64()
        read = self.read
        return lambda paddr: int.from_bytes(read(paddr, size), "little")

    def gather_u64(self, paddrs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """64-bit little-endian numbers at ``paddrs``; 0 where there is no memory."""
        import numpy as np

        found = self._gather_u64_mapped(paddrs)
        if found is not None:
            return found
        faults: list[int] = []
        return np.frombuffer(self.gather(paddrs.tolist(), 8, faults), dtype="<u8")

    def _gather_u64_mapped(self, paddrs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64] | None:
        """Aligned numbers that all lie on present pages of one mapped block, else ``None``."""
        import numpy as np

        if not len(paddrs) or np.bitwise_or.reduce(paddrs) & np.uint64(7):
            return None
        block = self.mapped(int(paddrs[0]))
        if block is None or int(paddrs.min()) < block.start or int(paddrs.max()) + 8 > block.end:
            return None
        offsets = (paddrs - np.uint64(block.start)).astype(np.intp)
        if not np.frombuffer(block.present, dtype=np.uint8)[offsets >> 12].all():
            return None
        words = np.frombuffer(block.buffer, dtype="<u8", count=len(block.buffer) // 8)
        result: npt.NDArray[np.uint64] = words[offsets >> 3]
        return result

    def resident(self) -> Iterator[Region]:
        """Ranges that hold data, in rising order; the rest of :attr:`regions` is zeros."""
        yield from self.regions

    def populated(self) -> Iterator[Region]:
        """As :meth:`resident`, and what the host has swapped out: for who must have all of it."""
        return self.resident()

    def prefetch(self, paddrs: Sequence[int], size: int) -> None:  # noqa: B027
        """Say that ``size`` bytes at each of ``paddrs`` will be read soon, one by one.

        For memory that is :attr:`slow`; raises nothing for what is not there.
        """

    def expire(self) -> None:  # noqa: B027 (not every memory keeps what it has read)
        """Make sure that what is read from now on is read now: for a second look.

        A look that is to find out whether something has changed must not be shown what the
        first one read.
        """

    def forget(self) -> None:  # noqa: B027 (not every memory remembers something)
        """Drop what is remembered of residency: for sessions that last long."""

    def close(self) -> None:  # noqa: B027 (not every memory holds something)
        """Release what is held. Further reads raise; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def region_index(self, paddr: int) -> int:
        """Index in :attr:`regions` of the region that holds ``paddr``, or -1."""
        index = bisect_right(self.regions, paddr, key=lambda region: region.start) - 1
        if index < 0 or paddr >= self.regions[index].end:
            return -1
        return index

    @property
    def size(self) -> int:
        """Bytes of RAM and ROM altogether."""
        return sum(region.size for region in self.regions)

    @property
    def end(self) -> int:
        """First guest-physical address above all memory."""
        return max((region.end for region in self.regions), default=0)


def zeros_for(fault: FaultError, position: int, size: int, faults: list[int] | None) -> bytes:
    """What :meth:`PhysicalMemory.gather` gives for a range without memory.

    :param position: index of the range, which is appended to ``faults``.
    :raises FaultError: that fault, where ``faults`` is not given.
    """
    if faults is None:
        raise fault
    faults.append(position)
    return bytes(size)


def merge(regions: Iterable[Region]) -> Iterator[Region]:
    """Join regions that touch or overlap; the input must be sorted by start."""
    current: Region | None = None
    for region in regions:
        if current is None:
            current = region
        elif region.start <= current.end:
            current = Region(current.start, max(current.end, region.end))
        else:
            yield current
            current = region
    if current is not None:
        yield current
