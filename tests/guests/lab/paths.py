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


def listens(path: Path | str) -> bool:
    """Whether somebody listens on this socket: it is there a moment before."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    # The fourth word has SO_ACCEPTCON (include/linux/net.h: __SO_ACCEPTCON).
    return any(words[3] == "00010000" and words[-1] == str(path) for words in lines)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lab's lock ``name`` against every other process of this machine."""
    with (cache() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
