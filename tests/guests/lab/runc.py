"""Debian's runc, and the libraries it needs: a real container runtime for a guest."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from . import apt
from .paths import cache, locked

_SUITE = "bookworm"
_PACKAGES = ("runc", "libseccomp2", "libc6")
#: Where the files belong in the guest, and where the packages have them.
_FILES = {
    "/bin/runc": "usr/sbin/runc",
    "/lib64/ld-linux-x86-64.so.2": "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6": "lib/x86_64-linux-gnu/libc.so.6",
    "/lib/x86_64-linux-gnu/libseccomp.so.2": "usr/lib/x86_64-linux-gnu/libseccomp.so.2",
}


def runc() -> dict[str, bytes]:
    """The files by their paths in the guest, downloaded when they are not there yet.

    :raises apt.NoSuchPackageError: Debian does not have them any more.
    """
    return {path: file.read_bytes() for path, file in zip(_FILES, runc_files(), strict=True)}


def runc_files() -> list[Path]:
    """The files as they are here.

    :raises apt.NoSuchPackageError: Debian does not have them any more.
    """
    target = cache() / "runc"
    with locked("runc"):
        if not target.exists():
            _unpack(apt.download(_SUITE, list(_PACKAGES)), target)
    return [target / name for name in _FILES.values()]


def _unpack(packages: list[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache(), prefix=".unpack-") as scratch:
        raw, done = Path(scratch, "raw"), Path(scratch, "done")
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, raw], check=True, timeout=120)
        for name in _FILES.values():
            (done / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(raw / name, done / name)
        done.rename(target)
