"""A guest's RAM in a file, with changes that only one look sees."""

from __future__ import annotations

import mmap
from pathlib import Path

from virtintrospect.driver import Target
from virtintrospect.memory import Mapped, PhysicalMemory, Region

#: Where the extra memory of an :class:`Image` begins.
EXTRA = 4 << 30


class Image(PhysicalMemory):
    """A guest's RAM in a file, with changes that only this object sees (copy on write).

    :param mapped: offer the zero-copy window, as shared RAM does.
    :param extra: bytes of empty RAM at :data:`EXTRA`, for lies that need room.
    """

    def __init__(self, path: Path, *, mapped: bool = True, extra: int = 0) -> None:
        with path.open("rb") as file:
            maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)]
        self.regions: tuple[Region, ...] = (Region(0, len(maps[0])),)
        if extra:
            maps.append(mmap.mmap(-1, extra))
            self.regions += (Region(EXTRA, EXTRA + extra),)
        self._maps = maps
        self._windows = [
            Mapped(
                memoryview(data).toreadonly(), *region, bytearray(b"\1" * (region.size >> 12))
            )
            for data, region in zip(maps, self.regions, strict=True)
        ] if mapped else []  # fmt: skip

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        at = paddr - self.regions[index].start
        return self._maps[index][at : at + size]

    def mapped(self, paddr: int) -> Mapped | None:
        index = self.region_index(paddr)
        return self._windows[index] if self._windows and index >= 0 else None

    def write(self, paddr: int, data: bytes) -> None:
        """Change memory; what lies outside of it is dropped."""
        index = self.region_index(paddr)
        if index >= 0 and paddr + len(data) <= self.regions[index].end:
            at = paddr - self.regions[index].start
            self._maps[index][at : at + len(data)] = data


class ImageTarget(Target):
    """A target over any memory."""

    transport = "fuzz"

    def __init__(self, memory: PhysicalMemory, *, live: bool) -> None:
        self._memory = memory
        self.live = live

    @property
    def memory(self) -> PhysicalMemory:
        return self._memory

    def close(self) -> None:
        """Nothing to release."""
