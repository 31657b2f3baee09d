"""Fixtures for tests that run on the emulated host.

A plugin (``pytest --noconftest -p tests.host.inside.fixtures``).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guests.lab import domain
from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from virtintrospect.session import Session, open_session

#: QEMU's own memory, as libvirt's default is, and two vCPUs on the only CPU of this host.
CONFIG = Config(
    "6.12", backing="anonymous", pti=False, ram_mib=384, vcpus=2, cmdline="psi=1 mitigations=off"
)
#: Seconds within which a guest must have booted: its host is emulated.
PATIENCE = 600.0


def booted(config: Config) -> Guest:
    """A guest under KVM."""
    with pytest.MonkeyPatch.context() as patch:
        # What tries it out gives up after seconds, which are short where both are emulated.
        patch.setattr(domain, "kvm_works", lambda: True)
        found = Guest(config, patience=PATIENCE)
    found.install("load", "/tmp/load")
    return found


@pytest.fixture(scope="session")
def guest() -> Iterator[Guest]:
    """The guest that stays for all tests."""
    with booted(CONFIG) as running:
        yield running


@pytest.fixture(scope="session")
def session(guest: Guest) -> Iterator[Session]:
    with open_session(guest.name) as opened:
        yield opened


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What failed, at once: who waits for the end may wait in vain."""
    if report.failed:
        print(f"\n{report.nodeid}: {report.longreprtext}", flush=True)
