"""The collection as a whole: built, installed, documented, linted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.guests.lab.paths import cache, locked

from .conftest import BIN, COLLECTIONS, WHOLE, ansible, environment
from .releases import oldest

SOURCE = COLLECTIONS / "ansible_collections" / "virtintrospect" / "fleet"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the collection is, built and installed as from a server."""
    folder = tmp_path_factory.mktemp("collection")
    ansible(["ansible-galaxy", "collection", "build", str(SOURCE), "--output-path", str(folder)])
    [tarball] = folder.glob("virtintrospect-fleet-*.tar.gz")
    ansible(
        ["ansible-galaxy", "collection", "install", str(tarball), "-p", str(folder), "--offline"],
        ANSIBLE_COLLECTIONS_PATH=str(folder),
    )
    return folder


def plugins(folder: Path) -> dict[str, list[str]]:
    """Names of the plugins, by type."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder / "plugins").glob("*/*.py")):
        kind = {"modules": "module"}.get(path.parent.name, path.parent.name)
        found.setdefault(kind, []).append(path.stem)
    return found


@pytest.mark.parametrize("release", ["newest", "oldest"])
def test_what_is_installed_is_whole_and_documented(installed: Path, release: str) -> None:
    ours = installed / "ansible_collections" / "virtintrospect" / "fleet"
    assert plugins(ours) == plugins(SOURCE)
    bin_ = BIN if release == "newest" else oldest()
    documented = {kind: names for kind, names in plugins(ours).items()
                  if kind in ("module", "filter", "inventory")}  # fmt: skip
    assert len(documented) == 3
    for kind, names in documented.items():
        full = [f"virtintrospect.fleet.{name}" for name in names]
        done = ansible(
            ["ansible-doc", "-t", kind, "--json", *full],
            bin_=bin_, ANSIBLE_COLLECTIONS_PATH=str(installed),
        )  # fmt: skip
        pages = json.loads(done.stdout)
        for name in full:
            assert pages[name]["doc"]["short_description"], name
            assert pages[name]["examples"], name
            assert pages[name]["return"] or kind == "inventory", name


def test_defaults_can_be_set_for_all_modules() -> None:
    runtime = yaml.safe_load((SOURCE / "meta/runtime.yml").read_text())
    group = set(runtime["action_groups"]["fleet"])
    # What runs on the controller alone has none of the options that the others share.
    shared = {
        path.stem
        for path in (SOURCE / "plugins/modules").glob("*.py")
        if "virtintrospect.fleet.fleet\n" in path.read_text()
    }
    assert group == shared


def test_the_collection_ships_with_the_package() -> None:
    import tomllib

    project = tomllib.loads((COLLECTIONS.parent / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    # Ansible looks into /usr/share/ansible/collections by itself.
    assert shipped["ansible/ansible_collections"] == "share/ansible/collections/ansible_collections"
    galaxy = yaml.safe_load((SOURCE / "galaxy.yml").read_text())
    assert galaxy["version"] == project["project"]["version"]


def test_lint_in_its_strictest_profile(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(BIN / "ansible-lint"), "--offline", "--nocolor", "--profile", "production"],
        cwd=SOURCE,
        env=environment(XDG_CACHE_HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_linter_does_find_something(tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text("- hosts: all\n  tasks:\n    - shell: echo\n")
    done = subprocess.run(
        [str(BIN / "ansible-lint"), "--offline", "--profile", "production", "bad.yml"],
        cwd=tmp_path,
        env=environment(XDG_CACHE_HOME=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr


#: ansible-test fetches pip from a server of its own, once; this does the same from PyPI.
_GET_PIP = """
import subprocess, sys
words = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
subprocess.check_call([sys.executable, "-m", "ensurepip"])
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *words]))
"""


#: Those that need no environment of their own, or one that says more than the linter does. The
#: others (pylint, pep8, yamllint, changelog) take minutes to set up: ``make test-fleet``.
SANITY = (
    "ansible-doc", "compile", "empty-init", "ignores", "import", "line-endings", "no-assert",
    "no-get-exception", "no-illegal-filenames", "no-smart-quotes", "replace-urlopen",
    "runtime-metadata", "shebang", "symlinks", "use-argspec-type-path", "use-compat-six",
    "validate-modules",
)  # fmt: skip


@pytest.mark.timeout(1800)
def test_sanity(installed: Path) -> None:
    """``ansible-test sanity`` for this Python; its environments are kept."""
    home = cache() / "ansible-test"
    pip = home / ".config/pip/pip.conf"
    downloads = home / ".ansible/test/cache"
    # It passes nothing of the environment on: not where this machine's certificates are.
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    ours = installed / "ansible_collections" / "virtintrospect" / "fleet"
    chosen = [] if WHOLE else [word for name in SANITY for word in ("--test", name)]
    with locked("ansible-test"):
        for folder in (pip.parent, downloads):
            folder.mkdir(parents=True, exist_ok=True)
        pip.write_text(f"[global]\ncert = {certificates}\n" if certificates else "")
        for version in _pip_versions():
            (downloads / f"get_pip_{version.replace('.', '_')}.py").write_text(_GET_PIP)
        done = subprocess.run(
            [str(BIN / "ansible-test"), "sanity", "--python", PYTHON, "--color", "no", *chosen],
            cwd=ours, env=environment(HOME=str(home)), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    shutil.rmtree(ours / "tests/output", ignore_errors=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-8000:]
    for name in SANITY:
        assert f'Running sanity test "{name}"' in said


def _pip_versions() -> set[str]:
    """Versions of pip that ansible-test may want."""
    import re

    import ansible_test

    text = (
        Path(ansible_test.__file__).parent.joinpath("_internal/python_requirements.py").read_text()
    )
    return set(re.findall(r"'(\d+\.\d+(?:\.\d+)?)'", text))
