"""What a guest's kernel log says that its host should know: read as it grows."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from virtintrospect.daemon.log import event
from virtintrospect.domain import Domain
from virtintrospect.driver import Target
from virtintrospect.guests.base import Guest
from virtintrospect.model import LogRecord

_log = logging.getLogger(__name__)

#: What the kernel prints (kernel/panic.c, mm/oom_kill.c, kernel/hung_task.c, kernel/watchdog.c,
#: kernel/rcu/tree_stall.h, arch/x86/kernel/dumpstack.c and traps.c, kernel/reboot.c). Only
#: records of the kernel's own facility count: /dev/kmsg lets nobody write those.
KINDS = (
    ("panic", logging.ERROR, re.compile(rb"Kernel panic - not syncing")),
    ("oom-kill", logging.WARNING, re.compile(rb"[Oo]ut of memory.{0,64}: Killed process")),
    ("hung-task", logging.WARNING, re.compile(rb"INFO: task .{1,96} blocked for more than "
                                              rb"\d+ sec")),
    ("lockup", logging.WARNING, re.compile(rb"BUG: (?:soft|hard) lockup|detected stalls? on|"
                                           rb"self-detected stall")),
    ("oops", logging.ERROR, re.compile(rb"Oops: |kernel BUG at |BUG: unable to handle|"
                                       rb"BUG: kernel NULL pointer|general protection fault")),
    ("shutdown", logging.INFO, re.compile(rb"reboot: (?:Power down|System halted|machine restart|"
                                          rb"Restarting system)")),
)  # fmt: skip

#: Bytes of a line that are looked at: the kernel prints no more at a time (PRINTK_MESSAGE_MAX).
_LONGEST = 2048
#: Lines of one guest that are logged at one look; a guest may print whatever it likes.
_AT_ONCE = 20
#: A kernel that is younger than this when it is recognised has just booted.
_YOUNG_SECONDS = 120


def kind_of(record: LogRecord) -> tuple[str, int] | None:
    """What a record tells, and the priority of that; ``None`` for the many that tell nothing."""
    if record.facility != "kern":
        return None
    text = record.text[:_LONGEST]
    return next(((kind, level) for kind, level, how in KINDS if how.search(text)), None)


@dataclass(slots=True)
class _Place:
    """How far one guest's log has been read."""

    sequence: int | None = None
    panicked: bool = False


class GuestLog:
    """Follows the logs of ready guests.

    :param panicked: called, in the worker's thread, when a guest has panicked, with its target.
    """

    def __init__(self, panicked: Callable[[Domain, Guest, str, Target | None], object]) -> None:
        self._panicked = panicked
        self._places: dict[str, _Place] = {}

    def look(self, domain: Domain, guest: Guest, target: Target | None = None) -> None:
        """Read what is new."""
        place = self._places.get(domain.uuid)
        old = False  # what was said long before we came is no news
        records = guest.dmesg(place.sequence if place else None)
        if place is None:
            place = self._places[domain.uuid] = _Place()
            info = guest.info()
            old = info.uptime_seconds is None or info.uptime_seconds >= _YOUNG_SECONDS
            event(_log, logging.INFO, "guest runs" if old else "guest booted",
                  domain=domain.name, kernel=info.release, uptime=info.uptime_seconds)  # fmt: skip
        if records:
            place.sequence = max(record.sequence for record in records)
        told = 0
        for record in records:
            found = kind_of(record)
            if found is None:
                continue
            kind, level = found
            told += 1
            if told <= _AT_ONCE and not (old and kind != "panic"):
                event(_log, level, f"guest {kind}", domain=domain.name, uptime=record.time,
                      text=record.text[:_LONGEST])  # fmt: skip
            if kind == "panic" and not place.panicked:
                place.panicked = True
                self._panicked(domain, guest, "panic", target)
        if told > _AT_ONCE:
            event(_log, logging.WARNING, "guest log", domain=domain.name, more=told - _AT_ONCE)

    def left(self, domain: Domain) -> None:
        """Another kernel begins at its own first line."""
        self._places.pop(domain.uuid, None)
