"""Pauses that are counted, and undone on every path."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

from virtintrospect.errors import TargetGoneError, UsageError, VirtIntrospectError
from virtintrospect_kvm.brake import Brake
from virtintrospect_kvm.guardian import Guardian

_log = logging.getLogger(__name__)


class Pauser:
    """Stops a guest at the first of any number of pauses, and lets it go on with the last.

    A guest that did not run at the first pause was stopped by somebody else, and stays so.

    :param brake: how the guest is stopped.
    :param place: where a process that outlives this one finds it (:mod:`.guardian`).
    """

    def __init__(self, brake: Brake, place: dict[str, Any]) -> None:
        self._brake = brake
        self._place = place
        self._lock = threading.Lock()
        self._count = 0
        self._stopped = False
        self._guardian: Guardian | None = None

    def pause(self) -> float:
        """Stop the guest, or count one more pause.

        :returns: when it was asked to stop (:func:`time.monotonic`); now, where it stood already.
        :raises AccessDeniedError: this user may not.
        :raises TargetGoneError: the guest has ended.
        :raises MemoryAccessError: it cannot be stopped.
        """
        with self._lock:
            asked = self._stop() if self._count == 0 else time.monotonic()
            self._count += 1
            return asked

    def resume(self) -> None:
        """Undo one pause; the guest goes on with the last, if it was the first that stopped it.

        :raises UsageError: nothing was paused.
        :raises MemoryAccessError: the guest cannot be let go on; it is tried once more when
            this process ends.
        """
        with self._lock:
            if self._count == 0:
                raise UsageError("the guest was not paused from here")
            self._count -= 1
            if self._count == 0:
                self._go()

    def close(self) -> None:
        """Undo all pauses; closing twice is harmless."""
        with self._lock:
            self._count = 0
            try:
                self._go()
            except VirtIntrospectError as error:
                _log.warning(
                    "%s; %s",
                    error,
                    error.hint or "`virsh resume` lets it go on, or `cont` of its monitor",
                )
            finally:
                guardian, self._guardian = self._guardian, None
                if guardian is not None:
                    guardian.close()

    def _stop(self) -> float:
        if not self._brake.runs():
            return time.monotonic()
        if self._guardian is None:
            self._guardian = Guardian(self._place)
        self._guardian.stopped()
        self._stopped = True
        asked = time.monotonic()
        try:
            self._brake.stop()
        except BaseException:
            # It may have stopped all the same.
            with contextlib.suppress(VirtIntrospectError):
                self._go()
            raise
        return asked

    def _go(self) -> None:
        if not self._stopped:
            return
        assert self._guardian is not None  # started by _stop
        # A guest that has ended, or that somebody else let go on, needs nothing.
        with contextlib.suppress(TargetGoneError):
            if not self._brake.runs():
                self._brake.release()
        self._stopped = False
        self._guardian.gone_on()
