"""Domains come and go while the daemon runs, is stopped (SIGSTOP) or is not there.

The hook is installed by the command, in a private libvirtd. Every cycle has a domain of its
own. The daemon that the hook talks to is up and stopped by turns for a hundred cycles, then it
is ended and not there for fifty. A second one, which only hears libvirt's events, lives from
the first cycle to the last: its memory must not grow.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks.cycles import Arm, Cycle, adopt_orphans, cycle, firmware_xml, report, verdict
from benchmarks.daemon.usage import Usage, usage
from tests.daemon.running import COMMAND, Running, eventually, running
from tests.guests.lab.private import Private
from virtintrospect.plugin.source import NAME

#: Cycles that the daemon is up or stopped at a stretch: so many that the hook's socket fills up.
_STRETCH = 10
#: Cycles with a hook between two without.
_TURN = 3
#: Cycles of one life of the daemon, and those without it that follow.
_LIFE, _DEATH = 100, 50
#: Gone domains are forgotten sooner than by default, for the sake of shorter waits.
_KEEP_GONE = 2.0
#: MiB by which memory may grow from the first hundred cycles' end to the last's.
_GROWTH = 3.0


class Bench:
    """The libvirtd, the hook and the daemons."""

    def __init__(self, private: Private, hooked: Running, other: Running) -> None:
        self.private, self.hooked, self.other = private, hooked, other
        self.connection = private.connect()
        self.hook = private.hooks / "qemu.d" / NAME
        self.aside = private.folder / NAME
        folders = [f"--run-dir={hooked.run}", f"--spool-dir={self.spool}"]
        private.run(COMMAND, "hooks", "install", *folders, check=True, stdout=subprocess.DEVNULL)
        eventually(self._hook_is_called)
        self.marks: list[tuple[Usage, Usage]] = []
        self.spooled = 0
        self._done = 0

    @property
    def spool(self) -> Path:
        """Where the hook puts what it cannot send."""
        return self.hooked.state / "spool"

    # -- arms -------------------------------------------------------------------------------

    def without(self) -> None:
        """No hook; the daemons as they are."""
        self._hook(there=False)

    def up(self) -> None:
        """The daemon listens."""
        self._hook(there=True)

    def stopped(self) -> None:
        """The daemon is stopped by SIGSTOP."""
        self._hook(there=True)
        os.kill(self.hooked.pid, signal.SIGSTOP)

    def down(self) -> None:
        """There is no daemon: one that ended in order, or one that was killed."""
        self._hook(there=True)

    # -- cycles -----------------------------------------------------------------------------

    def run(self, count: int, arms: dict[str, Arm]) -> None:
        """All cycles with the hook, and without it some more than a third as many."""
        while self._done < count:
            life = range(0, min(_LIFE, count - self._done), _STRETCH)
            for number in life:
                name = "stopped" if number // _STRETCH % 2 else "up"
                self._stretch(arms[name], arms["without"], min(_STRETCH, count - self._done))
                os.kill(self.hooked.pid, signal.SIGCONT)
            self._mark()
            self.hooked.stop(signal.SIGKILL if self._done // _LIFE % 2 else signal.SIGTERM)
            self._stretch(arms["down"], arms["without"], min(_DEATH, count - self._done))
            self.spooled = max(self.spooled, len(list(self.spool.iterdir())))
            self.hooked.start()
            eventually(lambda: not any(self.spool.iterdir()), "the daemon reads the spool")

    def _stretch(self, arm: Arm, without: Arm, count: int) -> None:
        for number in range(count):
            if number % _TURN == 0:
                without.run(self._cycle)
            arm.run(self._cycle)
            self._done += 1

    def _cycle(self) -> Cycle:
        return cycle(self.private, partial(self.connection.createXML, firmware_xml()))

    def _mark(self) -> None:
        """Print what everybody holds, once no domain is known any more."""
        for one in (self.hooked, self.other):
            eventually(partial(_knows_none, one), "domains that are gone are forgotten")
        time.sleep(0.5)
        daemon, libvirtd = usage(self.other.pid), usage(self.private.pid)
        self.marks.append((daemon, libvirtd))
        print(f"after {self._done} cycles with the hook\n  daemon that stays: {daemon}\n"
              f"  daemon with the hook: {usage(self.hooked.pid)}\n"
              f"  libvirtd: {libvirtd}", flush=True)  # fmt: skip

    def _hook(self, *, there: bool) -> None:
        if there != self.hook.exists():
            (self.aside if there else self.hook).rename(self.hook if there else self.aside)

    def _hook_is_called(self) -> bool:
        """A moment after it was told to, libvirt looks for hooks."""
        self._cycle()
        return "hook domain=" in self.hooked.text()

    def nothing_left(self) -> bool:
        """Whether all are as they were after the first hundred cycles; says what is not."""
        well = True
        for name, first, last in zip(
            ("daemon", "libvirtd"), self.marks[0], self.marks[-1], strict=True
        ):
            grown = last.own - first.own
            print(f"{name} from the first of these to the last: "
                  f"{last.descriptors - first.descriptors:+} descriptors, "
                  f"{last.threads - first.threads:+} threads, "
                  f"{last.children - first.children:+} children, {grown:+.1f} MiB")  # fmt: skip
            same = first[:3] == last[:3]
            well = well and same and (grown <= _GROWTH or name == "libvirtd")
        return well


def _knows_none(daemon: Running) -> bool:
    return not daemon.ask("sessions")["rows"]


@contextmanager
def _bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vi-bench-")))
        private = stack.enter_context(Private())
        hooked, other = (
            stack.enter_context(
                running(folder / name, private.uri, sessions={"keep_gone_seconds": _KEEP_GONE})
            )
            for name in ("hooked", "other")
        )
        bench = Bench(private, hooked, other)
        stack.callback(bench.connection.close)
        yield bench


def main(count: int) -> int:
    """So many cycles with the hook, and others without; Ctrl-C ends them early."""
    adopt_orphans()
    print(f"kernel {platform.release()}")
    with _bench() as bench:
        arms = {
            "without": Arm("without the hook", bench.without),
            "up": Arm("daemon up", bench.up),
            "stopped": Arm("daemon stopped", bench.stopped),
            "down": Arm("daemon down", bench.down),
        }
        try:
            bench.run(count, arms)
        except KeyboardInterrupt:
            print("ended early", file=sys.stderr)
        worst = report([arm for arm in arms.values() if len(arm.cycles) > 1])
        print(f"events of the hook that waited in the spool: up to {bench.spooled}")
        well = bench.nothing_left()
    return 0 if verdict(list(arms.values()), worst) and well else 1
