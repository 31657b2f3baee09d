"""What sampling costs: many real guests, each once a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice

from benchmarks.hints.store import Store
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from virtintrospect.insight.sampling import Sampling
from virtintrospect.session import open_session

_SESSIONS, _SECONDS = 20, 60
#: Seconds for which guests are booted: a busy machine does not get to all of them, and has
#: several sessions on each; what a session costs is its own all the same.
_PATIENCE = 400.0
_CONFIG = Config(
    "6.12", backing="anonymous", pti=False, ram_mib=192,
    cmdline="psi=1 no_timer_check lab.sleepers=20",
)  # fmt: skip


def main(store: Store) -> None:
    """Boot them, one after the other, and sample them all for a minute."""
    key = {"part": "cost", "kernel": "6.12", "sessions": _SESSIONS}
    if store.has(**key):
        return
    with ExitStack() as stack:
        guests = list(_boot(stack))
        names = islice(cycle([guest.name for guest in guests]), _SESSIONS)
        sessions = [stack.enter_context(open_session(name)) for name in names]
        samplings = [(Sampling(), session.guest, session.target) for session in sessions]
        processes = [len(session.guest.processes()) for session in sessions]
        for sampling, guest, target in samplings:
            sampling.take(guest, target)
        cpu, start, rounds = time.process_time(), time.monotonic(), 0
        while time.monotonic() - start < _SECONDS:
            for sampling, guest, target in samplings:
                sampling.take(guest, target)
            rounds += 1
            time.sleep(max(0.0, start + rounds - time.monotonic()))
        spent = time.process_time() - cpu
        took = time.monotonic() - start
    each = spent / rounds / _SESSIONS
    store.add(
        key,
        guests=len(guests),
        # Of as many samples as there should be: a busy machine takes fewer.
        percent_of_a_core=round(100 * each * _SESSIONS, 2),
        ms_a_sample=round(1000 * each, 3),
        samples_a_second=round(rounds * _SESSIONS / took, 1),
        processes=sum(processes) // _SESSIONS,
    )


def _boot(stack: ExitStack) -> Iterator[Guest]:
    end = time.monotonic() + _PATIENCE
    for number in range(_SESSIONS):
        if number and time.monotonic() > end:
            return
        yield stack.enter_context(Guest(_CONFIG))
