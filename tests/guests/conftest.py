"""Fixtures that hand out running guests.

A test that takes ``guest`` runs on every guest of the matrix (``lab/matrix.py``); one that takes
``one_guest`` runs on a single one. ``boot`` boots others on demand. pytest orders tests by the
parameter of ``guest``, so that each guest is booted once and gone before the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import Session, open_session

from .lab import apt, domain, libvirtd, matrix
from .lab.domain import Config
from .lab.guest import Guest
from .lab.nested import Nested
from .ways import OURS

GUESTS = (*matrix.MATRIX, matrix.ARM64, *matrix.I386)


class Lab:
    """Boots guests and shares them between tests: at most two run at a time."""

    LIMIT = 2

    def __init__(self) -> None:
        self._running: dict[Config, Guest] = {}
        #: The guest that the fixture ``guest`` has handed out, if any: it must stay.
        self.pinned: Config | None = None

    def guest(self, config: Config) -> Guest:
        """A running guest of this configuration, booted when there is none."""
        found = self._running.pop(config, None)
        if found is None or found.destroyed:  # by a test that wanted to see its end
            others = [other for other in self._running if other != self.pinned]
            for other in others[: max(0, len(self._running) - self.LIMIT + 1)]:
                self.release(other)
            try:
                found = Guest(config)
            except apt.NoSuchPackageError as error:
                pytest.skip(str(error))
        self._running[config] = found  # the most recently used is last
        return found

    def release(self, config: Config) -> None:
        """Destroy the guest of this configuration, if it runs."""
        if guest := self._running.pop(config, None):
            guest.destroy()

    def close(self) -> None:
        """Destroy all guests."""
        for config in list(self._running):
            self.release(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``once_a_kernel`` run on the first guest of each kernel of the matrix.

    For what takes long and does not depend on page tables or memory backing. With ``pti=False``
    that is the first without page-table isolation, which makes an emulated guest slow; with
    ``arch``, the first of that architecture: others are slower still. Tests
    marked ``architecture`` run on guests of that one only.
    """

    def wanted(item: pytest.Item) -> bool:
        guest = item.callspec.params.get("guest") if hasattr(item, "callspec") else None
        marker = item.get_closest_marker("architecture")
        if marker is not None and guest is not None and guest.arch != marker.args[0]:
            return False
        marker = item.get_closest_marker("once_a_kernel")
        if marker is None or guest is None:
            return True
        fit = [guest for guest in GUESTS if _fits(guest, marker)]
        firsts = {guest.kernel: guest for guest in reversed(fit)}.values()
        return guest in firsts

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def _fits(guest: Config, marker: pytest.Mark) -> bool:
    pti, arch = marker.kwargs.get("pti", guest.pti), marker.kwargs.get("arch", guest.arch)
    return (guest.pti, guest.arch) == (pti, arch)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("real guests need root: libvirt's system connection, QEMU's memory")
    with libvirtd.connection() as connection:
        domain.sweep(connection)
    laboratory = Lab()
    yield laboratory
    laboratory.close()


@pytest.fixture(scope="session", params=GUESTS, ids=lambda config: config.id)
def guest(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Guest]:
    """Every guest of the matrix in turn."""
    lab.pinned = request.param
    yield lab.guest(request.param)
    lab.pinned = None
    if request.param != matrix.DEFAULT:
        lab.release(request.param)


@pytest.fixture(scope="session")
def session(guest: Guest) -> Iterator[Session]:
    """One session on each guest of the matrix, as long as it runs."""
    with open_session(guest.name) as session:
        yield session


@pytest.fixture
def linux(session: Session) -> LinuxGuest:
    """The kernel of that session, without problems of earlier tests."""
    linux = session.guest
    assert isinstance(linux, LinuxGuest)
    linux.take_problems()
    return linux


@pytest.fixture
def one_guest(lab: Lab) -> Guest:
    """One guest, shared by the tests that need no particular one."""
    return lab.guest(matrix.DEFAULT)


@pytest.fixture
def ours(lab: Lab) -> Guest:
    """The guest of test_control*, which test_control_registers releases."""
    return lab.guest(OURS)


@pytest.fixture
def boot(lab: Lab) -> Callable[[Config], Guest]:
    """Boots a guest of any configuration; equal ones are shared while they run."""
    return lab.guest


@pytest.fixture(scope="session")
def nested() -> Iterator[Nested]:
    """A machine with a true KVM guest in it (``lab/nested.py``)."""
    if os.geteuid() != 0:
        pytest.skip("the nested machine reads this machine's files, which needs root")
    with Nested() as machine:
        yield machine
