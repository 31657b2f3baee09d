"""Guest frames, mapped where they belong: one range of addresses here for all guest memory.

The range is reserved at first, without memory behind it; frames are mapped into their places as
they are needed, many by one call, and the oldest go when there are too many. So what is mapped is
found by adding, and arrays of addresses are read at once (:class:`~virtintrospect.memory.Mapped`).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from virtintrospect.errors import AccessDeniedError, MemoryAccessError
from virtintrospect_xen import bindings

_PAGE = 4096
#: Frames that one call maps at most.
MOST_A_CALL = 1024
#: Frames that may be mapped at a time: 256 MiB of a guest.
MOST_MAPPED = 65536
_FIXED, _NORESERVE = 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value


def refused(why: str) -> AccessDeniedError:
    """Xen maps nothing of a guest for us."""
    return AccessDeniedError(
        f"Xen refuses this guest's memory: {why}",
        hint="run as root in dom0; with XSM, its policy must allow it",
    )


class Mapper:
    """A way to map frames of one domain. A context manager by :meth:`close`.

    :raises MemoryAccessError: this is no Xen, or not its domain 0.
    """

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self._library = bindings.foreign_memory()
        self._handle = self._library.xenforeignmemory_open(None, 0)
        if not self._handle:
            raise bindings.not_here("open the way to other domains' memory")
        # Least privilege: this descriptor serves one domain from now on. Kernels before 4.13
        # cannot.
        self._library.xenforeignmemory_restrict(self._handle, domid)

    def map(
        self, frames: Sequence[int], *, address: int = 0, writable: bool = False
    ) -> tuple[int, Sequence[int]]:
        """Map frames one after the other.

        :param address: where; 0 for anywhere.
        :returns: where, and an errno for each frame (0: it is there). A frame that is not
            there must not be touched.
        :raises OSError: Xen maps nothing at all.
        """
        if not self._handle:
            raise MemoryAccessError(f"the memory of domain {self.domid} is closed")
        wanted = array("Q", frames)
        errors = array("i", bytes(4 * len(frames)))
        flags = mmap.MAP_SHARED | (_FIXED if address else 0)
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        found = self._library.xenforeignmemory_map2(
            self._handle, self.domid, address or None, protection, flags, len(frames),
            wanted.buffer_info()[0], errors.buffer_info()[0],
        )  # fmt: skip
        if not found:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return found, [abs(error) for error in errors] if any(errors) else errors

    def check_allowed(self, frame: int) -> None:
        """Make sure that a frame which cannot be had is not just refused to us.

        :raises AccessDeniedError: Xen refuses it: its security module has another policy.
        """
        try:
            address, (number,) = self.map([frame])
            self.unmap(address, 1)
        except OSError as error:
            number = error.errno or 0
        if number in (errno.EACCES, errno.EPERM):
            raise refused(os.strerror(number))

    @staticmethod
    def unmap(address: int, pages: int) -> None:
        """Undo :meth:`map`."""
        bindings.libc().munmap(address, pages * _PAGE)

    def close(self) -> None:
        """Close the way; what is mapped stays so. Twice is harmless."""
        handle, self._handle = self._handle, None
        if handle:
            self._library.xenforeignmemory_close(handle)


class Window:
    """Guest memory from frame 0 to ``frames``, of which some is mapped.

    :param frames: how many; costs addresses, not memory.
    :param translate: what to ask Xen for instead of guest frames (machine frames of a PV
        guest, by way of its tables); -1 for a frame that is not there.
    :param limit: frames that may be mapped at a time.
    """

    def __init__(
        self,
        mapper: Mapper,
        frames: int,
        translate: Callable[[range], Sequence[int]] | None = None,
        *,
        limit: int = MOST_MAPPED,
    ) -> None:
        self._mapper = mapper
        self._translate = translate
        self._most = self._limit = limit
        self.frames = frames
        #: One byte a frame: whether it is mapped.
        self.present = bytearray(frames)
        #: Frame → errno, for those that Xen has not given.
        self.missing: dict[int, int] = {}
        self._runs: deque[tuple[int, int]] = deque()
        self._mapped = 0
        address = bindings.libc().mmap(
            None, frames * _PAGE, mmap.PROT_READ,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, -1, 0,
        )  # fmt: skip
        if address == _FAILED:
            raise MemoryAccessError(
                f"no room for {frames * _PAGE >> 20} MiB of addresses: "
                f"{os.strerror(ctypes.get_errno())}",
                hint="a limit on virtual memory (ulimit -v) is in the way",
            )
        self.address: int = address
        whole = (ctypes.c_char * (frames * _PAGE)).from_address(address)
        # Somebody may still hold a piece of it after close().
        weakref.finalize(whole, bindings.libc().munmap, address, frames * _PAGE)
        #: All of it. Only what :attr:`present` marks is the guest's.
        self.buffer = memoryview(whole).cast("B").toreadonly()

    def bring(self, first: int, end: int) -> None:
        """Map frames ``[first, end)`` as far as they are there and not mapped yet.

        What cannot be had is in :attr:`missing` afterwards.

        :raises OSError: Xen maps nothing at all.
        """
        for start in range(first, end, MOST_A_CALL):
            self._bring(start, min(start + MOST_A_CALL, end))

    def _bring(self, first: int, end: int) -> None:
        """As :meth:`bring`; all of it is there at once afterwards.

        Where domain 0 has no memory for so many frames, fewer are kept until :meth:`drop_all`: each
        that is mapped takes as much of its memory as one of its own, where its kernel has no other
        addresses for it (drivers/xen/unpopulated-alloc.c).
        """
        self._make_room(first, end)
        try:
            self._map_missing(first, end)
        except OSError as error:
            if error.errno != errno.ENOMEM or not self._runs:
                raise
            # Never less than one read may need at a time.
            self._limit = max(self._mapped // 2, MOST_A_CALL)
            self._unmap_all()
            self._map_missing(first, end)

    def _map_missing(self, first: int, end: int) -> None:
        position = self.present.find(0, first, end)
        while position >= 0:
            stop = self.present.find(1, position, end)
            stop = end if stop < 0 else stop
            if self._translate is None:
                self._map(position, range(position, stop))
            else:
                self._map_known(position, self.xen_frames(range(position, stop)))
            position = self.present.find(0, stop, end)

    def xen_frames(self, frames: range) -> Sequence[int]:
        """What to ask Xen for to get guest frames; -1 for one that is not there."""
        return frames if self._translate is None else self._translate(frames)

    def map_for_writing(self, frames: range) -> tuple[int, Sequence[int]]:
        """Map frames somewhere else, to change them: where, and an errno for each.

        :raises OSError: Xen maps nothing at all.
        """
        return self._mapper.map(self.xen_frames(frames), writable=True)

    @staticmethod
    def unmap(address: int, pages: int) -> None:
        """Undo :meth:`map_for_writing`."""
        Mapper.unmap(address, pages)

    def _map_known(self, first: int, frames: Sequence[int]) -> None:
        """Map those of a range that exist at all."""
        if min(frames) >= 0:
            self._map(first, frames)
            return
        start = 0
        for index in range(len(frames) + 1):
            if index < len(frames) and frames[index] >= 0:
                continue
            if index > start:
                self._map(first + start, frames[start:index])
            if index < len(frames):
                self.missing[first + index] = errno.ENXIO
            start = index + 1

    def _map(self, first: int, frames: Sequence[int]) -> None:
        end = first + len(frames)
        try:
            errors = self._mapper.map(frames, address=self.address + first * _PAGE)[1]
        except OSError:
            self._reserve(first, end)
            raise
        self._runs.append((first, end))
        self._mapped += len(frames)
        if not any(errors):
            self.present[first:end] = b"\1" * len(frames)
            return
        if len(self.missing) > MOST_MAPPED:  # a sweep over what is not there
            self.missing.clear()
        for frame, error in enumerate(errors, first):
            self.present[frame] = not error
            if error:
                self.missing[frame] = error

    def _make_room(self, first: int, end: int) -> None:
        """Unmap what is oldest, where what is missing of a range would be too much.

        That may be of the same range, of which more is missing then.
        """
        while self._runs and self._mapped + self.present.count(0, first, end) > self._limit:
            self._drop(*self._runs.popleft())

    def drop_all(self) -> None:
        """Unmap everything; what is asked for next is mapped anew.

        As much as ever may be mapped then: domain 0 may have memory again.
        """
        self._unmap_all()
        self._limit = self._most
        self.missing.clear()

    def _unmap_all(self) -> None:
        while self._runs:
            self._drop(*self._runs.popleft())

    def _drop(self, first: int, end: int) -> None:
        self.present[first:end] = bytes(end - first)
        self._mapped -= end - first
        self._reserve(first, end)

    def _reserve(self, first: int, end: int) -> None:
        """Put nothing in the place of frames, in one step: no other mapping may get there."""
        bindings.libc().mmap(
            self.address + first * _PAGE, (end - first) * _PAGE, mmap.PROT_READ,
            mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE | _FIXED, -1, 0,
        )  # fmt: skip

    def close(self) -> None:
        """Unmap everything; twice is harmless. Who still holds :attr:`buffer` sees zeros."""
        self.drop_all()
        self.buffer, self.present, self.frames = memoryview(b""), bytearray(), 0
