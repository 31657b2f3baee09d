"""Recommended against true need, for each advisor."""

from __future__ import annotations

from benchmarks.hints.advisors import ADVISORS
from benchmarks.hints.scenarios import SCENARIOS, guest_of, state, true_need, used, watch
from benchmarks.hints.store import Store
from virtintrospect.session import open_session

#: Runs of each kernel.
RUNS = {"6.12": 2, "7.2": 1, "6.1": 1, "5.10": 1}


def main(store: Store) -> None:
    """Each scenario, on each kernel, so many times."""
    for kernel, runs in RUNS.items():
        for run in range(runs):
            keys = [
                {"part": "sizes", "kernel": kernel, "run": run, "scenario": scenario.name}
                for scenario in SCENARIOS
            ]
            if not all(store.has(**key) for key in keys):
                _run(store, kernel, keys)


def _run(store: Store, kernel: str, keys: list[dict[str, object]]) -> None:
    with guest_of(kernel) as guest:
        idle = used(guest)
        for key, scenario in zip(keys, SCENARIOS, strict=True):
            if store.has(**key):
                continue
            with state(guest, scenario), open_session(guest.name) as session:
                facts = watch(session, scenario.samples, scenario.seconds)
            store.add(
                key,
                need=true_need(facts, idle, scenario),
                current=facts.current,
                seconds=round(facts.window.seconds),
                said={name: advisor(facts) for name, advisor in ADVISORS.items()},
            )
