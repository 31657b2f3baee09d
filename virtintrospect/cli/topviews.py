"""What ``top`` looks at: all guests of a connection, or the processes of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import UsageError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.cli.options import Settings
    from virtintrospect.domain import Domain
    from virtintrospect.insight.top import GuestTop, ProcessTop
    from virtintrospect.session import Session

#: Looking takes at most this share of a core: where it is dearer, looks come later.
_MOST_SHARE = 0.1
#: Seconds between two questions to libvirt, and for which a session may believe what it knows
#: of the residency of pages.
_LIST_SECONDS, _FORGET_SECONDS = 5.0, 60.0

Row = dict[str, Any]


class Look(NamedTuple):
    """What is to be shown."""

    rows: list[Row]
    #: Percent of a core that looking took so far.
    cost: float
    #: Seconds until the next look.
    pause: float


def paced(look: Callable[[], list[Row]], interval: float) -> Iterator[Look]:
    """Looks; whoever takes the next one waits until it is due."""
    began, spent_at_first = time.monotonic(), time.process_time()
    due = began
    while True:
        time.sleep(max(0.0, due - time.monotonic()))
        start, spent = time.monotonic(), time.process_time()
        rows = look()
        used = time.process_time() - spent
        due = start + max(interval, used / _MOST_SHARE)
        now = time.monotonic()
        cost = 100 * (time.process_time() - spent_at_first) / max(now - began, interval)
        yield Look(rows, cost, max(0.0, due - now))


class Guests:
    """All running domains of a connection, each with a session of its own."""

    target = None

    def __init__(self, settings: Settings, stack: ExitStack) -> None:
        from virtintrospect.host import connect

        self._settings = settings
        self._host = stack.enter_context(connect(settings.uri))
        stack.callback(self._close)
        self._open: dict[tuple[str, int | None], _One] = {}
        self._domains: list[Domain] = []
        self._listed = 0.0

    def look(self) -> list[Row]:
        """A row for each domain."""
        now = time.monotonic()
        if not self._domains or now > self._listed + _LIST_SECONDS:
            self._domains, self._listed = list(self._host.domains(active_only=True)), now
            here = {(domain.uuid, domain.id) for domain in self._domains}
            for key in [key for key in self._open if key not in here]:
                self._open.pop(key).close()
        return [self._row(domain) for domain in self._domains]

    def top_of(self, row: Row) -> GuestTop | None:
        """The past of the guest that a row is about."""
        found = next((one for one in self._open.values() if one.name == row["domain"]), None)
        return found.top if found else None

    def _row(self, domain: Domain) -> Row:
        one = self._open.setdefault((domain.uuid, domain.id), _One(domain.name))
        row: Row = {"domain": domain.name, "state": domain.state}
        try:
            return row | one.look(domain, self._settings)
        except VirtIntrospectError as error:
            one.close()
            return row | {"error": error.message}

    def _close(self) -> None:
        for one in self._open.values():
            one.close()


class _One:
    """The session on one domain, opened anew where it was lost."""

    def __init__(self, name: str) -> None:
        from virtintrospect.insight.top import GuestTop

        self.name = name
        self.top = GuestTop()
        self._session: Session | None = None
        self._forgotten = time.monotonic()

    def look(self, domain: Domain, settings: Settings) -> Row:
        from virtintrospect.session import open_domain

        if self._session is None:
            self._session = open_domain(domain, access=settings.access)
        session = self._session
        self._forgotten = _forget(session, self._forgotten)
        # A guest that boots is not searched for at any price.
        return self.top.look(session.recognise(thorough=False), session.target)

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


class Processes:
    """The processes of one guest, and its own figures."""

    def __init__(self, target: str, session: Session) -> None:
        from virtintrospect.insight.top import GuestTop, ProcessTop

        if not session.target.live:
            raise UsageError(f"{target} is an image: nothing changes in it", hint="see `ps`")
        self.target = target
        self.top: GuestTop = GuestTop()
        self.processes: ProcessTop = ProcessTop()
        #: The guest's own figures, of the last look.
        self.guest: Row = {}
        self._session = session
        self._forgotten = time.monotonic()

    def look(self) -> list[Row]:
        """A row for each process, the busiest first."""
        self._forgotten = _forget(self._session, self._forgotten)
        guest = self._session.guest
        self.guest = self.top.look(guest, self._session.target)
        return self.processes.look(guest.processes())


def _forget(session: Session, last: float) -> float:
    """Pages that the guest has given back meanwhile must not be touched."""
    now = time.monotonic()
    if now < last + _FORGET_SECONDS:
        return last
    session.target.memory.forget()
    return now
