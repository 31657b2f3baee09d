"""``hints`` on a guest that is brought into the state that each hint is about."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from virtintrospect.cli.main import cli
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window
from virtintrospect.session import Session, open_session

from .lab.guest import Guest
from .lab.holes import HOLES, disk
from .lab.initramfs import program
from .loads import CONFIG, MIB, POLICY, kinds, load, one, run, used, watch

_SLOW_DISK = """
mkdir -p /mnt/hints; mount -t cgroup2 none /mnt/hints; echo +io > /mnt/hints/cgroup.subtree_control
mkdir -p /mnt/hints/slow; dd if=/dev/zero of=/tmp/disk bs=1M count=32; losetup /dev/loop3 /tmp/disk
echo "7:3 wbps=4194304" > /mnt/hints/slow/io.max
"""
_IN_SLOW_GROUP = "echo $$ > /mnt/hints/slow/cgroup.procs; exec /tmp/load write /dev/loop3 16"
#: How many there are once the 300, and one of the lab's own, have ended.
_ZOMBIES = """
until [ "$(cat /proc/[0-9]*/status 2>/dev/null | grep -c '^State:.Z')" -gt 300 ]; do usleep 50000
done; cat /proc/[0-9]*/status 2>/dev/null | grep -c '^State:.Z'
"""
_BOTH = """
/tmp/load touch 600 >/dev/null 2>&1 & first=$!; /tmp/load touch 600 >/dev/null 2>&1 &
while [ -e /proc/$first/exe -a -e /proc/$!/exe ]; do usleep 100000; done; killall -9 load
"""
#: A block device's pages stay as long as somebody has it open.
_READ = """
truncate -s 400M /tmp/holes; losetup /dev/loop4 /tmp/holes; exec 3</dev/loop4
for i in {times}; do dd if=/dev/loop4 of=/dev/null bs=1M; done
echo done > /tmp/have-read; exec sleep 1000
"""


@pytest.fixture(scope="module")
def loads(lab: Any) -> Guest:
    """The guest of test_hints_followed, which releases it."""
    guest: Guest = lab.guest(CONFIG)
    guest.put("/tmp/load", program("load").read_bytes(), 0o755)
    return guest


@pytest.fixture
def session(loads: Guest) -> Iterator[Session]:
    with open_session(loads.name) as session:
        yield session


def test_an_idle_guest_can_give_memory_back(session: Session) -> None:
    found = hints(watch(session))
    hint = one(found, "memory", "shrink")
    assert hint.current == 1024 * MIB
    assert hint.recommended is not None
    assert 256 * MIB <= hint.recommended < 320 * MIB
    assert ("cpu", "watch") in kinds(found)
    assert "idle" in one(found, "cpu", "watch").reason
    assert 0 < hint.confidence < 0.5  # of a few seconds


def test_memory_that_is_used_is_not_to_be_taken(loads: Guest, session: Session) -> None:
    """500 MiB are in use: what is recommended is 15 % from what the guest says it needs."""
    with load(loads, "touch", "500"):
        need = used(loads)
        hint = one(hints(watch(session)), "memory", "shrink")
    assert need > 550 * MIB
    assert hint.recommended is not None
    assert need < hint.recommended < 1.15 * need + POLICY.dead_band_mib * MIB
    numbers = dict(item.split("=") for item in hint.evidence)
    assert abs(int(numbers["used_at_most"]) - need) < 16 * MIB


def test_what_was_freed_is_still_held_by_the_host(loads: Guest, session: Session) -> None:
    hint = one(hints(watch(session, 3)), "memory", "reclaim")  # the 500 MiB of before
    assert (hint.current or 0) > 400 * MIB
    free = int(re.search(rb"MemFree: +(\d+)", loads.get("/proc/meminfo"))[1]) << 10  # type: ignore[index]
    assert hint.current is not None
    # Since 6.7 each CPU may keep an eighth of the memory for itself, which MemFree lacks:
    # zone_highsize() of mm/page_alloc.c.
    assert hint.current < free + (1024 // 8 + 32) * MIB


def test_free_pages_that_cpus_keep(loads: Guest, session: Session) -> None:
    """Of a list's length /proc/zoneinfo says how long it is, and what it always may be."""

    def beyond() -> int:
        found = 0
        for zone in loads.get("/proc/zoneinfo").decode().split("Node ")[1:]:
            low = int(re.search(r" low +(\d+)", zone)[1])  # type: ignore[index]
            lists = re.findall(r" count: +(\d+)\s+high: +\d+\s+batch: +(\d+)", zone)
            for count, batch in lists:  # zone_highsize() of mm/page_alloc.c
                found += max(0, int(count) - max(low // len(lists), 4 * int(batch)))
        return found << 12

    usual = loads.run("cat /proc/sys/vm/min_free_kbytes; echo 8192 > /proc/sys/vm/min_free_kbytes")
    try:
        for _ in range(10):
            with load(loads, "touch", "400"):
                pass
            before, mine, after = beyond(), session.guest.cache_use().on_cpus, beyond()
            assert min(before, after) - 4 * MIB <= mine <= max(before, after) + 4 * MIB
            if mine > 8 * MIB:
                break
    finally:
        loads.run(f"echo {int(usual)} > /proc/sys/vm/min_free_kbytes")
    assert mine > 8 * MIB


def test_a_guest_that_runs_short_needs_more(loads: Guest, session: Session) -> None:
    with load(loads, "touch", "800"):
        found = hints(watch(session))
    hint = one(found, "memory", "grow")
    assert hint.recommended is not None
    assert hint.recommended >= 1.25 * 1024 * MIB
    assert hint.virsh is not None
    assert hint.virsh.endswith(f"setmaxmem {loads.name} {hint.recommended >> 10} --config")
    assert ("memory", "shrink") not in kinds(found)


def test_a_leak_is_named(loads: Guest, session: Session) -> None:
    with load(loads, "grow", "20"):
        found = hints(watch(session, 8, 1.0))
    hint = one(found, "memory", "watch")
    assert "process load (pid " in hint.reason
    assert ("memory", "shrink") not in kinds(found)  # its end is not known


def test_an_out_of_memory_kill(loads: Guest, session: Session) -> None:
    def kills() -> int:
        return int(loads.run("grep ^oom_kill /proc/vmstat").split()[1])

    before, first = kills(), sample(session.guest)
    # Each would fit, both do not.
    loads.run(_BOTH, check=False)
    facts = Facts(Window([first, sample(session.guest)]), POLICY, session.domain)
    killed = kills() - before
    assert killed > 0
    hint = one(hints(facts), "memory", "grow")
    assert f"killed {killed} processes" in hint.reason


def test_one_thread_is_not_helped_by_more_cpus(loads: Guest, session: Session) -> None:
    # On a busy machine the guest's CPU does not get all of the time.
    policy = dataclasses.replace(POLICY, runaway_percent=20.0)
    with load(loads, "spin", "1", pinned=True):
        found = hints(dataclasses.replace(watch(session), policy=policy))
    hint = one(found, "cpu", "watch")
    assert "more vCPUs would not help" in hint.reason
    runaway = one(found, "tasks", "watch")
    assert "process load (pid " in runaway.reason
    assert not {("cpu", "grow"), ("cpu", "shrink")} & kinds(found)


def test_too_few_cpus(loads: Guest, session: Session) -> None:
    with load(loads, "spin", "4"):
        hint = one(hints(watch(session)), "cpu", "grow")
    assert (hint.current, hint.recommended) == (2, 4)
    assert hint.virsh is not None
    assert hint.virsh.endswith("4 --maximum --config")


def test_too_many_cpus(session: Session) -> None:
    hint = one(hints(watch(session)), "cpu", "shrink")
    assert (hint.current, hint.recommended) == (2, 1)


def test_two_vcpus_on_one_cpu_of_the_host(loads: Guest, session: Session) -> None:
    threads = [int(path.name) for path in Path(f"/proc/{loads.pid}/task").iterdir()]
    allowed = os.sched_getaffinity(loads.pid)
    for thread in threads:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, {min(allowed)})
    try:
        with load(loads, "spin", "2"):
            found = [hint for hint in hints(watch(session)) if hint.action == "host"]
    finally:
        for thread in threads:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, allowed)
    assert any("waited" in hint.reason for hint in found)
    assert any("pinned, each to 1 of the host's" in hint.reason for hint in found)
    (share,) = [int(h.reason.split("waited ")[1].split()[0]) for h in found if "waited" in h.reason]
    assert share >= 40  # each has half of that CPU at most


