"""A guest with work to do, and what is looked at while it does it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from click.testing import CliRunner

from virtintrospect.cli.judging import facts_of
from virtintrospect.cli.main import cli
from virtintrospect.insight.figures import sample
from virtintrospect.insight.hints import Facts
from virtintrospect.insight.policy import Policy, load_policy
from virtintrospect.model import Hint
from virtintrospect.session import Session

from .lab.domain import Config
from .lab.guest import Guest

MIB = 1 << 20
#: Enough memory for changes that are no noise, and a CPU more than one thread can use.
#: On a busy machine the kernel would take the emulated timer for a broken one.
CONFIG = Config(
    "6.12", backing="anonymous", pti=False, ram_mib=1024, vcpus=2, cmdline="psi=1 no_timer_check"
)
_BALANCED = load_policy()
#: What takes minutes in an operator's policy takes seconds here.
POLICY = dataclasses.replace(
    _BALANCED, dead_band_mib=64, runaway_seconds=2.0, clean_cache_mib=256, settle_seconds=1.0
)


@contextmanager
def load(guest: Guest, *arguments: str, pinned: bool = False) -> Iterator[None]:
    """The guest while its program load.c runs; ``pinned`` to its last CPU."""
    on = "taskset 2 " if pinned else ""
    try:
        guest.run(
            f"rm -f /tmp/load.ready; {on}/tmp/load {' '.join(arguments)} >/dev/null 2>&1 & "
            "while [ -e /proc/$!/exe ]; do [ -e /tmp/load.ready ] && exit; usleep 50000; done;"
            "exit 1"
        )
        yield
    finally:
        guest.run("killall -9 load; while pidof load; do usleep 50000; done", check=False)


def watch(session: Session, samples: int = 7, step: float = 0.5, policy: Policy = POLICY) -> Facts:
    taken = []
    for _ in range(samples):
        taken.append(sample(session.guest, session.target))
        time.sleep(step)
    return facts_of(session, policy, taken)


def one(found: list[Hint], resource: str, action: str) -> Hint:
    (hint,) = [hint for hint in found if (hint.resource, hint.action) == (resource, action)]
    return hint


def kinds(found: list[Hint]) -> set[tuple[str, str]]:
    return {(hint.resource, hint.action) for hint in found}


def available(guest: Guest) -> int:
    """MemAvailable by the guest's own word; MiB."""
    found = re.search(rb"MemAvailable: +(\d+)", guest.get("/proc/meminfo"))
    assert found is not None
    return int(found[1]) >> 10


def used(guest: Guest) -> int:
    """MemTotal less MemAvailable, by the guest's own word; bytes."""
    lines = guest.get("/proc/meminfo").decode().splitlines()
    words = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    return words["MemTotal"] - words["MemAvailable"]


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["hints", *words])
