"""Holds a domain paused for another process, and lets it go on when that one ends.

Xen counts pauses, whoever made them; one that is forgotten stops a guest for ever. So the pause
belongs to a process of its own, which undoes it when its standard input ends, however the other
process did. Run as ``python -m virtintrospect_xen.hold DOMID``; it answers ``+``, ``-`` and ``?``
(is it ready?) with the same sign, or with a line of what went wrong.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from time import monotonic

from virtintrospect.errors import MemoryAccessError, VirtIntrospectError
from virtintrospect_xen.calls import Hypervisor


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

    def close(self) -> None:
        """Let the domain go on; twice is harmless."""
        process, self._process = self._process, None
        self._count = 0
        if process is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                process.communicate(timeout=10)

    def _start(self) -> None:
        """Start the other process, and wait until it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "virtintrospect_xen.hold", str(self._domid)],
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


@contextlib.contextmanager
def _held(hypervisor: Hypervisor, domid: int) -> Iterator[list[int]]:
    """Undoes at its end what was paused in it."""
    held = [0]
    try:
        yield held
    finally:
        while held[0]:
            held[0] -= 1
            with contextlib.suppress(VirtIntrospectError):  # the domain is gone
                hypervisor.unpause(domid)


def main(domid: int) -> None:
    """Do what comes in, until it ends."""
    try:
        hypervisor = Hypervisor()
    except VirtIntrospectError as error:
        print(error.message, flush=True)
        return
    with hypervisor, _held(hypervisor, domid) as held:
        while sign := sys.stdin.read(1):
            try:
                if sign == "+":
                    hypervisor.pause(domid)
                    held[0] += 1
                elif sign == "-" and held[0]:
                    hypervisor.unpause(domid)
                    held[0] -= 1
                answer = sign
            except VirtIntrospectError as error:
                answer = error.message
            print(answer, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
