"""Hints from figures that no guest of the lab gives: steal, thrashing, stale or odd history."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from virtintrospect.cli.main import run
from virtintrospect.domain import Domain
from virtintrospect.errors import OutputError, TargetGoneError, UsageError
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window, read_history
from virtintrospect.insight.policy import load_policy
from virtintrospect.plugin import adjust
from virtintrospect.plugin.adjust import changes, follow

MIB = 1 << 20
GIB = 1 << 30
XML = """<domain><memory unit='KiB'>4194304</memory>
<currentMemory unit='KiB'>4194304</currentMemory><vcpu placement='static' current='2'>8</vcpu>
<devices><memballoon model='virtio'/></devices></domain>"""
DOMAIN = Domain("web 01", "u", 1, "running", "QEMU", "qemu:///system", xml=XML)


@lru_cache(maxsize=1)
def began(_test: str) -> float:
    """When a test began: its samples are apart as it says, however long it takes to make them."""
    return time.time()


def figures(at: float, **changes: Any) -> dict[str, Any]:
    """A sample of a guest of 4 GiB that uses one, its CPUs half busy; ``at`` seconds ago."""
    done = 100_000 - int(at * 1000)
    taken: dict[str, Any] = {
        "time": began(os.environ["PYTEST_CURRENT_TEST"]) - at,
        "memory": {
            "memory_total": 4 * GIB, "memory_free": 2 * GIB, "memory_available": 3 * GIB,
            "active_file": 256 * MIB, "inactive_file": 0, "swap_total": 0, "swap_free": 0,
            "dirty": 0, "writeback": 0,
        },
        "cpu": {"user": done, "system": 0},
        "each_cpu": [[n, done // 2, 0, 0, done // 2, 0, 0, 0, 0] for n in range(2)],
        "load": {"running": 1},
        "pressure": {f"{name}_some": {"total": 0} for name in ("memory", "cpu", "io")},
        "events": {"refault": 0, "swap_in": 0, "swap_out": 0, "oom_kills": 0, "paged_in": 0},
        "tasks": {"zombies": 0, "threads": 100, "waiting": [], "largest": [], "busiest": []},
        "drivers": {"balloon": 1},
    }  # fmt: skip
    for name, values in changes.items():
        taken[name] = taken[name] | values if isinstance(values, dict) else values
    return taken


def judge(*samples: dict[str, Any], policy: str = "balanced", **facts: Any) -> dict[Any, Any]:
    known = {"domain": DOMAIN} | facts
    found = hints(Facts(Window(samples), load_policy(policy), **known))
    return {(hint.resource, hint.action): hint for hint in found}


def test_half_of_it_would_do() -> None:
    """1 GiB in use, 256 MiB of cache in use, and the policy's tenth on top."""
    found = judge(figures(60), figures(0))
    hint = found["memory", "shrink"]
    assert hint.recommended == 1408 * MIB
    assert hint.virsh == "virsh -c qemu:///system setmem 'web 01' 1441792 --live"
    assert found.keys() == {("memory", "shrink")}


def test_policies_differ_in_what_they_leave() -> None:
    wanted = [
        judge(figures(60), figures(0), policy=name)["memory", "shrink"].recommended
        for name in ("conservative", "balanced", "dense")
    ]
    assert wanted == [1600 * MIB, 1408 * MIB, 1210 * MIB]


def test_nothing_is_taken_by_stale_figures() -> None:
    assert judge(figures(900), figures(600)) == {}


def test_nothing_is_taken_while_pages_come_back() -> None:
    assert judge(figures(10), figures(0, events={"refault": 1000})) == {}


def test_nothing_is_taken_while_tasks_wait() -> None:
    waits = {"memory_some": {"total": 100_000}}  # microseconds: 1 % of 10 s
    assert ("memory", "shrink") not in judge(figures(10), figures(0, pressure=waits))


