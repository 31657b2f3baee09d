"""Hints on what the host does with a guest, by figures: no machine of the lab has all of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from virtintrospect.insight.hints import Facts, Identical, hints
from virtintrospect.insight.history import Window
from virtintrospect.insight.policy import load_policy

from .test_hints import DOMAIN, GIB, IDLE, MIB, XML, figures, judge

HOST = {
    "cpus": 8, "nodes": 1, "memory_total": 64 * GIB, "memory_available": 8 * GIB,
    "huge": "madvise", "shmem_huge": "never", "ksm": {"run": 0, "pages_sharing": 0},
    "pressure": {"cpu_some": {"total": 0}, "memory_some": {"total": 0}},
}  # fmt: skip
VMM = {"id": "100:1", "resident": 4 * GIB, "anon_huge": 0, "shmem_huge": 0, "hugetlb": 0}


def worked(at: float, wait: int, allowed: int = 8) -> list[list[int]]:
    """Two vCPUs that ran half of the time, ``at`` seconds ago, and waited for so much of it."""
    done = 100_000 - int(at * 1000)
    return [[n, done // 2, done * wait // 100, allowed] for n in range(2)]


def waiting(wait: int, allowed: int = 8, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two samples, 60 seconds apart, on a host as it is with these changes."""
    before, after = (
        figures(at) | {"vcpus": worked(at, wait, allowed), "vmm": VMM, "host": HOST}
        for at in (60, 0)
    )
    for name, value in changes.items():
        after[name] = after[name] | value if isinstance(value, dict) else value
    return before, after


# -- what the host keeps from it -----------------------------------------------------------------


def test_a_quota_is_named() -> None:
    limits = {"cpus_max": 0.5, "cpu_group": "/machine/web", "throttled": 0, "throttled_ms": 0}
    samples = waiting(50, vmm={"limits": limits | {"throttled": 900, "throttled_ms": 24_000}})
    samples[0]["vmm"] = VMM | {"limits": limits}
    hint = judge(*samples)["cpu", "host"]
    assert "waited 50 % of the time that they wanted to run" in hint.reason
    assert "the quota of its control group /machine/web, 0.5 CPUs' worth of time" in hint.reason
    assert {"throttled=900", "throttled_ms=24000"} <= set(hint.evidence)
    assert "schedinfo" in hint.virsh


def test_pinning_is_named() -> None:
    hint = judge(*waiting(50, allowed=1))["cpu", "host"]
    assert "pinned, each to 1 of the host's 8 CPUs" in hint.reason
    assert "vcpupin" in hint.virsh


def test_a_host_with_too_much_to_do_is_named() -> None:
    pressure = {"pressure": {"cpu_some": {"total": 48_000_000}, "memory_some": {"total": 0}}}
    hint = judge(*waiting(50, host=pressure))["cpu", "host"]
    assert "the host's 8 CPUs have too much to do" in hint.reason
    assert "host_psi_cpu_some_percent=80" in hint.evidence
    assert ("cpu", "host") not in judge(*waiting(5))


def test_what_another_vmm_was_counted_says_nothing() -> None:
    """Migrated, or saved and restored: what the host counts begins anew, the guest's goes on."""
    samples = [figures(at) | {"vcpus": worked(at, 90), "vmm": VMM, "host": HOST} for at in (90, 60)]
    samples += [
        figures(at) | {"vcpus": [[n, 50, 0, 8] for n in range(2)], "vmm": VMM | {"id": "7:9"},
                       "host": HOST}
        for at in (30, 0)
    ]  # fmt: skip
    assert Window(samples).here.samples == samples[2:]
    found = judge(*samples)
    assert ("cpu", "host") not in found
    assert ("memory", "shrink") in found  # by all four
    assert "samples=4" in found["memory", "shrink"].evidence


def test_more_vcpus_do_not_help_where_a_quota_is_the_limit() -> None:
    busy = [[[n, at, 0, 0, 0, 0, 0, 0, 0] for n in range(2)] for at in (0, 60_000)]
    before = figures(60) | {"each_cpu": busy[0]}
    waits = {"cpu_some": {"total": 40_000_000}, "memory_some": {"total": 0}}
    after = figures(0, pressure=waits) | {"each_cpu": busy[1]}
    assert judge(before, after)["cpu", "grow"].recommended == 3
    limits = {"limits": {"cpus_max": 2.0, "cpu_group": "/machine/web"}}
    capped = judge(before | {"vmm": VMM | limits}, after | {"vmm": VMM | limits})
    assert ("cpu", "grow") not in capped
    assert "/machine/web gives all of them no more than 2 CPUs" in capped["cpu", "host"].reason


