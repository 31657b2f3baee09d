"""``hints`` on a guest that is brought into the state that each hint is about."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from virtintrospect.cli.judging import facts_of
from virtintrospect.cli.main import cli
from virtintrospect.daemon.config import Govern, History
from virtintrospect.daemon.figures import Sampler
from virtintrospect.daemon.govern import Governor, Wish
from virtintrospect.daemon.state import State
from virtintrospect.errors import UsageError
from virtintrospect.host import Host
from virtintrospect.insight.figures import Sample, sample
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window
from virtintrospect.insight.policy import load_policy
from virtintrospect.model import Hint
from virtintrospect.plugin import adjust
from virtintrospect.plugin.adjust import changes, follow, undo, within_limits
from virtintrospect.session import Session, open_session

from .lab.domain import Config
from .lab.guest import Guest, GuestError
from .lab.initramfs import program
from .lab.kernels import loose_module

MIB = 1 << 20
#: Enough memory for changes that are no noise, and a CPU more than one thread can use.
#: On a busy machine the kernel would take the emulated timer for a broken one.
_CONFIG = Config(
    "6.12", backing="anonymous", pti=False, ram_mib=1024, vcpus=2, cmdline="psi=1 no_timer_check"
)
_BALANCED = load_policy()
#: What takes minutes in an operator's policy takes seconds here.
POLICY = dataclasses.replace(
    _BALANCED, dead_band_mib=64, runaway_seconds=2.0, clean_cache_mib=256, settle_seconds=1.0
)

_SLOW_DISK = """
mkdir -p /mnt/hints; mount -t cgroup2 none /mnt/hints; echo +io > /mnt/hints/cgroup.subtree_control
mkdir -p /mnt/hints/slow; dd if=/dev/zero of=/tmp/disk bs=1M count=32; losetup /dev/loop3 /tmp/disk
echo "7:3 wbps=4194304" > /mnt/hints/slow/io.max
"""
_IN_SLOW_GROUP = "echo $$ > /mnt/hints/slow/cgroup.procs; exec /tmp/load write /dev/loop3 16"
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
def loads(lab: Any) -> Iterator[Guest]:
    guest: Guest = lab.guest(_CONFIG)
    guest.put("/tmp/load", program("load").read_bytes(), 0o755)
    yield guest
    lab.release(_CONFIG)


@pytest.fixture
def session(loads: Guest) -> Iterator[Session]:
    with open_session(loads.name) as session:
        yield session


@contextmanager
def load(guest: Guest, *arguments: str, pinned: bool = False) -> Iterator[None]:
    """The guest while its program load.c runs; ``pinned`` to its last CPU."""
    on = "taskset 2 " if pinned else ""
    try:
        guest.run(
            f"rm -f /tmp/load.ready; {on}/tmp/load {' '.join(arguments)} >/dev/null 2>&1 & "
            "while [ -e /proc/$!/exe ]; do [ -e /tmp/load.ready ] && exit; usleep 50000; done;"
            "exit 1"
        )
        yield
    finally:
        guest.run("killall -9 load; while pidof load; do usleep 50000; done", check=False)


def watch(session: Session, samples: int = 7, step: float = 0.5) -> Facts:
    taken = []
    for _ in range(samples):
        taken.append(sample(session.guest, session.target))
        time.sleep(step)
    return facts_of(session, POLICY, taken)


def one(found: list[Hint], resource: str, action: str) -> Hint:
    (hint,) = [hint for hint in found if (hint.resource, hint.action) == (resource, action)]
    return hint


def kinds(found: list[Hint]) -> set[tuple[str, str]]:
    return {(hint.resource, hint.action) for hint in found}


def available(guest: Guest) -> int:
    """MemAvailable by the guest's own word; MiB."""
    found = re.search(rb"MemAvailable: +(\d+)", guest.get("/proc/meminfo"))
    assert found is not None
    return int(found[1]) >> 10


def used(guest: Guest) -> int:
    """MemTotal less MemAvailable, by the guest's own word; bytes."""
    lines = guest.get("/proc/meminfo").decode().splitlines()
    words = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return words["MemTotal"] - words["MemAvailable"]


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
    first = sample(session.guest)
    # Each would fit, both do not.
    loads.run(_BOTH, check=False)
    facts = Facts(Window([first, sample(session.guest)]), POLICY, session.domain)
    hint = one(hints(facts), "memory", "grow")
    assert "killed 1 processes" in hint.reason


def test_one_thread_is_not_helped_by_more_cpus(loads: Guest, session: Session) -> None:
    with load(loads, "spin", "1", pinned=True):
        found = hints(watch(session))
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
        zombies = int(loads.run("cat /proc/[0-9]*/status | grep -c '^State:.Z'"))
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
    assert len({row["time"] for row in looks if row["pid"] == 1}) == 2
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


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["hints", *words])


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