def test_nothing_is_taken_while_a_program_takes_more() -> None:
    """Less than is called a leak, and MemAvailable does not show it: CPUs had kept it free."""

    def grown(*sizes: int) -> dict[Any, Any]:
        return judge(*(
            figures(10 * (len(sizes) - at), tasks={"largest": [[7, "x", mib * MIB]]})
            for at, mib in enumerate(sizes)
        ))  # fmt: skip

    found = grown(*range(100, 200, 10))
    assert ("memory", "shrink") not in found
    assert ("memory", "watch") not in found
    assert ("memory", "shrink") in grown(*range(100, 150, 5))  # less than the dead band
    assert ("memory", "shrink") in grown(100, 150, 190, 190, 190, 190, 190, 190, 190, 190)


def test_small_changes_are_no_hint() -> None:
    close = {"memory_available": 700 * MIB}
    assert ("memory", "shrink") not in judge(figures(10, memory=close), figures(0, memory=close))


def test_the_worst_moment_counts() -> None:
    worst = {"memory_available": 2 * GIB}
    samples = [figures(40), figures(30, memory=worst), figures(20), figures(10), figures(0)]
    assert judge(*samples)["memory", "shrink"].recommended == 2535 * MIB  # 2304 and a tenth


def test_thrashing() -> None:
    swap = {"swap_total": GIB, "swap_free": GIB // 2}
    events = {"swap_in": 6000, "swap_out": 7000}
    hint = judge(figures(60, memory=swap), figures(0, memory=swap, events=events))["memory", "grow"]
    assert "it swaps 117 pages a second out and 100 in" in hint.reason
    assert hint.recommended == 5 * GIB
    assert hint.virsh == "virsh -c qemu:///system setmaxmem 'web 01' 5242880 --config"


def test_memory_that_is_there_is_given_by_the_balloon() -> None:
    xml = XML.replace("<memory unit='KiB'>4194304", "<memory unit='KiB'>8388608")
    domain = dataclasses.replace(DOMAIN, xml=xml)
    low = {"memory_available": 100 * MIB}
    hint = judge(figures(9, memory=low), figures(0, memory=low), domain=domain)["memory", "grow"]
    assert hint.virsh == "virsh -c qemu:///system setmem 'web 01' 5242880 --live"


@pytest.mark.parametrize("drivers", [{"balloon": 0}, {"balloon": 1}])
def test_a_guest_without_a_balloon_takes_a_restart(drivers: dict[str, int]) -> None:
    domain = DOMAIN
    if drivers["balloon"]:  # the driver alone does not help
        domain = dataclasses.replace(DOMAIN, xml=XML.replace("'virtio'", "'none'"))
    samples = figures(10, drivers=drivers), figures(0, drivers=drivers)
    hint = judge(*samples, domain=domain)["memory", "shrink"]
    assert "restart" in hint.reason
    assert "--config" in hint.virsh


IDLE = [[[n, 0, 0, 0, at, 0, 0, 0, 0] for n in range(4)] for at in (0, 100_000)]
_VCPUS = "<vcpu id='0' enabled='yes' hotpluggable='no'/>" + "".join(
    f"<vcpu id='{n}' enabled='yes' hotpluggable='yes' order='{n}'/>" for n in (1, 2, 3)
)


@pytest.mark.parametrize(("vcpus", "how"), [("", "--config"), (_VCPUS, "--live")])
def test_only_plugged_vcpus_can_be_taken_from_a_running_guest(vcpus: str, how: str) -> None:
    domain = dataclasses.replace(
        DOMAIN, xml=XML.replace("<devices>", f"<vcpus>{vcpus}</vcpus><devices>")
    )
    found = judge(figures(100, each_cpu=IDLE[0]), figures(0, each_cpu=IDLE[1]), domain=domain)
    hint = found["cpu", "shrink"]
    assert hint.virsh == f"virsh -c qemu:///system setvcpus 'web 01' 1 {how}"
    assert ("restart" in hint.reason) == (how == "--config")


def test_steal() -> None:
    each = [[n, 50_000, 0, 0, 0, 0, 0, 0, 50_000] for n in range(2)]
    nothing = [[n, 0, 0, 0, 0, 0, 0, 0, 0] for n in range(2)]
    found = judge(figures(100, each_cpu=nothing), figures(0, each_cpu=each))
    assert "the host kept 50 % of the time from it" in found["cpu", "host"].reason
    assert ("cpu", "shrink") not in found


def test_interrupts_on_one_cpu() -> None:
    before = [[n, 0, 0, 0, 0, 0, 0, 0, 0] for n in range(4)]
    after = [[n, 0, 0, 0, 100_000, 0, 0, 0, 0] for n in range(3)]
    after.append([3, 0, 0, 5_000, 0, 0, 0, 95_000, 0])
    found = judge(figures(100, each_cpu=before), figures(0, each_cpu=after))
    assert "CPU 3 was busy 100 %" in found["cpu", "watch"].reason
    assert "interrupts are pinned to it" in found["cpu", "watch"].reason


def test_a_backlog_of_dirty_pages() -> None:
    much = {"dirty": GIB}
    found = judge(figures(10, memory=much), figures(0, memory=much))
    assert "1024 MiB wait to be written" in found["io", "watch"].reason


def test_a_slab_that_leaks() -> None:
    samples = [figures(100 - 10 * n, slabs=[["dentry", n * 40 * MIB]]) for n in range(11)]
    assert "slab dentry grew by 400 MiB" in judge(*samples)["memory", "watch"].reason


def test_a_cache_that_only_filled_up_is_no_leak() -> None:
    sizes = [0, 200, 390, 400, 400, 400, 400, 400, 400]
    samples = [figures(90 - 10 * n, slabs=[["x", mib * MIB]]) for n, mib in enumerate(sizes)]
    assert ("memory", "watch") not in judge(*samples)


def test_what_the_guest_has_free_and_the_host_holds() -> None:
    hint = judge(figures(10), figures(0), held=GIB)["memory", "reclaim"]
    assert "the host holds 1024 MiB that the guest has free" in hint.reason
    assert hint.virsh == (
        "virsh -c qemu:///system setmem 'web 01' 2307072 --live && sleep 20 && "
        "virsh -c qemu:///system setmem 'web 01' 4194304 --live"
    )
    xml = XML.replace("model='virtio'", "model='virtio' freePageReporting='on'")
    domain = dataclasses.replace(DOMAIN, xml=xml)
    assert ("memory", "reclaim") not in judge(figures(10), figures(0), held=GIB, domain=domain)


def test_before_a_reboot_counts_nothing() -> None:
    window = Window([figures(30), figures(20), figures(10, cpu={"user": 5}), figures(0)])
    assert len(window) == 2


@pytest.mark.parametrize(
    "odd",
    [
        {"memory": None}, {"memory": {"memory_total": "much"}}, {"each_cpu": [[1]]},
        {"each_cpu": [1, None]}, {"tasks": {"largest": [7], "busiest": [[1, 2]]}}, {"pressure": []},
        {"slabs": {"a": 1}}, {"events": {"refault": True}}, {"load": "x"}, {"cache": 5},
        {"cache": {"files": 1, "touched": 2, "mapped": 3}}, {"cache": {"total": 1, "touched": []}},
        {"cache": {"used_again": 1, "uncounted": 5}}, {"cache": {"on_cpus": "many", "kept": {}}},
    ],
)  # fmt: skip
def test_figures_of_another_release_do_no_harm(odd: dict[str, Any]) -> None:
    judge(figures(100) | odd, figures(0) | odd)
    judge(figures(10), figures(0) | odd)


@pytest.mark.parametrize("more", [["--all"], ["x", "--apply"], ["x", "--for", "5s"],
                                  ["x", "--plot", "a.png"], ["x", "--explain"],
                                  ["x", "--policy", "dense"]])  # fmt: skip
def test_undo_has_no_use_for_other_options(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["hints", "--undo", *more]) == 2
    assert "--undo takes a TARGET" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "warned"), [(["--last", "7d"], True), ([], False)])
