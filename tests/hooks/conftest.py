"""A libvirtd of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.guests.lab.private import Private


@pytest.fixture
def private() -> Iterator[Private]:
    """A private libvirtd; nothing of it is left afterwards."""
    if os.geteuid() != 0:
        pytest.skip("a libvirtd of one's own needs root")
    with Private() as daemon:
        yield daemon
