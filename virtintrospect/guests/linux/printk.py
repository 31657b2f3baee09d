"""The kernel's log: which of its two forms a kernel has, and what both have in common.

Since 5.10 it is a lockless ring buffer (:mod:`~virtintrospect.guests.linux.printk_ring`),
before that a buffer of records (:mod:`~virtintrospect.guests.linux.printk_records`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.system import boot_time
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
#: Records that are shown, the newest: each costs some 300 bytes while the table is made, however
#: short its text.
MAX_RECORDS = 1 << 19


def records(guest: LinuxGuest, after: int | None = None) -> list[LogRecord]:
    """The rows of ``dmesg``, oldest first.

    :param after: only what came after the record of this sequence number and is complete. A log
        that does not reach so far is another boot's: all of it is given.
    """
    if "prb" in guest.symbols:
        from virtintrospect.guests.linux.printk_ring import from_ring as read
    else:
        from virtintrospect.guests.linux.printk_records import from_records as read
    return read(guest, after)


class Maker:
    """Makes the rows of one table."""

    def __init__(self, guest: LinuxGuest) -> None:
        booted = boot_time(guest)
        self._booted = None if booted is None else booted / 1e9

    def record(
        self, nanoseconds: int, level: int, facility: int, text: bytes, sequence: int
    ) -> LogRecord:
        """One row; ``level`` and ``facility`` are the kernel's numbers."""
        time = nanoseconds / 1e9
        named = 0 <= facility < len(FACILITIES)
        return LogRecord(
            time=time,
            level=LEVELS[level & 7],
            facility=FACILITIES[facility] if named else str(facility),
            text=text,
            sequence=sequence,
            timestamp=None if self._booted is None else int(self._booted + time),
        )


def buffer(guest: LinuxGuest, address: int, size: int) -> bytes:
    """The text buffer; pages that cannot be read stay zero."""
    text = bytearray(size)
    for where, piece in guest.kernel.read_available(address, size):
        text[where - address : where - address + len(piece)] = piece
    if not any(text[:64]) and not any(text):
        raise FaultError(address, size, kind="virtual")
    return bytes(text)
