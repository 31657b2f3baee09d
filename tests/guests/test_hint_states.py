"""More states that hints are about: of timers, interrupts, disks, file systems, and the host."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtintrospect.cli.judging import facts_of, identical
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import hints
from virtintrospect.insight.history import Window
from virtintrospect.model import Hint
from virtintrospect.session import Session, open_session

from .lab.domain import Config
from .lab.guest import Guest
from .lab.initramfs import program
from .loads import CONFIG, POLICY, load, watch

MIB = 1 << 20
#: A guest that measures no pressure, has no balloon, and whose tick never stops.
_BARE = Config("6.12", pti=False, vcpus=2, cmdline="psi=0 nohz=off", balloon=False)
#: Seconds after which a state must have shown itself, on a machine that others use, too.
_PATIENCE = 90.0

_SWAP = """
mkdir -p /mnt/hints /mnt/ram; mount -t cgroup2 none /mnt/hints
echo +memory > /mnt/hints/cgroup.subtree_control; mkdir /mnt/hints/small
echo 40M > /mnt/hints/small/memory.max
mount -t ramfs none /mnt/ram; truncate -s 160M /mnt/ram/area; losetup /dev/loop5 /mnt/ram/area
mkswap /dev/loop5 && swapon /dev/loop5
sh -c 'echo $$ > /mnt/hints/small/cgroup.procs; exec /tmp/load touch 80' >/dev/null 2>&1 &
"""
_NO_SWAP = """
killall -9 load; while pidof load; do usleep 50000; done >/dev/null; swapoff /dev/loop5
losetup -d /dev/loop5; umount /mnt/ram; rmdir /mnt/hints/small; umount /mnt/hints
"""
#: Nothing is written back as long as it need not be.
_DIRTY = """
mkdir -p /mnt/ram; mount -t ramfs none /mnt/ram; truncate -s 300M /mnt/ram/area
losetup /dev/loop5 /mnt/ram/area; echo 99 > /sys/block/loop5/bdi/min_ratio; cd /proc/sys/vm
cat dirty_ratio dirty_background_ratio dirty_expire_centisecs dirty_writeback_centisecs
echo 90 > dirty_ratio; echo 80 > dirty_background_ratio; echo 60000 > dirty_expire_centisecs
echo 0 > dirty_writeback_centisecs
"""
_FULL = """
mkdir -p /mnt/full /mnt/ram /mnt/many
mount -t tmpfs -o size=16m none /mnt/full; dd if=/dev/zero of=/mnt/full/x bs=1M count=15
mount -t ramfs none /mnt/ram; dd if=/dev/zero of=/mnt/ram/x bs=1M count=270
mount -t tmpfs -o nr_inodes=100 none /mnt/many; cd /mnt/many; for i in $(seq 95); do : > $i; done
"""


#: Files without end, each of which takes an inode, and no page.
_SLAB = """
mkdir -p /mnt/slab; mount -t tmpfs -o nr_inodes=0 none /mnt/slab
sh -c 'i=0; while :; do i=$((i+1)); : > /mnt/slab/$i; done' >/dev/null 2>&1 &
echo $! > /tmp/slab.pid; until [ -e /mnt/slab/1000 ]; do usleep 50000; done
"""
_NO_SLAB = "kill -9 $(cat /tmp/slab.pid); until umount /mnt/slab; do usleep 50000; done"

#: Threads of all programs: what the kernel runs for itself has no memory of its own.
_THREADS = "/^VmSize/ { user = 1 } /^Threads/ { if (user) n += $2; user = 0 } END { print n }"


def brought(lab: Any, config: Config) -> Guest:
    """A guest with the program that brings it into states."""
    guest: Guest = lab.guest(config)
    guest.put("/tmp/load", program("load").read_bytes(), 0o755)
    return guest


@pytest.fixture(scope="module")
def loads(lab: Any) -> Guest:
    """The guest of test_hints_followed, which releases it."""
    return brought(lab, CONFIG)


@pytest.fixture(scope="module")
def bare(lab: Any) -> Iterator[Guest]:
    yield brought(lab, _BARE)
    lab.release(_BARE)


def shows(session: Session, says: str, **thresholds: Any) -> Hint:
    """The hint whose reason says so, as soon as it is given."""
    policy = dataclasses.replace(POLICY, **thresholds)
    end = time.monotonic() + _PATIENCE
    while True:
        found = hints(watch(session, 5, 0.4, policy))
        if given := [hint for hint in found if says in hint.reason]:
            return given[0]
        assert time.monotonic() < end, [(hint.reason, hint.evidence) for hint in found]


def numbers(hint: Hint) -> dict[str, str]:
    return dict(item.split("=", 1) for item in hint.evidence)


# -- the guest's own doing -----------------------------------------------------------------------


def test_swap_thrashing(loads: Guest) -> None:
    """Twice of what it may have, again and again: each page comes back, and another leaves."""
    loads.run(_SWAP, 60)
    try:
        with open_session(loads.name) as session:
            hint = shows(session, "it swaps ")
    finally:
        loads.run(_NO_SWAP, 120, check=False)
    assert (hint.resource, hint.action) == ("memory", "grow")
    assert float(numbers(hint)["swap_out_a_second"]) > POLICY.thrash_pages


def test_a_backlog_of_dirty_pages(loads: Guest) -> None:
    before = loads.run(_DIRTY).split()
    try:
        with load(loads, "dirty", "/dev/loop5", "180"), open_session(loads.name) as session:
            hint = shows(session, "wait to be written all the time")
            dirty = int(loads.run("grep ^Dirty: /proc/meminfo").split()[1]) << 10
    finally:
        names = ("ratio", "background_ratio", "expire_centisecs", "writeback_centisecs")
        for name, value in zip(names, before, strict=True):
            loads.run(f"echo {value.decode()} > /proc/sys/vm/dirty_{name}")
        loads.run(
            "echo 0 > /sys/block/loop5/bdi/min_ratio; losetup -d /dev/loop5; umount /mnt/ram",
            check=False,
        )
    assert (hint.resource, hint.action) == ("io", "watch")
    assert abs(int(numbers(hint)["dirty_and_writeback_at_least"]) - dirty) < 8 * MIB


def test_a_slab_that_grows(loads: Guest) -> None:
    few = {"leak_samples": 4, "leak_mib": 0, "leak_percent": 0.05}
    loads.run(_SLAB, 60)
    try:
        with open_session(loads.name) as session:
            hint = shows(session, "slab shmem_inode_cache grew by ", **few)
        row = loads.run("grep '^shmem_inode_cache ' /proc/slabinfo").split()
    finally:
        loads.run(_NO_SLAB, 60, check=False)
    assert (hint.resource, hint.action) == ("memory", "watch")
    # <pagesperslab> and <num_slabs> of slabinfo, which has more by then.
    assert 0 < int(numbers(hint)["first"]) < (hint.current or 0) <= int(row[5]) * int(row[14]) << 12


def test_threads_without_number(loads: Guest) -> None:
    with load(loads, "threads", "200"), open_session(loads.name) as session:
        hint = shows(session, "threads run: some program starts them", threads=300)
        threads = int(loads.run(f"cat /proc/[0-9]*/status | awk '{_THREADS}'"))
    assert (hint.resource, hint.action) == ("tasks", "watch")
    assert threads > 300
    assert abs((hint.current or 0) - threads) <= 16  # those that count them


def test_interrupts_that_one_cpu_serves(loads: Guest) -> None:
    """Packets that the second CPU looks at, whoever sends them."""
    steer = "/sys/class/net/lo/queues/rx-0/rps_cpus"
    loads.run(f"ip link set lo up; echo 2 > {steer}")
    try:
        with load(loads, "packets", "100"), open_session(loads.name) as session:
            hint = shows(session, "interrupts are pinned to it", others_percent=60.0)
    finally:
        loads.run(f"echo 0 > {steer}")
    assert hint.reason.startswith("CPU 1 was busy ")
    assert float(numbers(hint)["interrupts_percent"]) >= POLICY.one_cpu_percent / 2


def test_a_program_that_wakes_an_idle_guest(loads: Guest) -> None:
    with load(loads, "wake", "300"), open_session(loads.name) as session:
        # A busy host wakes it a quarter as often as it asks for.
        hint = shows(session, "timers of ", wakes_a_second=10.0, wakes_busy_percent=60.0)
    assert "load (pid " in hint.reason
    assert float(numbers(hint)["timer_interrupts_a_second"]) >= 2 * 10


def test_file_systems_in_memory(loads: Guest) -> None:
    loads.run(_FULL)
    try:
        with open_session(loads.name) as session:
            found = [hint.reason for hint in hints(watch(session, 2))]
    finally:
        loads.run("umount /mnt/full /mnt/ram /mnt/many", check=False)
    assert any("the tmpfs on /mnt/full is 94 % full: 1 MiB of 16 MiB are left" in f for f in found)
    assert any("the tmpfs on /mnt/many has 96 of the 100 files" in reason for reason in found)
    (ramfs,) = [reason for reason in found if "the ramfs on /mnt/ram takes 270 MiB" in reason]
    assert "nothing limits it" in ramfs
    with open_session(loads.name) as session:
        assert not [hint for hint in hints(watch(session, 2)) if "/mnt/" in hint.reason]


# -- the host's ----------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(guest: Guest, controller: str, limits: dict[str, str]) -> Iterator[str]:
    """The guest's QEMU in a control group of its own, with limits; the group's name.

    :param limits: what goes into which file, of either version of control groups.
    """
    old = Path("/sys/fs/cgroup", controller).is_dir()
    top = Path("/sys/fs/cgroup", controller if old else "")
    group = top / f"vi-{controller}-{os.getpid()}"
    home = top / _home(guest.pid, controller if old else "").lstrip("/")
    try:
        if not old:
            (top / "cgroup.subtree_control").write_text(f"+{controller}")
        group.mkdir()
        for file, value in limits.items():
            if (group / file).exists():
                (group / file).write_text(value)
        (group / "cgroup.procs").write_text(str(guest.pid))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control groups of {controller} for us here: {error}")
    try:
        yield f"/{group.name}"
    finally:
        for back in (home, top):  # where libvirt had it may not take a whole process
            with contextlib.suppress(OSError):
                (back / "cgroup.procs").write_text(str(guest.pid))
                break
        group.rmdir()


def _home(pid: int, controller: str) -> str:
    """The group that a process is in."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return next(path for _, names, path in lines if controller in names.split(","))


