"""Which tests share a process, when `make test JOBS=2` runs them in several (pytest-xdist).

Everything that shares a boot belongs to one group, and a group runs in one process: a guest of
the matrix with all its tests, else a file. The groups that take longest begin, so that all
workers end at about the same time.
"""

from __future__ import annotations

import pytest

from tests.guests.lab import matrix

#: Files that take more than half a minute, longest first; after them the matrix, then the rest.
_LONG = (
    "daemon/test_sessions.py",
    "daemon/test_figures.py",
    "hooks/test_libvirt.py",
    "guests/test_life.py",
    "guests/test_memory.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each test's group, and put the groups in order."""
    if not items or not getattr(items[0].config.option, "loadgroup", False):
        return
    order = {name: number for number, name in enumerate(_LONG)}
    ranks = {}
    for item in items:
        name = item.path.relative_to(item.config.rootpath / "tests").as_posix()
        call = getattr(item, "callspec", None)
        guest = call.params.get("guest") if call else None
        if guest is None and "one_guest" in getattr(item, "fixturenames", ()):
            guest = matrix.DEFAULT
        group = guest.id if guest in matrix.MATRIX else ""
        item.add_marker(pytest.mark.xdist_group(group or name))
        rank = order.get(name, len(order) + 1 + name.startswith("unit/"))
        ranks[item] = (len(order) if group else rank, group or name)
    items.sort(key=lambda item: ranks[item])  # stable: within a group as pytest ordered them
