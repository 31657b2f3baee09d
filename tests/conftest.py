"""``--lane``: the tests in two parts that can run side by side (``python -m tests``)."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

# Who starts the tests in the background of a script may have had SIGINT ignored; what the tests
# start would inherit that, and could not be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Other users, as QEMU's, are to reach what the lab makes, whatever else is usual here.
os.umask(0o022)
# How wide the help of commands is would else be for who starts the tests to say.
os.environ.pop("COLUMNS", None)

# How long examples take says more of the machine than of what is tested. They are the same in each
# run: a failure is of the change that is tested. `make fuzz` looks for others.
hypothesis.settings.register_profile(
    "lab",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("lab")

LANES = ("matrix", "rest")


def pytest_addoption(parser: pytest.Parser) -> None:
    help_text = "only what runs on every guest of the matrix, Ansible, Xen; or only the others"
    parser.addoption("--lane", choices=LANES, help=help_text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lane = config.getoption("--lane")
    if lane is None:
        return
    # A guest of the matrix is booted once for all its tests: they stay together.
    others = [item for item in items if (_lane(item) != lane)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if _lane(item) == lane]


def _lane(item: pytest.Item) -> str:
    if item.nodeid.startswith(("tests/ansible/", "tests/xen/")):
        return "matrix"  # so that both take about as long
    callspec = getattr(item, "callspec", None)
    return "matrix" if callspec is not None and "guest" in callspec.params else "rest"