def test_a_quota_is_the_cause(loads: Guest) -> None:
    files = {"cpu.cfs_quota_us": "5000", "cpu.max": "5000 100000"}
    with load(loads, "spin", "2"), open_session(loads.name) as session:
        with limited(loads, "cpu", files) as name:
            says = f"the quota of its control group {name}, 0.05 CPUs'"
            hint = shows(session, says, idle_percent=0)
        left = sample(session.guest, session.target)["vmm"].get("limits", {})
    assert (hint.resource, hint.action) == ("cpu", "host")
    assert int(numbers(hint)["throttled"]) > 0
    assert left.get("cpu_group") != name  # it is out again


def test_no_more_memory_than_a_control_group_allows(loads: Guest) -> None:
    """By this policy it needs a quarter more, for which its QEMU would be killed."""
    limit = str(1200 * MIB)
    files = {"memory.limit_in_bytes": limit, "memory.max": limit}
    with open_session(loads.name) as session, limited(loads, "memory", files) as name:
        says = f"its control group {name} on the host allows 1200 MiB"
        hint = shows(session, says, low_available_percent=100.0)
    assert (hint.resource, hint.action) == ("memory", "grow")
    assert hint.virsh is not None
    assert "memtune" in hint.virsh
    assert int(hint.virsh.split()[-1]) << 10 >= (hint.recommended or 0)


