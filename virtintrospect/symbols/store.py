"""The disk cache of what depends only on a kernel's build: symbols and types.

A build id is the guest's own claim. A hostile guest may claim that of a distribution's kernel and
show forged tables, to blind its host to all other guests on that kernel. So a profile remembers
the regions of guest memory that it was made from, and their digest; it serves a guest only if
that guest has the very same bytes there. Forged tables can then mislead about the forger alone.

A cache must never be the reason for a failure: whatever is wrong with it is logged as a warning,
and the kernel is parsed anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.cachefiles import TEMPORARY, check_owner, map_file, prepare, write_file
from virtintrospect.symbols.imports import Imports
from virtintrospect.symbols.profile import (
    Header,
    Profile,
    Sources,
    pack,
    unpack,
    unpack_header,
    usable,
)
from virtintrospect.symbols.table import Symbols

#: Reads guest memory: offset from ``_text`` and length, in bytes.
Reader = Callable[[int, int], bytes | memoryview]

#: Default size of the whole cache.
MAX_SIZE = 512 << 20

#: Most profiles of one build id that are kept, and tried for a guest.
MAX_VARIANTS = 4

_MAX_FILES = 4096
_SUFFIX = ".profile"
_STALE_SECONDS = 3600

_log = logging.getLogger(__name__)


def default_directory() -> Path | None:
    """Where profiles are kept, or ``None`` where the caller has no home.

    ``$VIRTINTROSPECT_CACHE``, else /var/cache/virtintrospect for root, else
    ``$XDG_CACHE_HOME``/virtintrospect, else ~/.cache/virtintrospect.
    """
    own = os.environ.get("VIRTINTROSPECT_CACHE")
    if own:
        return Path(own)
    if os.geteuid() == 0:
        return Path("/var/cache/virtintrospect")
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if shared.startswith("/"):
        return Path(shared) / "virtintrospect"
    try:
        return Path.home() / ".cache" / "virtintrospect"
    except RuntimeError:
        return None


class Store:
    """Profiles of kernel builds, in one directory; several processes may share it.

    :param directory: made (mode 0700) when something is first saved; ``None``: keep nothing.
    :param max_size: bytes on disk; the least recently used profiles go first.
    """

    def __init__(self, directory: Path | None, *, max_size: int = MAX_SIZE) -> None:
        self.directory = directory
        self.max_size = max_size
        #: What a person brought for kernels that do not explain themselves.
        self.imports = Imports(directory)

    def find(self, build_id: bytes, read: Reader) -> Profile | None:
        """The profile of ``build_id`` that was made from the very bytes this guest has.

        :param read: reads this guest's kernel image. A
            :exc:`~virtintrospect.errors.FaultError` from it means that the bytes differ.
        """
        digests: dict[Sources, str | None] = {}
        for path in self._variants(build_id)[:MAX_VARIANTS]:
            try:
                data = map_file(path)
                header = unpack_header(data)
                if header.sources not in digests:
                    digests[header.sources] = _digest_or_none(header.sources, read)
                if not self._still_brought(header):
                    path.unlink()
                elif header.build_id == build_id and header.digest == digests[header.sources]:
                    profile = self._unpacked(header)
                    _touch(path)
                    return profile
            except (OSError, CorruptDataError) as problem:
                _log.warning("profile %s is not used: %s", path, problem)
        return None

    def save(
        self,
        build_id: bytes,
        sources: Sequence[tuple[int, bytes | memoryview]],
        symbols: Symbols,
        btf: Btf | None,
        metadata: Mapping[str, Any],
    ) -> Profile:
        """Keep what was parsed from a guest, and give it back as :meth:`find` would.

        :param sources: the regions that it was parsed from (offset from ``_text``, content),
            without relocated pointers in them. The content must be the very copy that was
            parsed: read a second time, a hostile guest could show something else. Without any
            the profile is not kept, for nothing could prove that it fits.
        :param metadata: what else follows from these sources **alone**; what a guest merely
            claims beside them would be served to other guests as well. It must survive JSON.
        """
        memory = Profile(symbols, btf, dict(metadata))
        regions = tuple((offset, len(content)) for offset, content in sources)
        if self.directory is None or not usable(regions) or not 0 < len(build_id) <= 64:
            return memory
        contents = dict(zip(regions, (content for _, content in sources), strict=True))
        digest = source_digest(regions, lambda offset, size: contents[offset, size])
        path = self.directory / f"{build_id.hex()}-{digest[:8]}{_SUFFIX}"
        try:
            prepare(self.directory)
            write_file(path, pack(build_id, digest, regions, symbols, btf, metadata))
            self._evict(build_id, path)
            data = map_file(path)
            return self._unpacked(unpack_header(data))
        except (OSError, CorruptDataError) as problem:
            _log.warning("profile %s is not kept: %s", path, problem)
        return memory

    def notes(self) -> Iterator[tuple[int, bytes]]:
        """Where kernels that are in the cache have their build-id note, and their build id.

        A place to look first, nothing more: the offset (from ``_text``) is the integer that was
        saved as ``metadata["note"]``. The most recently used kernel comes first.
        """
        seen = set()
        for path, _ in self._files():
            try:
                header = unpack_header(map_file(path))
            except (OSError, CorruptDataError):  # find() will say so, when it matters
                continue
            found = (header.metadata.get("note"), header.build_id)
            if isinstance(found[0], int) and found not in seen:
                seen.add(found)
                yield found[0], found[1]

    def _still_brought(self, header: Header) -> bool:
        """Whether symbols that a person brought, where a profile has such, are still kept."""
        brought = header.metadata.get("brought")
        return brought is None or self.imports.has(str(brought[0]), int(brought[1]))

    def _unpacked(self, header: Header) -> Profile:
        return unpack(header)

    def _variants(self, build_id: bytes) -> list[Path]:
        """Profiles that claim to be of ``build_id``, the most recently used first."""
        prefix = f"{build_id.hex()}-"
        return [path for path, _ in self._files() if path.name.startswith(prefix)]

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """All profiles, the most recently used first; none where the cache cannot be trusted."""
        if self.directory is None:
            return []
        found = []
        try:
            check_owner(self.directory.stat(), self.directory)
            with os.scandir(self.directory) as entries:
                for entry, _ in zip(entries, range(_MAX_FILES), strict=False):
                    if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        except FileNotFoundError:
            return []
        except OSError as problem:
            _log.warning("the cache %s is not used: %s", self.directory, problem)
            return []
        return sorted(found, key=lambda item: item[1].st_mtime_ns, reverse=True)

    def _evict(self, build_id: bytes, newest: Path) -> None:
        """Keep within bounds: size of all, number of one build's, no left-overs of the killed."""
        total, variants, prefix = 0, 0, f"{build_id.hex()}-"
        for path, status in self._files():
            total += status.st_size
            variants += path.name.startswith(prefix)
            crowded = path.name.startswith(prefix) and variants > MAX_VARIANTS
            if path != newest and (total > self.max_size or crowded):
                path.unlink(missing_ok=True)
                total -= status.st_size
        for path in newest.parent.glob(f"{TEMPORARY}*"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another process was faster
                continue


class SharedStore(Store):
    """As :class:`Store`, with one profile in memory for all guests of a process on that build.

    Whether a profile may serve a guest is proven for each guest anew; what is shared is the
    mapping of the file, and the types that have been decoded.
    """

    #: Profiles kept; a host with more different kernels than this maps some of them twice.
    _KEPT = 32

    def __init__(self, directory: Path | None, *, max_size: int = MAX_SIZE) -> None:
        super().__init__(directory, max_size=max_size)
        self._profiles: dict[tuple[bytes, str, Sources, str], Profile] = {}

    def _unpacked(self, header: Header) -> Profile:
        # Brought symbols are not among the sources: others may have taken their place.
        brought = str(header.metadata.get("brought"))
        key = (header.build_id, header.digest, header.sources, brought)
        profile = self._profiles.get(key)
        if profile is None:
            if len(self._profiles) >= self._KEPT:
                self._profiles.clear()
            profile = self._profiles[key] = super()._unpacked(header)
        return profile


def source_digest(sources: Sources, read: Reader) -> str:
    """SHA-256 over position, length and content of regions of guest memory.

    :raises FaultError: ``read`` cannot read one, or gives another length.
    """
    digest = hashlib.sha256()
    for offset, length in sources:
        content = read(offset, length)
        if len(content) != length:
            raise FaultError(offset, length, kind="image")
        digest.update(struct.pack("<QQ", offset, length))
        digest.update(content)
    return digest.hexdigest()


def _digest_or_none(sources: Sources, read: Reader) -> str | None:
    try:
        return source_digest(sources, read)
    except FaultError:
        return None


def _touch(path: Path) -> None:
    """Note the use, for eviction; a cache that cannot be written still serves."""
    try:
        os.utime(path)
    except OSError:
        _log.debug("the use of %s cannot be noted", path)
