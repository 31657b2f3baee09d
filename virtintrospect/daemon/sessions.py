"""One domain's session: opened, recognised, watched, and asked.

All state lives in the event loop's thread. What reads the guest runs in a worker thread, one
piece of a session's work at a time; no session ever waits for another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
)
from tenacity.wait import wait_chain, wait_exponential, wait_fixed, wait_random

from virtintrospect.daemon.log import event
from virtintrospect.daemon.state import Machine, State
from virtintrospect.daemon.work import Cost, Workers
from virtintrospect.domain import Domain
from virtintrospect.domainxml import memory_devices
from virtintrospect.driver import Access, SupportsAfterlife, Target, driver_for
from virtintrospect.errors import (
    GuestNotRecognisedError,
    MissingSymbolsError,
    MissingTypesError,
    TargetGoneError,
    VirtIntrospectError,
)
from virtintrospect.guests.base import Guest
from virtintrospect.session import Session
from virtintrospect.symbols.store import Store

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

#: Opening the memory is tried again after 0.2 seconds at first, a minute at last.
_OPEN_WAIT = wait_exponential(multiplier=0.2, max=60) + wait_random(0, 0.2)
#: Memory that arrives is there when libvirt says so (resumed); a look from time to time besides.
_ARRIVING_SECONDS = 5.0
#: A guest that boots is looked at four times a second for half a minute, then ever less often.
_BOOT_WAIT = wait_chain(*[wait_fixed(0.25)] * 120, wait_exponential(multiplier=0.5, max=30))
#: Seconds after which a kernel is also looked for where that costs more; and how much rarer.
_THOROUGH_AFTER, _THOROUGH_FACTOR = 30.0, 50
#: Seconds between two looks at a kernel without types or symbols: a reboot helps it, or an import.
_NO_TYPES = 60.0
#: Seconds for which a session may believe what it knows of the residency of pages.
_FORGET_SECONDS = 60.0
#: Seconds after a mistake of our own.
_AFTER_A_MISTAKE = 60.0


class NotReadyError(VirtIntrospectError):
    """The session has no guest now that could be asked."""


class BusyError(VirtIntrospectError):
    """The session is at work for somebody else, for longer than the caller would wait."""


class ArrivingError(VirtIntrospectError):
    """The domain's memory is still being filled."""


class Observer(Protocol):
    """Something that is done for each ready guest. Called in worker threads."""

    def look(self, domain: Domain, guest: Guest, target: Target | None = None) -> None:
        """A look at a guest that runs."""

    def left(self, domain: Domain) -> None:
        """The kernel that was looked at runs no more."""


@dataclass(frozen=True, slots=True)
class Context:
    """What all sessions share."""

    workers: Workers
    store: Store
    #: Asks libvirt for a domain by its UUID.
    describe: Callable[[str], Awaitable[Domain | None]]
    #: Asks libvirt, soon, whether a domain still runs.
    refresh: Callable[[str], None]
    observers: Sequence[Observer]
    poll_seconds: float
    duty: float