def test_tasks_that_wait_for_a_slow_disk(loads: Guest, session: Session) -> None:
    loads.run(_SLOW_DISK)
    loads.run(
        f"sh -c '{_IN_SLOW_GROUP}' >/dev/null 2>&1 &"
        " until grep -q '(load) D' /proc/$!/stat; do usleep 50000; done; sleep 1"
    )
    try:
        hint = one(hints(watch(session)), "io", "watch")
    finally:
        loads.run("killall -9 load; while pidof load; do usleep 50000; done", check=False)
        loads.run("losetup -d /dev/loop3; rm /tmp/disk; umount /mnt/hints", check=False)
    assert "load" in hint.reason.partition(": ")[2].split(", ")


def test_zombies(loads: Guest, session: Session) -> None:
    with load(loads, "zombies", "300"):
        zombies = int(loads.run(_ZOMBIES))
        found = [hint for hint in hints(watch(session, 2)) if hint.resource == "tasks"]
    (hint,) = [hint for hint in found if "processes have ended" in hint.reason]
    assert hint.current == zombies >= 300


@contextmanager
def cached(guest: Guest, times: str) -> Iterator[None]:
    """The guest when it has read 400 MiB, once for each word."""
    guest.put("/tmp/read.sh", _READ.format(times=times).encode())
    try:
        guest.run(
            "rm -f /tmp/have-read; sh /tmp/read.sh >/dev/null 2>&1 & for i in $(seq 600); do "
            "[ -s /tmp/have-read ] && exit; usleep 200000; done; exit 1", 150
        )  # fmt: skip
        yield
    finally:
        guest.run("kill $(pidof sleep); losetup -d /dev/loop4; rm /tmp/holes", check=False)


