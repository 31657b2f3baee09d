"""Modules that run in this process, and playbooks that do not."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .fake import Fake

COLLECTIONS = Path(__file__).parents[2] / "ansible"
BIN = Path(sys.executable).parent

#: ``make test-fleet``: also what takes minutes.
WHOLE = os.environ.get("VIRTINTROSPECT_FLEET_WHOLE", "") not in ("", "0")

Result = dict[str, Any]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """``virt-introspect`` of a host with the guests that were recorded."""
    folder = tmp_path / "fake"
    folder.mkdir()
    return Fake(folder)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Fake]:
    """Makes more of them, by name."""

    def one(name: str) -> Fake:
        (tmp_path / name).mkdir()
        return Fake(tmp_path / name)

    return one


@pytest.fixture
def module(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs a module of the collection: ``module("guest_info", tables=["ps"])`` gives its result.

    ``check_mode=True`` is check mode. The executable is the fake one unless another is named.
    """
    monkeypatch.syspath_prepend(str(COLLECTIONS))
    # Where the controller's code was imported, warnings are displayed and no part of results.
    of_modules = "ansible.module_utils"
    monkeypatch.setattr(f"{of_modules}._internal.is_controller", False, raising=False)
    monkeypatch.setattr(f"{of_modules}.common.warnings._global_warnings", {}, raising=False)

    def run(name: str, *, check_mode: bool = False, **arguments: Any) -> Result:
        from ansible.module_utils.testing import patch_module_args

        found = importlib.import_module(
            f"ansible_collections.virtintrospect.fleet.plugins.modules.{name}"
        )
        arguments = {"executable": str(fake.path), **arguments}
        if check_mode:
            arguments["_ansible_check_mode"] = True
        capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            found.main()
        result: Result = json.loads(capsys.readouterr().out)
        return result

    return run


def environment(**more: str) -> dict[str, str]:
    """What Ansible's commands are run with: our collection, and nothing of this machine's."""
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_CONFIG": str(Path(__file__).with_name("ansible.cfg")),
        "LC_ALL": "C.UTF-8",  # in a locale of another encoding Ansible does not start
        "PATH": f"{BIN}:{os.environ['PATH']}",
        **more,
    }


def ansible(
    words: list[str], *, bin_: Path = BIN, good: tuple[int, ...] = (0,), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's commands; fails the test where it fails."""
    done = subprocess.run(
        [str(bin_ / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        env=environment(PATH=f"{bin_}:{os.environ['PATH']}", **more),
        check=False,
    )
    assert done.returncode in good, f"{words}\n{done.stdout}\n{done.stderr}"
    return done
