"""Hints that are followed and undone: by the library, the command and the daemon."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from virtintrospect.cli.main import cli
from virtintrospect.daemon.config import Govern, History
from virtintrospect.daemon.figures import Sampler
from virtintrospect.daemon.govern import Governor, Wish
from virtintrospect.daemon.state import State
from virtintrospect.errors import UsageError
from virtintrospect.host import Host
from virtintrospect.insight.figures import Sample, sample
from virtintrospect.insight.hints import hints
from virtintrospect.model import Hint
from virtintrospect.plugin import adjust
from virtintrospect.plugin.adjust import changes, follow, undo, within_limits
from virtintrospect.session import Session, open_session

from .lab.guest import Guest, GuestError
from .lab.initramfs import program
from .lab.kernels import loose_module
from .loads import CONFIG, MIB, POLICY, available, load, one, run, watch


@pytest.fixture(scope="module")
def loads(lab: Any) -> Iterator[Guest]:
    guest: Guest = lab.guest(CONFIG)
    guest.put("/tmp/load", program("load").read_bytes(), 0o755)
    yield guest
    lab.release(CONFIG)


@pytest.fixture(scope="module")
def ballooned(loads: Guest) -> Guest:
    """The guest, with a driver for its balloon."""
    loads.put("/tmp/virtio_balloon.ko", loose_module(CONFIG.kernel, "virtio_balloon"))
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
