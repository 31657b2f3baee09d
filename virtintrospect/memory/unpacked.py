"""Unpacked images that are kept, so that the next command on the same file need not unpack it.

They are in a folder of this user's below ``$TMPDIR`` or /var/tmp, readable by nobody else. One is
used only while the compressed file is the very one that it came from: the same inode, unchanged
(its ctime cannot be set by anybody). At each use those go whose compressed file is gone or has
changed, those that nobody used for a month, and the ones used longest ago when all together are
too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Bytes on disk that are kept altogether.
MOST = 16 << 30
_MONTH = 30 * 86400
_SUFFIX = ".image"
_LONGEST_PATH = 4096


def folder() -> Path:
    """``$TMPDIR``, else /var/tmp, which is on a disk: /tmp is often the host's RAM."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108 - a folder of our own in it


def place() -> Path | None:
    """Where unpacked images are kept; ``None`` where no folder is for this user alone."""
    path = folder() / f"virtintrospect-{os.geteuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError:
        return None
    private = stat.S_ISDIR(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
    return path if private and status.st_uid == os.geteuid() else None


class Cache:
    """The kept images in one folder.

    :param path: a folder that only this user can write to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, descriptor: int) -> int | None:
        """The unpacked image of a compressed file, open for reading; ``None`` where none is."""
        path = self._path / f"{_key(os.fstat(descriptor))}{_SUFFIX}"
        try:
            found = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def new(self) -> int | None:
        """A file without a name, which :meth:`keep` can give one; ``None`` where none can be."""
        try:
            return os.open(self._path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError:  # not every file system has such files
            return None

    def keep(self, descriptor: int, unpacked: int) -> None:
        """Keep what :meth:`new` gave, now that it is whole; not to be able to is no failure.

        :param descriptor: the compressed file.
        """
        status = os.fstat(descriptor)
        if not status.st_nlink:  # it has no name by which it could be found again
            return
        key = _key(status)
        with contextlib.suppress(OSError):
            self.tidy(room=os.fstat(unpacked).st_blocks * 512)
            origin = os.fsencode(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(self._path / f"{key}.source", flags, 0o600), "wb") as file:
                file.write(origin)
            where = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # A folder is named for nothing but to have linkat(2) follow the link.
                os.link(
                    f"/proc/self/fd/{unpacked}", self._path / f"{key}{_SUFFIX}", src_dir_fd=where
                )  # fmt: skip
            finally:
                os.close(where)

    def tidy(self, room: int = 0) -> None:
        """Remove what is of no use any more, and what is too much.

        :param room: bytes that are to be added.
        """
        left = MOST - room
        for entry in sorted(self._entries(), key=lambda entry: entry.used, reverse=True):
            left -= entry.size
            if left < 0 or entry.used < time.time() - _MONTH or not entry.is_current():
                entry.image.unlink(missing_ok=True)
                entry.source.unlink(missing_ok=True)
                left += entry.size

    def _entries(self) -> Iterator[_Entry]:
        for path in self._path.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.lstat()
                source = path.with_suffix(".source")
                yield _Entry(path, source, status.st_blocks * 512, status.st_mtime)


class _Entry(NamedTuple):
    image: Path
    source: Path
    size: int
    used: float

    def is_current(self) -> bool:
        """Whether the compressed file is still there, and as it was."""
        try:
            with self.source.open("rb") as file:
                name = os.fsdecode(file.read(_LONGEST_PATH))
            return _key(Path(name).stat()) == self.image.stem
        except (OSError, ValueError):
            return False


def _key(status: os.stat_result) -> str:
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