def test_memory_that_a_control_group_does_not_allow() -> None:
    low = {"memory_available": 100 * MIB}
    limits = {"memory_max": 4 * GIB + 512 * MIB, "memory_group": "/machine/web"}
    vmm = VMM | {"resident": 4 * GIB + 200 * MIB, "limits": limits}
    samples = [figures(at, memory=low) | {"vmm": vmm, "host": HOST} for at in (9, 0)]
    hint = judge(*samples)["memory", "grow"]
    assert "its control group /machine/web on the host allows 4608 MiB" in hint.reason
    assert hint.recommended == 5 * GIB
    assert hint.virsh.endswith(f"memtune 'web 01' --hard-limit {(5120 + 200) << 10}")


def test_memory_that_the_host_has_swapped_out() -> None:
    vmm = VMM | {"swapped": 300 * MIB}
    hint = judge(figures(9) | {"vmm": vmm}, figures(0) | {"vmm": vmm})["memory", "host"]
    assert "has swapped 300 MiB of it out" in hint.reason


def signs(count: int, **last: Any) -> list[list[Any]]:
    """Of each vCPU; ``last`` is what the last one is at."""
    plain = {"busy": True, "clock_age": 3, "preempt_count": 0, "spins": False}
    rows = [plain] * (count - 1) + [plain | last]
    return [[n, 0, 0, 0, *row.values()] for n, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("last", "found"),
    [
        ({"spins": True}, True),
        ({"clock_age": 60, "preempt_count": 1}, True),
        ({"clock_age": 60, "preempt_count": 0}, False),  # it held nothing
        ({"clock_age": 60, "preempt_count": 1, "busy": False}, False),
        ({"clock_age": 60, "preempt_count": 0x10000}, False),  # in an interrupt
        ({"clock_age": 4, "preempt_count": 1}, False),
        ({"clock_age": None, "preempt_count": 1, "spins": None}, False),
    ],
)
def test_a_lock_whose_holder_does_not_run(last: dict[str, Any], *, found: bool) -> None:
    def samples(wait: int) -> list[dict[str, Any]]:
        return [
            figures(at) | {"vcpus": worked(at, wait, 1), "vmm": VMM, "host": HOST,
                           "signs": signs(2, **(last if at % 20 else {}))}
            for at in range(90, -1, -10)
        ]  # fmt: skip

    window = Window(samples(50))
    given = [h for h in hints(Facts(window, load_policy(), DOMAIN)) if "lock" in h.reason]
    assert len(given) == found
    for hint in given:
        assert "in 50 % of the samples" in hint.reason
        assert (hint.current, hint.recommended) == (2, 1)
    calm = Facts(Window(samples(5)), load_policy(), DOMAIN)  # the host lets it run
    assert not [hint for hint in hints(calm) if "lock" in hint.reason]


# -- what wakes it -------------------------------------------------------------------------------


def ticking(timers: int, calls: int, sleeps: int) -> dict[Any, Any]:
    """Judge an idle guest of four CPUs by what each counted within ten seconds."""
    before, after = (
        figures(at, each_cpu=IDLE[number])
        | {"signs": [[n, *counts, False, 0, 0, False] for n in range(4)]}
        for number, (at, counts) in enumerate([(10, (0, 0, 0)), (0, (timers, calls, sleeps))])
    )
    return judge(before, after)


def test_a_tick_that_never_stops() -> None:
    hint = ticking(2500, 0, 0)["cpu", "watch"]
    assert "their timers wake the host 1000 times a second" in hint.reason
    assert "its tick goes on while it is idle" in hint.reason


def test_a_program_that_wakes_an_idle_guest() -> None:
    before = figures(10, each_cpu=IDLE[0]) | {"signs": [[0, 0, 0, 0, False, 0, 0, False]]}
    after = figures(0, each_cpu=IDLE[1]) | {"signs": [[0, 10_000, 10_000, 9_000, False, 0, 0, 0]]}
    hint = judge(before, after, timers=("poller (pid 12)",))["cpu", "watch"]
    assert "1000 times a second: timers of poller (pid 12)" in hint.reason