def test_history_that_was_asked_for_and_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, more: list[str],
    warned: bool,
) -> None:  # fmt: skip
    from contextlib import nullcontext

    from virtintrospect import session
    from virtintrospect.cli import hints as command

    opened = nullcontext(SimpleNamespace(domain=None))
    monkeypatch.setattr(session, "open_session", lambda *_, **__: opened)
    monkeypatch.setattr(command, "_watch", lambda *_: [[]])
    monkeypatch.setattr(command, "_judge", lambda *_: (None, []))
    assert run(["hints", "web01", *more]) == 0
    assert ("no history of web01" in capsys.readouterr().err) is warned


@pytest.mark.parametrize("more", [["--all"], ["x", "--apply"], ["x", "--undo"]])
def test_a_guest_in_a_guest_is_only_looked_at(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["hints", "--nested", "inner", *more]) == 2
    assert "--nested looks into one guest only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "taken"),
    [("web01", "web01"), ("web 01", "'web 01'"), ("7", "u"), ("--config", "u"), ("7up", "7up"),
     ("4c6b1b3a-1c1e-4a41-9a7d-6f7f7f3f1d11", "u"), ("$(reboot)", "'$(reboot)'")],
)  # fmt: skip
def test_a_domain_s_name_stays_a_name(name: str, taken: str) -> None:
    facts = Facts(Window(()), load_policy("balanced"), dataclasses.replace(DOMAIN, name=name))
    assert facts.virsh("setmem", "1024") == f"virsh -c qemu:///system setmem {taken} 1024"


