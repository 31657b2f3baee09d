"""The kernel's log from 3.11 to 5.9: records of any length, one behind the other.

``struct printk_log`` and log_from_idx() of kernel/printk/printk.c before commit 896fbe20b4e2.
They go from ``log_first_idx`` to ``log_next_idx`` in ``log_buf``; a record of length 0 says that
the next one is at the buffer's start.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.printk import MAX_BUFFER, MAX_RECORDS, Maker, buffer

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import LogRecord

#: ts_nsec, len, text_len, dict_len, facility, flags:5 and level:3; caller_id may follow (5.1).
_HEADER = struct.Struct("<QHHHBB")
#: How often the buffer is read while the guest overwrites its beginning.
_ATTEMPTS = 3
_MASK = (1 << 64) - 1


class _Place(NamedTuple):
    """Where records begin and end, as offsets in the buffer, and the first one's number."""

    first: int
    end: int
    sequence: int


def from_records(guest: LinuxGuest, after: int | None = None) -> list[LogRecord]:
    """The rows of ``dmesg``; ``after`` as of :func:`~.printk.records`."""
    size = _number(guest, "log_buf_len", 4)
    if not 0 < size <= MAX_BUFFER:
        raise CorruptDataError(
            f"the printk buffer claims {size} bytes", guest.symbols.address("log_buf_len")
        )
    address = guest.pointer("log_buf")
    for attempt in range(_ATTEMPTS if guest.live else 1):
        if attempt:
            guest.memory.expire()
        place = _place(guest)
        if after is not None and _newest(guest) == after:
            return []
        text = buffer(guest, address, size)
        if _place(guest).sequence == place.sequence:
            break
    found = _parse(guest, address, text, place)
    if after is None or (found and found[-1].sequence < after):
        return found
    return [record for record in found if record.sequence > after]


def _parse(guest: LinuxGuest, address: int, text: bytes, place: _Place) -> list[LogRecord]:
    make = Maker(guest)
    header = _header_size(guest)
    found: deque[LogRecord] = deque(maxlen=MAX_RECORDS)
    count = 0
    position, left = place.first, len(text)  # a second time round, there is nothing new
    while position != place.end and left > 0:
        if position + header > len(text):
            guest.note("printk record beyond its buffer", address + position)
            break
        nanoseconds, length, size, extra, facility, bits = _HEADER.unpack_from(text, position)
        if length == 0 and position:  # the rest of the buffer is unused: go on at its start
            left -= len(text) - position
            position = 0
            continue
        if length < header + size + extra or position + length > len(text):
            guest.note("printk record of impossible length", address + position)
            break
        body = text[position + header : position + header + size]
        sequence = (place.sequence + count) & _MASK
        count += 1
        found.append(make.record(nanoseconds, bits >> 5, facility, body, sequence))
        position += length
        left -= length
    if count > len(found):
        guest.note(f"only the newest {len(found)} of {count} printk records are shown", address)
    return list(found)


def _header_size(guest: LinuxGuest) -> int:
    """CONFIG_PRINTK_CALLER makes it 20 bytes (5.1, commit 15ff2069cb7f)."""
    return _HEADER.size + 4 * guest.types.has("printk_log", "caller_id")


def _place(guest: LinuxGuest) -> _Place:
    return _Place(
        _number(guest, "log_first_idx", 4),
        _number(guest, "log_next_idx", 4),
        _number(guest, "log_first_seq", 8),
    )


def _newest(guest: LinuxGuest) -> int | None:
    if "log_next_seq" not in guest.symbols:
        return None
    return _number(guest, "log_next_seq", 8) - 1


def _number(guest: LinuxGuest, symbol: str, size: int) -> int:
    return int.from_bytes(guest.kernel.read(guest.symbols.address(symbol), size), "little")
