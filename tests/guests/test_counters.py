"""Memory, pressure, CPU times and load against the guest's own /proc, on every guest.

Such values move all the time. So the guest is paused between two of its own readings and what
we read in between must lie between them: for a value that rests, that is equality.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from virtintrospect.errors import NotFoundError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import CpuTimes, Pressure
from virtintrospect.session import open_session

from .lab.domain import Config
from .lab.guest import Guest

#: Where osquery's memory_info has another name than snake case gives.
_OSQUERY = {
    "MemTotal": "memory_total",
    "MemFree": "memory_free",
    "MemAvailable": "memory_available",
}
#: Readings until one must be equal: between two of them a page may come *and* go.
ATTEMPTS = 8
#: What a page that comes and goes between two readings may amount to.
SLACK = 256 << 10
#: Counters of pages may rise and fall between two readings; in pages.
VMSTAT_SLACK = 64
#: Milliseconds of a clock tick, in which /proc/stat counts.
_TICK_MS = 10

#: Huge pages, swap with pages in it and in its cache, a block device that was read, locked and
#: dirty memory: lines that are zero in a small guest.
WORKLOAD = """
set -e
test ! -e /tmp/counters || exit 0
mkdir /tmp/counters; cd /tmp/counters
echo 6 > /proc/sys/vm/nr_hugepages || :  # Xen gives PV guests none
dd if=/dev/zero of=swap bs=1M count=40 2>/dev/null
losetup /dev/loop0 swap; mkswap /dev/loop0 >/dev/null; swapon /dev/loop0
dd if=/dev/loop0 of=/dev/null bs=64k count=32 2>/dev/null
mkdir cg; mount -t cgroup2 none cg
echo +memory > cg/cgroup.subtree_control; mkdir cg/squeeze; echo 4M > cg/squeeze/memory.max
sh -c 'echo $$ > cg/squeeze/cgroup.procs
    dd if=/dev/zero of=big bs=1M count=12 2>/dev/null
    dd if=big of=/dev/null bs=64k count=16 2>/dev/null'
"""


@pytest.fixture(scope="session")
def loaded(guest: Guest) -> Guest:
    """The guest, with something to see in every line that a small guest can have."""
    guest.run(WORKLOAD, 90)
    return guest


@pytest.fixture
def linux(loaded: Guest) -> Iterator[LinuxGuest]:
    with open_session(loaded.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        yield session.guest
        assert session.guest.take_problems() == []


@contextmanager
def spinning(guest: Guest, count: int) -> Iterator[None]:
    """The guest while so many loops run, which are gone at the end."""
    loop = "sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 & echo $!; "
    pids = guest.run(loop * count).decode().split()
    try:
        yield
    finally:
        there = " -o ".join(f"-e /proc/{pid}" for pid in pids)
        guest.run(f"kill -9 {' '.join(pids)}; while [ {there} ]; do usleep 50000; done")


@contextmanager
def paused(guest: Guest) -> Iterator[None]:
    guest.domain.suspend()
    try:
        yield
    finally:
        guest.domain.resume()


def between(
    guest: Guest, theirs: Callable[[], dict[str, int]], ours: Callable[[], dict[str, int]]
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """What the guest says, what we say of it while it is paused, and what it says then."""
    before = theirs()
    with paused(guest):
        mine = ours()
    return before, mine, theirs()


def outside(
    before: dict[str, int], mine: dict[str, int], after: dict[str, int], slack: int = 0
) -> dict[str, tuple[int, int, int]]:
    """Values that do not lie between the two readings of the guest."""
    return {
        name: (before[name], mine[name], after[name])
        for name in before
        if not min(before[name], after[name]) - slack
        <= mine[name]
        <= max(before[name], after[name]) + slack
    }


def agree(
    guest: Guest,
    theirs: Callable[[], dict[str, int]],
    ours: Callable[[], dict[str, int]],
    slack: int,
) -> dict[str, int]:
    """Every value lies between the guest's readings: within slack at once, exactly in time."""
    for _ in range(ATTEMPTS):
        before, mine, after = between(guest, theirs, ours)
        assert list(mine) == list(before)
        assert outside(before, mine, after, slack) == {}
        differing = outside(before, mine, after)
        if not differing:
            return mine
    pytest.fail(f"never equal: {differing}")


