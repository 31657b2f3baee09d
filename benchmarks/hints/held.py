"""Host memory that the guest has free: what is said, and what comes back when it is followed."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from pathlib import Path

from benchmarks.hints.advisors import MIB, POLICY
from benchmarks.hints.scenarios import Scenario, guest_of, state, watch
from benchmarks.hints.store import Store
from tests.guests.lab.guest import Guest
from virtintrospect.cli.judging import pages
from virtintrospect.insight.hints import hints
from virtintrospect.session import open_session

_BEFORE = (300, 500, 700)


def main(store: Store) -> None:
    """Guests that once used much: the hint's own command, and how much QEMU then has less."""
    keys = [{"part": "held", "kernel": "6.12", "before": mib} for mib in _BEFORE]
    if all(store.has(**key) for key in keys):
        return
    for key, mib in zip(keys, _BEFORE, strict=True):
        if store.has(**key):
            continue
        with guest_of("6.12") as guest, state(guest, Scenario("", 0, before=mib)):
            fresh = _resident(guest)
            with open_session(guest.name) as session:
                facts = dataclasses.replace(watch(session, 3), held=pages(session)[0])
            said = [h for h in hints(facts) if (h.resource, h.action) == ("memory", "reclaim")]
            hint = next(h for h in said if "that the guest has free" in h.reason)
            # The very line that an operator is shown.
            subprocess.run(["sh", "-c", hint.virsh or "false"], check=True, capture_output=True)
            after = _settled(guest)
            store.add(
                key,
                said=hint.current,
                resident_before=fresh,
                resident_after=after,
                given_back=fresh - after,
            )


def _resident(guest: Guest) -> int:
    lines = Path(f"/proc/{guest.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def _settled(guest: Guest) -> int:
    """QEMU's resident bytes, when they no longer change."""
    last, still = _resident(guest), 0
    for _ in range(120):
        time.sleep(0.5)
        now = _resident(guest)
        still = still + 1 if abs(now - last) < 2 * MIB else 0
        last = now
        if still >= 6:
            break
    return last


assert POLICY.held_mib  # the smallest that is spoken of
