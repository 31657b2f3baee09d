"""``python -m benchmarks.hooks N``: N starts and stops of a domain with and without the hook."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.cycles import (
    Arm,
    Cycle,
    adopt_orphans,
    cycle,
    descriptors,
    firmware_xml,
    report,
    verdict,
)
from tests.guests.lab.private import Private
from virtintrospect.plugin import source
from virtintrospect.plugin.source import NAME, Places

#: Takes what the hook sends and throws it away.
_RECEIVER = """
import socket, sys
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind(sys.argv[1])
print("ready", flush=True)
while True:
    receiver.recv(65536)
"""


class Bench:
    """The libvirtd, the domain and the hook's folders."""

    def __init__(self, private: Private, folder: Path, receiver: subprocess.Popen[bytes]) -> None:
        self.private = private
        self.receiver = receiver
        self.places = places(folder)
        self.places.spool.mkdir(parents=True)
        self.hook = private.hooks / "qemu.d" / NAME
        self.hook.parent.mkdir()
        #: Always there, so that libvirt knows of the folder in every arm.
        other = self.hook.with_name("00-other")
        other.write_text("#!/bin/true\n")
        other.chmod(0o755)
        self.aside = private.folder / NAME
        self.aside.write_bytes(source.with_places(source.shipped(), self.places))
        self.aside.chmod(0o755)
        with (private.folder / "etc/qemu.conf").open("a") as file:
            # cgroups v1 take no real-time process.
            file.write("cgroup_controllers = []\n")
        private.restart()
        self.connection = private.connect()
        idle = "<cputune><vcpusched vcpus='0' scheduler='idle'/></cputune>"
        self.domain: Any = self.connection.defineXML(firmware_xml(idle))

    @property
    def socket(self) -> Path:
        """Where the hook sends to."""
        return self.places.run / "hook.sock"

    def without(self) -> None:
        """No hook of ours."""
        self._hook(there=False)

    def absent(self) -> None:
        """Nobody listens: each event becomes a file."""
        self._hook(there=True)
        self.receiver.send_signal(signal.SIGCONT)
        if self.socket.exists():
            self.socket.rename(self.socket.with_name("elsewhere"))

    def listening(self) -> None:
        """A daemon takes the events."""
        self._hook(there=True)
        self._back()
        self.receiver.send_signal(signal.SIGCONT)

    def stopped(self) -> None:
        """A daemon that is stopped by SIGSTOP, and its queue full."""
        self._hook(there=True)
        self._back()
        self.receiver.send_signal(signal.SIGSTOP)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                while True:
                    sender.sendto(b"{}", str(self.socket))
            except BlockingIOError:
                pass

    def cycle(self) -> Cycle:
        """Start the domain and stop it."""
        return cycle(self.private, self._started)

    def _started(self) -> Any:
        self.domain.create()
        return self.domain

    def _hook(self, *, there: bool) -> None:
        if there != self.hook.exists():
            (self.aside if there else self.hook).rename(self.hook if there else self.aside)

    def _back(self) -> None:
        if not self.socket.exists():
            self.socket.with_name("elsewhere").rename(self.socket)


def places(folder: Path) -> Places:
    """The hook's folders below one of ours."""
    return Places(folder / "run", folder / "lib/spool")


def main() -> int:
    """Run; 0 when no start failed and the delay stays within the limit."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    adopt_orphans()
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # nice does little beside autogroups
    with _bench() as bench:
        arms = [
            Arm("without the hook", bench.without),
            Arm("daemon absent", bench.absent),
            Arm("daemon listens", bench.listening),
            Arm("daemon stopped", bench.stopped),
        ]
        before = descriptors(bench.private.pid)
        for number in range(count):
            for arm in arms if number % 2 else reversed(arms):  # nobody is always the first
                arm.run(bench.cycle)
            for path in bench.places.spool.iterdir():
                path.unlink()
        after = descriptors(bench.private.pid)
    worst = report(arms)
    print(f"libvirtd's descriptors: {before} before, {after} after")
    return 0 if verdict(arms, worst) else 1


@contextmanager
def _bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vi-bench-")))
        private = stack.enter_context(Private())
        where = places(folder)
        where.run.mkdir()
        command = [sys.executable, "-c", _RECEIVER, str(where.run / "hook.sock")]
        receiver = subprocess.Popen(command, stdout=subprocess.PIPE)
        stack.callback(receiver.wait)
        stack.callback(receiver.kill)
        assert receiver.stdout is not None
        receiver.stdout.readline()
        bench = Bench(private, folder, receiver)
        stack.callback(bench.connection.close)
        bench.cycle()  # the first start of a QEMU is slower
        yield bench


if __name__ == "__main__":
    sys.exit(main())
