"""Files of the cache: trusted only if nobody else could have written them, written whole or not."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from virtintrospect.errors import CorruptDataError

#: Largest file of the cache.
MAX_FILE = 512 << 20
#: How the names of files begin that are not whole yet.
TEMPORARY = ".new-"


def check_owner(status: os.stat_result, path: Path, forbidden: int = 0o022) -> None:
    """Refuse what others could have written: they would decide what this host believes.

    :raises PermissionError: its owner is another user, or others may write it.
    """
    if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & forbidden:
        raise PermissionError(f"others than its owner may write {path}")


def map_file(path: Path) -> memoryview:
    """The content of a file, mapped.

    :raises OSError: it cannot be opened, or others may write it.
    :raises CorruptDataError: it is empty, too large, or no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        check_owner(status, path)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_FILE:
            raise CorruptDataError("no profile, or an empty one", 0)
        return memoryview(mmap.mmap(descriptor, status.st_size, prot=mmap.PROT_READ))
    finally:
        os.close(descriptor)


def prepare(directory: Path) -> None:
    """Make the cache's directory, for its owner alone, where there is none."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(directory.stat(), directory)


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file that is there whole or not at all, whoever else writes it meanwhile."""
    import tempfile  # it draws in shutil and random, which a warm start does not need

    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
