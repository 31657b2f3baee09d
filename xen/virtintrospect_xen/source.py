"""The domains of a Xen host without libvirt: xenstore's names, Xen's word, and their changes."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Iterator
from typing import Self

from virtintrospect.domain import Domain, Event
from virtintrospect.errors import NoSuchTargetError, VirtIntrospectError
from virtintrospect_xen.calls import DomainInfo, Hypervisor
from virtintrospect_xen.store import Store

URI = "xen:"
#: Seconds after which the list is compared though xenstore has said nothing.
_INTERVAL = 30.0


class XenSource:
    """Who runs on this host. A context manager; its methods may be called from any thread.

    :param on_event: called, in a thread of this object's own, when a domain comes or goes.
    :param on_close: called once when xenstore or Xen does not answer any more.
    :raises MemoryAccessError: this is no domain 0 of a Xen host.
    """

    uri = URI

    def __init__(
        self,
        on_event: Callable[[Event], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._on_event, self._on_close = on_event, on_close
        self._thread: threading.Thread | None = None
        with contextlib.ExitStack() as stack:
            self._store = stack.enter_context(Store())
            self._hypervisor = stack.enter_context(Hypervisor())
            if on_event is not None:
                self._store.watch_domains()
                self._wake, self._waker = os.pipe()
                stack.callback(os.close, self._wake)
                stack.callback(os.close, self._waker)
                stack.callback(self._stop)
                known = self._running()
                self._thread = threading.Thread(
                    target=self._watch, args=(known,), name="xenstore", daemon=True
                )
                self._thread.start()
            self._resources = stack.pop_all()

    def domains(self, *, active_only: bool = False) -> Iterator[Domain]:  # noqa: ARG002
        """All domains but this one; Xen knows only running ones."""
        with self._lock:
            yield from [
                domain
                for number, name in self._store.domains().items()
                if number and (domain := self._describe(number, name)) is not None
            ]

    def domain(self, target: str) -> Domain:
        """The domain of this number, UUID or name.

        :raises NoSuchTargetError: there is none.
        """
        found = list(self.domains())
        for domain in found:
            if str(domain.id) == target or domain.uuid == target.lower():
                return domain
        named = [domain for domain in found if domain.name == target]
        if not named:
            raise NoSuchTargetError(
                f"Xen has no domain {target!r}", hint="`xl list` shows those there are"
            )
        return named[-1]  # the newest, where one has just been started anew

    def close(self) -> None:
        """Close it; twice is harmless."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _describe(self, number: int, name: str) -> Domain | None:
        try:
            info = self._hypervisor.info(number)
        except NoSuchTargetError:
            return None
        return None if info.dying else _record(info, name)

    def _running(self) -> dict[tuple[int | None, str], str]:
        return {(domain.id, domain.uuid): domain.name for domain in self.domains()}

    def _watch(self, known: dict[tuple[int | None, str], str]) -> None:
        """Compare the list with the last one whenever xenstore says that it has changed."""
        assert self._on_event is not None
        try:
            while True:
                ready = select.select([self._store.fileno(), self._wake], [], [], _INTERVAL)[0]
                if self._wake in ready:
                    return
                with self._lock:
                    self._store.take_watches()
                now = self._running()
                for (_, uuid), name in sorted(known.items() - now.items()):
                    self._on_event(Event("stopped", name, uuid))
                for (_, uuid), name in sorted(now.items() - known.items()):
                    self._on_event(Event("started", name, uuid))
                known = now
        except (VirtIntrospectError, OSError):
            if self._on_close is not None:
                self._on_close()

    def _stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            os.write(self._waker, b".")
            if thread is not threading.current_thread():
                thread.join(10)


def _record(info: DomainInfo, name: str) -> Domain:
    """A domain as the core knows it."""
    return Domain(
        name=name or str(info.domid),
        uuid=info.uuid,
        id=info.domid,
        state=info.state,
        hypervisor="Xen",
        uri=URI,
        # It was made and has not run yet: its toolstack fills its memory.
        arriving=info.state == "paused" and not info.cpu_time,
    )
