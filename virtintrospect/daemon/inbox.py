"""What the hook has to say: datagrams while the daemon runs, files of a spool while it did not.

Both are hints from a stranger. A hint names a domain; libvirt is then asked what is true.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Bytes of one message.
_LARGEST = 4096
#: Messages that are read at one go, so that a flood does not keep the daemon from all else.
_AT_ONCE = 64
#: Files that are looked at; the hook writes at most 1,000.
_MAX_FILES = 4096
_LONGEST = 256
#: Seconds after which a file that was never finished is nobody's.
_ABANDONED = 3600


@dataclass(frozen=True, slots=True)
class Hint:
    """One call of the hook."""

    domain: str
    uuid: str | None
    operation: str


def parse(data: bytes) -> Hint | None:
    """A message, or ``None`` where it makes no sense."""
    if len(data) > _LARGEST:
        return None
    try:
        message: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or message.get("version") != 1:
        return None
    domain, uuid, operation = (message.get(key) for key in ("domain", "uuid", "operation"))
    for text in (domain, operation):
        if not isinstance(text, str) or not 0 < len(text) <= _LONGEST:
            return None
    if uuid is not None and (not isinstance(uuid, str) or len(uuid) > _LONGEST):
        return None
    return Hint(str(domain), uuid, str(operation))


class Inbox:
    """The hook's socket.

    :param path: made anew; a socket that a killed daemon left there is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            # Nobody but root may put anything in; between bind and chmod nobody could either.
            before = os.umask(0o177)
            try:
                self.socket.bind(str(path))
            finally:
                os.umask(before)
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    def read(self) -> Iterator[Hint]:
        """The hints that wait, up to a bound; what makes no sense is dropped."""
        for _ in range(_AT_ONCE):
            try:
                data = self.socket.recv(_LARGEST + 1)
            except OSError:  # nothing more, or interrupted
                return
            if (hint := parse(data)) is not None:
                yield hint

    def close(self) -> None:
        """Remove the socket."""
        self.socket.close()
        self.path.unlink(missing_ok=True)


def spooled(folder: Path) -> list[Hint]:
    """Take the hints of a spool, oldest first; every file that was looked at is gone then."""
    hints = []
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry, _ in zip(entries, range(_MAX_FILES), strict=False))
    except OSError:
        return []
    for name in names:
        path = folder / name
        if name.startswith("."):
            _drop_if_abandoned(path)
            continue
        with contextlib.suppress(OSError):
            if (hint := parse(_read(path))) is not None:
                hints.append(hint)
        with contextlib.suppress(OSError):
            path.unlink()
    return hints


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_LARGEST + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""


def _drop_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        if time.time() - path.lstat().st_mtime > _ABANDONED:
            path.unlink()
