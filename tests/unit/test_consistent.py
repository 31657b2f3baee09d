"""Views of one moment: the guest stands still for as long as needed, and goes on in any case."""

from __future__ import annotations

import time
from typing import Any

import pytest

from virtintrospect.consistent import at_one_moment
from virtintrospect.driver import Target
from virtintrospect.errors import GuestNotRecognisedError, UnsupportedError
from virtintrospect.guests.base import Guest
from virtintrospect.memory import PhysicalMemory
from virtintrospect.session import Session


class Nothing(PhysicalMemory):
    def _read_within(self, index: int, paddr: int, size: int) -> bytes:
        raise AssertionError((index, paddr, size))


class Bare(Target):
    transport = "built"

    @property
    def memory(self) -> PhysicalMemory:
        return Nothing()

    def close(self) -> None:
        pass


class Pausing(Bare):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self) -> float:
        self.calls.append("pause")
        return time.monotonic()

    def resume(self) -> None:
        self.calls.append("resume")


class Known:
    """As much of a guest as is asked for."""

    live = True

    def __init__(self, target: Pausing) -> None:
        self.calls = target.calls
        self.problems = ["of the first read"]

    def take_problems(self) -> list[str]:
        taken, self.problems = self.problems, []
        return taken


def session_of(target: Target, guest: Known | None, monkeypatch: pytest.MonkeyPatch) -> Session:
    session = Session(target)

    def found(_: Session) -> Known:
        if guest is None:
            raise GuestNotRecognisedError("none")
        return guest

    monkeypatch.setattr(Session, "guest", property(found))
    return session


def test_read_twice_and_paused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Pausing()
    guest = Known(target)

    def read(it: Guest) -> int:
        target.calls.append(f"read {'live' if it.live else 'still'}")
        time.sleep(0.01)
        return 7

    began = time.monotonic()
    view = at_one_moment(session_of(target, guest, monkeypatch), read)
    took = (time.monotonic() - began) * 1000
    assert target.calls == ["read live", "pause", "read still", "resume"]
    assert (view.found, view.whole) == (7, True)
    assert 10 <= view.pause_ms < took
    assert guest.live
    assert not guest.problems


def test_goes_on_when_reading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Pausing()
    guest = Known(target)

    def read(it: Any) -> None:
        if not it.live:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        at_one_moment(session_of(target, guest, monkeypatch), read)
    assert target.calls == ["pause", "resume"]
    assert guest.live


def test_goes_on_when_reading_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Pausing()
    took = []

    def read(it: Any) -> None:
        if it.live:
            return
        began = time.monotonic()
        while "resume" not in target.calls:
            assert time.monotonic() < began + 60
            time.sleep(0.01)
        time.sleep(0.2)
        took.append((time.monotonic() - began) * 1000)

    view = at_one_moment(session_of(target, Known(target), monkeypatch), read, patience=0.05)
    assert target.calls == ["pause", "resume"]
    assert not view.whole
    assert 50 <= view.pause_ms < took[0]


def test_not_paused_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="cannot stop the guest"):
        at_one_moment(session_of(Bare(), None, monkeypatch), lambda _: None)
    target = Pausing()
    with pytest.raises(GuestNotRecognisedError):
        at_one_moment(session_of(target, None, monkeypatch), lambda _: None)
    assert target.calls == []
