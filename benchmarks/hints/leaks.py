"""How long a leak goes on before it is named, and how long before the guest runs short."""

from __future__ import annotations

import time

from benchmarks.hints.advisors import MIB, POLICY
from benchmarks.hints.scenarios import RAM_MIB, Scenario, guest_of, state
from benchmarks.hints.store import Store
from tests.guests.lab.guest import Guest
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window
from virtintrospect.session import open_session

_SAMPLES = 10
#: MiB a second, and seconds for which it is watched.
_LEAKS = ((10, 90.0), (2, 120.0))


def main(store: Store) -> None:
    """Leaks of several speeds, sampled once a second."""
    keys = [{"part": "leaks", "kernel": "6.12", "mib_a_second": speed} for speed, _ in _LEAKS]
    if all(store.has(**key) for key in keys):
        return
    with guest_of("6.12") as guest:
        for key, (speed, most) in zip(keys, _LEAKS, strict=True):
            if not store.has(**key):
                store.add(key, **_watched(guest, speed, most))


def _watched(guest: Guest, speed: int, most: float) -> dict[str, object]:
    with state(guest, Scenario("", 0)), open_session(guest.name) as session:
        guest.run(f"/tmp/load grow {speed} >/dev/null 2>&1 & sleep 1")
        start, taken, shrinks = time.monotonic(), [], 0
        named = None
        while named is None and time.monotonic() - start < most:
            taken.append(sample(session.guest, session.target))
            facts = Facts(Window(taken), POLICY, session.domain)
            found = hints(facts)
            named = next((h.reason for h in found if "likely leak" in h.reason), None)
            # The command takes ten samples at least.
            shrinks += len(taken) >= _SAMPLES and any(
                (h.resource, h.action) == ("memory", "shrink") for h in found
            )
            time.sleep(1)
        grown = facts.window.values("memory", "memory_available")
    return {
        "seconds": round(time.monotonic() - start, 1) if named else None,
        "grown": int(grown[0] - grown[-1]),
        "reason": named,
        "told_to_shrink": shrinks,
        "until_short": round(RAM_MIB * MIB * 0.75 / (speed * MIB)),
    }
