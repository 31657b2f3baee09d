"""One libvirtd of our own for all tests of the daemon, and guests under it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.private import Private

from .running import Running, running

SMALL = Config("6.12", ram_mib=256, cmdline="lab.sleepers=5")


@pytest.fixture(scope="session")
def private() -> Iterator[Private]:
    if os.geteuid() != 0:
        pytest.skip("real guests need root: libvirt's system connection, QEMU's memory")
    with Private() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def one(private: Private) -> Iterator[Guest]:
    """A guest that the tests of this package share."""
    with Guest(SMALL, private=private) as guest:
        yield guest


@pytest.fixture
def start(private: Private) -> Iterator[Callable[..., Guest]]:
    """Starts guests, which are gone at the end of the test."""
    guests = []

    def started(config: Config = SMALL) -> Guest:
        guests.append(Guest(config, private=private))
        return guests[-1]

    yield started
    for guest in guests:
        guest.destroy()


@pytest.fixture(scope="session")
def shared(private: Private, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon for the tests that do it no harm."""
    with running(tmp_path_factory.mktemp("shared"), private.uri) as daemon:
        yield daemon
