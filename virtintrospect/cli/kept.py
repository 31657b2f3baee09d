"""What stays open between the commands of a batch: connections and sessions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.driver import READ_ONLY, Access, DomainSource, driver_for_url
from virtintrospect.errors import (
    MemoryAccessError,
    NoSuchTargetError,
    NotFoundError,
    UsageError,
)
from virtintrospect.host import connect
from virtintrospect.session import Session, open_domain, open_session
from virtintrospect.symbols.store import SharedStore, default_directory

if TYPE_CHECKING:
    from virtintrospect.domain import Domain

#: What a command may ask in vain, of a guest with which all is well.
_IN_VAIN = (NoSuchTargetError, NotFoundError, UsageError)
#: Sessions that are open at once. Each holds some descriptors.
_MOST = 32
#: Seconds after which what was not used is closed, or half as many later: it holds the memory of
#: a guest that has ended, and what is known of residency gets old.
_IDLE = 10.0


class _Entry(NamedTuple):
    domain: Domain
    session: Session
    used: float


class Kept:
    """Connections and sessions for the next command: a guest is recognised once, not each time.

    A session is used again as long as libvirt says the very same of its domain (its number,
    state, and XML), so never after it was started anew, or its memory was plugged.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._store = SharedStore(default_directory())
        self._hosts: dict[str | None, DomainSource] = {}
        #: By URI and UUID, the one that was used last at the end.
        self._sessions: dict[tuple[str, str], _Entry] = {}
        self._used = 0.0
        self._watched = False

    @contextlib.contextmanager
    def command(self) -> Iterator[None]:
        """While a command runs nothing is closed but what itself has no use for."""
        with self._lock:
            try:
                yield
            finally:
                self._used = time.monotonic()
                if not self._watched and (self._sessions or self._hosts):
                    threading.Thread(target=self._watch, daemon=True).start()
                    self._watched = True

    def session(
        self, target: str, uri: str | None, access: Access
    ) -> AbstractContextManager[Session]:
        """As :func:`~virtintrospect.session.open_session`, kept where it is a domain to look at."""
        if access != READ_ONLY or "/" in target or driver_for_url(target) is not None:
            return open_session(target, uri, self._store, access)
        return self.of(self._domain(target, uri))

    @contextlib.contextmanager
    def of(self, domain: Domain) -> Iterator[Session]:
        """As :func:`~virtintrospect.session.open_domain`; where it fails it is not kept."""
        session = self._again(domain) or open_domain(domain, self._store)
        try:
            yield session
        except _IN_VAIN:
            self._keep(domain, session)
            raise
        except BaseException:
            session.close()
            raise
        self._keep(domain, session)

    def host(self, uri: str | None) -> DomainSource:
        """An open connection, which is closed by :meth:`close`."""
        if uri not in self._hosts:
            self._hosts[uri] = connect(uri)
        return self._hosts[uri]

    def close(self) -> None:
        """Close all of it; what is asked for after that is opened anew."""
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].session.close()
            while self._hosts:
                # Where libvirt went away there is nothing left to close.
                with contextlib.suppress(MemoryAccessError):
                    self._hosts.popitem()[1].close()

    def _keep(self, domain: Domain, session: Session) -> None:
        self._sessions[domain.uri, domain.uuid] = _Entry(domain, session, time.monotonic())
        while len(self._sessions) > _MOST:
            self._sessions.pop(next(iter(self._sessions))).session.close()

    def _again(self, domain: Domain) -> Session | None:
        """The session that is open on that very domain, with nothing left of the last command."""
        entry = self._sessions.pop((domain.uri, domain.uuid), None)
        if entry is None:
            return None
        if entry.domain != domain:
            entry.session.close()
            return None
        entry.session.memory.expire()
        if entry.session.last is not None:
            entry.session.last.take_problems()
        return entry.session

    def _domain(self, target: str, uri: str | None) -> Domain:
        fresh = uri not in self._hosts
        try:
            return self.host(uri).domain(target)
        except MemoryAccessError:
            if fresh:
                raise
        # libvirt's daemon may have been started anew.
        with contextlib.suppress(MemoryAccessError):
            self._hosts.pop(uri).close()
        return self.host(uri).domain(target)

    def _watch(self) -> None:
        """Close what is idle, as long as there is something."""
        while True:
            time.sleep(_IDLE / 2)
            with self._lock:
                limit = time.monotonic() - _IDLE
                for key in [key for key, entry in self._sessions.items() if entry.used < limit]:
                    self._sessions.pop(key).session.close()
                if self._used < limit:
                    self.close()
                    self._watched = False
                    return
