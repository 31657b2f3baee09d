"""Pauses: counted, undone on every path, and never of a guest that somebody else has paused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from virtintrospect_kvm import guardian, pausing
from virtintrospect_kvm.brake import Brake, MonitorBrake
from virtintrospect_kvm.guardian import GONE_ON, STOPPED, Guardian
from virtintrospect_kvm.pausing import Pauser

from tests.descriptors import descriptors
from virtintrospect.driver import Capability, SupportsPause, Target
from virtintrospect.errors import MemoryAccessError, TargetGoneError, UsageError
from virtintrospect.session import Session

from .stub import FakeMachine, FakeMonitor


class FakeBrake(Brake):
    def __init__(self) -> None:
        self.running = True
        self.calls: list[str] = []
        self.fails: dict[str, BaseException] = {}

    def runs(self) -> bool:
        self._maybe("runs")
        return self.running

    def stop(self) -> None:
        self.calls.append("stop")
        self.running = False
        self._maybe("stop")

    def release(self) -> None:
        self._maybe("release")
        self.calls.append("release")
        self.running = True

    def _maybe(self, what: str) -> None:
        if what in self.fails:
            raise self.fails[what]


class FakeGuardian:
    def __init__(self, place: dict[str, Any]) -> None:  # noqa: ARG002
        self.said: list[bytes] = []
        self.closed = False

    def stopped(self) -> None:
        self.said.append(STOPPED)

    def gone_on(self) -> None:
        self.said.append(GONE_ON)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[FakeGuardian]:
    """The guardians that were started."""
    found: list[FakeGuardian] = []

    def make(place: dict[str, Any]) -> FakeGuardian:
        found.append(FakeGuardian(place))
        return found[-1]

    monkeypatch.setattr(pausing, "Guardian", make)
    return found


def test_counted(made: list[FakeGuardian]) -> None:
    brake = FakeBrake()
    pauser = Pauser(brake, {})
    for _ in range(3):
        pauser.pause()
    for _ in range(2):
        pauser.resume()
        assert not brake.running
    pauser.resume()
    assert brake.calls == ["stop", "release"]
    assert made[0].said == [STOPPED, GONE_ON]
    with pytest.raises(UsageError, match="not paused"):
        pauser.resume()
    pauser.pause()
    pauser.close()
    pauser.close()
    assert brake.calls == ["stop", "release"] * 2
    assert len(made) == 1
    assert made[0].closed


def test_a_guest_that_was_paused_before_stays_so(made: list[FakeGuardian]) -> None:
    brake = FakeBrake()
    brake.running = False
    pauser = Pauser(brake, {})
    pauser.pause()
    pauser.resume()
    pauser.pause()
    pauser.close()
    assert brake.calls == []
    assert made == []


def test_a_guest_that_somebody_let_go_on_meanwhile(made: list[FakeGuardian]) -> None:
    brake = FakeBrake()
    pauser = Pauser(brake, {})
    pauser.pause()
    brake.running = True
    pauser.resume()
    assert brake.calls == ["stop"]
    assert made[0].said[-1] == GONE_ON


def test_a_guest_that_has_ended(made: list[FakeGuardian]) -> None:
    brake = FakeBrake()
    pauser = Pauser(brake, {})
    pauser.pause()
    brake.fails["runs"] = TargetGoneError("it has ended")
    pauser.resume()
    pauser.close()
    assert made[0].said[-1] == GONE_ON


@pytest.mark.parametrize("error", [MemoryAccessError("busy"), KeyboardInterrupt()])
def test_a_stop_that_fails_half_way(made: list[FakeGuardian], error: BaseException) -> None:
    brake = FakeBrake()
    brake.fails["stop"] = error
    pauser = Pauser(brake, {})
    with pytest.raises(type(error)):
        pauser.pause()
    assert brake.running
    assert made[0].said == [STOPPED, GONE_ON]
    with pytest.raises(UsageError):
        pauser.resume()


def test_a_guest_that_cannot_be_let_go_on(
    made: list[FakeGuardian], caplog: pytest.LogCaptureFixture
) -> None:
    """The guardian was not told that all is well: it tries once more at the end."""
    brake = FakeBrake()
    pauser = Pauser(brake, {})
    pauser.pause()
    brake.fails["release"] = MemoryAccessError("libvirt went away")
    with pytest.raises(MemoryAccessError):
        pauser.resume()
    pauser.close()
    assert "virsh resume" in caplog.text
    assert made[0].said == [STOPPED]
    assert made[0].closed


def test_qemus_own_monitor() -> None:
    monitor = FakeMonitor(FakeMachine())
    brake = MonitorBrake(monitor)
    assert not brake.runs()  # an answer that makes no sense
    brake.stop()
    brake.release()
    assert monitor.commands == ["query-status", "stop", "cont"]


# -- a guardian is a process -------------------------------------------------------------------


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when a guardian lets a guest go on."""
    path = tmp_path / "let-go"
    write = f"guardian.let_go = lambda place: open({str(path)!r}, 'w').write(place['name'])\n"
    program = guardian._PROGRAM.replace("guardian.main", write + "guardian.main")
    monkeypatch.setattr(guardian, "_PROGRAM", program)
    return path


