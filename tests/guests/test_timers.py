"""``timers`` against /proc/timer_list, on every guest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest

from .lab.guest import Guest
from .test_counters import paused

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

# What an earlier test left there would look like an answer: the file is emptied by the process in
# the background.
_SETUP = """
rm -f /tmp/timers.log; /tmp/timers > /tmp/timers.log 2>&1 & echo $! > /tmp/timers.pid
until grep -q ready /tmp/timers.log; do usleep 100000; done; cat /tmp/timers.log
"""
#: Far enough away that nothing but the test moves them, in seconds.
_FAR = 1000


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with a process that has timers."""
    guest.install("timers", "/tmp/timers")
    said = guest.run(_SETUP, timeout=60).decode()
    assert said == "ready\n", said
    yield guest
    guest.run("killall timers", check=False)


def test_hrtimers(linux: LinuxGuest, busy: Guest) -> None:
    """The guest is paused: a tick that is put into the tree anew turns others around it."""
    before = truth(busy)
    with paused(busy):
        ours = [row for row in linux.timers() if row.kind == "hrtimer"]
    after = truth(busy)
    linux.take_problems()  # what the guest was about to change may cost a word
    mine = Counter(
        (row.cpu, row.clock or "", bool({"soft"} & set(row.flags)), row.function or "",
         round((row.expires or 0) * 1000))
        for row in ours
    )  # fmt: skip
    stable = before & after
    assert sum(stable.values()) >= 6
    assert not stable - mine, stable - mine
    functions = {key[3] for key in before | after}
    assert {row.function for row in ours} <= functions | {
        "hrtimer_wakeup", "hrtick", "dl_task_timer", "tick_sched_timer", "tick_nohz_handler",
        "inactive_task_timer", "sched_rt_period_timer",
    }  # fmt: skip


def test_owners(linux: LinuxGuest, busy: Guest) -> None:
    pid = int(busy.get("/tmp/timers.pid"))
    with paused(busy):
        rows = [row for row in linux.timers() if pid in row.pids]
    found = Counter((row.function, row.clock, len(row.pids)) for row in rows)
    assert found == Counter(
        {
            ("timerfd_tmrproc", "monotonic", 2): 1,
            ("timerfd_tmrproc", "realtime", 2): 1,
            ("timerfd_tmrproc", "boottime", 2): 1,
            ("it_real_fn", "monotonic", 1): 1,
            ("posix_timer_fn", "monotonic", 1): 1,
            ("posix_timer_fn", "realtime", 1): 1,
            ("hrtimer_wakeup", "monotonic", 1): 1,
        }
    )
    assert all(60_000 < (row.expires_in or 0) < 81_000 for row in rows)


def test_wheel(linux: LinuxGuest, busy: Guest) -> None:
    """The guest does not list them: functions must be some, and times not far in the past.

    It is paused, so that none is moved while we read, from where we were to where we will be.
    """
    with paused(busy):
        pids = {process.pid for process in linux.processes(threads=True)}
        rows = [row for row in linux.timers() if row.kind == "wheel"]
    linux.take_problems()
    assert len(rows) > 5
    assert len({row.address for row in rows}) == len(rows)
    for row in rows:
        assert row.function is not None or row.address
        assert row.function is None or "+" not in row.function
        assert row.expires_in is not None
        # A deferrable one is not worth waking an idle CPU, and emulated clocks may run too fast.
        assert -86400 < row.expires_in < 12 * 86400
        assert set(row.pids) <= pids
    works = {row.work for row in rows if row.function == "delayed_work_timer_fn"}
    assert "wakeup_dirtytime_writeback" in works
    assert all(row.work is None for row in rows if row.function != "delayed_work_timer_fn")


def truth(guest: Guest) -> Counter[tuple[int, str, bool, str, int]]:
    """CPU, clock, whether soft, function, and milliseconds of CLOCK_MONOTONIC."""
    found: Counter[tuple[int, str, bool, str, int]] = Counter()
    cpu = clock = shift = 0
    function = ""
    for line in guest.get("/proc/timer_list").decode().splitlines():
        if match := re.match(r"cpu: (\d+)", line):
            cpu = int(match[1])
        elif match := re.match(r" clock (\d+)", line):
            clock = int(match[1])
        elif match := re.match(r"  \.offset: +(-?\d+)", line):
            shift = int(match[1])
        elif match := re.match(r" #\d+: <[^>]*>, (\w+), S:", line):
            function = match[1]
        elif match := re.match(r" # expires at \d+-(\d+)", line):
            clocks = ("monotonic", "realtime", "boottime", "tai")
            due = round((int(match[1]) - shift) / 1e6)
            found[cpu, clocks[clock % 4], clock >= 4, function, due] += 1
    return found
