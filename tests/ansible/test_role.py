"""The role ``host`` on a throw-away copy of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from . import throwaway
from .conftest import COLLECTIONS, WHOLE, environment

HERE = Path(__file__).parent
FILES = [
    "/opt/virtintrospect",
    "/usr/local/bin/virt-introspect",
    "/usr/local/bin/virt-introspectd",
    "/etc/libvirt/hooks/qemu.d/50-virtintrospect",
    "/etc/systemd/system/virt-introspectd.service",
    "/etc/systemd/system/virt-introspectd.service.d/place.conf",
    "/etc/virtintrospect/config.toml",
    "/var/lib/virtintrospect",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*pip, str(COLLECTIONS.parent)], check=True, stdin=subprocess.DEVNULL)
    [found] = folder.glob("*.whl")
    return found


@pytest.mark.timeout(1200)
def test_installed_twice_and_removed_twice(wheel: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a copy of this machine needs root")
    if any(Path(path).exists() for path in FILES[:6]):
        pytest.skip("virtintrospect is installed on this machine")
    how = "whole" if WHOLE else "short"
    script = ["sh", str(HERE / "role.sh"), str(HERE / "role.yml"), str(wheel), how]
    # Debian's own Python, whose packages the system's package manager installs.
    settings = environment(ANSIBLE_PYTHON_INTERPRETER="/usr/bin/python3")
    done = throwaway.run(script, tmp_path, settings)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    changed = {m[1]: int(m[2]) for m in re.finditer(r"(?m)^(\S+): changed=(\d+)$", done.stdout)}
    there: dict[str, list[str]] = {}
    for label, path in re.findall(r"(?m)^  (\S+) (/\S+)$", done.stdout):
        there.setdefault(label, []).append(path)
    assert changed["check"] > 3
    assert "checked" not in there
    assert changed["install"] > changed["check"]  # hooks and unit are not known before
    assert there["installed"] == FILES
    assert re.search(r"version virt-introspect, version \d", done.stdout)
    assert "unit ExecStart=/opt/virtintrospect/bin/virt-introspectd" in done.stdout
    assert changed["again"] == 0
    assert changed["repair"] == 2  # the package, and which wheel it is
    assert changed["repaired"] == 0
    assert changed["remove"] > 3
    if WHOLE:
        assert changed["check-again"] == 0
        assert changed["remove-check"] == changed["remove"]
        assert there["kept"] == FILES
    # What it was told and what it has kept stay, unless they are to be purged.
    assert there["left"] == ["/etc/virtintrospect/config.toml"]
    assert changed["remove-again"] == 0
