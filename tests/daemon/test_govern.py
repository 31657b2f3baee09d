"""The daemon as a whole with ``[govern]`` on: it takes memory from a guest, and gives it back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.initramfs import program
from tests.guests.lab.kernels import loose_module
from tests.guests.lab.private import Private
from virtintrospect.host import Host
from virtintrospect.plugin.adjust import undo

from .running import eventually, running

#: It needs some 150 MiB. PSI, so that it can be seen to suffer.
_CONFIG = Config("6.12", pti=False, cmdline="psi=1 lab.sleepers=5")
#: A host that is always short, and does not wait; figures of seconds suffice.
_GOVERN = {
    "enabled": True, "interval_seconds": 1.0, "host_short_mib": 1 << 29, "least_confidence": 0.0,
    "rest_seconds": 0.0,
}  # fmt: skip
_PATIENCE = 300.0
_MIB = 1 << 20


def changes(log: Path) -> list[dict[str, Any]]:
    """What was noted of changes that have come to their end."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [change for line in lines if (change := json.loads(line))["outcome"]]


def less(noted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those after which a guest had less."""
    return [one for one in noted if one["after"] < one["before"]]


@pytest.mark.timeout(3 * _PATIENCE)
def test_a_daemon_that_governs(
    private: Private, start: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = start(_CONFIG)
    guest.put("/tmp/load", program("load").read_bytes(), 0o755)
    guest.put("/tmp/balloon.ko", loose_module(_CONFIG.kernel, "virtio_balloon"))
    guest.run("insmod /tmp/balloon.ko")
    sections = {"govern": _GOVERN, "history": {"interval_seconds": 0.5}}
    with running(tmp_path, private.uri, **sections) as daemon:
        log = daemon.state / "adjusted.jsonl"
        daemon.wait(guest.name)
        # A change that was stopped left the guest what it had, and is followed by another.
        (taken, *_) = eventually(lambda: less(changes(log)), "nothing was taken", _PATIENCE)
        assert (taken["domain"], taken["resource"]) == (guest.name, "memory")
        assert taken["before"] == 512 * _MIB
        eventually(lambda: f"adjusted domain={guest.name} before=512 " in daemon.text())
        count = len(changes(log))
        left = int(re.search(rb"MemAvailable: +(\d+)", guest.get("/proc/meminfo"))[1]) >> 10  # type: ignore[index]
        guest.run(f"/tmp/load touch {max(16, left - 12)} >/dev/null 2>&1 &")

        def given() -> list[dict[str, Any]]:
            done = [one for one in changes(log)[count:] if one["outcome"] == "done"]
            return [one for one in done if one["after"] > one["before"]]

        (more, *_) = eventually(given, "nothing was given", _PATIENCE)
        assert more["after"] <= 512 * _MIB
        guest.run("killall -9 load", check=False)
        daemon.wait(guest.name)
        assert daemon.stop() == 0
    with Host(private.uri, writable=True) as host:
        undo(host.domain(guest.name), host, log)
    assert eventually(lambda: guest.domain.memoryStats()["actual"] == 512 << 10, "not undone")
