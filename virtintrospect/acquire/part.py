"""The unfinished file: written beside the final one, with a note of how far it is.

``FILE.part`` has the data, ``FILE.part.state`` what is needed to go on: how far it is, and
behind that, written once, which ranges the file has a place for. ``FILE`` appears whole, by a
rename, or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from virtintrospect.acquire.layout import Layout
from virtintrospect.errors import OutputError, UsageError, VirtIntrospectError
from virtintrospect.memory.base import PAGE_SIZE, Region

#: Bytes of the file system that are left for others.
SPARE = 256 << 20
#: Bytes that are written between two looks at what is free.
_BETWEEN = 64 << 20
#: Bytes from which on a write past the page cache, which waits for the disk, is worth it.
_MUCH = 128 << 10
_VERSION = 2
_STATE_SIZE = 4096
#: Most bytes of ranges behind the state: a thousand of them, in digits.
_RUNS_SIZE = 64 << 10


@dataclass
class Tally:
    """How far a dump is, over all its runs."""

    #: Offset up to which the file is complete.
    done: int = 0
    #: Bytes of guest memory that were written, and that could not be read.
    resident: int = 0
    unreadable: int = 0
    seconds: float = 0.0
    pause_ms: float = 0.0
    runs: int = 0


class PartFile:
    """The data of a dump until it is whole. A context manager: it closes, and removes nothing.

    :param path: the final name.
    :param layout: what the file is to be.
    :param runs: what the layout was made from, for :func:`runs_before`.
    :param identity: of the guest; a dump goes on only with the same one.
    :param resume: go on with what is there.
    :param force: replace what is there.
    :raises UsageError: the name is taken, or there is nothing to resume, or it does not fit.
    :raises OutputError: the file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        runs: Sequence[Region],
        identity: str,
        *,
        resume: bool,
        force: bool,
    ) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.journal = _journal(path)
        self._force = force
        self._unchecked = _BETWEEN
        self._direct = -1
        self.tally = Tally()
        self._key = {"version": _VERSION, "layout": _digest(layout), "identity": identity}
        if not resume:
            _final_name_is_free(path, force=force)
        self._descriptor = self._open_old(layout.size) if resume else self._open_new()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if resume:
                _final_name_is_free(path, force=self._force)
            # What the last run wrote beyond its last note is not counted, and may be outdated.
            os.ftruncate(self._descriptor, self.tally.done)
            os.ftruncate(self._descriptor, layout.size)
            if not resume:
                # What has its name is none of ours: maybe a link to somebody else's file.
                self.journal.unlink(missing_ok=True)
                self._write_state(json.dumps(runs).encode(), os.O_EXCL)
            self._direct = _past_page_cache(self._descriptor)
        except OSError as error:
            os.close(self._descriptor)
            if not resume:
                self.discard()
            raise self._failed(error) from error
        except VirtIntrospectError:
            os.close(self._descriptor)
            raise

    def _open_new(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            if self._force:
                self._remove_old()
            return os.open(self.part, flags | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise UsageError(
                f"{self.part}: a dump that was not finished is there",
                hint="--resume goes on with it, --force begins anew",
            ) from error
        except OSError as error:
            raise self._failed(error) from error

    def _open_old(self, size: int) -> int:
        try:
            with self.journal.open("rb") as file:
                state = json.loads(file.read(_STATE_SIZE))
            descriptor = os.open(self.part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else f"{self.journal} is damaged"
            raise UsageError(
                f"{self.path}: there is no unfinished dump that could go on: {why}",
                hint="without --resume a new one begins",
            ) from error
        if not isinstance(state, dict) or {k: state.get(k) for k in self._key} != self._key:
            os.close(descriptor)
            raise UsageError(
                f"{self.part} is of another guest, another boot of it, another format, or its "
                "memory has changed its size",
                hint="--force begins anew",
            )
        try:
            self.tally = _tally(state, size)
            self._force = state.get("force") is True
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            os.close(descriptor)
            raise UsageError(f"{self.journal} is damaged", hint="--force begins anew") from error
        return descriptor

    def _remove_old(self) -> None:
        """Remove an unfinished dump, unless somebody is still writing it."""
        try:
            descriptor = os.open(self.part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.discard()
        finally:
            os.close(descriptor)

    def write(self, offset: int, data: memoryview | bytes, *, cached: bool = True) -> None:
        """Write all of ``data``.

        :param cached: somebody will soon read it. Else, what is much and begins at a page's
            border, in memory as in the file, goes past the page cache where the file system
            lets it: that saves a copy, pages of the host, and the wait for the disk at the end.
        :raises OutputError: no space, or another error of the file system.
        """
        self._unchecked += len(data)
        if self._unchecked >= _BETWEEN:
            self._unchecked = 0
            free = os.fstatvfs(self._descriptor)
            if free.f_bavail * free.f_frsize < SPARE:
                raise self._failed(OSError(errno.ENOSPC, f"only {SPARE >> 20} MiB are left"))
        try:
            done = 0
            if not cached and self._direct >= 0 and len(data) >= _MUCH:
                done = self._write_direct(offset, data)
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], offset + done)
        except OSError as error:
            raise self._failed(error) from error

    def _write_direct(self, offset: int, data: memoryview | bytes) -> int:
        """Write past the page cache; bytes that were written, 0 where that cannot be."""
        if (offset | len(data)) % PAGE_SIZE:
            return 0
        try:
            return os.pwrite(self._direct, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:  # larger blocks than pages, or not at all
                raise
            os.close(self._direct)
            self._direct = -1
            return 0

    def read(self, offset: int, size: int) -> bytes:
        """What was written before, for the hash of a dump that goes on."""
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise OutputError(f"{self.part} was cut short", hint="--force begins anew")
        return data

    def save(self) -> None:
        """Note how far it is, after making sure that so much is on the disk."""
        try:
            os.fdatasync(self._descriptor)
            self._write_state()
        except OSError as error:
            raise self._failed(error) from error

    def _write_state(self, behind: bytes = b"", more: int = 0) -> None:
        """In place and always one block: that works on a full disk, too.

        :param more: flags of open(2).
        """
        text = json.dumps(asdict(self.tally) | self._key | {"force": self._force}).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | more
        descriptor = os.open(self.journal, flags, 0o600)
        try:
            os.pwrite(descriptor, text.ljust(_STATE_SIZE) + behind, 0)
        finally:
            os.close(descriptor)

    def flush(self) -> None:
        """Put what is written on the disk; :meth:`finish` does, too."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error

    def finish(self) -> None:
        """Give the file its name, once all of it is on the disk."""
        try:
            os.fsync(self._descriptor)
            if self._force:
                self.part.replace(self.path)
            else:
                _rename_to_new(self.part, self.path)
            self.journal.unlink(missing_ok=True)
            _sync_folder(self.path.parent)
        except FileExistsError as error:
            raise UsageError(
                f"{self.path} has come into being meanwhile; the dump is {self.part}"
            ) from error
        except OSError as error:
            raise self._failed(error) from error

    def discard(self) -> None:
        """Remove both files: there is nothing in them yet."""
        self.part.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        for descriptor in {self._descriptor, self._direct} - {-1}:
            os.close(descriptor)
        self._descriptor = self._direct = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _failed(self, error: OSError) -> OutputError:
        hints = {
            errno.ENOSPC: "free some, or choose another folder; --resume goes on",
            errno.EDQUOT: "free some, or choose another folder; --resume goes on",
            errno.EFBIG: "the file system takes no file so large: --format elf has no gaps",
            errno.EWOULDBLOCK: "another dump is writing it",
        }
        number = error.errno or 0
        return OutputError(f"{self.part}: {error.strerror}", hint=hints.get(number, ""))


def runs_before(path: Path) -> list[Region]:
    """The ranges that an unfinished dump to ``path`` has a place for; none where it is damaged.

    What the host has may have changed since: the file is to be what it was to be.
    """
    try:
        with _journal(path).open("rb") as file:
            file.seek(_STATE_SIZE)
            runs = [
                Region(int(start), int(end)) for start, end in json.loads(file.read(_RUNS_SIZE))
            ]
    except (OSError, ValueError, TypeError):
        return []  # then the layout is another one, which PartFile refuses
    borders = [border for run in runs for border in run]
    return runs if borders == sorted(set(borders)) else []


def _tally(state: dict[str, Any], size: int) -> Tally:
    """How far a dump of so many bytes was; raises what comes of numbers that are none."""
    tally = Tally(**{name: type(zero)(state[name]) for name, zero in asdict(Tally()).items()})
    if not 0 <= tally.done <= size:
        raise ValueError(tally.done)
    return tally


def _past_page_cache(descriptor: int) -> int:
    """Another descriptor of the same file, for O_DIRECT; -1 where the file system has none."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1


def _sync_folder(path: Path) -> None:
    """Have a new name on the disk; some file systems (9p, vboxsf) cannot be asked for that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}.part.state")


def _digest(layout: Layout) -> str:
    """Of the places of everything: two runs may differ in registers, but not in these."""
    places = [(offset, len(data)) for offset, data in layout.heads]
    text = json.dumps([layout.format, layout.size, places, layout.parts, layout.regions])
    return hashlib.sha256(text.encode()).hexdigest()


def _final_name_is_free(path: Path, *, force: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is no regular file", hint="a dump needs one that has holes")
    if not force:
        raise UsageError(f"{path} is there already", hint="--force replaces it")


def _rename_to_new(old: Path, new: Path) -> None:
    """Rename, unless the new name is taken: by a link, where the file system has them."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        if new.exists():
            raise FileExistsError(new) from None
        old.rename(new)
        return
    old.unlink()
