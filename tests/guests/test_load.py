"""Every table of a guest in which everything that tables show comes and goes (guest/churn.c).

What was there before and stays must be shown, with every field as the guest says before and
after. What is shown beyond the guest's two words must bear the mark of what comes and goes: names
that begin with "churn", addresses of 10.99.0.0/16, user ids from 61000. Processes, files, maps and
sockets under load are in test_stress.py."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.stack import StackReader
from virtintrospect.insight.columns import record
from virtintrospect.insight.tables import COMMANDS, HUNG
from virtintrospect.model import CpuTimes

from . import (
    compare,
    netlink,
    test_bpf,
    test_cgroups,
    test_containers,
    test_counters,
    test_files,
    test_interfaces,
    test_namespaces,
    test_neighbours,
    test_routes,
    test_slabs,
    test_stacks,
    test_sysctl,
    test_timers,
)  # fmt: skip
from .lab.guest import Guest
from .lab.kernels import kernel
from .test_hung import by_a_task
from .test_users import _RECORD as LOGIN_RECORD
from .underload import PATIENCE, ROUNDS, Look, marked

pytestmark = pytest.mark.once_a_kernel(pti=False, arch="x86_64")
_IDS = range(61000, 61100)
_HEX = "ab" * 32
#: What stays: of each kind something, in two namespaces where there are such.
_STAYS = f"""
ip link set lo up; ip link set dummy0 up; ip addr add 10.4.0.1/16 dev dummy0
ip -6 addr add fd04::1/64 dev dummy0; ip route add 198.51.100.0/24 via 10.4.0.9 metric 5
unshare -n sleep 100000 >/dev/null 2>&1 & other=$!
until grep -q '(sleep) S' /proc/$other/stat; do usleep 50000; done
echo $other > /tmp/other; echo 1 $other > /tmp/namespaces
nsenter -t $other -n sh -c 'ip link set lo up; ip link add dummy0 type dummy
ip link set dummy0 up; ip addr add 10.4.0.1/16 dev dummy0'
rm -f /tmp/bpf.log /tmp/timers.log /tmp/churn.out
mkdir -p /tmp/pins /tmp/stays; mount -t bpf bpf /tmp/pins; mount -t tmpfs stays /tmp/stays
/tmp/bpf hold > /tmp/bpf.log 2>&1 & until grep -q ready /tmp/bpf.log; do usleep 100000; done
/tmp/timers > /tmp/timers.log 2>&1 & echo $! > /tmp/timers.pid
until grep -q ready /tmp/timers.log; do usleep 100000; done
echo +memory +pids > /sys/fs/cgroup/cgroup.subtree_control; mkdir -p /sys/fs/cgroup/stays
echo 20M > /sys/fs/cgroup/stays/memory.max; echo 77 > /sys/fs/cgroup/stays/pids.max
/tmp/container /docker/{_HEX} stays - muip /bin/helper
/tmp/churner > /tmp/churn.out 2>&1 &
until grep -q ready /tmp/churn.out; do usleep 100000; done; sleep 1
"""
_TIDY = """
rm -f /tmp/churn/run; for i in $(seq 600); do pidof churner >/dev/null || break; usleep 100000; done
killall bpf timers container; kill $(cat /tmp/other); umount /tmp/pins /tmp/stays
for p in $(cat /sys/fs/cgroup/docker/*/cgroup.procs); do kill -9 $p; done
rmdir /sys/fs/cgroup/stays /sys/fs/cgroup/docker/*; rmdir /sys/fs/cgroup/docker
echo > /proc/sys/net/ipv4/ip_local_reserved_ports; echo 64 > /proc/sys/net/ipv4/ip_default_ttl
ip route del 198.51.100.0/24; ip addr flush dev dummy0; ip link set dummy0 down; rm -rf /tmp/churn
"""


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with things that stay, and others that come and go."""
    netlink.install(guest)
    for name in ("bpf", "timers", "container"):
        guest.install(name, f"/tmp/{name}")
    guest.install("churn", "/tmp/churner")
    guest.put("/tmp/churn.ko", kernel(guest.config.kernel).modules["veth"][0].read_bytes())
    stays = [
        (2, 0, b"~", b"reboot", 1),
        *((7, 1, b"pts/%d" % n, b"stays%d" % n, n) for n in (1, 2, 3)),
    ]
    content = [LOGIN_RECORD.pack(k, p, t, b"", u, b"", 0, s, 0) for k, p, t, u, s in stays]
    guest.put("/run/utmp", b"".join(content))
    guest.put("/tmp/stays.sh", _STAYS.encode())
    guest.run("mkdir -p /tmp/churn; sh /tmp/stays.sh </dev/null", 120)
    yield guest
    guest.run(_TIDY, 120, check=False)


@pytest.fixture
def look(linux: LinuxGuest, busy: Guest) -> Iterator[Look]:
    look = Look(linux)
    yield look
    look.check()
    assert busy.run("pidof churner | wc -w").strip() != b"0"  # it goes on all the time


def test_routes_under_load(look: Look, busy: Guest) -> None:
    spaces = _net_namespaces(busy)
    assert look.each(
        lambda: test_routes.truth(busy),
        lambda: map(test_routes.as_netlink, look.linux.routes()),
        lambda row: marked(row) or row[6] is None,  # the name of its interface was gone by then
        known=lambda row: row[0] in spaces,
    ) > 10  # fmt: skip


def test_neighbours_under_load(look: Look, busy: Guest) -> None:
    spaces = _net_namespaces(busy)
    look.each(
        lambda: test_neighbours.truth(busy),
        lambda: map(test_neighbours.as_netlink, look.linux.neighbours()),
        lambda row: marked(row) or row[4] is None,
        known=lambda row: row[0] in spaces,
    )


def _net_namespaces(guest: Guest) -> set[int]:
    pids = ("1", guest.get("/tmp/other").decode().strip())
    return {int(guest.run(f"readlink /proc/{pid}/ns/net").strip()[5:-1]) for pid in pids}


def test_interfaces_under_load(look: Look, busy: Guest) -> None:
    for _ in range(ROUNDS):
        before = test_interfaces.truth(busy)
        rows = look.timed(look.linux.interfaces)
        after = test_interfaces.truth(busy)
        mine: dict[tuple[int, bytes], list[Any]] = {}
        for row in rows:
            mine.setdefault((row.net_namespace, row.interface), []).append(row)
        spaces = {space for space, _ in before}
        assert len(spaces) == 2
        for key in before.keys() & after.keys():
            if not key[1].startswith((b"churn", b"veth")):
                test_interfaces.compare(mine[key], before[key], after[key])
        for space, name in mine.keys() - before.keys() - after.keys():
            if space in spaces:
                assert name.startswith((b"churn", b"veth"))


def test_mounts_under_load(look: Look, busy: Guest) -> None:
    pids = ("1", busy.get("/tmp/other").decode().strip())
    spaces = {int(busy.run(f"readlink /proc/{pid}/ns/mnt").strip()[5:-1]) for pid in pids}

    def word() -> Counter[Any]:
        found: Counter[Any] = Counter()
        for line in busy.get("/proc/1/mounts").splitlines():
            device, path, kind, options, *_ = line.split(b" ")
            names = (test_files._unescaped(device), test_files._unescaped(path))
            found[(*names, kind, test_files._generic(options))] += 1
        return found

    def ours() -> list[Any]:
        rows = [row for row in look.linux.mounts() if row.namespace in spaces]
        return [(row.device, row.path, row.type, row.flags) for row in rows]

    def gone(row: Any) -> bool:
        # One that is just being unmounted has no place any more.
        return bool(re.match(rb"/tmp/churn/m", row[1])) or marked(row[:1])

    assert look.each(word, ours, gone) > 5


def test_namespaces_under_load(look: Look, busy: Guest) -> None:
    for _ in range(ROUNDS):
        before = test_namespaces.theirs(busy)
        rows = {(row.type, row.inode): row for row in look.timed(look.linux.namespaces)}
        after = test_namespaces.theirs(busy)
        logged = {int(line.split()[1]) for line in busy.get("/tmp/churn/log").splitlines()}
        for key in before.keys() & after.keys() - {k for k in before if k[1] in logged}:
            assert key in rows
        for key, row in rows.items():
            if key in before and key in after and key[1] not in logged:
                assert row.pid is None or row.pid in before[key] | after[key]
                continue
            # A namespace has no mark, but all are in the log; those of who is just making it are
            # not yet there, and he is alone in them.
            if key not in before and key not in after and key[1] not in logged:
                assert row.processes <= 2, row


def test_cgroups_under_load(look: Look, busy: Guest) -> None:
    comes = re.compile(r"/|/docker(/c0ffee\w+)?|/churn-\d+")  # these two hold what comes and goes
    for _ in range(ROUNDS):
        before = _unbroken(lambda: test_cgroups.theirs(busy))
        with test_counters.paused(busy):
            mine = look.timed(lambda: test_cgroups.ours(look.linux))
        after = _unbroken(lambda: test_cgroups.theirs(busy))
        stays = {path for path in before.keys() & after.keys() if not comes.fullmatch(path)}
        assert {"/stays", f"/docker/{_HEX}"} <= stays <= mine.keys()
        assert all(comes.fullmatch(path) for path in mine.keys() - before.keys() - after.keys())
        resting = {path: before[path] for path in stays}
        assert test_cgroups.differing(resting, mine, after) == []
        assert mine["/stays"]["memory_max"] == 20 << 20
        assert mine["/stays"]["pids_max"] == 77


def _unbroken(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A reading during which no file was cut off by the end of its group."""
    for _ in range(50):
        try:
            return read()
        except (KeyError, ValueError):
            continue
    raise AssertionError("the guest's files never hold still")


def test_containers_under_load(look: Look, busy: Guest) -> None:
    for _ in range(ROUNDS):
        rows = look.timed(look.linux.containers)
        stays = [row for row in rows if row.id == _HEX.encode()]
        assert len(stays) == 1
        assert stays[0].hostname == b"stays"
        test_containers.agrees(busy, stays[0], f"/docker/{_HEX}")
        for row in rows:
            known = row.id == _HEX.encode() or row.id.startswith(b"c0ffee")
            # A PID namespace of its own is a container of no known runtime.
            assert known or row.runtime == "unknown", row


def test_bpf_under_load(look: Look, busy: Guest) -> None:
    assert look.each(
        lambda: Counter(test_bpf.theirs(line) for line in busy.run("/tmp/bpf list").splitlines()
                        if line.split()[1] != b"0"),
        lambda: map(test_bpf.mine, look.linux.bpf()),
        marked,
    ) >= 10  # fmt: skip


def test_timers_under_load(look: Look, busy: Guest) -> None:
    functions: set[str | None] = set()

    def word() -> Counter[Any]:
        found = test_timers.truth(busy)
        functions.update(key[3] for key in found)
        return found

    pid = int(busy.get("/tmp/timers.pid"))
    for _ in range(ROUNDS):
        before = word()
        rows = look.timed(look.linux.timers)
        after = word()
        mine = Counter(
            (row.cpu, row.clock or "", bool({"soft"} & set(row.flags)), row.function or "",
             round((row.expires or 0) * 1000))
            for row in rows if row.kind == "hrtimer"
        )  # fmt: skip
        soon = min((key[4] for key in before), default=0) + 60_000
        stays = {key: n for key, n in (before & after).items() if key[4] > soon + 900_000}
        assert not Counter(stays) - mine
        assert sum(1 for row in rows if pid in row.pids) >= 7
        functions |= {
            "hrtimer_wakeup", "hrtick", "dl_task_timer", "tick_sched_timer", "tick_nohz_handler",
            "inactive_task_timer", "sched_rt_period_timer", "timerfd_tmrproc", "it_real_fn",
        }  # fmt: skip
        assert {row.function for row in rows if row.kind == "hrtimer"} <= functions


def test_sysctl_under_load(look: Look, busy: Guest) -> None:
    moving = {
        b"kernel.domainname": rb"churn-\d+",
        b"net.ipv4.ip_default_ttl": rb"64|65",
        b"net.ipv4.ip_local_reserved_ports": rb"(500\d\d-502\d\d)?",
    }
    before = test_sysctl.truth(busy)
    here = int(busy.run("readlink /proc/1/ns/net").strip()[5:-1])
    rows = look.timed(look.linux.sysctl)
    after = test_sysctl.truth(busy)
    mine = {row.name: row.value for row in rows if row.net_namespace in (None, here)}
    comes = re.compile(rb"net\.(ipv4|ipv6|mpls)\.(conf|neigh)\.(churn|veth)")
    assert {n for n in before.keys() & after.keys() if not comes.match(n)} <= mine.keys()
    assert all(comes.match(name) for name in mine.keys() - before.keys() - after.keys())
    for name, value in mine.items():
        if name in moving:
            assert value is None or re.fullmatch(moving[name], value), name
        elif value is not None and before.get(name) == after.get(name) is not None:
            # find may come by a file twice while interfaces come and go next to it.
            lines = dict.fromkeys(before[name].splitlines())
            assert test_sysctl.plain(value) == test_sysctl.plain(b"\n".join(lines)), name


def test_users_under_load(look: Look, busy: Guest) -> None:
    def word() -> Counter[Any]:
        text = busy.run("cat /proc/[0-9]*/status 2>/dev/null", check=False).decode("latin-1")
        uids = re.findall(r"^Uid:\s+(\d+)\s+(\d+)", text, re.MULTILINE)
        gids = re.findall(r"^Gid:\s+(\d+)\s+(\d+)", text, re.MULTILINE)
        return Counter({(int(u[0]), int(g[0]), int(u[1]), int(g[1]))
                        for u, g in zip(uids, gids, strict=False)})  # fmt: skip

    def ours() -> list[Any]:
        rows = look.linux.users()
        assert all(row.processes > 0 for row in rows)
        return [(row.uid, row.gid, row.euid, row.egid) for row in rows]

    def gone(row: Any) -> bool:
        # Group first, then user: in between somebody is both.
        return all(part in (*_IDS, 0) for part in row) and any(row)

    assert look.each(word, ours, gone) >= 1


def test_logins_under_load(look: Look) -> None:
    for _ in range(ROUNDS * 3):
        rows = look.timed(look.linux.logins)
        names = [row.user for row in rows if row.source == "utmp"]
        assert names[:3] == [b"stays1", b"stays2", b"stays3"]
        assert all(re.fullmatch(rb"churn-\d+", name) for name in names[3:] if name), names
        assert len(names) <= 4


def test_modules_under_load(look: Look, busy: Guest) -> None:
    def word() -> Counter[Any]:
        return Counter(
            (m.name, m.size, tuple(m.used_by), m.refcount, m.status, m.address, m.taints)
            for m in busy.snapshot().modules.values()
        )

    def ours() -> list[Any]:
        return [
            (m.name.decode(), m.size, tuple(n.decode() for n in m.used_by), m.refcount, m.status,
             m.address, m.taints)
            for m in look.linux.modules()
        ]  # fmt: skip

    assert look.each(word, ours, lambda row: row[0] == "veth") > 3


def test_dmesg_under_load(look: Look, busy: Guest) -> None:
    for _ in range(ROUNDS):
        rows = look.timed(look.linux.dmesg)
        after = busy.snapshot()
        numbers = [row.sequence for row in rows]
        assert numbers == sorted(set(numbers))
        theirs = {entry.sequence: entry for entry in after.log}
        both = [row for row in rows if row.sequence in theirs]
        assert len(both) > 100
        wanted = type(after)(after.files)
        wanted.__dict__["log"] = [theirs[row.sequence] for row in both]
        assert compare.log(both, wanted) == []
        # What the guest still has later we had, too, but for the last: it may have been torn.
        assert {n for n in theirs if n <= numbers[-1]} - set(numbers) <= set(
            range(numbers[-1] - 2, numbers[-1] + 1)
        )


def test_log_can_be_followed_under_load(look: Look) -> None:
    rows = look.timed(look.linux.dmesg)
    last = rows[-1].sequence
    seen: list[int] = []
    deadline = time.monotonic() + PATIENCE
    looks = 0
    while looks < 5 or (len(seen) <= 3 and time.monotonic() < deadline):
        more = look.timed(partial(look.linux.dmesg, last))
        seen += [row.sequence for row in more]
        last = seen[-1] if seen else last
        looks += 1
        time.sleep(0.1)
    assert seen == sorted(set(seen))
    assert len(seen) > 3


def test_slabs_under_load(look: Look, busy: Guest) -> None:
    for _ in range(ROUNDS):
        theirs = test_slabs.slabinfo(busy)
        mine = look.timed(lambda: test_slabs.our_slabinfo(look.linux))
        after = test_slabs.slabinfo(busy)
        # A module's caches come and go with it.
        stays = [name for name in theirs if name in after]
        assert [name for name in mine if name in theirs and name in after] == stays
        for name in stays:
            low, high = sorted((theirs[name], after[name]))
            still = name.endswith(("objsize", "perslab"))
            slack = 0 if still else max(test_slabs.SLACK, high // 2)
            assert low - slack <= mine[name] <= high + slack, name


def test_counters_under_load(look: Look, busy: Guest) -> None:
    """The guest stands still while we look: what only grows lies between its words."""
    for _ in range(ROUNDS):
        before, words = test_counters.vmstat(busy), test_counters.pressure(busy)
        times = test_counters.stat(busy)
        load = test_counters.loadavg(busy)
        with test_counters.paused(busy):
            mine = look.timed(lambda: test_counters.our_vmstat(look.linux))
            memory = look.timed(lambda: test_counters.our_meminfo(look.linux))
            stalls = look.timed(lambda: test_counters.our_pressure(look.linux.pressure()))
            cpus: list[CpuTimes] = look.timed(look.linux.cpu)
            record_ = look.timed(look.linux.load)
            queues = look.timed(look.linux.runqueues)
            balloon = look.timed(look.linux.balloon_stats)
        after, later = test_counters.vmstat(busy), test_counters.pressure(busy)
        assert list(mine) == list(before)
        grows = re.compile(
            r"pg(fault|majfault|free|alloc_|activate|scan|steal)|pswp|nr_dirtied|oom_"
        )
        for name, value in mine.items():
            if grows.match(name) and before[name] <= after[name]:
                assert before[name] <= value <= after[name], name
        total = test_counters.meminfo(busy)
        assert list(memory) == list(total)
        for name in ("memory_total", "swap_total", "hugepagesize", "vmalloc_total"):
            assert memory[name] == total[name]
        assert 0 < memory["memory_free"] < memory["memory_total"]
        for key, values in stalls.items():
            assert words[key][3] <= values[3] <= later[key][3], key
        cut = {name: value // 10 * 10 for name, value in test_counters.our_stat(cpus).items()}
        assert test_counters.outside(times, cut, test_counters.stat(busy)) == {}
        assert test_counters.follows(load, record_.last_pid, test_counters.loadavg(busy))
        # All may be waiting for a moment: that something runs is test_running_tasks_are_counted.
        assert record_.running == sum(row.running for row in queues) <= record_.total
        assert balloon.available * 1024 == total["memory_total"]


def test_stacks_under_load(look: Look, busy: Guest) -> None:
    """Of who sleeps all the time, the stack is the guest's own."""
    pid = int(busy.get("/tmp/other"))
    for _ in range(ROUNDS):
        before = test_stacks.tasks(busy, pid)[pid]
        rows = look.timed(lambda: look.linux.stack(pid))
        after = test_stacks.tasks(busy, pid)[pid]
        assert before.lines == after.lines
        text = StackReader(look.linux, Budget()).text
        assert test_stacks.kernel_lines(rows, text) == before.stack
    churning = [p.pid for p in look.linux.processes() if p.name.startswith(b"churn")]
    for number in churning[:20]:
        try:
            look.timed(partial(look.linux.stack, number))
        except NoSuchTargetError:
            continue  # it has ended


def test_what_runs_under_load(look: Look, busy: Guest) -> None:
    for _ in range(ROUNDS * 3):
        rows = look.timed(look.linux.runqueues)
        assert [row.cpu for row in rows] == list(range(busy.config.vcpus))
        for row in rows:
            assert row.running is None or 0 <= row.running < 200
            assert (row.pid == 0) == bool(row.idle)
            assert row.name.isprintable() if isinstance(row.name, str) else row.name
    # Nobody hangs, though tasks wait for locks for moments.
    # But for a CPU to which the host gives no time.
    assert [s for s in look.timed(look.linux.hung) if (s.kind == "task" or by_a_task(s))
            and s.name.startswith(b"churn")] == []  # fmt: skip
    assert look.timed(look.linux.crash).state in (None, "running")


def test_identity_under_load(look: Look, busy: Guest) -> None:
    info = look.timed(look.linux.info)
    assert info.release.decode() == busy.release
    assert info.hostname == busy.run("cat /proc/sys/kernel/hostname").strip()
    values = look.timed(look.linux.guestinfo)
    assert values["hostname"] == info.hostname
    names = {values[f"if.{n}.name"] for n in range(values["if.count"])}
    listed = set(busy.run('cd /sys/class/net; for n in *; do echo "$n"; done').splitlines())
    assert {n for n in listed ^ names if not n.startswith((b"churn", b"veth"))} == set()
    pid = int(busy.get("/tmp/other"))
    theirs = busy.get(f"/proc/{pid}/environ").rstrip(b"\0").split(b"\0")
    assert [e.name + b"=" + (e.value or b"") for e in look.linux.environment(pid)] == theirs
    assert look.linux.maps(pid) == test_files._theirs(busy, pid)


def test_no_table_is_left_out(look: Look) -> None:
    """Every command runs on such a guest and gives only fields that it declares."""
    for table in (*COMMANDS, HUNG):
        arguments = {"pid": 1} if table.argument else {}
        method = getattr(look.linux, table.source or table.name)
        found = look.timed(partial(method, **arguments))
        for row in [found] if table.single else found:
            assert record(table, row)
