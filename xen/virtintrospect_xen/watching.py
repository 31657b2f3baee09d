"""Events of a guest, watched by a process of its own.

It ends the watch, and leaves the guest as it was, when its standard input ends, however the
process that asked for it did. Run as ``python -m virtintrospect_xen.watching DOMID UUID``; it
takes triggers as one line of JSON, answers with a line, and prints a line for each event.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from time import monotonic
from typing import Any, Self

from virtintrospect import errors
from virtintrospect.driver import Access
from virtintrospect.errors import MemoryAccessError, TargetGoneError, VirtIntrospectError
from virtintrospect.model.event import (
    Breakpoint,
    Event,
    EventKind,
    MemoryAccess,
    RegisterWrite,
    SingleStep,
    Trigger,
)

_TRIGGERS = {kind.__name__: kind for kind in (Breakpoint, MemoryAccess, RegisterWrite, SingleStep)}
#: Seconds within which the other process has begun to watch, or has left the guest.
_PATIENCE = 60.0
#: A line is far shorter.
_PIECE = 65536


class EventStream:
    """The side that reads; see :class:`~virtintrospect.driver.EventStream`.

    :raises VirtIntrospectError: what the other process has met with.
    """

    def __init__(self, domid: int, uuid: str, triggers: Sequence[Trigger]) -> None:
        self._rest = b""
        self._process = subprocess.Popen(
            # -P: nothing that lies in the current folder is taken for a module of ours.
            [sys.executable, "-P", "-m", "virtintrospect_xen.watching", str(domid), uuid],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        try:
            asked = [[type(trigger).__name__, asdict(trigger)] for trigger in triggers]
            self._write(json.dumps(asked).encode() + b"\n")
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Wait until the other process watches."""
        lines = self._lines(_PATIENCE)
        if not lines:
            raise MemoryAccessError("the guest cannot be watched: no answer in a minute")
        _event(lines[0])
        self._rest = b"".join(line + b"\n" for line in lines[1:]) + self._rest

    def read(self, timeout: float) -> list[Event]:
        """Events that have happened; waits for the first one.

        :param timeout: seconds to wait at most.
        :returns: none where nothing has happened in that time.
        :raises TargetGoneError: the guest has ended, or the process that watches it.
        """
        found = [_event(line) for line in self._lines(timeout)]
        return [event for event in found if event is not None]

    def _lines(self, timeout: float) -> list[bytes]:
        """Whole lines; waits for the first."""
        assert self._process.stdout is not None
        output, deadline = self._process.stdout.fileno(), monotonic() + timeout
        while b"\n" not in self._rest:
            if not select.select([output], [], [], max(0.0, deadline - monotonic()))[0]:
                return []
            piece = os.read(output, _PIECE)
            if not piece:
                raise TargetGoneError("the guest is watched no more: it has ended")
            self._rest += piece
        *lines, self._rest = self._rest.split(b"\n")
        return lines

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def close(self) -> None:
        """Watch no more: the guest is as it was. Twice is harmless."""
        process = self._process
        if process.stdin is not None and not process.stdin.closed:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.communicate(timeout=_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _event(line: bytes) -> Event | None:
    """What a line says; ``None`` where it says that all is well.

    :raises VirtIntrospectError: what the other process has met with.
    """
    said: Any = json.loads(line)
    if isinstance(said, list):
        if not said:
            return None
        name, message, hint = said
        kind = getattr(errors, name, MemoryAccessError)
        if kind.__init__ is not VirtIntrospectError.__init__:  # it is made of more than a message
            kind = MemoryAccessError
        raise kind(message, hint=hint)
    return Event(**{**said, "kind": EventKind(said["kind"])})


def main(domid: int, uuid: str) -> None:
    """Watch until standard input ends."""
    from virtintrospect_xen.calls import Hypervisor
    from virtintrospect_xen.events import Watch
    from virtintrospect_xen.target import XenTarget

    triggers = [_TRIGGERS[name](**fields) for name, fields in json.loads(sys.stdin.readline())]
    try:
        with (
            Hypervisor() as xen,
            XenTarget(domid, Access(write=True), uuid) as target,
            Watch(xen, domid, target.memory, triggers) as watch,
        ):
            print("[]", flush=True)
            with contextlib.suppress(BrokenPipeError):
                _pass_on(target, watch)
    except VirtIntrospectError as error:
        print(json.dumps([type(error).__name__, error.message, error.hint]), flush=True)


def _pass_on(target: Any, watch: Any) -> None:
    """Until standard input ends.

    :raises TargetGoneError: the guest has ended, of which no bell tells. What is left of it stays
        for as long as its ring is mapped.
    """
    while True:
        # Once a second without being rung: nothing is lost by a bell that was not heard.
        ready = select.select([watch, sys.stdin], [], [], 1.0)[0]
        if sys.stdin in ready:
            return
        if not ready:
            target.check()
        for event in watch.take():
            print(json.dumps(asdict(event)))
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
