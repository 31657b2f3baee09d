"""Hints that need a host with KVM, NUMA nodes and KSM: a guest in that state, by both words.

What a hint says is held against what the host says elsewhere (control groups, KSM's own counts,
smaps, schedstat) and what the guest says. Where a hint has a command, it is run.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.guests.lab.guest import Guest
from tests.guests.loads import POLICY, load
from tests.guests.loads import watch as looked_at
from virtintrospect.cli.judging import facts_of, identical
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import Facts, Identical, hints
from virtintrospect.model import Hint
from virtintrospect.session import Session, open_session

from .fixtures import CONFIG, booted
from .host import (
    MIB,
    MM,
    PAGE,
    group,
    on_nodes,
    rollup,
    status,
    swap,
    switched,
    until,
    vcpu_group,
    waited,
)

#: Small guests, and small amounts.
_POLICY = dataclasses.replace(
    POLICY, numa_mib=128, huge_mib=48, host_swapped_mib=24, identical_mib=16
)
_MIGRATE_PAGES = 256  # of arch/x86/entry/syscalls/syscall_64.tbl
#: A tick of /proc/stat; ms.
_TICK = 10
#: A console whose every letter is a trip to QEMU, with its lock held.
_TALK = """
echo on > /proc/sys/kernel/printk_devkmsg; line="<0>$(seq 60 | tr -d '\\n')"
(while :; do echo "$line"; done) > /dev/kmsg 2>/dev/null & echo $! > /tmp/talk.pid
taskset -p 1 $(cat /tmp/talk.pid)
"""


def given(facts: Facts, action: str, resource: str = "memory", says: str = "") -> list[Hint]:
    """Hints of one kind, by the policy of small guests."""
    found = hints(dataclasses.replace(facts, policy=_POLICY))
    return [h for h in found if (h.resource, h.action) == (resource, action) and says in h.reason]


def numbers(hint: Hint) -> dict[str, str]:
    return dict(item.split("=", 1) for item in hint.evidence)


@contextlib.contextmanager
def anew(guest: Guest) -> Iterator[Session]:
    """A session that has not looked at the host before."""
    with open_session(guest.name) as session:
        yield session


def now(guest: Guest, same: Identical | None = None) -> tuple[Facts, dict[str, Any]]:
    """One look, and its sample."""
    with anew(guest) as session:
        taken = sample(session.guest, session.target)
        return facts_of(session, _POLICY, [taken], same), taken


# -- time of the processor -----------------------------------------------------------------------


def _steal(guest: Guest) -> int:
    """By the guest's own word; ms."""
    return int(guest.get("/proc/stat").split(b"\n")[0].split()[8]) * _TICK


def test_steal(guest: Guest, session: Session) -> None:
    """Two vCPUs that compute, on the only CPU: by the guest's word, the host's, and ours."""
    with load(guest, "spin", "2"):
        looked_at(session, 1)  # the first look of a session takes long, between its figures, too
        waited_before, before = waited(guest.pid), _steal(guest)
        facts = looked_at(session, 8, 1.0)
        after, waited_after = _steal(guest), waited(guest.pid)
    first, last = facts.window.samples[0], facts.window.samples[-1]
    ours = last["cpu"]["steal"] - first["cpu"]["steal"]
    host = sum(row[2] for row in last["vcpus"]) - sum(row[2] for row in first["vcpus"])
    assert 0 < ours <= after - before + _TICK
    assert 0 < host <= waited_after - waited_before + 2
    # KVM tells the guest of what the host's scheduler counted (record_steal_time() of x86.c).
    assert 0.6 * host < ours < 1.4 * host
    (hint,) = given(facts, "host", "cpu", "the host kept ")
    assert "the host's 1 CPUs have too much to do" in hint.reason
    assert float(numbers(hint)["steal_percent"]) > 20
    assert given(facts, "host", "cpu", "of the time that they wanted to run")


# -- where memory is -----------------------------------------------------------------------------


def test_memory_on_two_nodes(guest: Guest) -> None:
    """The old half on the second node; the hint's own command brings it together."""
    _migrate(guest.pid, 0, 1)
    with load(guest, "touch", "120"):
        before = on_nodes(guest.pid)
        facts, taken = now(guest)
        after = on_nodes(guest.pid)
        for node, held in taken["vmm"]["nodes"]:
            least, most = sorted((before[node], after[node]))
            # QEMU's program and libraries are in it, too.
            assert least - 4 * MIB < held < most + 96 * MIB
        (hint,) = given(facts, "place")
        assert "its memory lies on 2 NUMA nodes of the host" in hint.reason
        target = int(numbers(hint)["node"])
        assert min(before.values()) > 40 * MIB
        subprocess.run(shlex.split(hint.virsh or ""), check=True, timeout=300)
        until(lambda: min(on_nodes(guest.pid).values()) < 8 * MIB, "one node has all of it")
        facts, taken = now(guest)
        assert not given(facts, "place")
        assert max(taken["vmm"]["nodes"], key=lambda row: row[1])[0] == target


def _migrate(pid: int, old: int, new: int) -> None:
    """migrate_pages(2): all pages of a process from one node to another."""
    sets = [ctypes.byref(ctypes.c_ulong(1 << node)) for node in (old, new)]
    left = ctypes.CDLL(None, use_errno=True).syscall(_MIGRATE_PAGES, pid, 64, *sets)
    assert left >= 0, os.strerror(ctypes.get_errno())