def test_no_samples_no_hints() -> None:
    assert judge() == {}


def test_history_of_the_daemon(tmp_path: Path) -> None:
    old, new = figures(50), figures(10)
    (tmp_path / "u.1.jsonl").write_text(json.dumps(old) + "\n")
    (tmp_path / "u.jsonl").write_text(json.dumps(new) + '\n{"time": 12, "cut\n[]\n{"time": "x"}\n')
    assert read_history(tmp_path, "u") == [old, new]
    assert read_history(tmp_path, "u", since=time.time() - 30) == [new]
    assert read_history(tmp_path, "other") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[balanced]\nreserve = 1", "no threshold 'reserve'"),
        ("[balanced]\nreserve_percent = -1", "a number from 0 on, not -1"),
        ("[balanced]\nreserve_percent = true", "a number from 0 on, not True"),
        ("balanced = 1", "a policy is a table"),
        ("[balanced", "policies.toml: "),
    ],
)
def test_mistakes_in_a_policy(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_policy("balanced", path)
    assert says in caught.value.message


def test_an_operators_own_policy(tmp_path: Path) -> None:
    path = tmp_path / "policies.toml"
    path.write_text("[default]\nzombies = 5\n[mine]\nreserve_percent = 1\n")
    policy = load_policy("mine", path)
    assert (policy.name, policy.zombies, policy.reserve_percent) == ("mine", 5, 1)
    with pytest.raises(UsageError) as caught:
        load_policy("other", path)
    assert "conservative, balanced, dense, mine" in caught.value.hint


class _Host:
    """A libvirt that notes what it is asked for; ``says`` is the balloon that it tells of."""

    def __init__(self, asked: list[int], says: int = 0, *, before: int = 4096) -> None:
        self.asked, self.says, self.before = asked, says, before

    def set_memory(self, _uuid: str, kib: int) -> None:
        self.asked.append(kib >> 10)

    def domain(self, _uuid: str) -> Domain:
        kib = (self.says if self.asked and self.says else (self.asked or [self.before])[-1]) << 10
        return dataclasses.replace(DOMAIN, xml=XML.replace(">4194304</c", f">{kib}</c"))


def test_a_guest_that_can_no_longer_be_watched_gets_its_last_step_back(tmp_path: Path) -> None:
    hint = judge(figures(60), figures(0))["memory", "shrink"]
    asked: list[int] = []
    host = cast(Any, _Host(asked))

    def gone() -> Any:
        raise TargetGoneError("it ended")

    log = tmp_path / "log"
    with pytest.raises(TargetGoneError):
        follow(hint, DOMAIN, host, load_policy(), gone, log)
    assert asked == [3686, 4096]
    (change,) = changes(log, DOMAIN.uuid)
    assert (change.outcome, change.after) == ("stopped", 4096 * MIB)
    samples = iter([figures(0), figures(0)])

    def later() -> Any:
        return next(samples, None) or gone()

    policy = dataclasses.replace(load_policy(), settle_seconds=0.0)
    with pytest.raises(TargetGoneError):
        follow(hint, DOMAIN, cast(Any, _Host(asked := [])), policy, later, log)
    *_, change = changes(log, DOMAIN.uuid)
    assert change.after // MIB == asked[-1] < 4096


def test_what_cannot_be_noted_is_not_done(tmp_path: Path) -> None:
    hint = judge(figures(60), figures(0))["memory", "shrink"]
    asked: list[int] = []
    host = cast(Any, _Host(asked))
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "log"
    with pytest.raises(OutputError, match="cannot write"):
        follow(hint, DOMAIN, host, load_policy(), lambda: figures(0), log)
    assert not asked
    with pytest.raises(OutputError, match="cannot read"):
        changes(log, DOMAIN.uuid)


def test_a_balloon_that_somebody_else_sets_is_left_to_him(tmp_path: Path) -> None:
    hint = judge(figures(60), figures(0))["memory", "shrink"]
    asked: list[int] = []
    policy = dataclasses.replace(load_policy(), settle_seconds=0.0)
    host = cast(Any, _Host(asked, says=2048))
    done = follow(hint, DOMAIN, host, policy, lambda: figures(0), tmp_path / "log")
    assert asked == [3686]  # and nothing after that
    assert done.after == 2048 * MIB
    assert done.outcome == "stopped: somebody else set its balloon to 2048 MiB"


def test_a_hint_of_before_somebody_else_changed_it_is_not_followed(tmp_path: Path) -> None:
    hint = judge(figures(60), figures(0))["memory", "shrink"]
    asked: list[int] = []
    host = cast(Any, _Host(asked, before=2048))
    with pytest.raises(UsageError, match="has 2048 MiB by now, not 4096 MiB"):
        follow(hint, DOMAIN, host, load_policy(), lambda: figures(0), tmp_path / "log")
    assert not asked
    assert not (tmp_path / "log").exists()


def test_no_memory_is_given_that_a_control_group_forbids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjust, "host_available", lambda: 1 << 40)
    xml = XML.replace("<memory unit='KiB'>4194304", "<memory unit='KiB'>8388608")
    domain = dataclasses.replace(DOMAIN, xml=xml)
    low = {"memory_available": 100 * MIB}
    hint = judge(figures(9, memory=low), figures(0, memory=low), domain=domain)["memory", "grow"]
    assert hint.recommended == 5 * GIB
    asked: list[int] = []

    def given(limit: int) -> None:
        limits = {"memory_max": limit, "memory_group": "/machine/web"}
        taken = figures(0) | {"vmm": {"id": "1:1", "limits": limits}}
        host = cast(Any, _Host(asked))
        follow(hint, domain, host, load_policy(), lambda: taken, tmp_path / "log")

    given(4 * GIB + 512 * MIB)
    assert asked == [4608]
    asked.clear()
    with pytest.raises(UsageError, match="group /machine/web allows the domain's memory no more"):
        given(4 * GIB)
    assert not asked
