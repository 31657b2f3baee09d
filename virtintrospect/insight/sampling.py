"""Samples of one guest at short intervals: cheap figures each time, dear ones now and then."""

from __future__ import annotations

import time

from virtintrospect.driver import Target
from virtintrospect.guests.base import Guest
from virtintrospect.insight.figures import Sample, sample

#: What each sample has: sums that the kernel keeps, whatever the guest does.
CHEAP = ("memory", "each_cpu", "load", "pressure", "events")
#: All else goes through lists of the guest's, and takes at most this share of a core.
_SHARE = 0.0005


class Sampling:
    """Takes samples of a guest, and keeps what they cost within bounds.

    :param share: of a core, that what is dear may take.
    """

    def __init__(self, share: float = _SHARE) -> None:
        self._share = share
        self._next = 0.0

    def take(self, guest: Guest, target: Target | None = None) -> Sample:
        """A sample: with all there is where that is due, else with :data:`CHEAP` ones."""
        began = time.monotonic()
        if began < self._next:
            return sample(guest, target, CHEAP)
        spent = time.thread_time()
        taken = sample(guest, target)
        self._next = began + (time.thread_time() - spent) / self._share
        return taken