def test_guests_that_hold_the_same(loads: Guest, bare: Guest) -> None:
    """64 MiB of the same content in both; no page is made present by looking at it."""
    with (
        load(loads, "fill", "7", "64"), load(bare, "fill", "7", "64"),
        open_session(loads.name) as one, open_session(bare.name) as two,
    ):  # fmt: skip
        before = [_pages(guest) for guest in (loads, bare)]
        found = identical([one, two], everything=True)
        for guest, pages in zip((loads, bare), before, strict=True):
            assert _pages(guest) - pages < 8 * MIB
        for session, same in zip((one, two), found, strict=True):
            assert same is not None
            assert 48 * MIB < same.shared < 192 * MIB
            policy = dataclasses.replace(POLICY, identical_mib=16)
            taken = [sample(session.guest, session.target)]
            given = hints(facts_of(session, policy, taken, same))
            merge = [hint for hint in given if hint.action == "merge"]
            # QEMU's own memory can be merged, a memfd cannot.
            assert len(merge) == (session is one)
    with open_session(loads.name) as one, open_session(bare.name) as two:
        less = identical([one, two], everything=True)
    for now, then in zip(less, found, strict=True):
        assert now is not None
        assert then is not None
        assert now.shared < then.shared - 32 * MIB


def _pages(guest: Guest) -> int:
    return int(Path(f"/proc/{guest.pid}/statm").read_text().split()[1]) * 4096


