"""Holds a domain paused for another process, and lets it go on when that one ends.

Xen counts pauses, whoever made them; one that is forgotten stops a guest for ever. So the pause
belongs to a process of its own, which undoes it when its standard input ends, however the other
process did. The same holds for the monitor of events. Run as
``python -m virtintrospect_xen.hold DOMID``; it answers ``+``, ``-``, ``e`` (the monitor is to be
ended at last), ``.`` (now) and ``?`` (is it ready?) with the same sign, or with a line of what
went wrong.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from time import monotonic
from typing import Self

from virtintrospect.errors import MemoryAccessError, VirtIntrospectError
from virtintrospect_xen.calls import Hypervisor
from virtintrospect_xen.monitor import Monitor


class Holder:
    """The other side: pauses and resumes a domain; closing lets it go on."""

    def __init__(self, domid: int) -> None:
        self._domid = domid
        self._process: subprocess.Popen[str] | None = None
        self._count = 0

    def pause(self) -> float:
        """Stop the domain; counted.

        :returns: when Xen was asked to, by :func:`time.monotonic`.
        :raises MemoryAccessError: Xen refuses.
        """
        if self._process is None:
            self._start()
        asked = monotonic()
        if not self._count:
            self._ask("+")
        self._count += 1
        return asked

    def resume(self) -> None:
        """Undo one :meth:`pause`; what was never paused is left alone."""
        if self._count == 1:
            self._ask("-")
        self._count = max(0, self._count - 1)

    def watch(self) -> None:
        """From now on the monitor of events is ended when this process ends."""
        if self._process is None:
            self._start()
        self._ask("e")

    def unwatch(self) -> None:
        """End the monitor of events: vCPUs that wait go on."""
        if self._process is not None:
            self._ask(".")

    def close(self) -> None:
        """Let the domain go on; twice is harmless."""
        process, self._process = self._process, None
        self._count = 0
        if process is not None:
            with contextlib.suppress(OSError):
                process.communicate(timeout=10)

    def _start(self) -> None:
        """Start the other process, and wait until it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "virtintrospect_xen.hold", str(self._domid)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        self._ask("?")

    def _ask(self, sign: str) -> None:
        process, answer = self._process, ""
        if process is not None and process.stdin is not None and process.stdout is not None:
            try:
                process.stdin.write(sign)
                process.stdin.flush()
                answer = process.stdout.readline().strip()
            except OSError as error:
                answer = str(error)
        if answer != sign:
            self.close()
            raise MemoryAccessError(
                answer or f"the process that pauses domain {self._domid} has ended",
                hint="`xl list` tells whether the domain is paused, `xl unpause` lets it go on",
            )


class _Held:
    """What is to be undone. A context manager that undoes it."""

    def __init__(self, hypervisor: Hypervisor, domid: int) -> None:
        self._xen, self._domid = hypervisor, domid
        self._pauses, self._watched = 0, False

    def do(self, sign: str) -> None:
        """What a sign stands for."""
        if sign == "+":
            self._xen.pause(self._domid)
            self._pauses += 1
        elif sign == "-" and self._pauses:
            self._xen.unpause(self._domid)
            self._pauses -= 1
        elif sign == "e":
            self._watched = True
        elif sign == "." and self._watched:
            self._watched = False
            Monitor(self._xen, self._domid).disable()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sign in (".", *"-" * self._pauses):
            with contextlib.suppress(VirtIntrospectError):  # the domain is gone
                self.do(sign)


def main(domid: int) -> None:
    """Do what comes in, until it ends."""
    try:
        hypervisor = Hypervisor()
    except VirtIntrospectError as error:
        print(error.message, flush=True)
        return
    with hypervisor, _Held(hypervisor, domid) as held:
        while sign := sys.stdin.read(1):
            try:
                held.do(sign)
                answer = sign
            except VirtIntrospectError as error:
                answer = error.message
            print(answer, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
