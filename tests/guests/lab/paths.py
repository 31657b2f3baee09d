"""Where the lab keeps things, and who may touch them at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent


def cache() -> Path:
    """The lab's cache directory.

    Not under a home directory: libvirt's QEMU runs as a user of its own, which must be able
    to open kernels and initramfs files, and /root lets nobody pass.
    """
    chosen = os.environ.get("VIRTINTROSPECT_LAB_CACHE")
    path = Path(chosen) if chosen else Path("/var/cache/virtintrospect-lab")
    path.mkdir(parents=True, exist_ok=True)
    return path


def runtime(name: str) -> Path:
    """A directory for the files of one running guest."""
    path = cache() / "run" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def copied(source: Path, name: str) -> Path:
    """A guest's own copy of a file, gone with its folder.

    libvirt changes owner and extended attributes of what a guest opens, and counts its users
    there: guests that share a kernel get in each other's way when one ends badly.
    """
    path = runtime(name) / source.name
    shutil.copyfile(source, path)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lab's lock ``name`` against every other process of this machine."""
    with (cache() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
