"""The states of a session, and which one may follow which."""

from __future__ import annotations

import time
from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a domain's session stands."""

    #: libvirt knows the domain; its memory is not open yet.
    SEEN = "seen"
    #: Memory is open; no kernel has been recognised in it.
    WAITING = "waiting"
    #: A kernel was recognised, and runs.
    READY = "ready"
    #: Memory cannot be reached; it is tried again.
    LOST = "lost"
    #: The domain is shut off or away. Forgotten after a while.
    GONE = "gone"
    #: Somebody asked that this domain be left alone.
    DETACHED = "detached"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.SEEN: frozenset({State.WAITING, State.LOST, State.GONE, State.DETACHED}),
    # back to seen: QEMU's memory map changed, and is opened anew
    State.WAITING: frozenset({State.READY, State.SEEN, State.LOST, State.GONE, State.DETACHED}),
    State.READY: frozenset({State.WAITING, State.SEEN, State.LOST, State.GONE, State.DETACHED}),
    State.LOST: frozenset({State.SEEN, State.WAITING, State.GONE, State.DETACHED}),
    State.DETACHED: frozenset({State.SEEN, State.GONE}),
    State.GONE: frozenset(),
}


class IllegalTransitionError(Exception):
    """A session was told to go where it cannot: a mistake in the daemon itself."""


class Machine:
    """The state of one session, and since when it has been in it."""

    def __init__(self) -> None:
        self.state = State.SEEN
        #: Seconds since the epoch.
        self.since = time.time()

    def move(self, to: State) -> bool:
        """Go to another state; ``False`` where it is that one already.

        :raises IllegalTransitionError: it does not follow the present one.
        """
        if to is self.state:
            return False
        if to not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"a session cannot go from {self.state} to {to}")
        self.state, self.since = to, time.time()
        return True
