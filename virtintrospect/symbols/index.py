"""Name to id, found by hash in two sorted arrays: usable from a mapped file as it is.

The section is ``count`` (u32), then ``count`` CRC-32 values in rising order, then the ids that
belong to them, all u32 in the host's byte order. A lookup touches some 17 cache lines of a
155,000-name index, imports nothing and builds nothing.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    import numpy.typing as npt

#: No index of a kernel comes near this; a larger count is damage.
MAX_NAMES = 1 << 24


class NameIndex:
    """Immutable index from a name to the ids that may bear it.

    It stores no names: the caller compares each candidate's name with the one sought. A damaged
    section gives wrong or no candidates, never an error.

    :param section: what :func:`build_index` made, perhaps inside a mapped file.
    """

    __slots__ = ("_hashes", "_ids")

    def __init__(self, section: memoryview | bytes) -> None:
        view = memoryview(section).cast("B")
        count = struct.unpack_from("=I", view)[0] if len(view) >= 4 else 0
        if count > MAX_NAMES or 4 + 8 * count > len(view):
            count = 0
        self._hashes = view[4 : 4 + 4 * count].cast("I")
        self._ids = view[4 + 4 * count : 4 + 8 * count].cast("I")

    def __len__(self) -> int:
        return len(self._ids)

    def candidates(self, name: bytes) -> Iterator[int]:
        """Ids whose name hashes as ``name`` does, in the order they were given to the builder."""
        sought = crc32(name)
        hashes = self._hashes
        position = bisect_left(hashes, sought)
        while position < len(hashes) and hashes[position] == sought:
            yield self._ids[position]
            position += 1

    def ids(self) -> Sequence[int]:
        """Every id, in no useful order."""
        return self._ids


def build_index(names: Iterable[bytes], ids: Sequence[int] | None = None) -> bytes:
    """Build the section of an index.

    :param names: the names; one may occur several times.
    :param ids: id of each name (u32); its position when not given.
    """
    return build_index_of_hashes(list(map(crc32, names)), ids)


def build_index_of_hashes(hashes: npt.ArrayLike, ids: npt.ArrayLike | None = None) -> bytes:
    """Build the section of an index from the names' CRC-32 values."""
    import numpy as np

    keys = np.asarray(hashes, dtype=np.uint32)
    values = np.arange(len(keys), dtype=np.uint32) if ids is None else np.asarray(ids, np.uint32)
    order = np.argsort(keys, kind="stable")
    return struct.pack("=I", len(keys)) + keys[order].tobytes() + values[order].tobytes()
