"""How many vCPUs are recommended to a guest with so many threads that compute."""

from __future__ import annotations

from benchmarks.hints.scenarios import Scenario, guest_of, state, watch
from benchmarks.hints.store import Store
from virtintrospect.insight.hints import hints
from virtintrospect.session import open_session

VCPUS = 4
_THREADS = (0, 1, 2, 3, 4, 6, 8)


def main(store: Store) -> None:
    """One guest of four vCPUs."""
    keys = [{"part": "cpus", "kernel": "6.12", "threads": count} for count in _THREADS]
    if all(store.has(**key) for key in keys):
        return
    with guest_of("6.12", VCPUS) as guest:
        for key, count in zip(keys, _THREADS, strict=True):
            with state(guest, Scenario("", 0)), open_session(guest.name) as session:
                if count:
                    guest.run(f"/tmp/load spin {count} >/dev/null 2>&1 & sleep 3")
                found = hints(watch(session))
            said = [h for h in found if h.resource == "cpu" and h.action in ("shrink", "grow")]
            store.add(
                key,
                vcpus=VCPUS,
                said=said[0].recommended if said else VCPUS,
                reasons=[h.reason for h in found if h.resource in ("cpu", "tasks")],
            )
