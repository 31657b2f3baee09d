"""Guest-physical memory of a QEMU guest: its RAM blocks, each read in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from virtintrospect.errors import FaultError, NotWritableError
from virtintrospect.memory import Mapped, PhysicalMemory, Region
from virtintrospect.memory.base import MAX_READ, merge
from virtintrospect_kvm.anonymous import ProcessBlock
from virtintrospect_kvm.process import QemuProcess
from virtintrospect_kvm.shared import SharedBlock

_Block = SharedBlock | ProcessBlock


class KvmMemory(PhysicalMemory):
    """The RAM (and, where found, the firmware) of a QEMU guest.

    Whether the guest still runs is asked at least every millisecond of reading; a read after
    its end raises :exc:`~virtintrospect.errors.TargetGoneError`.

    :param pieces: guest-physical range, the block it is in, and the guest-physical address at
        which that block starts; sorted.
    :param rom: what of it the guest cannot write.
    :param writable: the blocks were opened for writing.
    """

    def __init__(
        self,
        process: QemuProcess,
        pieces: Sequence[tuple[Region, _Block, int]],
        *,
        rom: Sequence[Region] = (),
        writable: bool = False,
    ) -> None:
        self._process = process
        self.rom = tuple(rom)
        self.writable = writable
        #: Writes at a guest-physical address in another way than the blocks'.
        self.writer: Callable[[int, bytes], None] | None = None
        self.regions = tuple(region for region, _, _ in pieces)
        #: start, end, block, and what to subtract from an address to get the block's offset.
        self._pieces = [
            (region.start, region.end, block, block_start) for region, block, block_start in pieces
        ]
        self._last = max(self._pieces, key=lambda piece: piece[1] - piece[0])

    def read(self, paddr: int, size: int) -> bytes:  # noqa: D102 (inherited)
        start, end, block, shift = self._last
        if start <= paddr and 0 < size <= MAX_READ and paddr + size <= end:
            return block.read(paddr - shift, size)
        return super().read(paddr, size)

    def read_into(self, paddr: int, out: memoryview) -> None:  # noqa: D102 (inherited)
        index = self.region_index(paddr)
        _, end, block, shift = self._pieces[index]
        if index < 0 or paddr + len(out) > end:
            super().read_into(paddr, out)
            return
        block.read_into(paddr - shift, out)

    def read_u64(self, paddr: int) -> int:  # noqa: D102 (inherited)
        start, end, block, shift = self._last
        if start <= paddr <= end - 8:
            return block.read_u64(paddr - shift)
        return super().read_u64(paddr)

    def reader_u64(self) -> Callable[[int], int]:  # noqa: D102 (inherited)
        start, end, block, shift = max(self._pieces, key=lambda piece: piece[1] - piece[0])
        if isinstance(block, SharedBlock):
            return block.reader_u64(start, end, shift, self.read_u64)
        return self.read_u64

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        _, _, block, shift = self._last = self._pieces[index]
        return block.read(paddr - shift, size)

    def _check_write_within(self, index: int, paddr: int, size: int) -> None:
        _, _, block, shift = self._pieces[index]
        absent = block.first_absent(paddr - shift, size)
        if absent is not None:
            raise NotWritableError(
                absent + shift,
                "the host has not got this page: the guest never used it, or gave it back",
                hint="the guest must write there first; nothing here makes it use more memory",
            )

    def _write_within(self, index: int, paddr: int, data: bytes) -> None:
        if self.writer is not None:
            self.writer(paddr, data)
            return
        _, _, block, shift = self._pieces[index]
        block.write(paddr - shift, data)

    def gather(  # noqa: D102 (inherited)
        self, paddrs: Sequence[int], size: int, faults: list[int] | None = None
    ) -> bytes:
        if not len(paddrs) or size <= 0 or size * len(paddrs) > MAX_READ:
            return super().gather(paddrs, size, faults)
        lowest = min(paddrs)
        index = self.region_index(lowest)
        if index >= 0 and max(paddrs) + size <= self.regions[index].end:
            return self._gather_within(index, paddrs, size, faults)
        return self._gather_apart(paddrs, size, faults)

    def view(self, paddr: int, size: int) -> memoryview | None:  # noqa: D102 (inherited)
        index = self.region_index(paddr)
        if index < 0 or size <= 0 or paddr + size > self.regions[index].end:
            return None
        _, _, block, shift = self._pieces[index]
        return block.view(paddr - shift, size)

    def mapped(self, paddr: int) -> Mapped | None:
        """The whole mapped block around ``paddr``; ``None`` where RAM is not mapped.

        A page that is not in ``present`` goes through :meth:`read`, which finds out more of
        its neighbourhood. A loop that runs for long calls this again, or :meth:`read`, to
        notice that the guest has ended. VGA's window, which no region has, is in the block.
        """
        index = self.region_index(paddr)
        if index < 0:
            return None
        _, _, block, shift = self._pieces[index]
        whole = block.whole()
        return None if whole is None else Mapped(whole, shift, shift + block.size, block.present)

    def resident(self) -> Iterator[Region]:
        """Ranges that hold data, asked from the host anew each time.

        Pages of anonymous RAM that the host swapped out are left out, so that a sweep does
        not bring them back in; a :meth:`read` of one gives its data.
        """
        return merge(self._resident())

    def populated(self) -> Iterator[Region]:
        """As :meth:`resident`, and pages that the host swapped out: reading brings them in."""
        return merge(self._resident(swapped=True))

    def _resident(self, *, swapped: bool = False) -> Iterator[Region]:
        for start, end, block, shift in self._pieces:
            for run in block.extents(start - shift, end - start, swapped=swapped):
                yield Region(max(run.start + shift, start), min(run.end + shift, end))

    def forget(self) -> None:
        """Drop what is known of residency; the next reads ask the host again.

        For long sessions: pages that the guest has given back (balloon) are then not touched.
        """
        for block in {id(piece[2]): piece[2] for piece in self._pieces}.values():
            block.forget()

    def outlive(self) -> bool:
        """Go on after QEMU's end, where all RAM is shared; ``False`` where it is not."""
        blocks = {id(piece[2]): piece[2] for piece in self._pieces}.values()
        largest = max(self._pieces, key=lambda piece: piece[1] - piece[0])[2]
        if not isinstance(largest, SharedBlock):
            return False
        for block in blocks:
            if isinstance(block, SharedBlock):
                block.outlive()
        self._process.outlive()
        return True

    def close(self) -> None:
        """Unmap and let go; closing twice is harmless."""
        for block in {id(piece[2]): piece[2] for piece in self._pieces}.values():
            block.close()

    def _gather_apart(self, paddrs: Sequence[int], size: int, faults: list[int] | None) -> bytes:
        """Gather over several regions: one call a block, the rest one by one."""
        out = bytearray(size * len(paddrs))
        groups: dict[int, list[int]] = {}
        for position, paddr in enumerate(paddrs):
            index = self.region_index(paddr)
            inside = index >= 0 and paddr + size <= self.regions[index].end
            groups.setdefault(index if inside else -1, []).append(position)
        for position in groups.pop(-1, ()):
            try:
                out[position * size : (position + 1) * size] = self.read(paddrs[position], size)
            except FaultError:
                if faults is None:
                    raise
                faults.append(position)
        for index, positions in groups.items():
            region = [paddrs[position] for position in positions]
            missing: list[int] | None = None if faults is None else []
            data = self._gather_within(index, region, size, missing)
            for number, position in enumerate(positions):
                out[position * size : (position + 1) * size] = data[
                    number * size : (number + 1) * size
                ]
            if faults is not None and missing:
                faults.extend(positions[number] for number in missing)
        return bytes(out)

    def _gather_within(
        self, index: int, paddrs: Sequence[int], size: int, faults: list[int] | None
    ) -> bytes:
        """Gather ranges that all lie in one region."""
        _, _, block, shift = self._pieces[index]
        try:
            return block.gather([p - shift for p in paddrs], size)
        except FaultError:
            # QEMU has unmapped a part of the block: find out which addresses that hits.
            return super().gather(paddrs, size, faults)