# -- following hints ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ballooned(loads: Guest) -> Guest:
    """The guest, with a driver for its balloon."""
    loads.put("/tmp/virtio_balloon.ko", loose_module(_CONFIG.kernel, "virtio_balloon"))
    loads.run("insmod /tmp/virtio_balloon.ko")
    return loads


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("qemu:///system", writable=True) as host:
        yield host


def comes_to(guest: Guest, mib: int) -> bool:
    """Whether the balloon settles where it leaves the guest so much."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if guest.domain.memoryStats()["actual"] >> 10 == mib:
            return True
        time.sleep(0.1)
    return False


def settled(guest: Guest) -> int:
    """What the balloon leaves the guest once it no longer moves, MiB."""
    end = time.monotonic() + 60
    before, now = -1, guest.domain.memoryStats()["actual"]
    while now != before and time.monotonic() < end:
        time.sleep(0.5)
        before, now = now, guest.domain.memoryStats()["actual"]
    return int(now) >> 10


def test_memory_is_taken_and_given_back(ballooned: Guest, tmp_path: Path, host: Host) -> None:
    with open_session(ballooned.name) as session:
        hint = one(hints(watch(session, 3)), "memory", "shrink")
        assert hint.virsh is not None
        assert hint.recommended is not None
        target = hint.recommended // MIB
        assert hint.virsh.endswith(f"setmem {ballooned.name} {target * 1024} --live")
        log = tmp_path / "log" / "adjusted.jsonl"
        domain = host.domain(ballooned.name)
        done = follow(hint, domain, host, POLICY, lambda: sample(session.guest), log)
        assert (done.outcome, done.after) == ("done", target * MIB)
        assert comes_to(ballooned, target)
        total = int(ballooned.get("/proc/meminfo").split()[1]) >> 10
        assert total < target
        with pytest.raises(UsageError, match="somebody else changed it"):  # it has less by now
            follow(hint, host.domain(ballooned.name), host, POLICY, dict, tmp_path / "none")
        assert log.stat().st_mode & 0o777 == 0o600
        undo(host.domain(ballooned.name), host, log)
        assert comes_to(ballooned, 1024)
        with pytest.raises(UsageError, match="to be undone"):
            undo(domain, host, log)


def test_it_stops_where_the_guest_suffers(ballooned: Guest, tmp_path: Path, host: Host) -> None:
    """A hint that is wrong: 500 MiB are in use, and 300 are what it asks for."""
    log, domain = tmp_path / "adjusted.jsonl", host.domain(ballooned.name)
    kills = b"grep ^oom_kill /proc/vmstat"
    with load(ballooned, "touch", "500"), open_session(ballooned.name) as session:

        def take() -> Sample:
            taken = sample(session.guest)
            settled(ballooned)  # a second after each step is too little on a busy machine
            return taken

        before = ballooned.run(kills.decode())
        hint = dataclasses.replace(
            one(hints(watch(session, 3)), "memory", "shrink"), recommended=300 * MIB
        )
        done = follow(hint, domain, host, POLICY, take, log)
        assert done.outcome.startswith("stopped at ")
        assert done.after > 600 * MIB
        assert comes_to(ballooned, done.after // MIB)
        assert ballooned.run(kills.decode()) == before
    undo(domain, host, log)
    assert comes_to(ballooned, 1024)


def test_limits_hold(ballooned: Guest, tmp_path: Path, host: Host) -> None:
    domain = host.domain(ballooned.name)
    shrink = Hint("memory", "shrink", 1024 * MIB, 256 * MIB, "x --live", "", (), 1.0, "")
    policy = dataclasses.replace(POLICY, limited={ballooned.name: (900, 1000)})
    assert within_limits(shrink, domain, policy) == 900 * MIB
    grow = dataclasses.replace(shrink, action="grow", recommended=1 << 50)
    with pytest.raises(UsageError, match="leave nothing to be done"):
        within_limits(grow, domain, policy)
    with pytest.raises(UsageError, match=r"the host has .* to spare"):
        within_limits(grow, domain, POLICY)
    restart = dataclasses.replace(shrink, virsh="x --config")
    with pytest.raises(UsageError, match="takes a restart"):
        follow(restart, domain, host, POLICY, dict, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_the_command_follows_and_undoes(
    ballooned: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjust, "LOG", tmp_path / "log")
    monkeypatch.setattr(adjust.follow, "__defaults__", (tmp_path / "log",))
    monkeypatch.setattr(adjust.undo, "__defaults__", (tmp_path / "log",))
    monkeypatch.setattr(adjust.to_undo, "__defaults__", (tmp_path / "log",))
    refused = CliRunner().invoke(
        cli, ["hints", ballooned.name, "--for", "1s", "--apply"], input="n\n" * 5
    )
    assert comes_to(ballooned, 1024), refused.output
    tried = run(ballooned.name, "--for", "1s", "--apply", "--dry-run", "-o", "json")
    [row] = [row for row in json.loads(tried.stdout) if row["action"] == "shrink"
             and row["resource"] == "memory"]  # fmt: skip
    assert row["outcome"] == "would be done"
    assert row["after"] == row["recommended"] < row["current"] == 1024 * MIB
    assert ballooned.domain.info()[2] >> 10 == 1024
    assert json.loads(run(ballooned.name, "--undo", "--dry-run", "-o", "json").stdout) == []
    done = run(ballooned.name, "--for", "1s", "--apply", "--yes")
    change = re.search(r"memory 1\.0 GiB → ([0-9]+) MiB: done", done.stderr)
    assert change is not None, done.output
    assert comes_to(ballooned, int(change[1]))
    tried = run(ballooned.name, "--undo", "--dry-run", "-o", "json")
    [row] = json.loads(tried.stdout)
    assert (row["action"], row["outcome"]) == ("undo", "would be undone")
    assert (row["current"], row["after"]) == (int(change[1]) * MIB, 1024 * MIB)
    back = run(ballooned.name, "--undo")
    assert f"memory {change[1]} → 1024 MiB" in back.stderr
    again = run(ballooned.name, "--undo", "-o", "json")
    assert "is to be undone" in f"{again.output}{again.exception}"
    assert comes_to(ballooned, 1024)


class Governed:
    """As much of the daemon's session as the governor asks of it, on a real guest."""

    state = State.READY

    def __init__(self, session: Session) -> None:
        assert session.domain is not None
        self.session, self.domain = session, session.domain

    async def ask(self, function: Any, *, patience: float) -> Any:
        assert patience
        return await asyncio.to_thread(function, self.session.guest)