def test_timers_of_a_guest_that_sleeps_or_works_are_no_hint() -> None:
    assert "wake" not in ticking(200, 200, 190)["cpu", "watch"].reason  # it is idle, though
    busy = [[[n, at, 0, 0, at, 0, 0, 0, 0] for n in range(4)] for at in (0, 5_000)]
    rows = [[[n, at, at, at, True, 0, 0, False] for n in range(4)] for at in (0, 10_000)]
    samples = [figures(at, each_cpu=busy[n]) | {"signs": rows[n]} for n, at in enumerate((10, 0))]
    assert ("cpu", "watch") not in judge(*samples)


# -- its pages -----------------------------------------------------------------------------------


def test_memory_that_could_be_in_huge_pages() -> None:
    samples = [figures(at) | {"vmm": VMM, "host": HOST} for at in (9, 0)]
    hint = judge(*samples, whole=3 * GIB)["memory", "huge"]
    assert "3072 MiB of its memory are in use in whole pieces of 2 MiB" in hint.reason
    assert "hugepages in its memoryBacking" in hint.reason
    assert "transparent_hugepage/enabled" not in hint.reason  # it is madvise: QEMU may
    assert (hint.current, hint.recommended) == (0, 3 * GIB)
    never = [sample | {"host": HOST | {"huge": "never"}} for sample in samples]
    off = judge(*never, whole=3 * GIB)["memory", "huge"].reason
    assert "echo madvise > /sys" in off
    assert "touched all of its memory before may need a restart" in off
    assert "touched all" not in hint.reason
    backing = "<memoryBacking><source type='memfd'/></memoryBacking>"
    domain = dataclasses.replace(DOMAIN, xml=XML.replace("<devices>", f"{backing}<devices>"))
    shared = judge(*samples, whole=3 * GIB, domain=domain)["memory", "huge"]
    assert "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled" in shared.reason
    large = [sample | {"vmm": VMM | {"anon_huge": 2 * GIB}} for sample in samples]
    assert ("memory", "huge") not in judge(*large, whole=3 * GIB)
    assert ("memory", "huge") not in judge(*samples, whole=GIB // 4)
    assert ("memory", "huge") not in judge(*samples)


def spread(first: int, second: int, free: int) -> list[dict[str, Any]]:
    vmm = VMM | {"nodes": [[0, first], [1, second]]}
    host = HOST | {"nodes": 2, "node_memory": [[0, 32 * GIB, free], [1, 32 * GIB, free]]}
    return [figures(at) | {"vmm": vmm, "host": host} for at in (9, 0)]


def test_memory_on_two_nodes_that_one_could_hold() -> None:
    hint = judge(*spread(GIB, 2 * GIB, 4 * GIB))["memory", "place"]
    assert "33 % on node 0, 67 % on node 1" in hint.reason
    assert hint.virsh == "virsh -c qemu:///system numatune 'web 01' --nodeset 1 --live"
    assert ("memory", "place") not in judge(*spread(GIB, 2 * GIB, GIB // 2))  # no room
    assert ("memory", "place") not in judge(*spread(GIB // 8, 2 * GIB, 4 * GIB))
    numa = dataclasses.replace(DOMAIN, xml=XML.replace("<devices>", "<cpu><numa/></cpu><devices>"))
    assert ("memory", "place") not in judge(*spread(GIB, 2 * GIB, 4 * GIB), domain=numa)


def test_pages_that_are_the_same() -> None:
    same = Identical(300 * MIB, 200 * MIB, 0, 100_000, 10_000)
    samples = [figures(at) | {"vmm": VMM, "host": HOST} for at in (9, 0)]
    hint = judge(*samples, identical=same)["memory", "merge"]
    assert "about 300 MiB of its pages are the same as others, 200 MiB of them" in hint.reason
    assert "echo 1 > /sys/kernel/mm/ksm/run" in hint.reason
    runs = [
        sample | {"host": HOST | {"ksm": {"run": 1}}, "vmm": VMM | {"merged": 100 * MIB}}
        for sample in samples
    ]
    assert "has merged 100 MiB" in judge(*runs, identical=same)["memory", "merge"].reason
    done = [sample | {"vmm": VMM | {"merged": 290 * MIB}} for sample in samples]
    assert ("memory", "merge") not in judge(*done, identical=same)
    for word in ("<nosharepages/>", "<source type='memfd'/>", "<hugepages/>"):
        backing = f"<memoryBacking>{word}</memoryBacking>"
        domain = dataclasses.replace(DOMAIN, xml=XML.replace("<devices>", f"{backing}<devices>"))
        assert ("memory", "merge") not in judge(*samples, identical=same, domain=domain)


# -- file systems --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (["/run", "tmpfs", 95 * MIB, 100 * MIB, 5, 1000], "tmpfs on /run is 95 % full: 5 MiB of"),
        (["/run", "tmpfs", 80 * MIB, 100 * MIB, 950, 1000], "has 950 of the 1000 files"),
        (["/mem", "ramfs", 2 * GIB, 0, 0, 0], "takes 2048 MiB, 50 % of the guest's memory"),
        (["/run", "tmpfs", 80 * MIB, 100 * MIB, 5, 1000], ""),
        (["/mem", "ramfs", GIB // 2, 0, 0, 0], ""),
        (["/run", "tmpfs", "much", 1, 0, 0], ""),
    ],
)
def test_file_systems_in_memory(row: list[Any], says: str) -> None:
    found = judge(figures(9), figures(0) | {"filesystems": [row]})
    hints = [hint for hint in found.values() if row[0] in hint.reason]
    assert bool(hints) == bool(says)
    assert not says or says in hints[0].reason


# -- bad input -----------------------------------------------------------------------------------


def test_what_was_short_before_it_was_given_more_is_past() -> None:
    """Ballooned behind our back: it was short at one GiB, and has four now."""
    short = {"memory_total": GIB, "memory_available": 20 * MIB}
    samples = [figures(at, memory=short) for at in (60, 50)] + [figures(10), figures(0)]
    assert Window(samples).sized.samples == samples[2:]
    assert ("memory", "grow") not in judge(*samples)
    assert ("memory", "grow") in judge(*samples[:2])


def test_a_guest_that_lies_asks_for_no_more_than_twice_of_what_it_has() -> None:
    lies = {
        "memory_total": 1 << 62, "memory_available": 1, "swap_total": 1 << 62, "swap_free": 0,
        "active_file": 1 << 62,
    }  # fmt: skip
    hint = judge(figures(10, memory=lies), figures(0, memory=lies))["memory", "grow"]
    assert hint.recommended is not None
    assert hint.recommended <= 16 * GIB


@pytest.mark.parametrize("total", [-(1 << 63), 0, 1 << 64])
@pytest.mark.parametrize("name", ["memory_total", "memory_available", "swap_free", "dirty"])
def test_lying_memory_figures_do_no_harm(name: str, total: int) -> None:
    for hint in judge(figures(10), figures(0, memory={name: total})).values():
        assert hint.recommended is None or 0 <= hint.recommended <= 16 * GIB


def test_counters_that_run_backwards_or_wild_do_no_harm() -> None:
    wild = {"memory_some": {"total": 1 << 63}, "cpu_some": {"total": -5}, "io_some": {"total": -1}}
    found = judge(figures(10), figures(0, pressure=wild))
    assert "tasks waited for memory 100.0 % of the time" in found["memory", "grow"].reason
    rows = [[n, 1 << 64, 5, 5, True, -3, 1, True] for n in range(2)]
    judge(figures(10) | {"signs": rows}, figures(0) | {"signs": [[0, 0, 0, 0, 1, 1, 1, 1]]})


@pytest.mark.parametrize(
    "odd",
    [
        {"vcpus": [[0]]}, {"vcpus": 5}, {"vmm": 7}, {"vmm": {"nodes": [[0], "x", [0, "y"]]}},
        {"vmm": {"limits": []}}, {"host": {"node_memory": [[1]], "ksm": 5}}, {"signs": [[1, 2]]},
        {"signs": "x"}, {"filesystems": [["/", 5]]}, {"filesystems": [[1, 2, 3, 4, 5, 6]]},
        {"vmm": {"id": 5, "limits": {"cpus_max": "x", "memory_max": []}}}, {"host": []},
    ],
)  # fmt: skip
def test_odd_figures_of_the_host_do_no_harm(odd: dict[str, Any]) -> None:
    judge(figures(10) | odd, figures(0) | odd, whole=GIB)
    judge(figures(10), figures(0) | odd, identical=Identical(GIB, GIB, 0, 1, 1))


def test_without_psi_there_are_hints_all_the_same() -> None:
    samples = [figures(60), figures(0)]
    for sample in samples:
        del sample["pressure"]
    assert judge(*samples)["memory", "shrink"].recommended == 1408 * MIB
