"""Events: a connection that tells when something happens to a domain."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

from virtintrospect.connection import load_libvirt
from virtintrospect.domain import Event
from virtintrospect.driver import DomainSource, source_for
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.host import Host, default_uri

#: libvirt is thought dead after so many unanswered questions, so many seconds apart.
_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT = 5, 5

#: virDomainEventType of a lifecycle event.
_LIFECYCLE = (
    "defined", "undefined", "started", "suspended", "resumed", "stopped", "shutdown",
    "pmsuspended", "crashed",
)  # fmt: skip


class EventHost(Host):
    """A read-only connection that also listens. Callbacks come in a thread of libvirt's loop.

    :param on_event: called with each :class:`Event`.
    :param on_close: called once when libvirt goes away.
    """

    def __init__(
        self,
        uri: str | None,
        on_event: Callable[[Event], None],
        on_close: Callable[[], None],
    ) -> None:
        _start_loop()
        super().__init__(uri)
        self._on_event = on_event
        self._on_close = on_close
        self._callbacks: list[int] = []
        libvirt, connection = self._libvirt, self._connection
        try:
            # A local connection may be of a driver without keepalive (test:///).
            with contextlib.suppress(libvirt.libvirtError):
                connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT)
            connection.registerCloseCallback(self._closed, None)
            for number, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._plain("reboot")),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, self._plain("device-added")),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._plain("device-removed")),
                (getattr(libvirt, "VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE", None),
                 self._plain("memory-size")),
            ):  # fmt: skip
                if number is not None:
                    # Not every driver and every release has every event.
                    with contextlib.suppress(libvirt.libvirtError):
                        known = connection.domainEventRegisterAny(None, number, callback, None)
                        self._callbacks.append(known)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether libvirt still answers on this connection."""
        try:
            return self._connection is not None and self._connection.isAlive() == 1
        except self._libvirt.libvirtError:
            return False

    def close(self) -> None:
        """Close the connection; closing twice is harmless."""
        if self._connection is not None:
            for callback in self._callbacks:  # each holds a reference to the connection
                with contextlib.suppress(self._libvirt.libvirtError):
                    self._connection.domainEventDeregisterAny(callback)
            self._callbacks.clear()
            with contextlib.suppress(self._libvirt.libvirtError):
                self._connection.unregisterCloseCallback()
        # A connection whose libvirt is gone cannot be closed in order.
        with contextlib.suppress(VirtIntrospectError):
            super().close()

    def _closed(self, _connection: Any, _reason: int, _opaque: Any) -> None:
        self._on_close()

    def _lifecycle(
        self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any
    ) -> None:
        what = _LIFECYCLE[event] if 0 <= event < len(_LIFECYCLE) else str(event)
        self._on_event(Event(what, domain.name(), domain.UUIDString(), detail))

    def _plain(self, what: str) -> Callable[..., None]:
        def callback(_connection: Any, domain: Any, *_: Any) -> None:
            self._on_event(Event(what, domain.name(), domain.UUIDString()))

        return callback


def listen(
    uri: str | None, on_event: Callable[[Event], None], on_close: Callable[[], None]
) -> DomainSource:
    """An :class:`EventHost`, or a driver's own word of its domains (``xen:``).

    :raises MemoryAccessError: libvirt, or what the driver asks, cannot be reached.
    """
    source = source_for(uri or default_uri(), on_event, on_close)
    return EventHost(uri, on_event, on_close) if source is None else source


_loop: list[threading.Thread] = []


def _start_loop() -> None:
    """Run libvirt's event loop in a thread, once a process, before the first connection."""
    if _loop:
        return
    libvirt = load_libvirt()
    libvirt.virEventRegisterDefaultImpl()
    # The loop sleeps until something happens; a timer lets it see new descriptors at once.
    libvirt.virEventAddTimeout(1000, lambda _timer, _opaque: None, None)

    def run() -> None:
        while True:
            if libvirt.virEventRunDefaultImpl() < 0:  # pragma: no cover (libvirt's own failure)
                os.abort()

    thread = threading.Thread(target=run, name="libvirt-events", daemon=True)
    thread.start()
    _loop.append(thread)