@pytest.mark.parametrize(
    ("said", "lets_go"), [([], False), ([STOPPED], True), ([STOPPED, GONE_ON], False)]
)
def test_guardian_does_what_is_left_undone(
    witness: Path, said: list[bytes], *, lets_go: bool
) -> None:
    before = descriptors()
    started = Guardian({"name": "web01"})
    for what in said:
        started._say(what)
    started.close()
    started._process.wait(120)
    assert witness.exists() == lets_go
    assert not lets_go or witness.read_text() == "web01"
    assert descriptors() - before == set()


def test_guardian_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | None] = [MemoryAccessError("busy"), MemoryAccessError("busy"), None]
    tried = []

    def let_go(place: dict[str, Any]) -> None:
        tried.append(place)
        answer = answers[len(tried) - 1]
        if answer is not None:
            raise answer

    monkeypatch.setattr(guardian, "let_go", let_go)
    monkeypatch.setattr(guardian.time, "sleep", lambda _: None)  # type: ignore[attr-defined]
    guardian._let_go_at_last({"name": "web01"})
    assert len(tried) == 3
    answers[0], tried[:] = TargetGoneError("it has ended"), []
    guardian._let_go_at_last({})
    assert len(tried) == 1
    answers[0], tried[:] = MemoryAccessError("busy"), []
    monkeypatch.setattr(guardian, "_PATIENCE", -1)
    with pytest.raises(MemoryAccessError):
        guardian._let_go_at_last({})
    assert len(tried) == 1


def test_guardian_that_was_killed(witness: Path) -> None:
    started = Guardian({"name": "web01"})
    started._process.kill()
    started._process.wait()
    with pytest.raises(MemoryAccessError, match="has ended itself"):
        started.stopped()
    started.close()
    assert not witness.exists()


def test_guardian_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    brake = FakeBrake()
    before = descriptors()
    for program in ("/nonexistent", "/bin/true"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(
            MemoryAccessError, match=r"cannot be started|does not come up"
        ) as caught:
            Pauser(brake, {}).pause()
        assert "the guest is not stopped" in caught.value.hint
    assert brake.calls == []
    assert descriptors() - before == set()


# -- sessions ----------------------------------------------------------------------------------


class PausedTarget(Target):
    """Counts, and nothing else."""

    def __init__(self) -> None:
        self.depth = 0

    @property
    def memory(self) -> Any:
        from tests.unit.images import BuiltMemory

        return BuiltMemory(4096)

    def pause(self) -> float:
        self.depth += 1
        return 0.0

    def resume(self) -> None:
        self.depth -= 1

    def close(self) -> None:
        pass


def test_session_always_resumes() -> None:
    target = PausedTarget()
    assert isinstance(target, SupportsPause)
    assert target.capabilities() == {Capability.PAUSE}
    with Session(target) as session:
        with session.paused() as pause, session.paused():
            assert target.depth == 2
            assert pause.ended is None
            assert pause.seconds > 0
        assert target.depth == 0
        assert pause.ended is not None
        assert pause.seconds == pause.ended
        with pytest.raises(ZeroDivisionError), session.paused():
            _ = 1 / 0
        assert target.depth == 0
        with session.paused():
            session.close()
        with pytest.raises(UsageError, match="closed"), session.paused():
            pass
