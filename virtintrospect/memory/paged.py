"""Memory that comes in blocks which cost something to get: decompressed, and kept for a while."""

from __future__ import annotations

import abc
from collections import OrderedDict
from collections.abc import Sequence

from virtintrospect.errors import FaultError
from virtintrospect.memory.base import PhysicalMemory, zeros_for


class PagedMemory(PhysicalMemory):
    """Reads by whole blocks of guest-physical memory; the most recently used ones are kept.

    The image does not change, so what is kept cannot become wrong; it is bounded.

    :param block_size: bytes of a block, a power of two; addresses are multiples of it.
    :param kept: most bytes of blocks that are kept.
    """

    def __init__(self, block_size: int, kept: int = 32 << 20) -> None:
        self._block_size = block_size
        self._most = max(4, kept // block_size)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    @abc.abstractmethod
    def _load(self, number: int) -> bytes:
        """The block that begins at ``number * block_size``; exactly ``block_size`` bytes."""

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = self._load(number)
            if len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(number)
        return block

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        width = self._block_size
        number, at = divmod(paddr, width)
        if at + size <= width:
            return self._block(number)[at : at + size]
        parts = []
        while size > 0:
            step = min(size, width - at)
            parts.append(self._block(number)[at : at + step])
            number, at, size = number + 1, 0, size - step
        return b"".join(parts)

    def gather(self, paddrs: Sequence[int], size: int, faults: list[int] | None = None) -> bytes:
        """As :meth:`PhysicalMemory.gather`; ranges within a block that is kept cost a slice."""
        width, blocks = self._block_size, self._blocks
        parts = []
        for position, paddr in enumerate(paddrs):
            number, at = divmod(paddr, width)
            block = blocks.get(number)
            if block is not None and at + size <= width:
                parts.append(block[at : at + size])
                continue
            try:
                parts.append(self.read(paddr, size))
            except FaultError as fault:
                parts.append(zeros_for(fault, position, size, faults))
        return b"".join(parts)
