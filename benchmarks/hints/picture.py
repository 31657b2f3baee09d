"""A picture as ``hints --plot`` draws it: a guest that works at times, and one that leaks."""

from __future__ import annotations

from pathlib import Path

from benchmarks.hints.advisors import POLICY
from benchmarks.hints.scenarios import SCENARIOS, guest_of, state, watch
from benchmarks.hints.store import Store
from virtintrospect.insight.hintplot import draw
from virtintrospect.insight.hints import hints
from virtintrospect.session import open_session

PICTURE = Path("docs/hints-watch.svg")
_SCENARIO = "works in 500 MiB, at times"


def main(store: Store) -> None:
    """Watch it for a minute, and draw."""
    key = {"part": "picture", "kernel": "6.12", "scenario": _SCENARIO}
    if store.has(**key):
        return
    scenario = next(one for one in SCENARIOS if one.name == _SCENARIO)
    with guest_of("6.12") as guest, state(guest, scenario), open_session(guest.name) as session:
        facts = watch(session, 60)
    PICTURE.write_bytes(draw(facts, hints(facts), f"a guest that {_SCENARIO}", "svg"))
    store.add(key, file=str(PICTURE), policy=POLICY.name)
