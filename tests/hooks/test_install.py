"""``virt-introspect hooks``: below another root, without libvirt."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from virtintrospect.cli.main import run
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.plugin import source
from virtintrospect.plugin.hooks import Hooks
from virtintrospect.plugin.install import Installer
from virtintrospect.plugin.source import NAME, Places

TREE = Path(__file__).parents[2]
QEMU, XEN = f"etc/libvirt/hooks/qemu.d/{NAME}", f"etc/libvirt/hooks/libxl.d/{NAME}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with libvirt's folder of hooks, and a user's own hooks in it."""
    root = tmp_path / "root"
    (root / "etc/libvirt/hooks/qemu.d").mkdir(parents=True)
    (root / "etc/libvirt/hooks/qemu").write_text("#!/bin/sh\n# a user's\n")
    (root / "etc/libvirt/hooks/qemu.d/10-mine").write_text("#!/bin/sh\n# a user's\n")
    return root


def everything(root: Path) -> dict[str, tuple[int, bytes]]:
    """All below a folder: modes and contents."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(root))] = path.lstat().st_mode, content
    return found


def hooks(root: Path, *arguments: str, code: int = 0) -> None:
    assert run(["hooks", *arguments, "--root", str(root)]) == code


def test_install_and_remove_leave_the_host_as_it_was(root: Path) -> None:
    before = everything(root)
    hooks(root, "install", "--xen")
    for path in (root / QEMU, root / XEN):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert path.read_bytes() == source.shipped()
    spool = root / "var/lib/virtintrospect/spool"
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "run/virtintrospect").stat().st_mode) == 0o755
    assert stat.S_IMODE(spool.parent.stat().st_mode) == 0o755
    (spool / "1-1.json").write_text("{}")
    hooks(root, "remove")
    assert everything(root) == before


def test_umask_does_not_matter(root: Path) -> None:
    before = os.umask(0o077)
    try:
        hooks(root, "install")
    finally:
        os.umask(before)
    assert stat.S_IMODE((root / QEMU).stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "run/virtintrospect").stat().st_mode) == 0o755


def test_xen_only_where_it_is(root: Path) -> None:
    hooks(root, "install")
    assert not (root / XEN).exists()
    driver = root / "usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_libxl.so"
    driver.parent.mkdir(parents=True)
    driver.touch()
    hooks(root, "status", code=6)
    hooks(root, "install")
    assert (root / XEN).exists()
    hooks(root, "status")


def test_twice_is_once(root: Path) -> None:
    hooks(root, "install")
    first = everything(root)
    inode = (root / QEMU).stat().st_ino
    hooks(root, "install")
    assert everything(root) == first
    assert (root / QEMU).stat().st_ino == inode
    hooks(root, "remove")
    once = everything(root)
    hooks(root, "remove")
    assert everything(root) == once


def test_dry_run_does_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(root)
    hooks(root, "install", "--dry-run")
    assert f"would create  {root / QEMU}" in capsys.readouterr().out
    assert everything(root) == before
    hooks(root, "install")
    after = everything(root)
    hooks(root, "remove", "--dry-run")
    assert everything(root) == after


def test_folders_that_others_use_stay(root: Path) -> None:
    hooks(root, "install", "--xen")
    (root / "etc/libvirt/hooks/libxl.d/99-mine").write_text("mine")
    hooks(root, "remove")
    assert (root / "etc/libvirt/hooks/libxl.d/99-mine").exists()
    assert not (root / XEN).exists()


def _status(root: Path, capsys: pytest.CaptureFixture[str], code: int) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["hooks", "status", "--root", str(root), "-o", "json"]) == code
    (found,) = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_status(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(root, capsys, 6)["state"] == "missing"
    hooks(root, "install")
    good = _status(root, capsys, 0)
    assert good == {"driver": "qemu", "state": "installed", "path": str(root / QEMU), "spooled": 0}
    (root / "var/lib/virtintrospect/spool/1-1.json").touch()
    os.utime(root / "var/lib/virtintrospect/last-event", (1e9, 1e9))
    assert _status(root, capsys, 0)["spooled"] == 1
    assert _status(root, capsys, 0)["last_event"] == 10**9
    (root / QEMU).chmod(0o644)
    assert _status(root, capsys, 6)["state"] == "not executable"
    (root / QEMU).chmod(0o777)
    assert _status(root, capsys, 6)["state"] == "differs"
    (root / QEMU).write_bytes((root / QEMU).read_bytes() + b"# changed\n")
    assert _status(root, capsys, 6)["state"] == "differs"
    hooks(root, "install")
    assert _status(root, capsys, 0)["state"] == "installed"


@pytest.mark.parametrize("kind", ["file", "link", "folder", "fifo"])
def test_what_is_not_ours_is_not_touched(
    root: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / QEMU
    if kind == "file":
        path.write_text("#!/bin/sh\n# somebody else's\n")
    elif kind == "link":
        (root / "elsewhere").write_bytes(source.shipped())
        path.symlink_to(root / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    before = everything(root)
    assert _status(root, capsys, 6)["state"] == "foreign"
    for command in ("install", "remove"):
        hooks(root, command, code=1)
        assert everything(root) == before


def test_other_folders_are_written_into_the_hook(root: Path) -> None:
    hooks(root, "install", "--run-dir", "/a/run", "--spool-dir", "/b/spool")
    text = (root / QEMU).read_bytes()
    assert source.places_in(text) == Places(Path("/a/run"), Path("/b/spool"))
    assert (root / "b/spool").is_dir()
    hooks(root, "status")
    hooks(root, "install")  # an update keeps them
    assert (root / QEMU).read_bytes() == text
    hooks(root, "remove")
    assert not (root / "b").exists()


@pytest.mark.parametrize("folder", ['/a"b', "/a\nb", "/a\\b", "relative"])
def test_folders_that_would_break_the_hook_are_refused(folder: str) -> None:
    with pytest.raises(VirtIntrospectError):
        source.with_places(source.shipped(), Places(run=Path(folder)))


def test_a_failure_leaves_the_old_hook_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks(root, "install")
    (root / QEMU).write_bytes(source.shipped() + b"# old\n")
    old = everything(root)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(VirtIntrospectError, match="No space left"):
        Installer(Hooks(root)).install()
    assert everything(root) == old


def test_strays_and_hooks_without_run_bit(root: Path) -> None:
    folder = root / "etc/libvirt/hooks/qemu.d"
    for name in ("50-virtintrospect~", "10-mine.dpkg-dist", ".10-mine.swp", "harmless.bak"):
        (folder / name).touch(0o644 if name == "harmless.bak" else 0o755)
    found = Hooks(root)
    assert {path.name for path in found.strays()} == {
        "50-virtintrospect~", "10-mine.dpkg-dist", ".10-mine.swp",
    }  # fmt: skip
    assert {path.name for path in found.not_executable()} == {"qemu", "10-mine"}


# -- forms of installation ------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a release would be."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, TREE],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("hatchling cannot be had here")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("form", ["environment", "target"])
def test_from_a_wheel(wheel: Path, form: str, tmp_path: Path) -> None:
    """Installed as users do, away from the source tree."""
    pip = [sys.executable, "-m", "pip"]
    install = ["install", "-q", "--no-deps", "--no-index"]
    if form == "environment":
        venv.create(tmp_path / "env")
        python = str(tmp_path / "env/bin/python")
        command = [*pip, "--python", python, *install, str(wheel)]
    else:
        python = sys.executable
        command = [*pip, *install, "--target", str(tmp_path / "packages"), str(wheel)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    paths = [str(tmp_path / "packages")] if form == "target" else []
    # click and rich are taken from here; our own package is not: its path comes first.
    paths += [p for p in sys.path if p.endswith("site-packages")]
    program = (
        f"import sys; sys.path += {paths[1:] if form == 'target' else paths!r}\n"
        f"sys.path[:0] = {paths[:1] if form == 'target' else []!r}\n"
        "import virtintrospect; assert 'hooks' not in virtintrospect.__file__.split('/')\n"
        "from virtintrospect.cli.main import run\n"
        f"sys.exit(run(['hooks', 'install', '--root', {str(tmp_path / 'root')!r}]))"
    )
    subprocess.run([python, "-I", "-c", program], check=True, timeout=120, cwd=tmp_path)
    installed = tmp_path / "root" / QEMU
    assert installed.read_bytes() == source.shipped()
    assert os.access(installed, os.X_OK)
