"""The kernel's log: the lockless ring buffer of 5.10 and later, and the records before it.

Sources: kernel/printk/printk_ringbuffer.c (since 5.10, commit 896fbe20b4e2);
``struct printk_log`` of kernel/printk/printk.c (3.11 to 5.9).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.model import LogRecord

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
    "authpriv", "ftp", "res0", "res1", "res2", "res3",
    "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
)  # fmt: skip

#: log_buf_len= of more than this is not believed (the kernel allows 2 GiB; 1 MiB is common).
MAX_BUFFER = 64 << 20
#: 2^count_bits descriptors; one for every 32 bytes of the largest buffer.
MAX_COUNT_BITS = 21
#: Descriptors read at once.
_AT_ONCE = 4096

# A descriptor's state is the top two bits of state_var, the rest is its id
# (kernel/printk/printk_ringbuffer.h).
_ID_BITS = 62
_COMMITTED, _FINALIZED = 1, 2
_ID_MASK = (1 << _ID_BITS) - 1
#: A record's data block starts with the id of its descriptor.
_BLOCK_HEADER = 8
#: In blk_lpos: the record has no block; either its text is empty or it was lost.
_DATALESS = 1
_EMPTY_LINE = 3


def records(guest: LinuxGuest) -> list[LogRecord]:
    """The rows of ``dmesg``, oldest first."""
    if "prb" in guest.symbols:
        return _from_ring(guest, guest.pointer("prb"))
    return _from_records(guest)


# -- since 5.10 -----------------------------------------------------------------------------


def _from_ring(guest: LinuxGuest, address: int) -> list[LogRecord]:
    layout = guest.layout(
        "printk_ringbuffer",
        {
            "count_bits": "desc_ring.count_bits",
            "descs": "desc_ring.descs",
            "infos": "desc_ring.infos",
            "head": "desc_ring.head_id.counter",
            "tail": "desc_ring.tail_id.counter",
            "size_bits": "text_data_ring.size_bits",
            "data": "text_data_ring.data",
        },
        text=(),
    )
    ring = layout.read(guest.kernel, address)
    possible = 0 <= ring["count_bits"] <= MAX_COUNT_BITS and 0 <= ring["size_bits"] <= 40
    if not possible or 1 << ring["size_bits"] > MAX_BUFFER:
        raise CorruptDataError("the printk ring buffer claims an impossible size", address)
    count = 1 << ring["count_bits"]
    text = _buffer(guest, ring["data"], 1 << ring["size_bits"])
    first, last = ring["tail"] & _ID_MASK, ring["head"] & _ID_MASK
    used = min((last - first) & _ID_MASK, count - 1) + 1
    # Records do not overlap: all texts together are no longer than the buffer.
    budget = Budget(entries=used, size=len(text))
    found: list[LogRecord] = []
    for start in range(0, used, _AT_ONCE):
        if budget.late():
            break
        some = range(first + start, first + min(start + _AT_ONCE, used))
        found += _ring_records(guest, ring, [n & _ID_MASK for n in some], count, text, budget)
    guest.note_all([budget.problem])
    return found


def _ring_records(
    guest: LinuxGuest,
    ring: dict[str, int],
    wanted: list[int],
    count: int,
    text: bytes,
    budget: Budget,
) -> Iterator[LogRecord]:
    """The records with the ids ``wanted``."""
    slots = [number % count for number in wanted]
    descs, infos = _tables(guest, ring, slots)
    for index, number in enumerate(wanted):
        record = _ring_record(descs, infos, number, index, text)
        if record is not None and budget.keep(len(record.text)):
            yield record


def _tables(
    guest: LinuxGuest, ring: dict[str, int], slots: list[int]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The columns of some descriptors and of their infos, read in bulk."""
    desc = guest.layout(
        "prb_desc",
        {
            "state": "state_var.counter",
            "begin": "text_blk_lpos.begin",
            "next": "text_blk_lpos.next",
        },
        text=(),
    )
    members = ["seq", "ts_nsec", "text_len", "facility", "level", "flags"]
    info = guest.layout("printk_info", members, text=())
    desc_size, info_size = (guest.types.sizeof(name) for name in ("prb_desc", "printk_info"))
    descs = desc.lists(guest.kernel, [ring["descs"] + i * desc_size for i in slots], [])
    infos = info.lists(guest.kernel, [ring["infos"] + i * info_size for i in slots], [])
    return descs, infos


