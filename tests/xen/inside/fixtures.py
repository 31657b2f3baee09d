"""Fixtures for tests that run in dom0: those of tests/guests/conftest.py, by the same names.

A plugin (``pytest --noconftest -p tests.xen.inside.fixtures``), so that the files of tests/guests
run here as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.xen.lab.guest import XenConfig, XenGuest
from tests.xen.lab.parts import GUESTS
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session

_WANTED = [
    XenConfig(kind, kernel)
    for kind, _, kernel in (
        name.partition("-") for name in os.environ.get(GUESTS, "pvh-6.1").split(",")
    )
]


@pytest.fixture(scope="session", params=_WANTED, ids=lambda config: config.id)
def guest(request: pytest.FixtureRequest) -> Iterator[XenGuest]:
    """Every guest in turn; booted once, and gone before the next."""
    with XenGuest(request.param) as running:
        yield running


@pytest.fixture(scope="session")
def session(guest: XenGuest) -> Iterator[Session]:
    with open_session(guest.name) as opened:
        yield opened


@pytest.fixture
def linux(session: Session) -> LinuxGuest:
    """The kernel of that session, without problems of earlier tests."""
    found = session.guest
    assert isinstance(found, LinuxGuest)
    found.take_problems()
    return found


@pytest.fixture
def one_guest(guest: XenGuest) -> XenGuest:
    """For tests that need no particular one."""
    return guest


@pytest.fixture
def boot() -> None:
    """No other guests here than those that were asked for."""
    pytest.skip("boots a guest of another configuration")