def field(line: str) -> str:
    """What the table calls a line of /proc/meminfo."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[A-Z])(?=[A-Z][a-z])", "_", line)
    return _OSQUERY.get(line, words.replace("(", "_").replace(")", "").lower())


def meminfo(guest: Guest) -> dict[str, int]:
    found = {}
    for line in guest.get("/proc/meminfo").decode().splitlines():
        name, value, *unit = line.replace(":", " ").split()
        found[field(name)] = int(value) * (1024 if unit else 1)
    return found


def our_meminfo(linux: LinuxGuest) -> dict[str, int]:
    """Every line that is there, in the order of the record's fields."""
    record = linux.meminfo()
    values = {name: getattr(record, name) for name in type(record).__dataclass_fields__}
    return {name: value for name, value in values.items() if value is not None}


def test_every_line_of_meminfo(linux: LinuxGuest, loaded: Guest) -> None:
    mine = agree(loaded, lambda: meminfo(loaded), lambda: our_meminfo(linux), SLACK)
    shown = {name for name, value in mine.items() if value}
    assert shown >= {"buffers", "swap_total", "mlocked", "percpu"}
    assert not loaded.huge_pages or shown >= {"huge_pages_total", "hugetlb"}
    assert mine["swap_free"] < mine["swap_total"]


@pytest.mark.parametrize(
    "setting",
    [
        "echo 200000 > /proc/sys/vm/overcommit_kbytes",
        "echo 0 > /proc/sys/vm/overcommit_kbytes; echo 80 > /proc/sys/vm/overcommit_ratio",
        "echo 9000 > /proc/sys/vm/min_free_kbytes",
        "echo 2 > /proc/sys/vm/nr_hugepages",
    ],
)
def test_meminfo_follows_settings(linux: LinuxGuest, loaded: Guest, setting: str) -> None:
    if "huge" in setting and not loaded.huge_pages:
        pytest.skip("it has none")
    loaded.run(setting)
    agree(loaded, lambda: meminfo(loaded), lambda: our_meminfo(linux), SLACK)


def test_meminfo_of_a_guest_under_load(linux: LinuxGuest, loaded: Guest) -> None:
    """Pages come and go meanwhile: what rests is equal, the rest is near."""
    loaded.run(
        "cd /tmp/counters; touch busy;"
        "(while test -e busy; do cp big copy; rm copy; done; touch idle) &"
    )
    for _ in range(4):
        before, mine, after = between(loaded, lambda: meminfo(loaded), lambda: our_meminfo(linux))
        assert list(mine) == list(before)
        assert outside(before, mine, after, 24 << 20) == {}
        for still in ("memory_total", "swap_total", "hugepagesize", "vmalloc_total"):
            assert mine.get(still) == before.get(still)
    loaded.run(
        "cd /tmp/counters; rm busy; until test -e idle; do usleep 50000; done; rm idle; sleep 1"
    )


def vmstat(guest: Guest) -> dict[str, int]:
    lines = guest.get("/proc/vmstat").decode().splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