def test_small_pages_become_huge_ones(guest: Guest) -> None:
    """Where the host does not do it, the hint says how; then that is done."""
    with load(guest, "touch", "80"):
        (hint,) = given(now(guest)[0], "huge")
    assert "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled" in hint.reason
    assert hint.current == rollup(guest.pid, "AnonHugePages") == 0
    assert (hint.recommended or 0) > 60 * MIB
    fast = {"khugepaged__scan_sleep_millisecs": "10", "khugepaged__pages_to_scan": "65536"}
    settings = {f"transparent_hugepage__{name}": value for name, value in fast.items()}
    with switched(transparent_hugepage__enabled="madvise", **settings):
        # Some of it new to the host: khugepaged learns of a process when that touches more
        # (khugepaged_enter_vma() of mm/khugepaged.c).
        with load(guest, "touch", "180"):
            until(lambda: rollup(guest.pid, "AnonHugePages") > 150 * MIB, "in huge pages")
            before = rollup(guest.pid, "AnonHugePages")
            facts, taken = now(guest)
            least, most = sorted((before, rollup(guest.pid, "AnonHugePages")))
        assert least <= taken["vmm"]["anon_huge"] <= most
        assert not given(facts, "huge")


def test_memory_that_the_host_swapped_out(guest: Guest) -> None:
    with swap(200), load(guest, "fill", "3", "80"):
        assert not given(now(guest)[0], "host")
        with contextlib.suppress(OSError):  # EAGAIN: not all of it
            (group(guest.pid) / "memory.reclaim").write_text("64M")
        until(lambda: status(guest.pid, "VmSwap") > 32 * MIB, "swapped out")
        before = status(guest.pid, "VmSwap")
        facts, taken = now(guest)
        least, most = sorted((before, status(guest.pid, "VmSwap")))
        assert least <= taken["vmm"]["swapped"] <= most
        (hint,) = given(facts, "host")
    assert " of it out: what the guest takes for fast memory is on a disk" in hint.reason
    assert hint.current == taken["vmm"]["swapped"]


# -- other guests --------------------------------------------------------------------------------


def test_pages_that_two_guests_share(guest: Guest) -> None:
    """The same 48 MiB in both: the hint says that KSM does not run; then it does."""
    twin_config = dataclasses.replace(CONFIG, vcpus=1, ram_mib=256)
    with booted(twin_config) as twin, load(guest, "fill", "7", "48"), load(twin, "fill", "7", "48"):
        same, (hint,) = _merge(guest, twin)
        assert "KSM does not run (echo 1 > /sys/kernel/mm/ksm/run)" in hint.reason
        assert same.shared > 36 * MIB
        assert hint.current == _merging(guest.pid) == 0
        fast = {"ksm__sleep_millisecs": "10", "ksm__pages_to_scan": "20000"}
        with switched(ksm__run="1", **fast):
            until(lambda: _merging(guest.pid) > 40 * MIB, "KSM has merged them")
            before = _merging(guest.pid), _sharing()
            _, taken = now(guest)
            after = _merging(guest.pid), _sharing()
            ksm = taken["host"]["ksm"]
            ours = taken["vmm"]["merged"], ksm["pages_sharing"]
            for count, one, other in zip(ours, before, after, strict=True):
                assert min(one, other) - 4 * MIB <= count <= max(one, other) + 4 * MIB
            assert ksm["run"] == 1
            # Of each page that is merged one is kept.
            assert ksm["pages_sharing"] > 20 * MIB
            until(lambda: not _merge(guest, twin)[1], "little is left to merge")


def _merge(guest: Guest, twin: Guest) -> tuple[Identical, list[Hint]]:
    """What is the same, and what is said of it."""
    with anew(guest) as one, anew(twin) as two:
        same, _ = identical([one, two])
        assert same is not None
        facts = facts_of(one, _POLICY, [sample(one.guest, one.target)], same)
    return same, given(facts, "merge")


def _merging(pid: int) -> int:
    """The host's own count; bytes."""
    return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text()) * PAGE


def _sharing() -> int:
    """Of all processes, what is saved; bytes."""
    return int((MM / "ksm/pages_sharing").read_text()) * PAGE


# -- locks ---------------------------------------------------------------------------------------


def test_a_lock_whose_holder_does_not_run(guest: Guest, session: Session) -> None:
    """A vCPU with the console's lock, which a quota of its own stops; the other one runs."""
    limit = vcpu_group(guest.pid, 0) / "cpu.max"
    before = limit.read_text()
    guest.run(_TALK)
    try:
        with load(guest, "spin", "1", pinned=True):
            limit.write_text("10000 100000")
            facts = looked_at(session, 11, 0.3)
            limit.write_text(before)
    finally:
        limit.write_text(before)
        guest.run("kill -9 $(cat /tmp/talk.pid)", check=False)
    (hint,) = given(facts, "host", "cpu", "a vCPU held a lock and was not running")
    assert (hint.current, hint.recommended) == (2, 1)
    assert (hint.virsh or "").endswith(f" setvcpus {guest.name} 1 --config")
    assert int(numbers(hint)["samples_with_a_stopped_holder"]) > 0
    waits = given(facts, "host", "cpu", "the quota of its control group ")
    assert waits  # by the host's word, and by the guest's
    assert all(numbers(hint)["cpu_group"].endswith("vcpu0") for hint in waits)
