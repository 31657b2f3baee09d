"""Guest-physical memory of which each read is a slow call: neighbours are read along, and kept.

A call costs milliseconds, whether it gives 8 bytes or 64 KiB, and not much more for 256 KiB. So
memory is read in blocks; blocks that are missing are read together where the gaps between them
are small; what was read is taken for the guest's memory until it is :attr:`PulledMemory.age` old.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from virtintrospect.errors import FaultError, MemoryAccessError
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.memory.base import zeros_for

#: Bytes of a block. A call of virDomainMemoryPeek takes 3.7 ms, and 2.7 ms more for a MiB; with
#: blocks of 64 KiB `ps` of 305 processes took 346 calls and 59 MiB, with these 204 and 70 MiB.
BLOCK = 256 << 10
#: A gap that is read along, in bytes: longer ones cost more than a call of their own.
_GAP = 256 << 10
#: Bytes that are kept.
_KEPT = 64 << 20
#: Larger reads are made straight through, and not kept.
_DIRECT = 4 << 20


class PulledMemory(PhysicalMemory):
    """RAM that somebody else reads for us. What was read is kept for :attr:`age` seconds.

    Unlike the transports that look at RAM themselves, this one cannot know which pages the host
    has allocated: a read of one that the guest never used may make QEMU allocate it.

    :param regions: where there is RAM.
    :param fetch: gives bytes at an address; raises
        :exc:`~virtintrospect.errors.FaultError` where there is no memory.
    :param most: tells how many bytes one call may ask for; the number may change.
    :param release: called once when the memory is closed.
    """

    slow = True

    def __init__(
        self,
        regions: Iterable[Region],
        fetch: Callable[[int, int], bytes],
        most: Callable[[], int],
        release: Callable[[], None],
    ) -> None:
        self.regions = tuple(regions)
        #: How old the bytes of a read may be, in seconds; 0 keeps nothing from one to the next.
        self.age = 5.0
        #: Calls made so far, for those who wonder what takes so long.
        self.calls = 0
        self._fetch = fetch
        self._most = most
        #: Bytes that are read at least; less than usual where a call gives less.
        self.block = min(BLOCK, most())
        self._room = _KEPT // self.block
        self._release: Callable[[], None] | None = release
        #: Time of reading and bytes of each block, by its address; ``None``: no memory there.
        self._blocks: dict[int, tuple[float, bytes | None]] = {}

    def gather(  # noqa: D102 (inherited)
        self, paddrs: Sequence[int], size: int, faults: list[int] | None = None
    ) -> bytes:
        if size <= 0 or size > _DIRECT:
            return super().gather(paddrs, size, faults)
        needed = self._needed(paddrs, size)
        if len(needed) > self._room and len(paddrs) > 1:
            return self._gather_halves(paddrs, size, faults)
        self._load(needed)
        parts = []
        for position, paddr in enumerate(paddrs):
            index = self.region_index(paddr)
            try:
                if index >= 0 and paddr + size <= self.regions[index].end:
                    parts.append(self._cut(index, paddr, size))
                else:
                    parts.append(self.read(paddr, size))
            except FaultError as fault:
                parts.append(zeros_for(fault, position, size, faults))
        return b"".join(parts)

    def prefetch(self, paddrs: Sequence[int], size: int) -> None:  # noqa: D102 (inherited)
        needed = self._needed(paddrs, min(size, _DIRECT))
        if len(needed) <= self._room:
            self._load(needed)

    def expire(self) -> None:  # noqa: D102 (inherited)
        self._blocks.clear()

    def forget(self) -> None:
        """Drop everything that was read; the next reads ask anew."""
        self._blocks.clear()

    def close(self) -> None:
        """Forget all and let go of the source; closing twice is harmless."""
        self.forget()
        release, self._release = self._release, None
        if release is not None:
            release()

    def _gather_halves(self, paddrs: Sequence[int], size: int, faults: list[int] | None) -> bytes:
        middle = len(paddrs) // 2
        first = self.gather(paddrs[:middle], size, faults)
        missing: list[int] | None = None if faults is None else []
        second = self.gather(paddrs[middle:], size, missing)
        if faults is not None:
            faults += [middle + position for position in missing or ()]
        return first + second

    def _needed(self, paddrs: Sequence[int], size: int) -> dict[int, int]:
        """Blocks in which ranges lie, and the index of the region of each."""
        needed: dict[int, int] = {}
        for paddr in paddrs:
            index = self.region_index(paddr)
            if index >= 0:
                needed.update((block, index) for block in self._span(index, paddr, size))
        return needed

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        if size > _DIRECT:
            return b"".join(self._straight(paddr, size))
        self._load(dict.fromkeys(self._span(index, paddr, size), index))
        return self._cut(index, paddr, size)

    def _cut(self, index: int, paddr: int, size: int) -> bytes:
        """Bytes of a range whose blocks were loaded."""
        parts = []
        for block in self._span(index, paddr, size):
            data = self._blocks[block][1]
            if data is None:
                raise FaultError(max(paddr, block), size)
            parts.append(data[max(paddr - block, 0) : max(paddr + size - block, 0)])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _straight(self, paddr: int, size: int) -> Iterator[bytes]:
        while size > 0:
            step = min(size, self._most())
            yield self._pull(paddr, step)
            paddr += step
            size -= step

    def _span(self, index: int, paddr: int, size: int) -> list[int]:
        """Addresses of the blocks that a range of a region lies in."""
        start, end = self.regions[index]
        first = paddr - paddr % self.block
        return [max(at, start) for at in range(first, min(paddr + size, end), self.block)]

    def _load(self, needed: dict[int, int]) -> None:
        """Have these blocks (with the index of their region), none of them too old."""
        oldest = time.monotonic() - self.age
        blocks = self._blocks
        missing = [b for b in needed if b not in blocks or blocks[b][0] <= oldest]
        if not missing:
            return
        if len(self._blocks) + len(missing) > self._room:
            blocks.clear()
            missing = list(needed)
        missing.sort()
        for first, last in _runs(missing, needed, self.block, self._most()):
            self._load_run(needed[first], first, last)

    def _load_run(self, index: int, first: int, last: int) -> None:
        """Read the blocks from ``first`` to ``last``, both included, by one call."""
        end = min(last - last % self.block + self.block, self.regions[index].end)
        try:
            data: bytes | None = self._pull(first, end - first)
        except FaultError:
            if first != last:
                for block in self._span(index, first, end - first):
                    self._load_run(index, block, block)
                return
            data = None
        now = time.monotonic()
        for block in self._span(index, first, end - first):
            at, stop = block - first, block - block % self.block + self.block - first
            self._blocks[block] = (now, None if data is None else data[at:stop])

    def _pull(self, paddr: int, size: int) -> bytes:
        if self._release is None:
            raise MemoryAccessError("the guest's memory is closed")
        self.calls += 1
        data = self._fetch(paddr, size)
        if len(data) != size:
            raise MemoryAccessError(
                f"{len(data)} bytes came of guest address {paddr:#x}, where {size} were asked for"
            )
        return data


def _runs(
    blocks: list[int], index: dict[int, int], size: int, most: int
) -> Iterator[tuple[int, int]]:
    """First and last of the blocks that one call reads, of a list that is sorted.

    :param size: bytes of a block.
    :param most: bytes that a call may ask for.
    """
    first = blocks[0]
    for block, following in pairwise([*blocks, None]):
        assert block is not None
        if (
            following is not None
            and index[following] == index[first]
            and following - block <= _GAP + size
            and following - first <= most - size
        ):
            continue
        yield first, block
        if following is not None:
            first = following