def our_vmstat(linux: LinuxGuest) -> dict[str, int]:
    rows = linux.vmstat()
    found = {row.name.decode(): row.value for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize(
    "setting",
    [
        "true",
        "cd /proc/sys/vm; echo 5000000 > dirty_background_bytes; echo 9000001 > dirty_bytes",
        "echo 30 > /proc/sys/vm/dirty_ratio; echo 40 > /proc/sys/vm/dirty_background_ratio",
    ],
)
def test_every_counter_of_vmstat(linux: LinuxGuest, loaded: Guest, setting: str) -> None:
    loaded.run(setting)
    mine = agree(loaded, lambda: vmstat(loaded), lambda: our_vmstat(linux), VMSTAT_SLACK)
    assert mine["pgfault"] > 1_000
    assert mine["pswpout"] > 0
    assert mine["pgpgout"] > 0
    some = {row.name.decode(): row.value for row in linux.vmstat([b"pswp", b"numa_", b"nr_uns"])}
    assert list(some) == [name for name in mine if name.startswith(("pswp", "numa_", "nr_uns"))]
    assert some["pswpout"] >= mine["pswpout"]


_KINDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def stat(guest: Guest) -> dict[str, int]:
    """Times of /proc/stat in milliseconds, by CPU and kind."""
    found: dict[str, int] = {}
    for line in guest.get("/proc/stat").decode().splitlines():
        if re.match(r"cpu\d", line):
            name, *ticks = line.split()
            values = zip(_KINDS, ticks, strict=False)
            found |= {f"{name} {kind}": int(tick) * _TICK_MS for kind, tick in values}
    return found


def our_stat(rows: list[CpuTimes]) -> dict[str, int]:
    return {f"cpu{row.cpu} {kind}": getattr(row, kind) for row in rows for kind in _KINDS}


@pytest.mark.once_a_kernel
def test_cpu_times(linux: LinuxGuest, loaded: Guest) -> None:
    def check() -> dict[str, int]:
        before, mine, after = between(loaded, lambda: stat(loaded), lambda: our_stat(linux.cpu()))
        assert list(mine) == list(before)
        # /proc cuts to whole ticks.
        cut = {name: value // _TICK_MS * _TICK_MS for name, value in mine.items()}
        assert outside(before, cut, after) == {}
        return mine

    first = check()
    # busybox has no nice.
    spin = "timeout 2 sh -c 'while :; do :; done'"
    # On a busy machine the guest has less than those seconds.
    for _ in range(10):
        loaded.run(f'start-stop-daemon -S -N 10 -x /bin/sh -- -c "{spin}"', check=False)
        second = check()
        if max(second[name] - first[name] for name in first if name.endswith("nice")) > 300:
            break
    loaded.run("sleep 2")
    third = check()
    assert max(second[name] - first[name] for name in first if name.endswith("nice")) > 300
    assert max(third[name] - second[name] for name in first if name.endswith("idle")) > 500


def test_idle_time_goes_on_while_the_guest_sleeps(linux: LinuxGuest, loaded: Guest) -> None:
    """No reader wakes the CPU: its idle time is still what the guest says soon after."""
    loaded.run("(sleep 1) & usleep 100000")
    mine, after = our_stat(linux.cpu()), stat(loaded)
    assert {name: value for name, value in mine.items() if value > after[name] + _TICK_MS} == {}


@pytest.mark.once_a_kernel
def test_load(linux: LinuxGuest, loaded: Guest) -> None:
    check_load(linux, loaded)
    with spinning(loaded, 3):
        loaded.run("sleep 6")
        check_load(linux, loaded)


def check_load(linux: LinuxGuest, loaded: Guest) -> None:
    names = ("load1", "load5", "load15")
    for _ in range(ATTEMPTS):  # a worker may come and go, or wait for a disk, just then
        words = loadavg(loaded)
        with paused(loaded):
            record, cpus = linux.load(), linux.cpu()
        later = loadavg(loaded)
        for name in names:  # the guest counts them anew every five seconds
            low, high = sorted((float(words[name]), float(later[name])))
            assert low <= float(f"{getattr(record, name):.2f}") <= high
        assert follows(words, record.last_pid, later)
        low, high = sorted((int(words["total"]), int(later["total"])))
        waiting = int(blocked(loaded))
        if low <= record.total <= high and record.blocked == waiting:
            break
    assert low <= record.total <= high
    assert record.blocked == waiting
    for row in cpus:  # the whole guest's, in the row of each CPU
        for name in (*names, "running", "blocked"):
            assert getattr(row, name) == getattr(record, name)


def loadavg(guest: Guest) -> dict[str, str]:
    words = guest.get("/proc/loadavg").decode().replace("/", " ").split()
    names = ("load1", "load5", "load15", "running", "total", "last_pid")
    return dict(zip(names, words, strict=True))


def follows(before: dict[str, str], last_pid: int, after: dict[str, str]) -> bool:
    """Whether it was given out between two words of the guest: behind the largest come small."""
    low, high = int(before["last_pid"]), int(after["last_pid"])
    return low <= last_pid <= high if low <= high else last_pid >= low or last_pid <= high


def blocked(guest: Guest) -> str:
    match = re.search(r"^procs_blocked (\d+)$", guest.get("/proc/stat").decode(), re.MULTILINE)
    assert match is not None
    return match[1]


def test_running_tasks_are_counted(linux: LinuxGuest, loaded: Guest) -> None:
    with spinning(loaded, 4):
        loaded.run("sleep 1")
        with paused(loaded):
            running = linux.load().running
    assert running >= 4


def pressure(guest: Guest) -> dict[tuple[str, str], tuple[float, float, float, int]]:
    found = {}
    for resource in ("cpu", "memory", "io"):
        for line in guest.get(f"/proc/pressure/{resource}").decode().splitlines():
            kind, *words = line.split()
            avg10, avg60, avg300, total = (word.partition("=")[2] for word in words)
            found[resource, kind] = float(avg10), float(avg60), float(avg300), int(total)
    return found


def our_pressure(rows: list[Pressure]) -> dict[tuple[str, str], tuple[float, float, float, int]]:
    return {(r.resource, r.kind): (r.avg10, r.avg60, r.avg300, r.total) for r in rows}


BUSY = "for i in 1 2 3; do timeout 5 sh -c 'while :; do :; done' & done; wait; sleep 1"


@pytest.mark.once_a_kernel
def test_pressure_is_that_of_the_guest(linux: LinuxGuest, loaded: Guest) -> None:
    """Right after the guest's own reading all is equal, but for what a few ms may add."""
    for _ in range(2):
        for _ in range(ATTEMPTS):  # an average may rise and fall in between
            before = pressure(loaded)
            with paused(loaded):
                mine = our_pressure(linux.pressure())
            after = pressure(loaded)
            assert list(mine) == list(before)
            wrong = [
                (key, before[key], values, after[key])
                for key, values in mine.items()
                for value, *pair in zip(values, before[key], after[key], strict=True)
                if not min(pair) <= value <= max(pair)
            ]
            if not wrong:
                break
        assert wrong == []
        loaded.run(BUSY)
    assert mine["cpu", "some"][0] > 1.0
    assert mine["memory", "some"][3] > 0


@pytest.mark.once_a_kernel
def test_pressure_that_nobody_asked_the_guest_for(linux: LinuxGuest, loaded: Guest) -> None:
    """Totals and averages since the kernel's last aggregation are made up for."""
    first = our_pressure(linux.pressure())
    loaded.run(BUSY)
    for _ in range(ATTEMPTS):
        with paused(loaded):
            mine = our_pressure(linux.pressure())
        after = pressure(loaded)
        assert mine["cpu", "some"][3] > first["cpu", "some"][3] + 1_000_000
        # What is added before the guest itself reads is some milliseconds of one shell, but on a
        # busy machine; and the averages may have moved on.
        if all(
            values[3] <= after[key][3] <= values[3] + 100_000
            and values[:3] == pytest.approx(after[key][:3], abs=2.0)
            for key, values in mine.items()
        ):
            return
    pytest.fail(f"never near: {mine} {after}")


@pytest.mark.once_a_kernel
def test_pressure_falls_in_a_guest_that_sleeps(linux: LinuxGuest, loaded: Guest) -> None:
    """The kernel stops its clock when nothing runs; what we show falls all the same."""
    loaded.run(BUSY)
    high = our_pressure(linux.pressure())["cpu", "some"][0]
    loaded.run("sleep 8")
    for _ in range(ATTEMPTS):
        with paused(loaded):
            mine = our_pressure(linux.pressure())["cpu", "some"]
        after = pressure(loaded)["cpu", "some"]
        assert mine[0] < high
        if mine[:3] == pytest.approx(after[:3], abs=1.0):
            return
    pytest.fail(f"never near: {mine} {after}")


def test_pressure_that_is_switched_off_says_so(boot: Callable[[Config], Guest]) -> None:
    guest = boot(Config(cmdline="psi=0"))
    with open_session(guest.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        with pytest.raises(NotFoundError, match="not switched on"):
            session.guest.pressure()


def test_several_cpus(boot: Callable[[Config], Guest]) -> None:
    """Sums over CPUs, and one that went offline."""
    guest = boot(Config(vcpus=3))
    guest.run(WORKLOAD, 90)
    guest.run("echo 0 > /sys/devices/system/cpu/cpu1/online")
    with open_session(guest.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        agree(guest, lambda: meminfo(guest), lambda: our_meminfo(linux), SLACK)
        agree(guest, lambda: vmstat(guest), lambda: our_vmstat(linux), VMSTAT_SLACK)
        assert [row.cpu for row in linux.cpu()] == [0, 2]
        for _ in range(ATTEMPTS):  # an idle CPU's time is known as of the guest's last tick
            before, mine, after = between(guest, lambda: stat(guest), lambda: our_stat(linux.cpu()))
            cut = {name: value // _TICK_MS * _TICK_MS for name, value in mine.items()}
            if not (wrong := outside(before, cut, after)):
                break
        assert wrong == {}
        before_psi = pressure(guest)
        with paused(guest):
            mine_psi = our_pressure(linux.pressure())
        after_psi = pressure(guest)
        for key, values in mine_psi.items():
            assert before_psi[key][3] <= values[3] <= after_psi[key][3]
        assert linux.take_problems() == []
