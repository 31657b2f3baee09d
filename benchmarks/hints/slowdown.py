"""The guest's own work before and after its memory was taken as recommended.

CPU time of the vCPUs' threads on the host for each pass of the guest's program, which no other
load of this machine counts into; pairs of before and after, in turns, so that what the machine
does besides (caches, clock) falls on both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.hints.advisors import MIB, POLICY
from benchmarks.hints.scenarios import SCENARIOS, Scenario, guest_of, state, watch
from benchmarks.hints.store import Store
from tests.guests.lab.guest import Guest
from virtintrospect.driver import SupportsVcpuTimes
from virtintrospect.host import Host
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import hints
from virtintrospect.plugin.adjust import follow, undo
from virtintrospect.session import Session, open_session

_NAMES = ("works in 400 MiB", "reads 300 MiB again and again")
_ROUNDS, _SECONDS = 3, 15.0


def main(store: Store) -> None:
    """So many pairs of each scenario."""
    for scenario in SCENARIOS:
        key = {"part": "slowdown", "kernel": "6.12", "scenario": scenario.name}
        if scenario.name not in _NAMES or store.has(**key):
            continue
        with guest_of("6.12") as guest:
            store.add(key, **_pairs(guest, scenario))


def _pairs(guest: Guest, scenario: Scenario) -> dict[str, object]:
    pairs, outcomes = [], []
    with (
        state(guest, scenario),
        open_session(guest.name) as session,
        Host("qemu:///system", writable=True) as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        log = Path(folder, "log")
        for _ in range(_ROUNDS):
            before = _cost_of_a_pass(guest, session)
            found = hints(watch(session, 5))
            hint = next(h for h in found if (h.resource, h.action) == ("memory", "shrink"))
            domain = host.domain(guest.name)
            done = follow(hint, domain, host, POLICY, lambda: _sample(session), log)
            time.sleep(5)
            after = _cost_of_a_pass(guest, session)
            pairs.append((before, after))
            outcomes.append([done.before // MIB, done.after // MIB, done.outcome])
            undo(domain, host, log)
            time.sleep(5)
    changes = [100 * (after - before) / before for before, after in pairs]
    return {
        "pairs_ms": [(round(a, 3), round(b, 3)) for a, b in pairs],
        "change_percent": round(statistics.median(changes), 2),
        "changes_percent": [round(change, 2) for change in changes],
        "outcomes": outcomes,
    }


def _sample(session: Session) -> dict[str, object]:
    return sample(session.guest, session.target)


def _cost_of_a_pass(guest: Guest, session: Session) -> float:
    """Milliseconds of the host's CPU that a pass over its memory takes."""
    ran, passes = _ran(session), _passes(guest)
    time.sleep(_SECONDS)
    return (_ran(session) - ran) / 1e6 / max(1, _passes(guest) - passes)


def _ran(session: Session) -> int:
    """Nanoseconds that the vCPUs' threads have run, by the host's scheduler."""
    assert isinstance(session.target, SupportsVcpuTimes)
    return sum(one.ran for one in session.target.vcpu_times())


def _passes(guest: Guest) -> int:
    """How often its program has been through its memory, or its file."""
    return int(guest.run("cat /tmp/load.passes 2>/dev/null || wc -l < /tmp/passes").split()[0])
