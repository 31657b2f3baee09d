"""A report of a guest that crashed: written while its memory is still there."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtintrospect import __version__
from virtintrospect.cli.escape import printable
from virtintrospect.cli.output import plain_value
from virtintrospect.daemon.config import Triage
from virtintrospect.daemon.figures import keep_newest
from virtintrospect.daemon.log import event
from virtintrospect.domain import Domain
from virtintrospect.driver import SupportsAfterlife
from virtintrospect.errors import TargetGoneError, VirtIntrospectError
from virtintrospect.guests.base import Guest
from virtintrospect.insight.columns import Table, record
from virtintrospect.insight.tables import (
    CPU,
    CRASH,
    DMESG,
    HUNG,
    INFO,
    LOAD,
    MEMORY,
    MODULES,
    PRESSURE,
    PS,
    STACK,
)

if TYPE_CHECKING:
    from virtintrospect.daemon.hub import Hub
    from virtintrospect.daemon.sessions import DomainSession
    from virtintrospect.domain import Event
    from virtintrospect.driver import Target

_log = logging.getLogger(__name__)

#: Tables of a report, what matters most first.
TABLES: tuple[tuple[str, Table, Callable[[Guest], Any]], ...] = (
    ("crash", CRASH, lambda guest: [guest.crash()]),
    ("cpu_stacks", STACK, lambda guest: guest.cpu_stacks()),
    ("dmesg", DMESG, lambda guest: guest.dmesg()),
    ("info", INFO, lambda guest: [guest.info()]),
    ("ps", PS, lambda guest: guest.processes()),
    ("hung", HUNG, lambda guest: guest.hung()),
    ("modules", MODULES, lambda guest: guest.modules()),
    ("memory", MEMORY, lambda guest: [guest.meminfo()]),
    ("load", LOAD, lambda guest: [guest.load()]),
    ("cpu", CPU, lambda guest: guest.cpu()),
    ("pressure", PRESSURE, lambda guest: guest.pressure()),
)
_SINGLE = ("crash", "info", "memory", "load")
#: Seconds after which nothing more is gathered.
_PATIENCE = 60.0
#: Seconds in which a second crash of the same kernel is the same crash, told twice.
_SAME = 30.0

#: Rows of one table of a report, and characters of them: a hostile guest must fill neither the
#: disk nor the memory of the daemon, whose other guests it would take with it.
_MOST_ROWS, _LARGEST = 5000, 4 << 20

#: Reports of one domain that are kept.
_OF_ONE = 5


class Reports:
    """The reports, one JSON file each.

    :param folder: made when the first is written.
    """

    def __init__(self, folder: Path, config: Triage) -> None:
        self.folder = folder
        self.config = config
        self._last: dict[str, float] = {}

    def write(
        self, domain: Domain, guest: Guest, reason: str, target: Target | None = None
    ) -> Path | None:
        """Write a report, unless this crash has one. Blocks; for a worker's thread.

        :param target: where the guest's memory is: libvirt may end QEMU while we read.
        """
        now = time.monotonic()
        self._last = {uuid: when for uuid, when in self._last.items() if now < when + _SAME}
        if not self.config.enabled or domain.uuid in self._last:
            return None
        self._last[domain.uuid] = now
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = re.sub(r"[^A-Za-z0-9._-]", "_", domain.name)[:100]
        path = self.folder / f"{stamp}-{name}.json"
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            _write(path, self.report(domain, guest, reason, target))
            # One guest that crashes again and again must not push out the others' reports.
            keep_newest(self.folder.glob(f"????????T??????Z-{name}.json"), _OF_ONE)
            keep_newest(self.folder.glob("*.json"), self.config.reports)
        except OSError as error:
            event(_log, logging.ERROR, "no report", domain=domain.name, error=error)
            return None
        event(_log, logging.WARNING, "report", domain=domain.name, reason=reason, path=path)
        return path

    def report(
        self, domain: Domain, guest: Guest, reason: str, target: Target | None = None
    ) -> dict[str, Any]:
        """All of a report."""
        begin = time.time()
        told: dict[str, Any] = {
            "version": __version__,
            "domain": {"name": domain.name, "uuid": domain.uuid, "state": domain.state},
            "reason": reason,
            "time": round(begin, 3),
            "tables": {},
            "errors": {},
        }
        for name, table, source in TABLES:
            if time.time() - begin > _PATIENCE:
                told["errors"][name] = "there was no time left"
                continue
            try:
                items = _last_look(guest, source, target)
                rows = _rows(table, items, newest=name == "dmesg")
            except VirtIntrospectError as error:
                told["errors"][name] = printable(error.message)
            else:
                if len(rows) < len(items):
                    told["errors"][name] = f"{len(items)} rows, of which {len(rows)} are here"
                if rows or name not in _SINGLE:
                    told["tables"][name] = rows[0] if name in _SINGLE else rows
        told["problems"] = [
            {"what": printable(problem.what), "address": hex(problem.address)}
            for problem in guest.take_problems()
        ]
        told["seconds"] = round(time.time() - begin, 3)
        return told


def _last_look(guest: Guest, source: Callable[[Guest], Any], target: Target | None) -> Any:
    """What a source finds, also where QEMU ends meanwhile but leaves its shared RAM to us."""
    try:
        return source(guest)
    except TargetGoneError:
        if isinstance(target, SupportsAfterlife) and target.outlive():
            return source(guest)
        raise


#: virDomainEventStoppedDetailType: the domain crashed.
_STOPPED_CRASHED = 2


def watch_crashes(hub: Hub, reports: Reports) -> None:
    """Write a report when libvirt says that a guest has crashed (pvpanic, or QEMU itself).

    libvirt may already have ended QEMU then; RAM that QEMU shared is still there for us.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def look_back(session: DomainSession) -> None:
        domain = session.domain
        try:
            await session.look_back(lambda guest: reports.write(domain, guest, "crash"))
        except VirtIntrospectError as error:
            event(_log, logging.WARNING, "no report", domain=domain.name, error=error.message)

    def happened(what: Event, session: DomainSession | None) -> None:
        stopped = what.what == "stopped" and what.detail == _STOPPED_CRASHED
        if session is not None and (what.what == "crashed" or stopped):
            event(_log, logging.ERROR, "guest crashed", domain=what.name)
            task = asyncio.create_task(look_back(session))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    hub.on_event.append(happened)


def _rows(table: Table, items: Sequence[object], *, newest: bool) -> list[dict[str, Any]]:
    """As many of a table's first rows, or its last, as a report has room for."""
    rows: list[dict[str, Any]] = []
    left = _LARGEST
    for item in islice(reversed(items) if newest else items, _MOST_ROWS):
        row = _plain(table, item)
        left -= len(json.dumps(row, ensure_ascii=False))
        if left < 0:
            break
        rows.append(row)
    return rows[::-1] if newest else rows


def _plain(table: Table, item: object) -> dict[str, Any]:
    values = record(table, item)
    return {
        column.name: plain_value(column.unit, values[column.name])
        for column in table.columns
        if column.name in values
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, and on disk when it is said to be there."""
    temporary = path.with_name(f".{path.name}.new")  # nobody takes it for a report
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
