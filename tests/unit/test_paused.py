"""Stopping a guest for a `with` block (synthetic target)."""

from __future__ import annotations

import pytest

from tests.unit.images import BuiltMemory
from virtintrospect.driver import Target
from virtintrospect.errors import UnsupportedError
from virtintrospect.session import Session


class Running(Target):
    """A live target without anything but memory."""

    transport = "built"

    def __init__(self) -> None:
        self._memory = BuiltMemory(4096)

    @property
    def memory(self) -> BuiltMemory:
        return self._memory

    def close(self) -> None:
        pass


class Stoppable(Running):
    """One that counts how often it was stopped."""

    stops = 0

    def pause(self) -> None:
        self.stops += 1

    def resume(self) -> None:
        self.stops -= 1


def test_the_guest_goes_on_however_the_block_ends() -> None:
    target = Stoppable()
    with Session(target) as session:
        with session.paused() as same, session.paused():
            assert same is session
            assert target.stops == 2
        assert target.stops == 0
        with pytest.raises(ZeroDivisionError), session.paused():
            raise ZeroDivisionError
        assert target.stops == 0


def test_a_target_that_cannot_stop_says_so() -> None:
    with Session(Running()) as session, pytest.raises(UnsupportedError), session.paused():
        pass


def test_an_image_stands_still_already() -> None:
    target = Running()
    target.live = False
    with Session(target) as session, session.paused():
        pass
