"""True need, found the hard way: the balloon grows until the guest suffers."""

from __future__ import annotations

from benchmarks.hints.advisors import MIB
from benchmarks.hints.scenarios import (
    Scenario,
    one_by_one,
    settle,
    state,
    true_need,
    used,
    watch,
)
from benchmarks.hints.store import Store
from tests.guests.lab.guest import Guest
from virtintrospect.host import Host
from virtintrospect.session import Session, open_session

_NAMES = ("idle", "works in 400 MiB", "reads 300 MiB again and again")
_STEP, _SAMPLES = 16, 5


def main(store: Store) -> None:
    """Each scenario in a guest of its own: what suffers may not come back."""
    one_by_one(store, "squeeze", _NAMES, _squeezed)


def _squeezed(guest: Guest, scenario: Scenario) -> dict[str, object]:
    idle = used(guest)
    with (
        state(guest, scenario),
        open_session(guest.name) as session,
        Host("qemu:///system", writable=True) as host,
    ):
        need = true_need(watch(session, 3), idle, scenario)
        size, trace = need // MIB + 96, []
        good = size
        while size > 80:
            host.set_memory(guest.uuid, size << 10)
            settle(guest, size)
            trouble = _trouble(session)
            trace.append([size, trouble])
            if trouble:
                break
            good, size = size, size - _STEP
        host.set_memory(guest.uuid, 1024 << 10)
        settle(guest, 1024)
    return {"need": need, "suffers_below": good * MIB, "trace": trace}


def _trouble(session: Session) -> str:
    """What is wrong with the guest now; empty where nothing is."""
    window = watch(session, _SAMPLES).window
    figures = {
        "PSI memory some, %": (window.stalled("memory", "some") or 0, 0.1),
        "refaults a second": (window.rate("events", "refault") or 0, 5),
        "allocation stalls a second": (window.rate("events", "stalls") or 0, 1),
        "OOM kills": (window.growth("events", "oom_kills") or 0, 0),
    }
    return "; ".join(f"{n} {value:.1f}" for n, (value, most) in figures.items() if value > most)
