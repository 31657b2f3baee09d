"""All sessions: kept in step with what libvirt says, whoever says that something happened.

Events, hints of the hook and the passing of time all mean the same: ask libvirt what is true of
a domain, or of all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_exponential, wait_random

from virtintrospect.daemon.config import Config
from virtintrospect.daemon.detached import Detached
from virtintrospect.daemon.inbox import Hint, spooled
from virtintrospect.daemon.log import event
from virtintrospect.daemon.sessions import Context, DomainSession, Observer
from virtintrospect.daemon.state import State
from virtintrospect.daemon.work import Workers
from virtintrospect.domain import Domain, Event
from virtintrospect.driver import DomainSource
from virtintrospect.errors import MemoryAccessError, NoSuchTargetError, VirtIntrospectError
from virtintrospect.host_events import listen
from virtintrospect.symbols.store import SharedStore, default_directory

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

#: libvirt is called again after 0.2 seconds at first, 5 seconds at last.
_CONNECT_WAIT = wait_exponential(multiplier=0.2, max=5) + wait_random(0, 0.3)
#: Domains that are asked for one by one; of more than these the list is asked for.
_ONE_BY_ONE = 16


class Hub:
    """The sessions of one host.

    :param observers: what is done for each ready guest.
    :param on_event: told of libvirt's events, in the event loop's thread.
    """

    def __init__(self, config: Config, observers: Iterable[Observer] = ()) -> None:
        self.config = config
        self.sessions: dict[str, DomainSession] = {}
        self.detached = Detached(config.state_dir / "detached.json")
        #: Called with each event and, where there is one, its session.
        self.on_event: list[Callable[[Event, DomainSession | None], None]] = []
        self.workers = Workers(config.daemon.workers)
        self._libvirt = ThreadPoolExecutor(1, thread_name_prefix="libvirt")
        self._host: DomainSource | None = None
        self._aside: set[str] = set()
        self._pending: dict[str, None] = {}
        self._something = asyncio.Event()
        self._closed = asyncio.Event()
        self._context = Context(
            workers=self.workers,
            store=SharedStore(default_directory()),
            describe=self.describe,
            refresh=self.refresh,
            observers=tuple(observers),
            poll_seconds=config.sessions.poll_seconds,
            duty=config.sessions.duty_percent / 100,
        )

    @property
    def connected(self) -> bool:
        """Whether libvirt is there."""
        return self._host is not None

    @property
    def uri(self) -> str:
        """The connection as libvirt names it; before there is one, the configured."""
        return self._host.uri if self._host else self.config.libvirt.uri

    def find(self, target: str) -> DomainSession | None:
        """The session of a domain by id, UUID or name, in virsh's order."""
        living = [one for one in self.sessions.values() if one.state is not State.GONE]
        for one in living:
            if target.isdecimal() and str(one.domain.id) == target:
                return one
        for one in living:
            if one.domain.uuid.replace("-", "") == target.lower().replace("-", ""):
                return one
        return next((one for one in living if one.domain.name == target), None)

    # -- what happened ----------------------------------------------------------------------

    def refresh(self, key: str) -> None:
        """Ask libvirt soon about a domain, by UUID or name."""
        self._pending[key] = None
        self._something.set()

    def hint(self, hint: Hint) -> None:
        """The hook was called."""
        event(_log, logging.DEBUG, "hook", domain=hint.domain, operation=hint.operation)
        self.refresh(hint.uuid or hint.domain)

    def _happened(self, happened: Event) -> None:
        session = self.sessions.get(happened.uuid)
        known = session is not None or happened.what == "started"
        event(_log, logging.INFO if known else logging.DEBUG, "libvirt", domain=happened.name,
              happened=happened.what, detail=happened.detail)  # fmt: skip
        for listener in self.on_event:
            listener(happened, session)
        if session is not None and happened.what in ("reboot", "resumed", "crashed"):
            session.wake()
        self.refresh(happened.uuid)

    # -- its life ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the sessions in step until cancelled."""
        while True:
            host: DomainSource = await AsyncRetrying(
                retry=retry_if_exception_type(VirtIntrospectError),
                wait=_CONNECT_WAIT,
                before_sleep=_no_libvirt,
            )(self._connect)
            self._host = host
            event(_log, logging.INFO, "connected", uri=host.uri)
            try:
                await self._follow()
            except VirtIntrospectError as error:
                event(_log, logging.WARNING, "libvirt lost", error=error.message)
            finally:
                self._host = None
                self._libvirt.submit(host.close)

    async def _connect(self) -> DomainSource:
        loop = asyncio.get_running_loop()
        self._closed = closed = asyncio.Event()

        def safely(function: Callable[..., object], *args: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: we are at our end
                loop.call_soon_threadsafe(function, *args)

        def gone() -> None:
            safely(closed.set)
            safely(self._something.set)

        def happened(what: Event) -> None:
            safely(self._happened, what)

        uri = self.config.libvirt.uri or None
        return await self._in_libvirt(listen, uri, happened, gone)

    async def _follow(self) -> None:
        """Until libvirt goes away: ask what was hinted at, and from time to time for all."""
        reconcile_at = 0.0
        while not self._closed.is_set():
            if (now := time.monotonic()) >= reconcile_at:
                for hint in spooled(self.config.state_dir / "spool"):
                    self.hint(hint)
                self._pending.clear()
                await self.reconcile()
                reconcile_at = now + self.config.libvirt.reconcile_seconds
            if not self._pending:
                self._something.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, reconcile_at - time.monotonic())):
                        await self._something.wait()
            if len(self._pending) > _ONE_BY_ONE:
                reconcile_at = 0.0
                continue
            keys = list(self._pending)
            self._pending.clear()
            for key in keys:
                await self._look_at(key)
        raise MemoryAccessError("the connection was closed")

    async def reconcile(self) -> None:
        """Compare the sessions with libvirt's list of running domains."""
        before = [one for one in self.sessions.values() if one.state is not State.GONE]
        domains = await self._in_libvirt(self._running)
        for domain in domains:
            await self._take(domain)
        running = {domain.uuid for domain in domains}
        for session in before:
            # It may have been started while the list was made: ask for it by itself.
            if session.domain.uuid not in running:
                await self._look_at(session.domain.uuid)
        self._forget()

    def _running(self) -> list[Domain]:
        if self._host is None:
            raise MemoryAccessError("libvirt is not connected")
        return list(self._host.domains(active_only=True))

    async def _look_at(self, key: str) -> None:
        domain = await self.describe(key)
        if domain is not None and domain.active:
            await self._take(domain)
            return
        session = self.sessions.get(domain.uuid if domain else key)
        if session is not None and session.state is not State.GONE:
            await self._part(session)

    async def _take(self, domain: Domain) -> None:
        """A domain runs: begin or go on with its session."""
        session = self.sessions.get(domain.uuid)
        if session is not None and session.state is not State.GONE:
            if session.domain.id == domain.id:
                session.update(domain)
                return
            await self._part(session)  # stopped and started again, faster than we looked
        if not _listed(domain, self.config.sessions.include):
            return
        session = self.sessions[domain.uuid] = DomainSession(domain, self._context)
        if self.is_detached(domain):
            await session.leave(State.DETACHED)
        else:
            session.start()

    async def _part(self, session: DomainSession) -> None:
        self._aside.discard(session.domain.uuid)
        for observer in self._context.observers:
            observer.left(session.domain)
        await session.leave(State.GONE)

    def _forget(self) -> None:
        limit = time.time() - self.config.sessions.keep_gone_seconds
        for uuid, session in list(self.sessions.items()):
            if session.state is State.GONE and session.machine.since < limit:
                del self.sessions[uuid]

    # -- by hand ----------------------------------------------------------------------------

    def is_detached(self, domain: Domain) -> bool:
        """Whether somebody wants this domain left alone."""
        return (
            domain.uuid in self._aside
            or domain.uuid in self.detached
            or _listed(domain, self.config.sessions.exclude)
        )

    async def detach(self, session: DomainSession, *, forever: bool) -> None:
        """Leave a domain alone: until it is started anew, or for good."""
        self._aside.add(session.domain.uuid)
        if forever:
            self.detached.add(session.domain.uuid)
        if session.state not in (State.DETACHED, State.GONE):
            await session.leave(State.DETACHED)

    async def attach(self, session: DomainSession) -> None:
        """Take back :meth:`detach`; open a session that is lost anew.

        :raises VirtIntrospectError: the configuration excludes the domain.
        """
        if _listed(session.domain, self.config.sessions.exclude):
            raise VirtIntrospectError(
                f"the daemon's configuration excludes domain {session.domain.name!r}",
                hint="take it out of sessions.exclude, and restart virt-introspectd",
            )
        self._aside.discard(session.domain.uuid)
        self.detached.remove(session.domain.uuid)
        if session.state in (State.DETACHED, State.LOST):
            await session.reattach()

    # -- libvirt ----------------------------------------------------------------------------

    async def describe(self, key: str) -> Domain | None:
        """What libvirt says of a domain now; ``None`` where it knows none of that name."""
        return await self._in_libvirt(self._describe, key)

    async def domains(self, *, active_only: bool) -> list[Domain]:
        """The list of domains, as libvirt has it now."""
        host = self._host
        if host is None:
            raise MemoryAccessError("libvirt is not connected")
        return await self._in_libvirt(lambda: list(host.domains(active_only=active_only)))

    def _describe(self, key: str) -> Domain | None:
        if self._host is None:
            raise MemoryAccessError("libvirt is not connected", hint="it is called again and again")
        try:
            return self._host.domain(key)
        except NoSuchTargetError:
            return None

    async def _in_libvirt(self, function: Callable[..., _T], *args: object) -> _T:
        """Call libvirt in its thread: it may take its time, we have none."""
        return await asyncio.get_running_loop().run_in_executor(self._libvirt, function, *args)

    async def close(self) -> None:
        """Let go of all guests."""
        for session in self.sessions.values():
            if session.state is not State.GONE:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await session.leave(State.GONE)
        self.workers.close()
        self._libvirt.shutdown(wait=False, cancel_futures=True)


def _listed(domain: Domain, patterns: Iterable[str]) -> bool:
    return any(
        fnmatchcase(domain.name, pattern) or domain.uuid == pattern.lower() for pattern in patterns
    )


def _no_libvirt(attempt: RetryCallState) -> None:
    error = attempt.outcome.exception() if attempt.outcome else None
    if attempt.attempt_number in (1, 10) or attempt.attempt_number % 100 == 0:
        event(_log, logging.WARNING, "no libvirt", error=error, attempt=attempt.attempt_number)
