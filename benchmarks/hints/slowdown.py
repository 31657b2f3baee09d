"""The guest's own work with all of its memory, and with as much as was recommended.

The hint is followed as ``--apply`` follows it, once. Then the guest has both sizes in turns, in
pairs whose order changes, and what is compared is the CPU time of the vCPUs' threads on the host
for what the guest's program does meanwhile: no other load of this machine counts into it, and
what the machine does besides (caches, clock) falls on both. The program does not rest, so that
what an idle guest does is little against it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.hints.advisors import MIB, POLICY
from benchmarks.hints.scenarios import Scenario, one_by_one, settle, state, watch
from benchmarks.hints.store import Store
from tests.guests.lab.guest import Guest
from virtintrospect.driver import SupportsVcpuTimes
from virtintrospect.host import Host
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import hints
from virtintrospect.plugin.adjust import follow
from virtintrospect.session import Session, open_session

_NAMES = ("works in 400 MiB", "reads 300 MiB again and again")
#: Pairs, seconds of each half, and seconds after the balloon has moved.
_ROUNDS, _SECONDS, _REST = 20, 15.0, 2.0
#: Says how many passes there were. A pass over a file takes a second: at the end of one.
_COUNT = """
[ -e /tmp/load.passes ] && exec cat /tmp/load.passes
passes() { wc -l < /tmp/passes; }
before=$(passes); while [ $(passes) = $before ]; do sleep 0.1; done; passes
"""
#: What an interval may miss the median of all possible pairs by: a twentieth, both sides.
_MISSED = 0.05


def main(store: Store) -> None:
    """So many pairs of each scenario."""
    one_by_one(store, "slowdown", _NAMES, _pairs)


def _pairs(guest: Guest, scenario: Scenario) -> dict[str, object]:
    with (
        state(guest, scenario._replace(kind="work")),
        open_session(guest.name) as session,
        Host("qemu:///system", writable=True) as host,
        tempfile.TemporaryDirectory() as folder,
    ):
        log = Path(folder, "log")
        found = hints(watch(session, 9))
        hint = next(h for h in found if (h.resource, h.action) == ("memory", "shrink"))
        domain = host.domain(guest.name)
        done = follow(hint, domain, host, POLICY, lambda: _sample(session), log)
        sizes = (done.before // MIB, done.after // MIB)
        pairs = []
        for number in range(_ROUNDS):
            cost = {}
            for size in sizes if number % 2 else reversed(sizes):
                host.set_memory(guest.uuid, size << 10)
                settle(guest, size)
                time.sleep(_REST)
                cost[size] = _cost(guest, session)
            pairs.append((cost[sizes[0]], cost[sizes[1]]))
    changes = sorted(100 * (after - before) / before for before, after in pairs)
    low, high = interval(changes)
    return {
        "pairs_ms": [(round(a, 4), round(b, 4)) for a, b in pairs],
        "change_percent": round(statistics.median(changes), 2),
        "interval_percent": [round(low, 2), round(high, 2)],
        "before_mib": sizes[0],
        "after_mib": sizes[1],
        "recommended_mib": (hint.recommended or 0) // MIB,
        "outcome": done.outcome,
    }


def interval(ordered: list[float]) -> tuple[float, float]:
    """Between which of some measurements their median lies, 95 times of 100.

    By their order alone (the sign test): nothing is supposed of how they scatter.
    """
    count, tail, cut = len(ordered), 0.0, 0
    while cut < count // 2:
        tail += math.comb(count, cut) / 2**count
        if 2 * tail > _MISSED:
            break
        cut += 1
    cut = max(0, cut - 1)
    return ordered[cut], ordered[-1 - cut]


def _sample(session: Session) -> dict[str, object]:
    return sample(session.guest, session.target)


def _cost(guest: Guest, session: Session) -> float:
    """Milliseconds of the host's CPU that a pass over its memory takes."""
    passes, ran = _passes(guest), _ran(session)
    time.sleep(_SECONDS)
    again, later = _passes(guest), _ran(session)
    return (later - ran) / 1e6 / max(1, again - passes)


def _ran(session: Session) -> int:
    """Nanoseconds that the vCPUs' threads have run, by the host's scheduler."""
    assert isinstance(session.target, SupportsVcpuTimes)
    return sum(one.ran for one in session.target.vcpu_times())


def _passes(guest: Guest) -> int:
    """How often its program has been through its memory, or its file."""
    return int(guest.run(_COUNT, 60).split()[0])
