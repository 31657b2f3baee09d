"""What sampling costs: many real guests, each once a second."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks.hints.store import Store
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from virtintrospect.insight.sampling import Sampling
from virtintrospect.session import open_session

_GUESTS, _SECONDS = 20, 60
_CONFIG = Config(
    "6.12", backing="anonymous", pti=False, ram_mib=192, cmdline="psi=1 lab.sleepers=20"
)


def main(store: Store) -> None:
    """Boot them, one after the other, and sample them all for a minute."""
    key = {"part": "cost", "kernel": "6.12", "guests": _GUESTS}
    if store.has(**key):
        return
    with ExitStack() as stack:
        guests = [stack.enter_context(Guest(_CONFIG)) for _ in range(_GUESTS)]
        sessions = [stack.enter_context(open_session(guest.name)) for guest in guests]
        samplings = [(Sampling(), session.guest, session.target) for session in sessions]
        processes = [len(session.guest.processes()) for session in sessions]
        for sampling, guest, target in samplings:
            sampling.take(guest, target)
        cpu, start, rounds = time.process_time(), time.monotonic(), 0
        while (now := time.monotonic()) - start < _SECONDS:
            for sampling, guest, target in samplings:
                sampling.take(guest, target)
            rounds += 1
            time.sleep(max(0.0, start + rounds - time.monotonic()))
        spent = time.process_time() - cpu
        took = now - start
    store.add(
        key,
        percent_of_a_core=round(100 * spent / took, 2),
        ms_a_sample=round(1000 * spent / rounds / _GUESTS, 3),
        samples_a_second=round(rounds * _GUESTS / took, 1),
        processes=sum(processes) // _GUESTS,
    )
