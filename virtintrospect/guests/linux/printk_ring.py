"""The kernel's log since 5.10: a lockless ring buffer (kernel/printk/printk_ringbuffer.c).

A ring of descriptors says which part of a ring of texts belongs to each record. Commit
896fbe20b4e2 brought it (5.10); until 5.9 see :mod:`~virtintrospect.guests.linux.printk_records`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.printk import MAX_BUFFER, MAX_RECORDS, Maker, buffer

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import LogRecord

#: 2^count_bits descriptors; one for every 32 bytes of the largest buffer.
MAX_COUNT_BITS = 21
#: Descriptors read at once.
_AT_ONCE = 4096

# A descriptor's state is the top two bits of state_var, an unsigned long; the rest is its id
# (kernel/printk/printk_ringbuffer.h).
_RESERVED, _COMMITTED, _FINALIZED, _REUSABLE = 0, 1, 2, 3
#: Ids and sequence numbers rise together, from -count and from 0 (DESC0_ID, desc_reserve()).
#: The count is 32 bits wide there, so -count is, too: only so many bits can be compared.
_COMMON = (1 << 32) - 1
#: In blk_lpos: the record has no block; either its text is empty or it was lost.
_DATALESS = 1
_EMPTY_LINE = 3
#: ``printk_info.text_len`` is a u16.
_LONGEST = 0xFFFF

_RING = {
    "count_bits": "desc_ring.count_bits",
    "descs": "desc_ring.descs",
    "infos": "desc_ring.infos",
    "head": "desc_ring.head_id.counter",
    "tail": "desc_ring.tail_id.counter",
    "size_bits": "text_data_ring.size_bits",
    "data": "text_data_ring.data",
}
_DESC = {
    "state": "state_var.counter",
    "begin": "text_blk_lpos.begin",
    "next": "text_blk_lpos.next",
}
_INFO = ("seq", "ts_nsec", "text_len", "facility", "level")

Columns = dict[str, list[Any]]


class _Word(NamedTuple):
    """How an ``unsigned long`` of the guest holds an id, and a state above it."""

    #: Bytes; a record's data block starts with one, the id of its descriptor.
    size: int
    #: Bits of the id.
    bits: int
    #: All of them.
    ids: int

    def state(self, value: int) -> int:
        """What the two bits above the id say."""
        return value >> self.bits & 3


def _word_of(size: int) -> _Word:
    bits = 8 * size - 2
    return _Word(size, bits, (1 << bits) - 1)


_WORD_64 = _word_of(8)


def from_ring(guest: LinuxGuest, after: int | None = None) -> list[LogRecord]:
    """The rows of ``dmesg``; ``after`` as of :func:`~.printk.records`."""
    address = guest.pointer("prb")
    ring = guest.layout("printk_ringbuffer", _RING, text=()).read(guest.kernel, address)
    possible = 0 <= ring["count_bits"] <= MAX_COUNT_BITS and 0 <= ring["size_bits"] <= 40
    if not possible or 1 << ring["size_bits"] > MAX_BUFFER:
        raise CorruptDataError("the printk ring buffer claims an impossible size", address)
    count = 1 << ring["count_bits"]
    word = _word_of(guest.types.pointer_size)
    first, last = ring["tail"] & word.ids, ring["head"] & word.ids
    used = min((last - first) & word.ids, count - 1) + 1
    if after is not None:
        common = min(_COMMON, word.ids)
        newer = (last - (after - count)) & common
        if newer == 0:
            return []
        if newer < used:
            used = newer
            first = (last - newer + 1) & word.ids
        elif newer > common // 2 or after > common:
            after = None  # the log does not reach so far
    if used > MAX_RECORDS:
        guest.note(f"only the newest {MAX_RECORDS} of {used} printk records are shown", address)
        used, first = MAX_RECORDS, (last - MAX_RECORDS + 1) & word.ids
    return _Reader(guest, ring, count, after).read(first, used)


class _Reader:
    """Reads descriptors and their texts once.

    :param after: leave out what is not newer, and stop at the first record that is not whole.
    """

    def __init__(
        self, guest: LinuxGuest, ring: dict[str, int], count: int, after: int | None
    ) -> None:
        self._guest = guest
        self._ring = ring
        self._count = count
        self._after = after
        self._word = _word_of(guest.types.pointer_size)
        self._text = b""
        self._make = Maker(guest)
        self._stopped = False

    def read(self, first: int, used: int) -> list[LogRecord]:
        """The records of ``used`` ids from ``first`` on."""
        # Records do not overlap: all texts together are no longer than the buffer.
        budget = Budget(entries=used, size=1 << self._ring["size_bits"])
        found: list[LogRecord] = []
        # The newest are read last, and together.
        for end in range((used - 1) % _AT_ONCE + 1, used + 1, _AT_ONCE):
            if budget.late() or self._stopped:
                break
            some = range(first + max(0, end - _AT_ONCE), first + end)
            found += self._records([n & self._word.ids for n in some], budget, newest=end == used)
        self._guest.note_all([budget.problem])
        return found

    def _records(self, wanted: list[int], budget: Budget, *, newest: bool) -> Iterator[LogRecord]:
        slots = [number % self._count for number in wanted]
        descs = self._descs(slots)
        infos = self._infos(slots)
        if not self._text or (newest and self._guest.live):
            # Behind the descriptors: what they say is complete is so in the text as well. Only
            # the newest records can have been incomplete when it was read before.
            self._text = buffer(self._guest, self._ring["data"], 1 << self._ring["size_bits"])
        if self._guest.live:
            # As prb_read(): what was used anew meanwhile was not read as one.
            again = self._descs(slots)["state"]
            states = zip(descs["state"], again, strict=True)
            descs["state"] = [old if self._same(old, new) else None for old, new in states]
        for index, number in enumerate(wanted):
            if self._after is not None and self._unfinished(descs["state"][index], number):
                self._stopped = True
                return
            record = self._record(descs, infos, number, index)
            if record is not None and budget.keep(len(record.text)):
                yield record

    def _descs(self, slots: list[int]) -> Columns:
        guest, size = self._guest, self._guest.types.sizeof("prb_desc")
        layout = guest.layout("prb_desc", _DESC, text=())
        return layout.lists(guest.kernel, [self._ring["descs"] + i * size for i in slots], [])

    def _infos(self, slots: list[int]) -> Columns:
        guest, size = self._guest, self._guest.types.sizeof("printk_info")
        layout = guest.layout("printk_info", _INFO, text=())
        return layout.lists(guest.kernel, [self._ring["infos"] + i * size for i in slots], [])

    def _record(self, descs: Columns, infos: Columns, wanted: int, index: int) -> LogRecord | None:
        """One record, or ``None`` where its slot was reused or never used, or is written to."""
        state, begin = descs["state"][index], descs["begin"][index]
        sequence = infos["seq"][index]
        if state is None or begin is None or sequence is None:
            return None
        word = self._word
        if state & word.ids != wanted or word.state(state) not in (_COMMITTED, _FINALIZED):
            return None
        if self._after is not None and sequence <= self._after:
            return None
        length = infos["text_len"][index]
        body = _block(self._text, begin, descs["next"][index], wanted, length, word)
        if body is None:
            return None
        level, facility = infos["level"][index], infos["facility"][index]
        return self._make.record(infos["ts_nsec"][index], level, facility, body, sequence)

    def _same(self, before: int | None, after: int | None) -> bool:
        """Whether a descriptor is still that of the same record, its text not given up."""
        word = self._word
        if before is None or after is None or (before ^ after) & word.ids:
            return False
        return before == after or word.state(after) != _REUSABLE

    def _unfinished(self, state: int | None, wanted: int) -> bool:
        """Whether a record is still being written or may grow (LOG_CONT): readers wait for it."""
        if state is None or state & self._word.ids != wanted:
            return False
        return self._word.state(state) in (_RESERVED, _COMMITTED)


def _block(
    text: bytes, begin: int, following: int, wanted: int, length: int, word: _Word = _WORD_64
) -> bytes | None:
    """A record's text; ``None`` where its block was overwritten meanwhile.

    A block that would have wrapped around lies at the buffer's start instead, and leaves its id,
    but not its text, where it would have begun, too. One that ends exactly at the buffer's end
    is such a block for older kernels, which then say so by where the next one begins.
    """
    if begin & _DATALESS:
        return b"" if begin == _EMPTY_LINE else None
    if not 0 <= length <= _LONGEST:
        return None
    wrapped = begin // len(text) != following // len(text) and following % len(text)
    start = 0 if wrapped else begin % len(text)
    block_id = int.from_bytes(text[start : start + word.size], "little")
    end = start + word.size + length
    if block_id & word.ids == wanted and end <= len(text):
        return text[start + word.size : end]
    return None
