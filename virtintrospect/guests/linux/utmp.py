"""Records of logins (utmp(5); bits/utmp.h of glibc for x86-64), out of bytes from a stranger."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

#: ut_type, ut_pid, ut_line, ut_id, ut_user, ut_host, ut_exit, ut_session, ut_tv.
_RECORD = struct.Struct("<h2xi32s4s32s256s4xiii36x")
#: LOGIN_PROCESS, USER_PROCESS; osquery's names of them.
TYPES = {6: "login", 7: "user"}
#: More logins than any host has.
_MAX_RECORDS = 4096
_MICROSECONDS = 1_000_000


class Record(NamedTuple):
    """A record of somebody logged in, or of a terminal that waits for that."""

    type: str
    pid: int
    tty: bytes
    user: bytes
    host: bytes
    #: Seconds and microseconds since the epoch.
    seconds: int
    microseconds: int


def records(pieces: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
    """The living records of a file, those that lie in one piece that is in memory.

    :param pieces: offset and bytes of each piece.
    """
    left = _MAX_RECORDS
    for offset, data in pieces:
        skipped = -offset % _RECORD.size
        end = skipped + max(0, len(data) - skipped) // _RECORD.size * _RECORD.size
        for values in _RECORD.iter_unpack(data[skipped:end]):
            if left <= 0:
                return
            left -= 1
            kind, pid, tty, _, user, host, _, seconds, microseconds = values
            if kind in TYPES and pid > 0 and 0 <= microseconds < _MICROSECONDS:
                tty, user, host = (text.split(b"\0", 1)[0] for text in (tty, user, host))
                time = seconds & 0xFFFF_FFFF  # unsigned: good until 2106
                yield Record(TYPES[kind], pid, tty, user, host, time, microseconds)
