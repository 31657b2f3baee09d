"""Guests under KVM, on a host with two NUMA nodes and KSM: runs the tests of ``inside`` there.

``make test-host``: an emulated host takes minutes, which is too long for ``make test``.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator

import pytest

from tests.guests.lab.apt import NoSuchPackageError
from tests.host.lab.machine import CONSOLE, INSIDE, HostMachine

#: Set by ``make test-host``; tests to run there, by pytest's words, or nothing for all.
_CHOSEN = os.environ.get("VIRTINTROSPECT_HOST_TESTS")
#: Seconds for what runs in it, on a loaded machine.
_PATIENCE = 3600

pytestmark = pytest.mark.skipif(_CHOSEN is None, reason="takes minutes: make test-host")


@pytest.fixture(scope="module")
def machine() -> Iterator[HostMachine]:
    if os.geteuid() != 0:
        pytest.skip("the lab's machine reads this machine's files, which needs root")
    try:
        with HostMachine() as running:
            yield running
    except NoSuchPackageError as error:
        pytest.skip(str(error))


@pytest.mark.timeout(_PATIENCE + 600)
def test_on_the_host(machine: HostMachine) -> None:
    """Everything that runs inside."""
    words = ["-m", "pytest", "--noconftest", "-p", "tests.host.inside.fixtures"]
    words += ["-p", "no:cacheprovider", "--color=no", "-v", "--durations=0", "--tb=short"]
    words += ["--timeout=1200"]
    words += ["tests/host/inside", *shlex.split(_CHOSEN or "")]
    # To the console, which can be read while it runs, and when it has come to no end.
    command = f"{shlex.join([sys.executable, *words])} >{CONSOLE} 2>&1"
    try:
        answer = machine.execute_in_tree(command, _PATIENCE, environment={INSIDE: "1"})
    finally:
        print(said := machine.said())
    assert answer.status == 0, f"on the host: {said[-6000:]}"
    assert " passed" in said
