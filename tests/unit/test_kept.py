"""What a batch keeps open, and when it does not use it again."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from virtintrospect.cli import kept as module
from virtintrospect.cli.kept import Kept
from virtintrospect.domain import Domain
from virtintrospect.driver import READ_ONLY, Access
from virtintrospect.errors import MemoryAccessError, NotFoundError, TargetGoneError

WEB = Domain("web01", "u1", 7, "running", "QEMU", "qemu:///system", "<domain/>")


class Session:
    """Says when it is closed, and what was dropped of what it had read."""

    last = None

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = False
        self.memory = self
        self.expired = 0

    def expire(self) -> None:
        self.expired += 1

    def close(self) -> None:
        self.closed = True


class Host:
    """A connection; ``broken`` once its libvirt is gone."""

    def __init__(self) -> None:
        self.broken = self.closed = False

    def domain(self, _target: str) -> Domain:
        if self.broken:
            raise MemoryAccessError("libvirt does not answer")
        return WEB

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    sessions: list[Session] = []

    def open_domain(_domain: Domain, _store: Any) -> Session:
        sessions.append(Session(len(sessions)))
        return sessions[-1]

    monkeypatch.setattr(module, "open_domain", open_domain)
    return sessions


def ask(kept: Kept, domain: Domain = WEB) -> int:
    with kept.of(domain) as session:
        return session.number  # type: ignore[attr-defined, no-any-return]


def test_a_session_is_used_again(opened: list[Session]) -> None:
    kept = Kept()
    assert [ask(kept), ask(kept)] == [0, 0]
    assert opened[0].expired == 1
    kept.close()
    assert opened[0].closed
    assert ask(kept) == 1


@pytest.mark.parametrize("change", [{"id": 8}, {"state": "paused"}, {"xml": "<domain><memory/>"}])
def test_another_domain_has_another_session(opened: list[Session], change: dict[str, Any]) -> None:
    """It was started anew, stopped, or its memory was plugged."""
    kept = Kept()
    assert [ask(kept), ask(kept, replace(WEB, **change))] == [0, 1]
    assert [session.closed for session in opened] == [True, False]


@pytest.mark.parametrize(
    ("error", "again"), [(NotFoundError("no PSI"), True), (TargetGoneError("it ended"), False)]
)
def test_what_failed_is_not_used_again(
    opened: list[Session], error: Exception, again: bool
) -> None:
    kept = Kept()

    def fail() -> None:
        with kept.of(WEB):
            raise error

    with pytest.raises(type(error)):
        fail()
    assert opened[0].closed is not again
    assert (ask(kept) == 0) is again


def test_no_more_than_some(opened: list[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was used last stays."""
    monkeypatch.setattr(module, "_MOST", 2)
    kept = Kept()
    for uuid in "abacb":
        ask(kept, replace(WEB, uuid=uuid))
    assert [session.closed for session in opened] == [True, True, False, False]


def test_what_is_idle_is_closed(opened: list[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold the memory of a guest that has ended."""
    kept = Kept()
    monkeypatch.setattr(module, "_IDLE", 0.02)
    for number in range(2):  # again, when nothing was left
        with kept.command():
            assert ask(kept) == number
        deadline = time.monotonic() + 60
        while kept._watched and time.monotonic() < deadline:
            time.sleep(0.01)
        assert opened[number].closed


def test_nothing_is_closed_while_a_command_runs(opened: list[Session]) -> None:
    kept = Kept()
    with kept.command():
        ask(kept)
        closing = threading.Thread(target=kept.close)
        closing.start()
        assert not opened[0].closed
    closing.join(60)
    assert opened[0].closed


def test_a_libvirt_that_was_started_anew(
    opened: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts: list[Host] = []

    def connect(_uri: str | None) -> Host:
        hosts.append(Host())
        return hosts[-1]

    monkeypatch.setattr(module, "connect", connect)
    kept = Kept()
    for broken in (False, True):
        for host in hosts:
            host.broken = broken
        with kept.session("web01", None, READ_ONLY):
            pass
    assert [host.closed for host in hosts] == [True, False]
    assert len(opened) == 1


def test_what_is_more_than_looking_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def open_session(target: str, _uri: str | None, _store: Any, access: Access) -> str:
        asked.append((target, access))
        return "opened"

    monkeypatch.setattr(module, "open_session", open_session)
    kept = Kept()
    wanted = [("web01", Access(write=True)), ("./web01.core", READ_ONLY), ("qmp:/x", READ_ONLY)]
    for target, access in wanted:
        assert kept.session(target, None, access) == "opened"  # type: ignore[comparison-overlap]
    assert asked == wanted
