"""What was brought for kernels that do not explain themselves: kept, found and forgotten.

A guest's kernel is told from others by its build id where that is known, else by its banner or
its release. Symbols say themselves where the image has its build-id note or its banner; they are
the guest's if that is what lies there, and that finds the slide of KASLR, too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.symbols import imported
from virtintrospect.symbols.brought import Brought
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.cachefiles import check_owner, map_file, prepare, write_file
from virtintrospect.symbols.imported import SYMBOLS, TYPES, Imported, build_id_note, kernel_name
from virtintrospect.symbols.table import Symbols

_MAX_FILES = 4096
#: Files whose content is kept in memory, for all guests of a process.
_KEPT = 32
_BANNER = 512

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

#: Reads the kernel's image: offset from ``_text`` and length, in bytes.
Reader = Callable[[int, int], bytes | memoryview]


class Imports:
    """The imported files in the cache's directory.

    :param directory: ``None``: there is nothing, and nothing can be kept.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._loaded: dict[tuple[Path, int, int, int], Any] = {}

    def add(self, brought: Brought, source: str) -> list[Imported]:
        """Keep what a file says, in place of what was kept of the same kind for that kernel.

        :param source: name of the file.
        :raises CorruptDataError: it makes no sense, or does not say which kernel it is for.
        :raises OSError: there is no cache, or it cannot be written.
        """
        files = dict(imported.pack(brought, source))
        if self.directory is None:
            raise FileNotFoundError("there is no cache directory to keep it in")
        prepare(self.directory)
        kernel = kernel_name(brought.build_id, brought.release, brought.banner)
        found = []
        for ending, pieces in files.items():
            path = self.directory / f"{kernel}{ending}"
            write_file(path, pieces)
            found.append(imported.header(map_file(path)))
        return found

    def all(self) -> list[Imported]:
        """Everything that is kept, the newest first; damaged files are left out with a warning."""
        return sorted(
            (about for _, about in self._files()), key=lambda about: about.imported, reverse=True
        )

    def forget(self, kernel: str) -> list[Imported]:
        """Forget what is kept for one kernel, and give what that was.

        :param kernel: its build id, its release, or its name in :class:`Imported`.
        :raises OSError: the cache cannot be written.
        """
        gone = []
        for path, about in list(self._files()):
            if kernel in (about.kernel, about.release) and kernel:
                path.unlink(missing_ok=True)
                gone.append(about)
        return gone

    def types(self, build_id: bytes, banner: bytes = b"", release: str = "") -> Btf | None:
        """Types for a kernel of which this is known; ``None`` where there are none to use."""
        for name in _names(build_id, banner, release):
            found = self._load(name, TYPES, imported.types)
            if found is not None:
                return found
        return None

    def symbols(self, read: Reader) -> Iterator[tuple[Imported, Symbols]]:
        """Symbols that fit a kernel's image, as linked: they are to be ``slid()`` to its base.

        :param read: reads the image; a :exc:`~virtintrospect.errors.FaultError` means that
            it has nothing there.
        """
        for _, about in self._files():
            if about.holds == SYMBOLS and _fits(about, read):
                found = self._load(about.kernel, SYMBOLS, imported.symbols)
                if found is not None:
                    yield about, found

    def has(self, kernel: str, checksum: int) -> bool:
        """Whether these very symbols are still kept."""
        if self.directory is None:
            return False
        try:
            about = imported.header(map_file(self.directory / f"{kernel}{SYMBOLS}"))
        except (OSError, CorruptDataError):
            return False
        return about.checksum == checksum

    def _load(self, kernel: str, ending: str, unpack: Callable[[memoryview], _T]) -> _T | None:
        """The content of a file, shared by all who ask while the file is the same."""
        if self.directory is None:
            return None
        path = self.directory / f"{kernel}{ending}"
        try:
            check_owner(self.directory.stat(), self.directory)
            status = path.stat()
            key = (path, status.st_ino, status.st_mtime_ns, status.st_size)
            if key not in self._loaded:
                if len(self._loaded) >= _KEPT:
                    self._loaded.clear()
                self._loaded[key] = unpack(map_file(path))
            found: _T = self._loaded[key]
        except FileNotFoundError:
            return None
        except (OSError, CorruptDataError) as problem:
            _log.warning("%s %s are not used: %s", ending[1:], path, problem)
            return None
        return found

    def _files(self) -> Iterator[tuple[Path, Imported]]:
        if self.directory is None:
            return
        try:
            check_owner(self.directory.stat(), self.directory)
            names = os.listdir(self.directory)  # noqa: PTH208 - names are all that is wanted
        except FileNotFoundError:
            return
        except OSError as problem:
            _log.warning("the cache %s is not used: %s", self.directory, problem)
            return
        ours = sorted(name for name in names if name.endswith((TYPES, SYMBOLS)))
        for name in ours[:_MAX_FILES]:
            path = self.directory / name
            try:
                about = imported.header(map_file(path))
            except (OSError, CorruptDataError) as problem:
                _log.warning("%s is not used: %s", path, problem)
                continue
            if f"{about.kernel}{about.holds}" == name:  # else it was renamed by hand
                yield path, about


def _names(build_id: bytes, banner: bytes, release: str) -> Iterator[str]:
    """Names of files that may be for a kernel, the surest first."""
    if 0 < len(build_id) <= imported.MAX_BUILD_ID:
        yield build_id.hex()
    if banner:
        yield kernel_name(banner=banner)
    if release:
        try:
            yield kernel_name(release=release)
        except CorruptDataError:  # a guest may call itself what it likes
            return


def _fits(about: Imported, read: Reader) -> bool:
    """Whether an image has what these symbols say, where they say it."""
    try:
        if about.build_id and about.note is not None:
            note = build_id_note(about.build_id)
            return bytes(read(about.note, len(note))) == note
        if about.banner_at is None:
            return False
        if about.banner:
            return bytes(read(about.banner_at, len(about.banner))) == about.banner
        expected = f"Linux version {about.release} ".encode()
        return bool(about.release) and bytes(read(about.banner_at, len(expected))) == expected
    except FaultError:
        return False
