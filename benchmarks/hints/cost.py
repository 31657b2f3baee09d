"""What sampling costs: many real guests, each once a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice

from benchmarks.hints.scenarios import BOOT_PATIENCE
from benchmarks.hints.store import Store
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from virtintrospect.insight.sampling import Sampling
from virtintrospect.session import open_session

_SESSIONS, _SECONDS = 20, 60
#: Seconds for which guests are booted: a busy machine does not get to all of them, and has
#: several sessions on each; what a session costs is its own all the same.
_PATIENCE = 1200.0
_CONFIG = Config(
    "6.12", backing="anonymous", pti=False, ram_mib=192,
    cmdline="psi=1 no_timer_check lab.sleepers=20",
)  # fmt: skip
KEY = {"part": "cost", "kernel": _CONFIG.kernel, "sessions": _SESSIONS}


def main(store: Store) -> None:
    """Boot them, one after the other, and sample them all for a minute."""
    with ExitStack() as stack:
        if not store.has(**KEY):
            measure(store, list(boot(stack)))


def measure(store: Store, guests: list[Guest]) -> None:
    """CPU time of this process alone, which does nothing but sample."""
    with ExitStack() as stack:
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
        KEY,
        guests=len(guests),
        # Of as many samples as there should be: a busy machine takes fewer.
        percent_of_a_core=round(100 * each * _SESSIONS, 2),
        ms_a_sample=round(1000 * each, 3),
        samples_a_second=round(rounds * _SESSIONS / took, 1),
        processes=sum(processes) // _SESSIONS,
    )


def boot(stack: ExitStack) -> Iterator[Guest]:
    """As many as there is time for."""
    end = time.monotonic() + _PATIENCE
    for number in range(_SESSIONS):
        if number and time.monotonic() > end:
            return
        yield stack.enter_context(Guest(_CONFIG, patience=BOOT_PATIENCE))
