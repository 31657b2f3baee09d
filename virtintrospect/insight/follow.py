"""A guest's log as it grows, through reboots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from virtintrospect.errors import (
    CorruptDataError,
    FaultError,
    GuestNotRecognisedError,
    NotFoundError,
    TargetGoneError,
)
from virtintrospect.guests.base import Guest
from virtintrospect.model import LogRecord

#: Looks that may fail one after the other before the guest's memory counts as broken: while a
#: guest reboots, its old kernel is there in parts.
_PATIENCE = 20
#: While a guest reboots, at most this part of a CPU goes into looking for its new kernel.
_SHARE = 10


class LogBatch(NamedTuple):
    """What came to a log since the last look."""

    #: Oldest first; each record comes once.
    records: list[LogRecord]
    #: Records that were overwritten before they could be read.
    lost: int = 0
    #: The guest has rebooted: these records are its new kernel's.
    rebooted: bool = False


def follow_log(current: Callable[[], Guest], interval: float) -> Iterator[LogBatch]:
    """The log as it is, then what comes to it, for ever; nothing is given where nothing came.

    :param current: gives the guest that runs now.
    :param interval: seconds between two looks.
    :raises TargetGoneError: the guest has ended.
    """
    follower = _Follower(current)
    while True:
        started = time.monotonic()
        batch = follower.look()
        if batch is not None and (batch.records or batch.rebooted):
            yield batch
        took = time.monotonic() - started
        time.sleep(interval if batch is not None else max(interval, _SHARE * took))


class _Follower:
    def __init__(self, current: Callable[[], Guest]) -> None:
        self._current = current
        self._guest: Guest | None = None
        #: Sequence number of the newest record that was given.
        self._last = -1
        self._failures = 0

    def look(self) -> LogBatch | None:
        """What is new; ``None`` while the guest reboots."""
        try:
            guest = self._current()
            rebooted = self._guest not in (None, guest)
            records = guest.dmesg(-1 if rebooted else self._last)
        except TargetGoneError:
            raise
        except GuestNotRecognisedError:
            if self._guest is None:
                raise
            return None
        except (FaultError, CorruptDataError, NotFoundError):
            self._failures += 1
            if self._guest is None or self._failures > _PATIENCE:
                raise
            return None
        self._guest, self._failures = guest, 0
        # Without KASLR a new kernel looks like the old one, but for its log.
        rebooted = rebooted or bool(records and records[0].sequence <= self._last)
        return self._batch(records, rebooted=rebooted)

    def _batch(self, records: list[LogRecord], *, rebooted: bool) -> LogBatch:
        if not records:
            self._last = -1 if rebooted else self._last
            return LogBatch([], 0, rebooted)
        first = rebooted or self._last < 0
        before = records[0].sequence - 1 if first else self._last
        self._last = records[-1].sequence
        return LogBatch(records, max(0, self._last - before - len(records)), rebooted)
