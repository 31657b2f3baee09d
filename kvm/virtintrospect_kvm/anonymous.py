"""Guest RAM read through QEMU's own memory: the only way to what is not shared."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator, Sequence

from virtintrospect.errors import FaultError, MemoryAccessError
from virtintrospect.memory import Region
from virtintrospect_kvm import bulk
from virtintrospect_kvm.backing import BackingFile
from virtintrospect_kvm.pagemap import Pagemap
from virtintrospect_kvm.process import QemuProcess

#: Ranges that one process_vm_readv takes (IOV_MAX, <limits.h>).
_MOST_RANGES = 1024
#: From this size on the set-up of process_vm_readv is cheaper than what /proc/PID/mem
#: loses by copying every page twice (mem_rw in fs/proc/base.c).
_DIRECT_SIZE = 65536


class ProcessBlock:
    """One RAM block in QEMU's own memory.

    Only pages that QEMU's page tables show as allocated are read, the others are zeros: a
    read of an absent anonymous page would make the kernel fill QEMU's page tables.
    A page that the host swapped out is brought back by a read of it, but it is not listed by
    :meth:`extents`: a sweep over all memory must not swap a guest in.

    Small reads go through ``/proc/PID/mem``, which stays bound to the process's memory and
    needs no privilege after it was opened; large and many ones through ``process_vm_readv``,
    which goes by PID: the result is only believed when the process still runs afterwards.

    :param descriptor: ``/proc/PID/mem``; the owner closes it.
    :param address: where QEMU has the block, as an address in QEMU.
    :param file: of RAM that is shared, and read in this way because the user wants it so: the
        file behind it, taken over. It has the pages that QEMU itself has not mapped.
    """

    def __init__(
        self,
        process: QemuProcess,
        pagemap: Pagemap,
        descriptor: int,
        address: int,
        size: int,
        file: BackingFile | None = None,
    ) -> None:
        self._file = file
        self._process = process
        self._pagemap = pagemap
        self._descriptor = descriptor
        self._address = address
        self.size = size
        self.present = pagemap.present

    def read(self, offset: int, size: int) -> bytes:
        """Bytes at an offset in the block; the range must lie inside it."""
        first, end = offset >> 12, ((offset + size - 1) >> 12) + 1
        if self.present.find(0, first, end) < 0 or self._pagemap.resident(offset, size):
            if size >= _DIRECT_SIZE:
                return self._read_many([offset], size)
            return self._pread(offset, size)
        self._process.check()
        return self._read_with_holes(offset, size)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` from an offset in the block."""
        size = len(out)
        if size >= _DIRECT_SIZE and self._pagemap.resident(offset, size):
            self._fill(bulk.Window(out), [offset], size)
        else:
            out[:] = self.read(offset, size)

    def read_u64(self, offset: int) -> int:
        """The 64-bit number at an offset."""
        return int.from_bytes(self.read(offset, 8), "little")

    def gather(self, offsets: Sequence[int], size: int) -> bytes:
        """Bytes at many offsets, in their order."""
        present, last = self.present, size - 1
        if size <= 4096 and 0 not in [
            present[o >> 12] and present[(o + last) >> 12] for o in offsets
        ]:
            return self._read_many(offsets, size)
        out = bytearray(len(offsets) * size)
        there = []
        for position, offset in enumerate(offsets):
            if self._pagemap.resident(offset, size):
                there.append(position)
            else:
                out[position * size : (position + 1) * size] = self._read_with_holes(offset, size)
        if not there:
            return bytes(out)
        data = memoryview(self._read_many([offsets[position] for position in there], size))
        for index, position in enumerate(there):
            out[position * size : (position + 1) * size] = data[index * size : (index + 1) * size]
        return bytes(out)

    def view(self, offset: int, size: int) -> None:
        """Never: another process's memory cannot be mapped."""

    def whole(self) -> None:
        """Never: another process's memory cannot be mapped."""

    def extents(self, offset: int, size: int, *, swapped: bool = False) -> Iterator[Region]:
        """Offsets that hold data in RAM; swapped pages only where they are asked for."""
        self._process.check()
        if self._file is not None and self._file.knows_holes:
            return self._file.extents(offset, size, self._process.check)
        return self._pagemap.extents(offset, size, swapped=swapped)

    def first_absent(self, offset: int, size: int) -> int | None:
        """Offset of the first page of a range that the host has not got."""
        if self._file is not None and self._file.knows_holes:
            return self._file.first_hole(offset, size)
        return self._pagemap.first_absent(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Write to a range of which no page is absent; ``/proc/PID/mem`` must be open for it.

        :raises TargetGoneError: the process ended.
        :raises MemoryAccessError: the kernel refuses.
        """
        while data:
            self._process.check()
            try:
                done = os.pwrite(self._descriptor, data, self._address + offset)
            except OSError as error:
                self._process.check()
                raise MemoryAccessError(
                    f"the guest's RAM cannot be written: {error.strerror}",
                    hint="a security module may forbid writing to /proc/PID/mem",
                ) from error
            if not done:
                raise self._process.gone()
            offset, data = offset + done, data[done:]

    def forget(self) -> None:
        """Drop what is known of residency."""
        self._pagemap.forget()

    def close(self) -> None:
        """Forget the descriptors, whose numbers will be somebody else's."""
        self._descriptor = -1
        if self._file is not None:
            self._file.close()
        self._pagemap.close()
        self.forget()

    def _read_with_holes(self, offset: int, size: int) -> bytes:
        """Read a range of which some pages are absent; what is known of them is fresh."""
        parts = []
        position, end = offset, offset + size
        while position < end:
            there, stop_page = self._pagemap.run(position >> 12, (end + 4095) >> 12)
            stop = min(stop_page << 12, end)
            read = self._pread if there else self._absent
            parts.append(read(position, stop - position))
            position = stop
        return b"".join(parts)

    def _absent(self, offset: int, size: int) -> bytes:
        return bytes(size) if self._file is None else self._file.read(offset, size)

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, self._address + offset)
        except OSError as error:
            self._process.check()
            raise FaultError(offset, size, kind="RAM block") from error
        return data if len(data) == size else self._short(offset, size, data)

    def _read_many(self, offsets: Sequence[int], size: int) -> bytes:
        """``process_vm_readv`` of resident ranges, :data:`_MOST_RANGES` a call."""
        out = bulk.Buffer(len(offsets) * size)
        self._fill(out, offsets, size)
        return out.data

    def _fill(self, out: bulk.Window, offsets: Sequence[int], size: int) -> None:
        for start in range(0, len(offsets), _MOST_RANGES):
            addresses = [self._address + offset for offset in offsets[start : start + _MOST_RANGES]]
            self._read_batch(out, start * size, addresses, size)
        self._process.check()

    def _read_batch(self, out: bulk.Window, at: int, addresses: list[int], size: int) -> None:
        ranges = array("Q", bytes(16 * len(addresses)))
        ranges[0::2] = array("Q", addresses)
        ranges[1::2] = array("Q", [size]) * len(addresses)
        done = 0
        # Each round ends one range at least, so there are no more rounds than ranges.
        while done < len(addresses):
            count = bulk.read(self._process.pid, out, at + done * size, ranges[done * 2 :])
            if count < 0 and -count not in (errno.EFAULT, errno.EPERM, errno.ESRCH):
                raise self._process.denied(OSError(-count, os.strerror(-count)))
            done += max(count, 0) // size
            if done == len(addresses):
                return
            # The kernel stops at the first range it cannot read whole. Without the privilege
            # for process_vm_readv (dropped since the open) every range goes this way.
            out.put(at + done * size, self._pread(addresses[done] - self._address, size))
            done += 1

    def _short(self, offset: int, size: int, data: bytes) -> bytes:
        """Go on after a short read: it stops where memory stops, or with the process."""
        while len(data) < size:
            self._process.check()
            address = self._address + offset + len(data)
            try:
                more = os.pread(self._descriptor, size - len(data), address)
            except OSError as error:
                raise FaultError(offset + len(data), size, kind="RAM block") from error
            if not more:
                # End of file: the process has no memory any more, though it may take a moment
                # until its pidfd says so (mem_rw in fs/proc/base.c, exit_mm in kernel/exit.c).
                raise self._process.gone()
            data += more
        return data
