"""Guests whose need is known, and how one is brought into each state."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from benchmarks.hints.advisors import MIB, POLICY
from benchmarks.hints.store import Store
from tests.guests.lab import guest as lab
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.holes import HOLES, disk
from tests.guests.lab.initramfs import program
from tests.guests.lab.kernels import loose_module
from virtintrospect.insight.figures import Sample, sample
from virtintrospect.insight.hints import Facts
from virtintrospect.insight.history import Window
from virtintrospect.session import Session

RAM_MIB = 1024
#: Seconds within which a guest must boot, and come into a state: no test, so it may take its time
#: on a busy machine.
BOOT_PATIENCE, _STATE_PATIENCE = 900.0, 600.0
_FILE = """
rm -f {path}; truncate -s {mib}M {path}; exec 3<{path}
read_it() {{ dd if={path} of=/dev/null bs=1M 2>/dev/null; }}
"""
_READ = "n=0; while [ $n -lt {times} ]; do read_it; n=$((n+1)); done\n"
_ON = "while :; do read_it; echo >> /tmp/passes; usleep 300000; done\n"
_AT_TIMES_READ = "while :; do sleep 20; read_it; done\n"
_SLOWLY = """
while :; do
    n=0
    while [ $n -lt {mib} ]; do
        dd if={path} of=/dev/null bs=1M count=5 skip=$n 2>/dev/null; n=$((n+5)); sleep 1
    done
done
"""
_AT_TIMES = """
while :; do
    /tmp/load touch {mib} & work=$!
    while ! [ -e /tmp/load.ready ]; do usleep 100000; done
    sleep 3; kill -9 $work; wait $work; sleep 2; rm -f /tmp/load.ready
done
"""
_READY = "echo > /tmp/load.ready\n"
_WORK = "sh /tmp/work.sh >/dev/null 2>&1"
_WAIT = "for i in $(seq 12000); do [ -e /tmp/load.ready ] && exit; usleep 50000; done; exit 1"


class Scenario(NamedTuple):
    """A guest in a known state."""

    name: str
    #: MiB that its work needs on top of what the idle guest does.
    need: int
    #: MiB of memory that a program works in; with ``half`` only half of the time.
    touch: int = 0
    half: bool = False
    #: What :file:`load.c` calls it: ``touch`` rests between passes, ``work`` does not.
    kind: str = "touch"
    #: MiB of a file that are read, how often, and how that goes on.
    read: int = 0
    times: int = 0
    then: str = "exec sleep 1000\n"
    #: MiB that were used before, and freed.
    before: int = 0
    #: How many samples there must be for all of its states to be seen, and of how many seconds.
    samples: int = 9
    seconds: float = 0.0

    @property
    def script(self) -> str:
        """What the guest runs."""
        lines = "echo $$ > /tmp/work.pid\n"
        if self.read:
            lines += _FILE.format(mib=self.read, path=HOLES) + _READ.format(times=self.times)
        if self.half:
            lines += _AT_TIMES.format(mib=self.touch)
        elif self.touch and self.read:
            lines += f"/tmp/load {self.kind} {self.touch} &\n"
        elif self.touch:
            lines += f"exec /tmp/load {self.kind} {self.touch}\n"
        if self.read:
            lines += _READY + self.then.format(mib=self.read, path=HOLES)
        return lines


#: What is said of cache that is no longer read takes a minute, and so do lists of CPUs.
_LONG = 60.0
SCENARIOS = (
    Scenario("idle", 0),
    Scenario("works in 200 MiB", 200, touch=200),
    Scenario("works in 400 MiB", 400, touch=400),
    Scenario("works in 600 MiB", 600, touch=600),
    Scenario("works in 500 MiB, at times", 500, touch=500, half=True, samples=25),
    Scenario("reads 300 MiB again and again", 300, read=300, times=3, then=_ON),
    Scenario("reads 300 MiB at times", 300, read=300, times=3, then=_AT_TIMES_READ, seconds=_LONG),
    Scenario("reads 300 MiB slowly", 300, read=300, times=3, then=_SLOWLY, seconds=_LONG),
    Scenario("works in 200, reads 200", 400, touch=200, read=200, times=3, then=_ON),
    Scenario("read 500 MiB once", 0, read=500, times=1),
    Scenario("read 300 MiB often, no more", 0, read=300, times=3, seconds=_LONG),
    Scenario("idle, once used 700 MiB", 0, before=700, seconds=_LONG),
)


def config(kernel: str, vcpus: int = 2) -> Config:
    """The guest of the experiment."""
    return Config(
        kernel, backing="anonymous", pti=False, ram_mib=RAM_MIB, vcpus=vcpus,
        # On a busy machine the kernel would take the emulated timer for a broken one.
        cmdline="psi=1 no_timer_check",
    )  # fmt: skip


@contextmanager
def guest_of(kernel: str, vcpus: int = 2) -> Iterator[Guest]:
    """A guest with the lab's load program, and a driver for its balloon."""
    lab.BOOT_PATIENCE = BOOT_PATIENCE
    with Guest(config(kernel, vcpus)) as guest:
        guest.put("/tmp/load", program("load").read_bytes(), 0o755)
        guest.put("/tmp/virtio_balloon.ko", loose_module(kernel, "virtio_balloon"))
        guest.run("insmod /tmp/virtio_balloon.ko; sleep 1", _STATE_PATIENCE)
        disk(guest, _STATE_PATIENCE)
        yield guest