def _ring_record(
    descs: dict[str, list[Any]], infos: dict[str, list[Any]], wanted: int, index: int, text: bytes
) -> LogRecord | None:
    """One record, or ``None`` where its slot was reused, is being written or was never used."""
    state, begin = descs["state"][index], descs["begin"][index]
    if state is None or begin is None or infos["seq"][index] is None:
        return None
    if state & _ID_MASK != wanted or state >> _ID_BITS & 3 not in (_COMMITTED, _FINALIZED):
        return None
    body = _block(text, begin, descs["next"][index], wanted, infos["text_len"][index])
    if body is None:
        return None
    return LogRecord(
        time=infos["ts_nsec"][index] / 1e9,
        level=LEVELS[infos["level"][index] & 7],
        facility=_facility(infos["facility"][index]),
        text=body,
        sequence=infos["seq"][index],
    )


def _block(text: bytes, begin: int, following: int, wanted: int, length: int) -> bytes | None:
    """A record's text; ``None`` where its block was overwritten meanwhile.

    A block that would have wrapped around lies at the buffer's start instead. Kernels differ in
    whether one that ends exactly at the end counts as such; the id in front of it tells.
    """
    if begin & _DATALESS:
        return b"" if begin == _EMPTY_LINE else None
    if length < 0:
        return None
    starts = [begin % len(text)]
    if begin // len(text) != following // len(text):
        starts.append(0)
    for start in starts:
        block_id = int.from_bytes(text[start : start + _BLOCK_HEADER], "little")
        end = start + _BLOCK_HEADER + length
        if block_id & _ID_MASK == wanted and end <= len(text):
            return text[start + _BLOCK_HEADER : end]
    return None


# -- before 5.10 ----------------------------------------------------------------------------

_OLD = struct.Struct("<QHHHBB")  # ts_nsec len text_len dict_len facility flags:5,level:3


def _from_records(guest: LinuxGuest) -> list[LogRecord]:
    """Variable-length records from ``log_first_idx`` to ``log_next_idx`` in ``log_buf``."""
    kernel, symbols = guest.kernel, guest.symbols
    size = int.from_bytes(kernel.read(symbols.address("log_buf_len"), 4), "little")
    if size > MAX_BUFFER:
        raise CorruptDataError("the printk buffer claims an impossible size", size)
    text = _buffer(guest, guest.pointer("log_buf"), size)
    position, end = (
        int.from_bytes(kernel.read(symbols.address(name), 4), "little")
        for name in ("log_first_idx", "log_next_idx")
    )
    sequence = guest.pointer("log_first_seq")
    found: list[LogRecord] = []
    left = size  # bytes: a second time round, there is nothing new
    while position != end and left > 0:
        if position + _OLD.size > size:
            break
        nanoseconds, length, text_length, _, facility, bits = _OLD.unpack_from(text, position)
        if length == 0 and position:  # the rest of the buffer is unused: go on at its start
            left -= size - position
            position = 0
            continue
        if length < _OLD.size + text_length:
            guest.note("printk record of impossible length", guest.pointer("log_buf") + position)
            break
        left -= length
        body = text[position + _OLD.size : position + _OLD.size + text_length]
        found.append(
            LogRecord(
                time=nanoseconds / 1e9,
                level=LEVELS[bits >> 5],
                facility=_facility(facility),
                text=body,
                sequence=sequence + len(found),
            )
        )
        position += length
    return found


def _buffer(guest: LinuxGuest, address: int, size: int) -> bytes:
    """The text buffer; pages that cannot be read stay zero."""
    text = bytearray(size)
    for where, piece in guest.kernel.read_available(address, size):
        text[where - address : where - address + len(piece)] = piece
    if not any(text[:64]) and not any(text):
        raise FaultError(address, size, kind="virtual")
    return bytes(text)


def _facility(number: int) -> str:
    return FACILITIES[number] if number < len(FACILITIES) else str(number)