class DomainSession:
    """What the daemon has on one running domain."""

    def __init__(self, domain: Domain, context: Context) -> None:
        self.domain = domain
        self.machine = Machine()
        self.cost = Cost()
        #: Why it is not ready, in one line; empty when it is.
        self.error = ""
        self.driver = self.transport = ""
        self.os = ""
        self.kernel = b""
        self._context = context
        self._session: Session | None = None
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._memory_map = memory_devices(domain.xml)
        self._task: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._next_thorough = self._forget_at = 0.0

    @property
    def state(self) -> State:
        """Where it stands."""
        return self.machine.state

    # -- told from outside ------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or begin again, to live."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._live(), name=f"session {self.domain.name}")
            self._task.add_done_callback(self._died)

    def wake(self) -> None:
        """Look now, not only when the present pause is over."""
        self._wake.set()

    def update(self, domain: Domain) -> None:
        """Take what libvirt says now of this domain, which still runs."""
        changed = domain.state != self.domain.state or domain.arriving != self.domain.arriving
        self.domain = domain
        if changed or memory_devices(domain.xml) != self._memory_map:
            self.wake()

    async def leave(self, to: State) -> None:
        """Let go of the guest: it is gone, or somebody wants it left alone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._move(to)
        self.error, self.os, self.kernel = "", "", b""
        # A thread may still be reading, for up to a table's time: nobody waits for it here.
        self._closing = asyncio.create_task(self._release())

    async def reattach(self) -> None:
        """Go on after :meth:`leave` with ``DETACHED``; open the memory anew otherwise."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._move(State.SEEN)
        self.start()

    async def ask(self, function: Callable[[Guest], _T], *, patience: float) -> _T:
        """Run a function on the guest, in a worker thread.

        :param patience: seconds to wait for the session's other work.
        :raises NotReadyError: there is no recognised guest, or it has just gone.
        :raises BusyError: patience was not enough.
        """
        if self.state is not State.READY:
            raise NotReadyError(f"the session of {self.domain.name!r} is {self.state}")
        return await self._work(partial(self._ask, function), patience=patience)

    def _ask(self, function: Callable[[Guest], _T]) -> _T:
        guest = self._session.current if self._session else None
        if guest is None:
            self._loop.call_soon_threadsafe(self.wake)
            raise NotReadyError(f"the guest of {self.domain.name!r} is being recognised anew")
        guest.take_problems()
        return function(guest)

    async def look_back(self, function: Callable[[Guest], object]) -> None:
        """Run a function on the kernel that was there last, be it or its VMM dead by now."""
        await self._work(partial(self._look_back, function))
        self._memory_map = (b"as it was at the end",)  # where it lives on it is opened anew
        self.wake()

    def _look_back(self, function: Callable[[Guest], object]) -> None:
        session = self._session
        guest = session.last if session else None
        if session is None or guest is None:
            return
        if isinstance(session.target, SupportsAfterlife):
            session.target.outlive()
        guest.take_problems()
        function(guest)

    # -- its life ---------------------------------------------------------------------------

    async def _live(self) -> None:
        steps: dict[State, Callable[[], Coroutine[Any, Any, None]]] = {
            State.SEEN: self._open,
            State.LOST: self._open,
            State.WAITING: self._recognise,
            State.READY: self._watch,
        }
        while (step := steps.get(self.state)) is not None:
            try:
                await step()
            except VirtIntrospectError as error:
                self._failed(error)
                self._context.refresh(self.domain.uuid)
                # If it crashed, libvirt is about to say so: what is left is looked at first.
                await self._pause(1.0)
                await self._release()

    def _died(self, task: asyncio.Task[None]) -> None:
        """A mistake of ours must cost this session a minute, not the daemon its life."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("session of %s failed: %r", self.domain.name, error, exc_info=error)
        if self.state not in (State.GONE, State.DETACHED):
            self._move(State.LOST)
            self.error = f"internal error: {error!r}"
            asyncio.get_running_loop().call_later(_AFTER_A_MISTAKE, self._restart)

    def _restart(self) -> None:
        if self.state is State.LOST:
            self.start()

    async def _open(self) -> None:
        """Open the memory; again and again, until that works."""
        opening = AsyncRetrying(
            retry=retry_if_exception_type(VirtIntrospectError)
            & retry_if_not_exception_type(ArrivingError),
            wait=_OPEN_WAIT,
            sleep=self._pause,
            before_sleep=lambda attempt: self._failed(_error(attempt)),
        )
        while True:
            try:
                await opening(self._open_once)
            except ArrivingError as error:
                self._note(error)
                await self._pause(_ARRIVING_SECONDS)
            else:
                break
        self._move(State.WAITING)

    async def _open_once(self) -> None:
        await self._release()
        domain = await self._context.describe(self.domain.uuid)
        if domain is None or domain.id != self.domain.id:
            self._context.refresh(self.domain.uuid)
            raise TargetGoneError(f"domain {self.domain.name!r} does not run any more")
        self.domain = domain
        if domain.arriving:
            raise ArrivingError("its memory is still arriving (migration or restore)")
        await self._work(partial(self._open_memory, domain))
        self._memory_map = memory_devices(domain.xml)

    def _open_memory(self, domain: Domain) -> None:
        driver = driver_for(domain)
        target = driver.open(domain, Access(slow=False))
        self._session = Session(target, domain, self._context.store)
        self.driver, self.transport = driver.name, self._session.target.transport

    async def _recognise(self) -> None:
        """Look for a kernel until there is one."""
        started = time.monotonic()
        self._next_thorough = started + _THOROUGH_AFTER
        await AsyncRetrying(
            retry=retry_if_exception_type(GuestNotRecognisedError),
            wait=self._recognise_wait,
            sleep=self._pause,
            before_sleep=lambda attempt: self._note(_error(attempt)),
        )(self._recognise_once)
        if self.state is not State.WAITING:
            return
        self._move(State.READY)
        self.error = ""
        event(_log, logging.INFO, "kernel recognised", domain=self.domain.name,
              kernel=self.kernel, transport=self.transport,
              seconds=round(time.monotonic() - started, 3))  # fmt: skip

    async def _recognise_once(self) -> None:
        if not self._must_reopen():
            await self._work(self._recognise_guest)

    def _recognise_guest(self) -> None:
        assert self._session is not None
        start = time.monotonic()
        thorough = start >= self._next_thorough
        try:
            info = self._session.recognise(thorough=thorough).info()
        finally:
            if thorough:
                took = time.monotonic() - start
                self._next_thorough = time.monotonic() + max(60.0, took * _THOROUGH_FACTOR)
        self.os, self.kernel = info.os, info.release

    def _recognise_wait(self, attempt: RetryCallState) -> float:
        if isinstance(_error(attempt), MissingTypesError | MissingSymbolsError):
            return _NO_TYPES
        # Half-booted kernels are parsed for nothing: at most a fifth of the time.
        return max(_BOOT_WAIT(attempt), 4 * self.cost.last)

    async def _watch(self) -> None:
        """Look at the guest from time to time, until its kernel is another."""
        while True:
            spent = self.cost.last
            await self._pause(max(self._context.poll_seconds, spent / self._context.duty))
            if self._must_reopen():
                return
            if not await self._work(self._look):
                break
        event(_log, logging.INFO, "kernel gone", domain=self.domain.name, kernel=self.kernel)
        self.kernel, self.os = b"", ""
        self._move(State.WAITING)

    def _look(self) -> bool:
        """Whether the kernel still runs; then all that is to be done for it."""
        guest = self._session.current if self._session else None
        target = self._session.target if self._session else None
        if self._session is not None and time.monotonic() > self._forget_at:
            # Pages that the guest has given back meanwhile must not be touched.
            self._session.target.memory.forget()
            self._forget_at = time.monotonic() + _FORGET_SECONDS
        for observer in self._context.observers:
            if guest is None:
                observer.left(self.domain)
                continue
            try:
                observer.look(self.domain, guest, target)
            except TargetGoneError:
                raise
            except VirtIntrospectError as error:
                event(_log, logging.DEBUG, "look failed", domain=self.domain.name, error=error)
        return guest is not None

    def _must_reopen(self) -> bool:
        """Memory was plugged or unplugged: the next state opens it anew."""
        if memory_devices(self.domain.xml) == self._memory_map:
            return False
        self._memory_map = memory_devices(self.domain.xml)
        event(_log, logging.INFO, "memory map changed", domain=self.domain.name)
        self._move(State.SEEN)
        return True

    # -- helpers ----------------------------------------------------------------------------

    async def _work(self, function: Callable[[], _T], *, patience: float | None = None) -> _T:
        """Run a function in a worker thread, after all other work of this session.

        The lock is held until the thread is done, even where the caller no longer waits.
        """
        try:
            async with asyncio.timeout(patience):
                await self._lock.acquire()
        except TimeoutError:
            raise BusyError(f"the session of {self.domain.name!r} is busy") from None
        try:
            future = self._context.workers.submit(self.cost, function)
        except BaseException:
            self._lock.release()
            raise
        future.add_done_callback(self._finished)
        return await asyncio.shield(future)

    def _finished(self, future: asyncio.Future[Any]) -> None:
        self._lock.release()
        if not future.cancelled():
            future.exception()  # seen, where nobody waits for it any more

    async def _pause(self, seconds: float) -> None:
        """Sleep, or less when woken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        self._wake.clear()

    async def _release(self) -> None:
        async with self._lock:
            session, self._session = self._session, None
            if session is not None:
                session.close()

    def _failed(self, error: VirtIntrospectError) -> None:
        self._move(State.LOST)
        self._note(error)

    def _note(self, error: VirtIntrospectError) -> None:
        if error.message != self.error:
            self.error = error.message
            event(_log, logging.INFO, "not ready", domain=self.domain.name, state=self.state,
                  error=error.message)  # fmt: skip

    def _move(self, to: State) -> None:
        before = self.state
        if self.machine.move(to):
            event(_log, logging.INFO, "session", domain=self.domain.name, uuid=self.domain.uuid,
                  before=before, state=to)  # fmt: skip


def _error(attempt: RetryCallState) -> VirtIntrospectError:
    error = attempt.outcome.exception() if attempt.outcome else None
    return error if isinstance(error, VirtIntrospectError) else VirtIntrospectError(str(error))