def one_by_one(
    store: Store,
    part: str,
    names: Container[str],
    measure: Callable[[Guest, Scenario], dict[str, object]],
) -> None:
    """Measure what is not in the store yet, each scenario in a guest of its own."""
    for scenario in SCENARIOS:
        key = {"part": part, "kernel": "6.12", "scenario": scenario.name}
        if scenario.name in names and not store.has(**key):
            with guest_of("6.12") as guest:
                store.add(key, **measure(guest, scenario))


@contextmanager
def state(guest: Guest, scenario: Scenario) -> Iterator[None]:
    """The guest in that state, and afterwards idle again."""
    if scenario.before:
        with state(guest, Scenario("", scenario.before, touch=scenario.before)):
            pass
    try:
        if scenario.touch or scenario.read:
            guest.put("/tmp/work.sh", scenario.script.encode())
            guest.run(f"rm -f /tmp/load.ready /tmp/passes; {_WORK} & {_WAIT}", _STATE_PATIENCE)
        yield
    finally:
        still(guest)


def still(guest: Guest) -> None:
    """End what runs in it for us, and let go of what it left in memory."""
    guest.run(
        "kill -9 $(cat /tmp/work.pid); killall -9 load dd; while pidof load; do usleep 50000; done;"
        f"rm -f {HOLES} /tmp/work.pid; sync;"
        "echo 3 > /proc/sys/vm/drop_caches; sleep 1",
        _STATE_PATIENCE,
        check=False,
    )


def settle(guest: Guest, mib: int) -> None:
    """Wait until the guest's balloon is where it was told to be."""
    for _ in range(300):
        if abs((guest.domain.memoryStats()["actual"] >> 10) - mib) <= 1:
            return
        time.sleep(0.1)


def used(guest: Guest) -> int:
    """MemTotal less MemAvailable, by the guest's own word; bytes."""
    lines = guest.get("/proc/meminfo").decode().splitlines()
    words = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return words["MemTotal"] - words["MemAvailable"]


def true_need(facts: Facts, idle: int, scenario: Scenario) -> int:
    """Bytes of balloon that the guest needs: what it needs when idle, and its work's need.

    What the kernel took before it counted MemTotal is a part of the balloon's target.
    """
    total = int(facts.window.last("memory", "memory_total") or 0)
    return idle + scenario.need * MIB + (facts.current or total) - total


def watch(session: Session, count: int = 9, seconds: float = 0.0) -> Facts:
    """So many samples of the guest, one a second, and more until they are of so many seconds."""
    taken: list[Sample] = []
    while len(taken) < count or taken[-1]["time"] - taken[0]["time"] < seconds:
        taken.append(sample(session.guest, session.target))
        time.sleep(1)
    return Facts(Window(taken), POLICY, session.domain)