def test_memory_in_small_pages(bare: Guest) -> None:
    """A memfd gets huge pages where the host lets shared memory have them."""
    mode = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if mode.exists() and not {"[never]", "[deny]", "[advise]"} & set(mode.read_text().split()):
        pytest.skip(f"{mode}: shared memory is in huge pages here")
    with load(bare, "touch", "100"), open_session(bare.name) as session:
        hint = shows(session, "in whole pieces of 2 MiB", huge_mib=64)
    assert (hint.resource, hint.action) == ("memory", "huge")
    assert (hint.recommended or 0) > 90 * MIB


# -- a guest that measures less ------------------------------------------------------------------


def test_a_guest_without_pressure_and_balloon(bare: Guest) -> None:
    assert not bare.execute("cat /proc/pressure/memory").stdout
    with open_session(bare.name) as session:
        facts = watch(session, 3)
        taken = facts.window.samples[-1]
        assert "pressure" not in taken
        assert {"memory", "events", "signs", "vmm", "host"} <= taken.keys()
        assert not facts.has_balloon
        hint = shows(session, "it never needed more than")
    assert "no working balloon, so this takes a restart" in hint.reason
    assert hint.virsh is not None
    assert hint.virsh.endswith("--config")
    assert "psi_memory_some_percent" not in numbers(hint)  # unknown, not zero


def test_a_tick_that_never_stops(bare: Guest) -> None:
    with open_session(bare.name) as session:
        hint = shows(session, "its tick goes on while it is idle", wakes_busy_percent=60.0)
    assert float(numbers(hint)["timer_interrupts_a_second"]) >= 2 * POLICY.wakes_a_second


def test_what_the_host_counts_begins_anew_after_a_restore(bare: Guest, tmp_path: Path) -> None:
    """As after a migration: another QEMU, and the guest goes on."""
    with open_session(bare.name) as session:
        before = list(watch(session, 2).window.samples)
    bare.domain.save(str(tmp_path / "saved"))
    bare.restore(tmp_path / "saved")
    bare.wait_ready()
    with open_session(bare.name) as session:
        after = list(watch(session, 3).window.samples)
    window = Window([*before, *after])
    assert len(window) == 5
    assert list(window.here.samples) == after
    assert before[-1]["vmm"]["id"] != after[0]["vmm"]["id"]
    assert all(
        new[1] >= old[1] for old, new in zip(before[-1]["signs"], after[0]["signs"], strict=True)
    )


# -- every kernel --------------------------------------------------------------------------------


def test_signs_and_file_systems_on_every_kernel(guest: Guest, linux: LinuxGuest) -> None:
    def interrupts() -> int:
        text = guest.get("/proc/interrupts").decode()
        lines = [line.split() for line in text.splitlines() if "timer interrupts" in line]
        return sum(int(word) for line in lines for word in line if word.isdigit())

    guest.run("mkdir -p /mnt/part; mount -t tmpfs -o size=4m,nr_inodes=64 none /mnt/part")
    try:
        guest.run("dd if=/dev/zero of=/mnt/part/x bs=1024 count=3000 2>/dev/null")
        stat = guest.run("stat -f -c '%b %f %s %c %d' /mnt/part")
        blocks, free, size, files, left = map(int, stat.split())
        (found,) = [row for row in linux.memory_filesystems() if row.path == b"/mnt/part"]
        assert (found.type, found.size, found.used) == (
            b"tmpfs", blocks * size, (blocks - free) * size
        )  # fmt: skip
        assert (found.files, found.files_most) == (files - left, files)
        assert b"/mnt/part" in {row.path for row in linux.memory_filesystems(least_share=0.5)}
        assert b"/mnt/part" not in {row.path for row in linux.memory_filesystems(least_share=0.9)}
        if guest.config.arch != "armv7l":
            first = linux.cpu_signs()
            guest.run("usleep 200000")
            low, second, high = interrupts(), linux.cpu_signs(), interrupts()
            assert [row.cpu for row in second] == list(range(guest.config.vcpus))
            assert sum(row.timer_interrupts or 0 for row in second) > sum(
                row.timer_interrupts or 0 for row in first
            )
            assert not high or sum(row.timer_interrupts or 0 for row in second) <= high
            assert all(row.busy is not None and row.spins is not None for row in second), low
            assert all(row.preempt_count is not None for row in second)
    finally:
        guest.run("umount /mnt/part", check=False)
    assert linux.take_problems() == []
