"""``python -m benchmarks.hooks N``: N starts and stops of a domain with and without the hook.

A private libvirtd, a guest of 32 MiB that stays in its firmware. The arms take turns, one cycle
each, so that a machine that is busy with other things is as busy for all of them. The delay is
the difference of the same quantile of two arms.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.guests.lab.private import Private
from virtintrospect.plugin import source
from virtintrospect.plugin.source import NAME, Places

#: Milliseconds that the hook may add to a cycle at the 99th percentile.
LIMIT = 50

#: Takes what the hook sends and throws it away.
_RECEIVER = """
import socket, sys
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind(sys.argv[1])
print("ready", flush=True)
while True:
    receiver.recv(65536)
"""


class Cycle(NamedTuple):
    """Milliseconds of one start and of the stop that followed."""

    start: float
    stop: float

    @property
    def whole(self) -> float:
        """Both together."""
        return self.start + self.stop


class Arm:
    """One way to run the cycles; entered just before each of its own."""

    def __init__(self, name: str, enter: Callable[[], object]) -> None:
        self.name = name
        self.enter = enter
        self.cycles: list[Cycle] = []
        self.failed = 0


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
        self.domain: Any = self.connection.defineXML(f"""
<domain type='qemu'><name>vi-bench-{os.urandom(4).hex()}</name><memory unit='MiB'>32</memory>
<cputune><vcpusched vcpus='0' scheduler='idle'/></cputune>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><memballoon model='none'/>
<controller type='usb' model='none'/></devices></domain>""")

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
        pid_file = self.private.folder / f"run/qemu/{self.domain.name()}.pid"
        began = time.perf_counter()
        self.domain.create()
        started = time.perf_counter()
        threading.Thread(target=_reap, args=(int(pid_file.read_text()),)).start()
        stopping = time.perf_counter()
        self.domain.destroy()
        return Cycle((started - began) * 1e3, (time.perf_counter() - stopping) * 1e3)

    def _hook(self, *, there: bool) -> None:
        if there != self.hook.exists():
            (self.aside if there else self.hook).rename(self.hook if there else self.aside)

    def _back(self) -> None:
        if not self.socket.exists():
            self.socket.with_name("elsewhere").rename(self.socket)


def places(folder: Path) -> Places:
    """The hook's folders below one of ours."""
    return Places(folder / "run", folder / "lib/spool")


def _adopt_orphans() -> None:
    """Become the parent of QEMUs, which libvirt's forks leave without one (prctl(2)).

    libvirt waits until an ended QEMU has been reaped; some containers' init takes seconds.
    """
    import ctypes

    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def main() -> int:
    """Run; 0 when no start failed and the delay stays within the limit."""
    import libvirt

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    _adopt_orphans()
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # nice does little beside autogroups
    with _bench() as bench:
        arms = [
            Arm("without the hook", bench.without),
            Arm("daemon absent", bench.absent),
            Arm("daemon listens", bench.listening),
            Arm("daemon stopped", bench.stopped),
        ]
        before = _descriptors(bench.private.pid)
        for number in range(count):
            for arm in arms if number % 2 else reversed(arms):  # nobody is always the first
                arm.enter()
                try:
                    arm.cycles.append(bench.cycle())
                except libvirt.libvirtError as error:
                    arm.failed += 1
                    print(f"{arm.name}: {error}", file=sys.stderr)
            for path in bench.places.spool.iterdir():
                path.unlink()
        after = _descriptors(bench.private.pid)
    worst = _report(arms, count)
    print(f"libvirtd's descriptors: {before} before, {after} after")
    failed = sum(arm.failed for arm in arms)
    print(f"failed: {failed}; worst delay at the 99th percentile: {worst:.1f} ms (≤ {LIMIT})")
    return 0 if not failed and worst <= LIMIT else 1


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


def _report(arms: list[Arm], count: int) -> float:
    """Print the arms; the worst delay of a whole cycle at the 99th percentile."""
    print(f"{count} cycles each, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; "
          "milliseconds, in brackets what the hook adds")  # fmt: skip
    print(f"{'':<18}{'start, median':>18}{'stop, median':>18}{'cycle, median':>18}"
          f"{'cycle, 99 %':>18}  {'ratio':>6}")  # fmt: skip
    base, worst = arms[0], 0.0
    for arm in arms:
        cells = []
        for what, share in (("start", 50), ("stop", 50), ("whole", 50), ("whole", 99)):
            value, plain = (_quantile(each, what, share) for each in (arm, base))
            cells.append(f"{value:.1f}" + (f" ({value - plain:+.1f})" if arm is not base else ""))
        worst = max(worst, value - plain)
        ratio = _quantile(arm, "whole", 50) / _quantile(base, "whole", 50)
        print(f"{arm.name:<18}" + "".join(f"{cell:>18}" for cell in cells) + f"  {ratio:>6.3f}")
    return worst


def _quantile(arm: Arm, what: str, share: int) -> float:
    values: list[float] = [getattr(cycle, what) for cycle in arm.cycles]
    found: float = statistics.quantiles(values, n=100, method="inclusive")[share - 1]
    return found


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


if __name__ == "__main__":
    sys.exit(main())
