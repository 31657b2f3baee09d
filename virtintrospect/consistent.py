"""A view of one moment: the guest stands still while a table is read, and no longer.

Everything that takes time and needs no stillness comes before: the kernel is recognised, and the
table is read once in vain, so that modules are loaded, layouts compiled and pages known. What is
then read in the pause is all that the table needs, and nothing else: the pause does not grow with
the guest's RAM, and no memory of the host is taken. docs/consistent-view.md has the figures, and
what else was tried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar, cast

from virtintrospect.driver import Capability, SupportsPause
from virtintrospect.guests.base import Guest
from virtintrospect.session import Session

_T = TypeVar("_T")

#: Seconds after which the guest goes on in any case. A guest that wants a table to take long
#: stops nobody but itself, but its users are not to suffer for it.
PATIENCE = 2.0


class View(NamedTuple, Generic[_T]):
    """What was read, and what it cost the guest."""

    found: _T
    #: From the request to stop until the guest is known to go on.
    pause_ms: float
    #: It is of one moment; ``False`` where the guest was let go on before all was read.
    whole: bool


def at_one_moment(
    session: Session, read: Callable[[Guest], _T], patience: float = PATIENCE
) -> View[_T]:
    """Call ``read`` with the guest standing still; it goes on whatever happens.

    :param read: reads tables of the guest; called twice, the first time while it runs.
    :param patience: seconds of pause at most. ``read`` is not cut short.
    :raises UnsupportedError: the target cannot stop its guest.
    :raises GuestNotRecognisedError: no known kernel is running.
    """
    session.target.require(Capability.PAUSE)
    with session.lock:
        guest = session.guest
        read(guest)
        guest.take_problems()
        stop = _Stop(cast("SupportsPause", session.target), patience)
        live, guest.live = guest.live, False  # no second look: nothing changes
        try:
            with stop:
                found = read(guest)
        finally:
            guest.live = live
    return View(found, stop.seconds * 1e3, stop.kept)


class _Stop:
    """A pause that ends with its block, or after some time."""

    def __init__(self, target: SupportsPause, patience: float) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._timer = threading.Timer(patience, self._go_on)
        self._timer.daemon = True
        self._began = 0.0
        self._over = False
        self.seconds = 0.0
        #: It lasted as long as the block.
        self.kept = True

    def __enter__(self) -> None:
        self._began = self._target.pause()
        self._timer.start()

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()
        with self._lock:
            self.kept = not self._over
        self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            if not self._over:
                self._over = True
                self._target.resume()
                self.seconds = time.monotonic() - self._began
