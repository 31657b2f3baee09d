"""The state machine: every way it may go, and no other."""

from __future__ import annotations

import pytest

from virtintrospect.daemon.state import TRANSITIONS, IllegalTransitionError, Machine, State


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_transitions(before: State, after: State) -> None:
    machine = Machine()
    machine.state = before
    if after in TRANSITIONS[before]:
        assert machine.move(after)
        assert machine.state is after
    elif before is after:
        assert not machine.move(after)
    else:
        with pytest.raises(IllegalTransitionError, match=f"from {before} to {after}"):
            machine.move(after)
        assert machine.state is before


def test_gone_is_the_end_and_reached_from_everywhere() -> None:
    assert not TRANSITIONS[State.GONE]
    assert all(State.GONE in after for state, after in TRANSITIONS.items() if state != State.GONE)
