"""The process that lets a guest go on when the one that stopped it dies.

Whatever ends a program - an exception nobody catches, SIGTERM, SIGKILL - closes its end of a
pipe. This module is the process at the other end: it waits for that and, when the program had
not said before that all is well, closes the gdb stub and lets the guest go on. It is started
with the first pause and ends with the target.

It has a session of its own and ignores SIGTERM and SIGINT, so that what ends the program's
process group, or ``systemctl stop``, leaves it the time. What kills it, too (SIGKILL to all of a
control group, a crash of the host), leaves the guest paused: ``virsh resume`` lets it go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from virtintrospect.errors import MemoryAccessError, NoSuchTargetError, TargetGoneError

#: Seconds for which it is tried to let the guest go on.
_PATIENCE = 60.0
#: Seconds that the guardian may take to start.
_START_PATIENCE = 30.0
#: What the program says: the guest will be stopped by me; it goes on.
STOPPED, GONE_ON = b"s", b"g"
#: What the guardian says.
READY = b"r"
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from virtintrospect_kvm import guardian
guardian.main(json.loads(sys.argv[2]))
"""


class Guardian:
    """The program's side.

    :param place: what :func:`let_go` needs to find the guest again, as plain data.
    :raises MemoryAccessError: no process can be started.
    """

    def __init__(self, place: dict[str, Any]) -> None:
        # The modules of this very program, which may not be installed the usual way.
        paths = json.dumps([path for path in sys.path if path])
        command = [sys.executable, "-I", "-c", _PROGRAM, paths, json.dumps(place)]
        self._last = GONE_ON
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise _not_stopped(f"cannot be started: {error.strerror}") from error
        if not self._is_ready():
            self._process.kill()
            self.close()
            raise _not_stopped("does not come up")

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self._process.pid

    def stopped(self) -> None:
        """The guest is about to be stopped by this program."""
        self._say(STOPPED)

    def gone_on(self) -> None:
        """It goes on: there is nothing to be done when the program dies."""
        self._say(GONE_ON)

    def close(self) -> None:
        """Let it do its work, if there is any, and end; that is not waited for."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        if self._last == GONE_ON:
            self._process.wait()

    def _is_ready(self) -> bool:
        """Whether it has all that it needs and listens now."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START_PATIENCE)
        return bool(ready) and self._process.stdout.read(1) == READY

    def _say(self, what: bytes) -> None:
        assert self._process.stdin is not None
        self._last = what
        try:
            self._process.stdin.write(what)
        except OSError as error:
            self._last = GONE_ON
            raise _not_stopped("has ended itself") from error


def _not_stopped(why: str) -> MemoryAccessError:
    return MemoryAccessError(
        f"the process that would let the guest go on if this one dies {why}",
        hint="without it the guest is not stopped; try again",
    )


def let_go(place: dict[str, Any]) -> None:
    """Close the gdb stub of a guest, if it has ours, and let the guest go on if it is paused."""
    from virtintrospect_kvm.brake import open_brake

    with contextlib.ExitStack() as stack:
        brake, monitor = open_brake(place, stack)
        if place.get("stub"):
            from virtintrospect_kvm.gdbstub import close_stub

            close_stub(monitor())
        if not brake.runs():
            brake.release()


def main(place: dict[str, Any]) -> None:
    """Wait for the program's end, then do what it has left undone.

    :param place: as of :func:`let_go`.
    """
    import virtintrospect_kvm.brake  # noqa: F401 (what cannot be imported is to be known now)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, READY)
    last = GONE_ON
    while said := os.read(0, 4096):
        last = said[-1:]
    if last == STOPPED:
        _let_go_at_last(place)


def _let_go_at_last(place: dict[str, Any]) -> None:
    """Try again where QEMU or libvirt is busy; a guest that is gone needs nothing."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            let_go(place)
        except (TargetGoneError, NoSuchTargetError):
            return
        except MemoryAccessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
