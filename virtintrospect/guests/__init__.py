"""Guest operating systems: recognise what runs in a target's memory."""

from __future__ import annotations

from virtintrospect.driver import Target
from virtintrospect.guests.base import Guest
from virtintrospect.symbols.store import Store

__all__ = ["Guest", "identify"]


def identify(
    target: Target, store: Store, previous: Guest | None = None, *, thorough: bool = True
) -> Guest:
    """The guest that runs in a target; each known operating system is tried in turn.

    :param previous: the one that ran there before it rebooted.
    :param thorough: also look where the cost grows with the guest's memory.
    :raises GuestNotRecognisedError: none of them knows it.
    """
    from virtintrospect.guests.linux.identify import identify as linux

    return linux(target, store, previous, thorough=thorough)