def test_cache_that_was_read_once(loads: Guest, session: Session) -> None:
    with cached(loads, "1"):
        found = [h for h in hints(watch(session, 3)) if "read once" in h.reason]
    assert found
    assert (found[0].current or 0) > 350 * MIB


def test_cache_that_is_read_again_is_needed(loads: Guest, session: Session) -> None:
    """The kernel keeps its lists by generation: all of it counts as inactive there."""
    idle = used(loads)
    with cached(loads, "1 2 3"):
        found = hints(watch(session, 3))
        active = int(re.search(rb"Active\(file\): +(\d+)", loads.get("/proc/meminfo"))[1]) >> 10  # type: ignore[index]
    assert active < 200
    assert not any("read once" in hint.reason for hint in found)
    shrink = [h for h in found if (h.resource, h.action) == ("memory", "shrink")]
    assert all((hint.recommended or 0) > idle + 400 * MIB for hint in shrink)


@pytest.fixture(scope="module")
def holes(loads: Guest) -> Iterator[str]:
    """A file of 300 MiB that has been read three times."""
    disk(loads)
    loads.run(f"truncate -s 300M {HOLES}")
    for _ in range(3):
        loads.run(_READ_ALL)
    yield HOLES
    loads.run(f"rm {HOLES}; umount /mnt/disk; rmmod brd")


_READ_ALL = f"dd if={HOLES} of=/dev/null bs=1M"
_SHORT = dataclasses.replace(POLICY, cache_watched_seconds=0.5, cache_horizon_seconds=2.0)


@pytest.mark.usefixtures("holes")
def test_cache_that_is_no_longer_read_can_be_had_back(loads: Guest, session: Session) -> None:
    """300 MiB that its flags call used, while they are read and when they are not."""
    quiet = watch(session, 4)
    busy = [sample(session.guest, session.target)]
    loads.run(_READ_ALL)
    busy += watch(session, 3).window.samples
    need = {}
    for name, taken in (("quiet", quiet.window), ("busy", Window(busy))):
        facts = dataclasses.replace(quiet, window=taken, policy=_SHORT)
        hint = one(hints(facts), "memory", "shrink")
        need[name] = (hint.recommended or 0) // MIB
        assert ("page cache that was used more than once" in hint.reason) == (name == "quiet")
    flags = one(hints(quiet), "memory", "shrink")  # of a time that is too short
    assert need["busy"] > need["quiet"] + 250
    assert (flags.recommended or 0) // MIB > need["quiet"] + 250


@pytest.mark.usefixtures("holes")
def test_what_is_read_is_counted(loads: Guest, session: Session) -> None:
    def growth(command: str) -> int:
        looks = []
        for _ in range(2):
            use = session.guest.cache_use()
            assert use.uncounted == ()
            assert use.touched is not None
            looks.append(use.touched >> 20)
            loads.run(command)
        return looks[1] - looks[0]

    faults = growth(f"{_READ_ALL} count=0")  # those of a shell and of dd, each 64 KiB
    assert 600 <= growth(_READ_ALL) - faults < 700  # read, and written to /dev/null
    with load(loads, "uncounted", "1"):
        assert session.guest.cache_use().uncounted == ("SIGCHLD", "aio", "io_uring")
    with cached(loads, "1"):
        assert "loop" in session.guest.cache_use().uncounted


def test_top_knows_who_works(loads: Guest) -> None:
    def top(*words: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(cli, ["top", *words, "--interval", "1", "-o", "json"])
        assert done.exit_code == 0, done.output
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    with load(loads, "spin", "1"):
        looks = top(loads.name, "-n", "2")
        guests = top("--once")
    busiest = max(looks, key=lambda row: row.get("cpu_percent", 0))
    assert busiest["name"] == "load"
    assert [row["pid"] for row in looks].count(1) == 2
    (row,) = [row for row in guests if row["domain"] == loads.name]
    assert row["cpu_percent"] > 10
    assert row["memory_need"] + row["memory_available"] >= row["memory_total"]
    assert "pressure_cpu" in row


def test_the_picture(loads: Guest, tmp_path: Path) -> None:
    path = tmp_path / "hints.png"
    done = run(loads.name, "--for", "2s", "--plot", str(path))
    assert done.exit_code == 0, done.output
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 30_000


def test_the_command(loads: Guest) -> None:
    done = run(loads.name, "--for", "2s", "-o", "json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {row["domain"] for row in rows} == {loads.name}
    shrink = next(row for row in rows if row["action"] == "shrink" and row["resource"] == "memory")
    assert shrink["current"] == 1024 * MIB
    assert any(item.startswith("used_at_most=") for item in shrink["evidence"])
    people = run(loads.name, "--for", "2s", "--explain")
    assert re.search(r"1\.0 GiB → [0-9]+ MiB", people.output)
    assert "wrong if: " in people.output
    everything = run("--all", "--for", "2s")
    # Other guests of this host are among them, whatever they do.
    assert re.search(r"could be given back; guests in trouble: [0-9]+", everything.output)
