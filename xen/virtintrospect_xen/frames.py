"""Machine frames of a PV guest and its own, "guest-physical" ones.

A PV guest's page tables hold machine frames. Xen has one table for the whole host from machine
frame to the owner's guest frame (M2P); the guest has its own from guest frame to machine frame
(P2M), a list in its virtual memory that its shared_info page points to
(xen/include/public/arch-x86/xen.h, struct arch_shared_info; Linux: arch/x86/xen/p2m.c).

Both are read a piece at a time, as they are needed: opening costs the same for every guest. The
guest writes both, so what one says counts only where the other agrees.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.errors import MemoryAccessError
from virtintrospect_xen.calls import DomainInfo, Hypervisor
from virtintrospect_xen.window import Mapper

if TYPE_CHECKING:
    import numpy.typing as npt

_PAGE = 4096
#: DOMID_XEN (xen/include/public/xen.h): the owner of the M2P.
_DOMID_XEN = 0x7FF2
#: Entries in a 2 MiB piece of the M2P: for 1 GiB of the host's memory.
_M2P_ENTRIES = 2 << 20 >> 3
#: arch in struct shared_info: max_pfn, frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr,
#: p2m_generation.
_ARCH_AT, _ARCH = 3088, struct.Struct("<6Q")
#: Guests of up to 1 TiB. The guest chooses how many entries it says its P2M has; those that it
#: may not fill are not looked at, but for holes of 4 GiB.
_MOST_FRAMES, _HOLES = 1 << 28, 1 << 20
_A_PAGE = 512
#: Pages of the P2M that are read together.
_TOGETHER = 16
#: An entry of the P2M: no memory; or a frame of another domain or of the machine
#: (FOREIGN_FRAME_BIT, IDENTITY_FRAME_BIT; arch/x86/include/asm/xen/page.h).
_NOT_OWN = np.uint64(3 << 62)
#: Guest frames that are remembered by their machine frames: tables are walked again and again.
_MOST_KNOWN = 65536
#: Seconds after which pages of the P2M that seem wrong are read again.
_PATIENCE = 0.01
#: What stands for a machine address that is none of the guest's: nothing lies there.
NOWHERE = 1 << 51


class MachineToPhysical:
    """The host's table from machine frame to guest frame, of which pieces are mapped.

    :raises MemoryAccessError: Xen does not show it.
    """

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._starts = hypervisor.machine_to_physical_frames()
        self._mapper = Mapper(_DOMID_XEN)
        self._pieces: dict[int, npt.NDArray[np.uint64] | None] = {}
        self._addresses: list[int] = []

    def look_up(self, frames: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Guest frames of machine frames; all bits set where there is none."""
        found = np.full(len(frames), ~np.uint64(0))
        numbers = frames // np.uint64(_M2P_ENTRIES)
        for number in np.unique(numbers).tolist():
            piece = self._piece(number)
            if piece is not None:
                here = numbers == np.uint64(number)
                found[here] = piece[frames[here] % np.uint64(_M2P_ENTRIES)]
        return found

    def find(self, frame: int) -> int:
        """The guest frame of one machine frame; -1 where there is none."""
        piece = self._piece(frame // _M2P_ENTRIES)
        return -1 if piece is None else int(piece[frame % _M2P_ENTRIES])

    def _piece(self, number: int) -> npt.NDArray[np.uint64] | None:
        if number >= len(self._starts):
            return None
        if number not in self._pieces:
            self._pieces[number] = self._map(number)
        return self._pieces[number]

    def _map(self, number: int) -> npt.NDArray[np.uint64] | None:
        start, pages = self._starts[number], _M2P_ENTRIES // _A_PAGE
        try:
            address, errors = self._mapper.map(range(start, start + pages))
        except OSError:
            return None
        self._addresses.append(address)
        # The last piece ends with the host's memory.
        there = next((index for index, error in enumerate(errors) if error), pages)
        piece = memoryview((ctypes.c_char * (there * _PAGE)).from_address(address)).cast("B")
        table = np.full(_M2P_ENTRIES, ~np.uint64(0)) if there < pages else None
        entries: npt.NDArray[np.uint64] = np.frombuffer(piece, dtype="<u8")
        if table is None:
            return entries
        table[: len(entries)] = entries
        return table

    def close(self) -> None:
        """Unmap it; twice is harmless."""
        self._pieces.clear()
        while self._addresses:
            Mapper.unmap(self._addresses.pop(), _M2P_ENTRIES // _A_PAGE)
        self._mapper.close()


class PvFrames:
    """A PV guest's frames, both ways.

    :param mapper: of the guest.
    :raises MemoryAccessError: the guest has not said yet where its P2M is: it is booting.
    """

    def __init__(self, hypervisor: Hypervisor, mapper: Mapper, info: DomainInfo) -> None:
        self._mapper = mapper
        self._shared_info_frame, self._max_pages = info.shared_info_frame, info.max_pages
        self._pieces: dict[int, npt.NDArray[np.uint64]] = {}
        self._tables: dict[int, npt.NDArray[np.uint64] | None] = {}
        self._known: dict[int, int] = {}
        self._again_at = 0.0
        #: Another machine frame was seen behind a guest frame: what is mapped may be outdated.
        self.changed = False
        self.count = 0
        self._root = self._list = 0
        self.read_anchor()
        self._to_physical = MachineToPhysical(hypervisor)

    def read_anchor(self) -> None:
        """Ask the guest's shared_info page where its P2M is."""
        (page,) = self._read_frames([self._shared_info_frame])
        if page is None:
            self._mapper.check_allowed(self._shared_info_frame)
            raise MemoryAccessError(
                f"domain {self._mapper.domid} has no shared_info page",
                hint="it is being built, or ends just now",
            )
        most, _, _, root, where, _ = _ARCH.unpack_from(page, _ARCH_AT)
        if not root or not where:
            raise MemoryAccessError(
                f"PV domain {self._mapper.domid} does not say where its frames are",
                hint="it is still booting (try again), or its kernel is older than Linux 4.4",
            )
        self.count = min(most, 2 * self._max_pages + _HOLES, _MOST_FRAMES)
        self._root, self._list = root & X86_64_4LEVEL.frame, where

    def forget(self) -> None:
        """Read the P2M anew from now on: the guest's memory has changed its size."""
        self._pieces.clear()
        self._tables.clear()
        self._known.clear()
        self.changed = False
        self.read_anchor()

    def close(self) -> None:
        """Release what is mapped; twice is harmless."""
        self._pieces.clear()
        self._to_physical.close()

    # -- guest frame → machine frame --------------------------------------------------------

    def machine(self, frames: range) -> Sequence[int]:
        """Machine frames of guest frames; -1 where the guest has none of its own."""
        first, end = frames.start // _A_PAGE, -(-frames.stop // _A_PAGE)
        known = min(end, -(-self.count // _A_PAGE))
        self._have(list(range(first, known)))
        empty = np.full(_A_PAGE, ~np.uint64(0))
        pages = [self._pieces[number] if number < known else empty for number in range(first, end)]
        start = frames.start - first * _A_PAGE
        found = np.concatenate(pages)[start : start + len(frames)]
        own = (found & _NOT_OWN) == 0
        own[max(self.count - frames.start, 0) :] = False
        result: list[int] = np.where(own, found.view(np.int64), -1).tolist()
        return result

    def _entries(self, frames: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Entries of the P2M; all bits set where it has none."""
        found = np.full(len(frames), ~np.uint64(0))
        numbers = frames // np.uint64(_A_PAGE)
        within = frames < np.uint64(self.count)
        wanted = np.unique(numbers[within]).tolist()
        self._have(wanted)
        for number in wanted:
            here = (numbers == np.uint64(number)) & within
            found[here] = self._pieces[number][frames[here] % np.uint64(_A_PAGE)]
        return found

    def _have(self, numbers: list[int]) -> None:
        """Read pages of the P2M that are not known yet."""
        if not all(number in self._pieces for number in numbers):
            self._load(self._around(numbers))

    def _around(self, numbers: list[int]) -> list[int]:
        """Pages of the P2M that are not known, with their neighbours: a call has its price."""
        groups = {number // _TOGETHER for number in numbers}
        near = (n for group in groups for n in range(group * _TOGETHER, (group + 1) * _TOGETHER))
        return [n for n in near if n * _A_PAGE < self.count and n not in self._pieces]

    def _load(self, numbers: list[int]) -> None:
        """Read pages of the P2M, and keep them."""
        places = [self._list_page(number) for number in numbers]
        there = [(n, place) for n, place in zip(numbers, places, strict=True) if place >= 0]
        pages = self._read_frames([place for _, place in there])
        empty = np.full(_A_PAGE, ~np.uint64(0))
        self._pieces.update(dict.fromkeys(numbers, empty))
        for (number, _), page in zip(there, pages, strict=True):
            if page is not None:
                self._pieces[number] = np.frombuffer(page, dtype="<u8")

    def _list_page(self, number: int) -> int:
        """Machine frame of a page of the P2M, by the tables that map it; -1 for none."""
        vaddr, mode = self._list + number * _PAGE, X86_64_4LEVEL
        table = self._root
        for level in mode.levels:
            page = self._table(table >> 12)
            entry = int(page[(vaddr >> level.shift) & 511]) if page is not None else 0
            if not entry & mode.present or (level.large and entry & mode.leaf):
                return -1
            table = entry & mode.frame
        return table >> 12

    def _table(self, frame: int) -> npt.NDArray[np.uint64] | None:
        """A page table; kept for as long as the next ones are likely to need it."""
        if frame not in self._tables:
            if len(self._tables) >= 64:
                self._tables.clear()
            page = self._read_frames([frame])[0]
            self._tables[frame] = None if page is None else np.frombuffer(page, dtype="<u8")
        return self._tables[frame]

    # -- machine frame → guest frame --------------------------------------------------------

    def physical(self, address: int) -> int:
        """The guest-physical address of a machine address of the guest's own memory.

        :returns: an address where nothing lies, for memory that is not the guest's.
        """
        machine = address >> 12
        guest = self._known.get(machine)
        if guest is None:
            guest = self._confirmed(machine)
            if guest >= 0:
                self._keep(machine, guest)
        if guest < 0:
            found = int(self.physical_many(np.array([machine << 12], dtype=np.uint64))[0])
            if found & NOWHERE:
                return address | NOWHERE
            guest = found >> 12
            self._keep(machine, guest)
        return guest << 12 | (address & (_PAGE - 1))

    def _confirmed(self, machine: int) -> int:
        """The guest frame of a machine frame, where what is known of both tables says so.

        As :meth:`physical_many` for one frame, which takes many times as long.

        :returns: -1 where more has to be read, or the tables do not agree.
        """
        guest = self._to_physical.find(machine)
        number, place = divmod(guest, _A_PAGE)
        page = self._pieces.get(number) if 0 <= guest < self.count else None
        return guest if page is not None and int(page[place]) == machine else -1

    def _keep(self, machine: int, guest: int) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[machine] = guest

    def physical_many(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """As :meth:`physical`, for an array."""
        machine = addresses >> np.uint64(12)
        guest = self._to_physical.look_up(machine)
        agreed = self._entries(guest) == machine
        if not agreed.all() and self._outdated(guest[~agreed]):
            agreed = self._entries(guest) == machine
        offset = addresses & np.uint64(_PAGE - 1)
        return np.where(agreed, guest << np.uint64(12) | offset, addresses | np.uint64(NOWHERE))

    def _outdated(self, frames: npt.NDArray[np.uint64]) -> bool:
        """Read pages of the P2M again that the M2P contradicts: frames may have been exchanged.

        Not all the time, as a guest may contradict itself for ever.
        """
        numbers = np.unique(frames[frames < np.uint64(self.count)] // np.uint64(_A_PAGE)).tolist()
        if not numbers or monotonic() < self._again_at:
            return False
        self._again_at = monotonic() + _PATIENCE
        before = {number: self._pieces.pop(number, None) for number in numbers}
        self._load(numbers)
        self.changed = any(not np.array_equal(old, self._pieces[n]) for n, old in before.items()
                           if old is not None)  # fmt: skip
        return True

    # -- reading machine frames -------------------------------------------------------------

    def _read_frames(self, frames: list[int]) -> list[bytes | None]:
        """Copies of machine frames; ``None`` where Xen gives none."""
        return [page for start in range(0, len(frames), 256)
                for page in self._read_some(frames[start : start + 256])]  # fmt: skip

    def _read_some(self, frames: list[int]) -> Iterator[bytes | None]:
        try:
            address, errors = self._mapper.map(frames)
        except OSError:
            yield from [None] * len(frames)
            return
        try:
            for index, error in enumerate(errors):
                yield None if error else ctypes.string_at(address + index * _PAGE, _PAGE)
        finally:
            Mapper.unmap(address, len(frames))
