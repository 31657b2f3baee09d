"""Guest-physical memory of a Xen guest."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from time import monotonic_ns

from virtintrospect.errors import (
    FaultError,
    MemoryAccessError,
    NotWritableError,
    VirtIntrospectError,
)
from virtintrospect.memory import Mapped, PhysicalMemory, Region
from virtintrospect.memory.base import MAX_READ, MachineFrames, merge
from virtintrospect_xen.window import MOST_A_CALL, Window, refused

_PAGE = 4096
#: Frames that are mapped at once around one that is read: a call costs as much as some twenty
#: frames do.
_AROUND = 32
#: Nanoseconds of reading after which Xen is asked whether the guest is still the same: at least
#: so many, ten times as many as asking takes, and at most so many.
_CHECK_EVERY, _CHECK_SHARE, _CHECK_LATEST = 1_000_000, 10, 20_000_000
#: Nanoseconds for which mappings are kept while reading. What is mapped here stays the guest's,
#: though its balloon has given it back, and Xen counts it as before (guest_remove_page in
#: xen/common/memory.c lets go of a page that others still hold).
_KEEP = 30_000_000_000

#: Why Xen has not mapped a frame (tools/libs/foreignmemory/linux.c; privcmd's own numbers).
_WHY = {
    errno.ENXIO: "the guest has no memory there",
    errno.ENOENT: "the page is paged out, and its pager does not bring it back",
    errno.EINVAL: "Xen maps no memory there: a hole, or ballooned out",
    errno.EPERM: "the machine frame there is not the guest's",
    errno.EBUSY: "the page there is a page table that Xen protects",
    # Only who wants to write meets it (mod_l1_entry in xen/arch/x86/mm.c).
    errno.ENOMEM: "the page is shared with other guests, and Xen has no memory for a copy of it",
}


#: The same of a frame that can be read.
_NOT_WRITABLE = {number: _WHY[number] for number in (errno.EBUSY, errno.ENOMEM, errno.ENOENT)}
_ROM = "Xen lets nobody write there: ROM, or a page table of a PV guest"


class XenMemory(PhysicalMemory):
    """A guest's memory, mapped frame by frame as it is read.

    :param window: where frames are mapped; taken over.
    :param regions: where there may be memory.
    :param check: makes sure that the guest is there and has, and may have, as much memory as
        before; gives whether it has not, in which case what is mapped is dropped.
    :param frames: of a PV guest.
    :param renew: makes ``frames`` ask the guest anew.
    :param find: finds ``regions`` anew, where a balloon may have changed them.
    """

    def __init__(
        self,
        window: Window,
        regions: tuple[Region, ...],
        check: Callable[[], bool],
        frames: MachineFrames | None = None,
        renew: Callable[[], None] | None = None,
        find: Callable[[], tuple[Region, ...]] | None = None,
    ) -> None:
        self._window = window
        self._check = check
        self._check_at = 0
        self._forget_at = monotonic_ns() + _KEEP
        #: Frame behind those that were brought in last.
        self._ahead = -1
        self._regions, self._moved = regions, False
        self.frames = frames
        self._renew, self._find = renew, find

    @property
    def regions(self) -> tuple[Region, ...]:
        """Where there may be memory; looked for again after a balloon has moved."""
        if self._moved and self._find is not None:
            self._moved = False
            self._regions = self._find() or self._regions
        return self._regions

    @regions.setter
    def regions(self, regions: tuple[Region, ...]) -> None:
        self._regions = regions

    def check(self) -> None:
        """Make sure, once a millisecond or so, that the guest is as it was.

        :raises TargetGoneError: it has ended.
        """
        began = monotonic_ns()
        if began >= self._check_at:
            if self._check():
                self._moved = True
                self.forget()
            elif began >= self._forget_at:
                self.forget()
            now = monotonic_ns()
            wait = max(_CHECK_EVERY, min(_CHECK_SHARE * (now - began), _CHECK_LATEST))
            self._check_at = now + wait

    def read(self, paddr: int, size: int) -> bytes:  # noqa: D102 (inherited)
        if not 0 < size <= MAX_READ or paddr < 0 or paddr + size > self._window.frames * _PAGE:
            return super().read(paddr, size)
        self.check()
        first, end = paddr >> 12, (paddr + size + _PAGE - 1) >> 12
        if end - first > MOST_A_CALL:
            return self._read_long(paddr, size)
        window = self._window
        if window.present.find(0, first, end) >= 0:
            self._bring(first, end, paddr, size)
        return bytes(window.buffer[paddr : paddr + size])

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        if paddr + size > self._window.frames * _PAGE:
            raise FaultError(paddr, size)
        return self.read(paddr, size)

    def _read_long(self, paddr: int, size: int) -> bytes:
        """A range of which less may fit the window than is asked for."""
        out = bytearray(size)
        step = MOST_A_CALL * _PAGE
        for start in range(paddr, paddr + size, step):
            end = min(start + step, paddr + size)
            self._bring(start >> 12, (end + _PAGE - 1) >> 12, paddr, size)
            out[start - paddr : end - paddr] = self._window.buffer[start:end]
        return bytes(out)

    def gather(  # noqa: D102 (inherited)
        self, paddrs: Sequence[int], size: int, faults: list[int] | None = None
    ) -> bytes:
        if not len(paddrs) or not 0 < size <= _PAGE or size * len(paddrs) > MAX_READ:
            return super().gather(paddrs, size, faults)
        self.check()
        last = size - 1
        pages = {p >> 12 for p in paddrs} | {(p + last) >> 12 for p in paddrs}
        if len(pages) > MOST_A_CALL or min(pages) < 0 or max(pages) >= self._window.frames:
            return super().gather(paddrs, size, faults)
        window = self._window
        if not all(map(window.present.__getitem__, pages)):
            for first, end in _runs(sorted(page // _AROUND for page in pages)):
                self._try_bring(first * _AROUND, end * _AROUND)
            if not all(map(window.present.__getitem__, pages)):
                return super().gather(paddrs, size, faults)
        buffer = window.buffer
        return b"".join([buffer[p : p + size] for p in paddrs])

    def view(self, paddr: int, size: int) -> None:
        """Never: what is mapped may have to go. It is brought in, for :meth:`mapped`."""
        if 0 < size <= MAX_READ and 0 <= paddr < self._window.frames * _PAGE:
            self._try_bring(paddr >> 12, (paddr + size + _PAGE - 1) >> 12)

    def mapped(self, paddr: int) -> Mapped | None:
        """All of the guest, of which what ``present`` says is mapped."""
        if not 0 <= paddr < self._window.frames * _PAGE:
            return None
        self.check()
        window = self._window
        return Mapped(window.buffer, 0, window.frames * _PAGE, window.present)

    def resident(self) -> Iterator[Region]:
        """Ranges that hold memory; found by mapping them, so a sweep maps once."""
        return merge(self._resident())

    def _resident(self) -> Iterator[Region]:
        present = self._window.present
        for region in self.regions:
            for first in range(region.start >> 12, region.end >> 12, MOST_A_CALL):
                end = min(first + MOST_A_CALL, region.end >> 12)
                self.check()
                self._try_bring(first, end)
                # As it is now: who reads the first of these may have others unmapped.
                found = bytes(present[first:end])
                start = found.find(1)
                while start >= 0:
                    stop = found.find(0, start)
                    stop = len(found) if stop < 0 else stop
                    yield Region((first + start) * _PAGE, (first + stop) * _PAGE)
                    start = found.find(1, stop)

    def _check_write_within(self, index: int, paddr: int, size: int) -> None:  # noqa: ARG002
        self.read(paddr, size)  # all of it is there
        first, address, errors = self._map_for_writing(paddr, size)
        Window.unmap(address, len(errors))
        for frame, error in enumerate(errors, first):
            if error:
                raise NotWritableError(max(paddr, frame * _PAGE), _NOT_WRITABLE.get(error, _ROM))

    def _write_within(self, index: int, paddr: int, data: bytes) -> None:  # noqa: ARG002
        _, address, errors = self._map_for_writing(paddr, len(data))
        try:
            if any(errors):
                raise NotWritableError(paddr, "Xen has changed its mind on writing there")
            ctypes.memmove(address + (paddr & (_PAGE - 1)), data, len(data))
        finally:
            Window.unmap(address, len(errors))

    def _map_for_writing(self, paddr: int, size: int) -> tuple[int, int, Sequence[int]]:
        """First frame, where it is mapped for now, and an errno for each frame."""
        first, end = paddr >> 12, (paddr + size + _PAGE - 1) >> 12
        try:
            return first, *self._window.map_for_writing(range(first, end))
        except OSError as error:
            raise self._problem(error, paddr, size) from error

    def machine(self, frames: range) -> Sequence[int]:
        """What Xen calls guest frames: machine frames for a PV guest."""
        return self._window.xen_frames(frames)

    def forget(self) -> None:
        """Unmap everything, and ask the guest anew where its frames are."""
        self._window.drop_all()
        self._forget_at = monotonic_ns() + _KEEP
        if self._renew is not None:
            self._renew()

    def close(self) -> None:
        """Unmap everything; twice is harmless."""
        self._window.close()
        self._check, self._check_at = _closed, 0

    def _bring(self, first: int, end: int, paddr: int, size: int) -> None:
        """Have frames mapped, or say which address is missing and why."""
        window = self._window
        start = first // _AROUND * _AROUND
        stop = min(-(-end // _AROUND) * _AROUND, window.frames)
        if stop - start > MOST_A_CALL:
            start, stop = first, end
        elif first == self._ahead:  # one read after the other: few calls for many frames
            stop = min(start + MOST_A_CALL, window.frames)
        self._ahead = stop
        try:
            window.bring(start, stop)
        except OSError as error:
            raise self._problem(error, paddr, size) from error
        missing = window.present.find(0, first, end)
        if missing < 0:
            return
        why = window.missing.get(missing, errno.EINVAL)
        raise FaultError(
            max(paddr, missing * _PAGE), size, hint=_WHY.get(why, f"Xen says: {os.strerror(why)}")
        )

    def _try_bring(self, first: int, end: int) -> None:
        try:
            self._window.bring(first, min(end, self._window.frames))
        except OSError as error:
            problem = self._problem(error, first * _PAGE, _PAGE)
            if not isinstance(problem, FaultError):
                raise problem from error

    def _problem(self, error: OSError, paddr: int, size: int) -> VirtIntrospectError:
        """What it means that Xen maps nothing at all."""
        self._check_at = 0
        self.check()
        if error.errno in (errno.EACCES, errno.EPERM):
            return refused(os.strerror(error.errno))
        if error.errno in (errno.ENOMEM, errno.EMFILE):
            return MemoryAccessError(
                f"domain 0 cannot map the guest's memory: {error.strerror}",
                hint="it has too little memory, or vm.max_map_count is too low",
            )
        return FaultError(paddr, size, hint=f"Xen says: {error.strerror}")


def _closed() -> bool:
    raise MemoryAccessError("the guest's memory is closed")


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of rising numbers that follow each other, as half-open ranges."""
    start = last = numbers[0]
    for number in numbers[1:]:
        if number > last + 1:
            yield start, last + 1
            start = number
        last = number
    yield start, last + 1