def test_a_host_that_is_short_governs_itself(ballooned: Guest, tmp_path: Path) -> None:
    with open_session(ballooned.name) as session:
        governed = Governed(session)
        sampler = Sampler(tmp_path / "history", History(interval_seconds=0.1))
        hub = cast(Any, SimpleNamespace(sessions={"x": governed}, uri="qemu:///system"))
        config = Govern(host_short_mib=0, least_confidence=0)

        def rounds(config: Govern) -> Governor:
            governor = Governor(hub, config, tmp_path)
            governor.policy = POLICY
            for _ in range(4):
                sampler.look(governed.domain, session.guest, session.target)
                time.sleep(0.3)
            asyncio.run(governor.round())
            return governor

        rounds(config)  # the host has enough
        assert comes_to(ballooned, 1024)
        rounds(dataclasses.replace(config, host_short_mib=1 << 30, least_confidence=1))  # unsure
        assert comes_to(ballooned, 1024)
        governor = rounds(dataclasses.replace(config, host_short_mib=1 << 30))
        assert settled(ballooned) < 320

        def given() -> int:
            return changes(tmp_path / "adjusted.jsonl", ballooned.uuid)[-1].after // MIB

        shrunk = given()
        tried = []
        # The kernel finds some more when it has to, and then the guest is not short; or it kills
        # the program, and then it was too much.
        for spared in (12, 8, 4, 0, 14, 16):
            wanted = available(ballooned) - spared
            try:
                with load(ballooned, "touch", str(wanted)):
                    asyncio.run(governor.round())  # figures of before say nothing now
                    for _ in range(4):
                        sampler.look(governed.domain, session.guest, session.target)
                        time.sleep(0.3)
                    asyncio.run(governor.round())
                    tried.append(f"{wanted} MiB: {available(ballooned)} MiB are left")
            except GuestError as error:  # it was killed before it had all
                tried.append(f"{wanted} MiB: {error}")
            if given() != shrunk:
                break
        assert given() > shrunk, tried
        assert comes_to(ballooned, given())
        undo(Host("qemu:///system").domain(ballooned.name), Host("qemu:///system", writable=True),
             tmp_path / "adjusted.jsonl")  # fmt: skip
        assert comes_to(ballooned, 1024)


def test_guests_that_ask_share_what_there_is(tmp_path: Path) -> None:
    grow = Hint("memory", "grow", 512 * MIB, 8192 * MIB, "x --live", "", (), 1.0, "")
    domain = cast(Any, SimpleNamespace(uuid="u", name="x"))
    wishes = [Wish(cast(Any, None), domain, grow) for _ in range(2)]
    governor = Governor(cast(Any, None), Govern(), tmp_path)
    reserve = governor.policy.host_reserve_mib
    chosen = governor.chosen(wishes, (reserve + 1000) * MIB)
    assert [wish.hint.recommended for wish in chosen] == [1012 * MIB] * 2
    chosen = governor.chosen(wishes, reserve * MIB)
    assert [wish.hint.recommended for wish in chosen] == [512 * MIB] * 2  # nothing


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "name a TARGET, or --all"),
        (("x", "--all"), "name a TARGET, or --all"),
        (("x", "--policy", "mean"), "no policy 'mean'"),
        (("x", "--for", "soon"), "'soon' is no length of time"),
        (("x", "--for", "1s", "--last", "1d"), "one of them"),
        (("x", "--yes"), "goes with --apply"),
        (("x", "--dry-run"), "goes with --apply or --undo"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], says: str) -> None:
    done = run(*words)
    assert says in f"{done.output}{done.exception}"
