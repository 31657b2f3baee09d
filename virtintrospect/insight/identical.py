"""Pages of guests that are the same, counted by a sample: what KSM could merge.

A piece of each page is read first, at the same place in all pages of all guests. By its value
some pages are chosen, so that all pages of the same content are chosen or none: what is counted
among them stands for the rest. Those are read whole, and hashed.

Only pages that the host has are read. The work is bounded by pages and by time.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.insight.hints.facts import Identical
from virtintrospect.memory import PhysicalMemory

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

PAGE = 4096
#: Bytes of a page by which it is chosen.
_PIECE = 64
#: Of each guest: pages that are looked at (2 GiB), pages that are hashed (64 MiB), seconds.
_MOST_PAGES, _MOST_HASHED, _SECONDS = 1 << 19, 1 << 14, 2.0
#: Pages in a row, of guests of which not all are looked at; and pages that are read at once.
_RUN, _AT_ONCE = 512, 4096


class _Looked(NamedTuple):
    """A guest's pages by their pieces."""

    #: Addresses of pages that hold something, and a number for the value of each one's piece.
    pages: Array
    keys: Array
    #: Addresses of pages whose pieces are zeros.
    empty: Array
    looked_at: int


class Free(NamedTuple):
    """Which pages a guest has free: what is left in them is nobody's."""

    #: One for each page of the guest, from address zero on.
    mask: Array
    page_size: int


def identical_pages(
    memories: Sequence[PhysicalMemory], free: Sequence[Free | None] = ()
) -> list[Identical]:
    """For each guest, what is the same as other pages, its own or others'.

    A guest that goes away meanwhile has nothing.

    :param free: for each guest, pages that do not count; those of one of which that is not
        known all do.
    """
    places = random.sample(range(0, PAGE, _PIECE), 2)
    unwanted = [*free, *([None] * (len(memories) - len(free)))]
    looked = [_look(memory, places, none) for memory, none in zip(memories, unwanted, strict=True)]
    step = max(1, max((-(-len(one.pages) // _MOST_HASHED) for one in looked), default=1))
    salt = os.urandom(16)
    found = [
        _hashed(memory, _chosen(one, step), salt)
        for memory, one in zip(memories, looked, strict=True)
    ]
    everywhere: defaultdict[bytes, int] = defaultdict(int)
    for contents in found:
        for content, count in contents.items():
            everywhere[content] += count
    return [
        _result(contents, everywhere, step, one, _zero(memory, one.empty))
        for contents, one, memory in zip(found, looked, memories, strict=True)
    ]


def _result(
    contents: Counter[bytes], everywhere: dict[bytes, int], step: int, looked: _Looked, zero: int
) -> Identical:
    gain = shared = 0.0
    for content, count in contents.items():
        whole = everywhere[content]
        gain += count * (whole - 1) / whole  # one of them stays, for all who have it
        shared += count * (whole > count)
    return Identical(
        size=round(gain * step) * PAGE,
        shared=round(shared * step) * PAGE,
        zero=zero * PAGE,
        looked_at=looked.looked_at,
        hashed=sum(contents.values()),
    )


def _look(memory: PhysicalMemory, places: Sequence[int], free: Free | None) -> _Looked:
    """Read one piece of each page; of those that have zeros there, another."""
    import numpy as np

    end = time.monotonic() + _SECONDS
    pages, keys, empty, count = [], [], [], 0
    try:
        for batch in _batches(memory):
            if time.monotonic() > end:
                break
            left = batch if free is None else batch[~_within(batch, free)]
            count += len(left)
            for number, place in enumerate(places):
                words = _pieces(memory, left, place)
                plain = (words == words[:, :1]).all(axis=1)  # zeros, or one word over and over
                pages.append(left[~plain])
                keys.append(_mixed(words[~plain], number))
                left = left[plain & (words[:, 0] == 0)]
            empty.append(left)
    except VirtIntrospectError:
        pages, keys, empty, count = [], [], [], 0
    none = [np.zeros(0, dtype=np.uint64)]
    return _Looked(
        np.concatenate(pages or none),
        np.concatenate(keys or none),
        np.concatenate(empty or none),
        count,
    )


def _within(pages: Array, free: Free) -> Array:
    """Which pages are free."""
    import numpy as np

    numbers = (pages // np.uint64(free.page_size)).astype(np.intp)
    known = numbers < len(free.mask)
    found: Array = free.mask[np.where(known, numbers, 0)] & known
    return found


def _pieces(memory: PhysicalMemory, pages: Array, place: int) -> Array:
    import numpy as np

    data = memory.gather((pages + np.uint64(place)).tolist(), _PIECE, [])
    return np.frombuffer(data, dtype="<u8").reshape(len(pages), _PIECE // 8)


def _mixed(words: Array, salt: int) -> Array:
    """A number for each row, whose lower bits depend on all of it."""
    import numpy as np

    factors = np.arange(3, 3 + 2 * words.shape[1], 2, dtype=np.uint64)
    factors *= np.uint64(0x9E3779B97F4A7C15)
    mixed: Array = (words * factors).sum(axis=1, dtype=np.uint64) + np.uint64(salt)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return mixed


def _chosen(looked: _Looked, step: int) -> list[int]:
    import numpy as np

    if not len(looked.keys):
        return []
    found: list[int] = looked.pages[looked.keys % np.uint64(step) == 0].tolist()
    # Chosen by a value that many pages have, there may be more than that.
    return found if len(found) <= 2 * _MOST_HASHED else random.sample(found, 2 * _MOST_HASHED)


def _hashed(memory: PhysicalMemory, pages: list[int], salt: bytes) -> Counter[bytes]:
    """How many pages there are of each content."""
    found: Counter[bytes] = Counter()
    try:
        for first in range(0, len(pages), _AT_ONCE):
            some = pages[first : first + _AT_ONCE]
            data = memoryview(memory.gather(some, PAGE, []))
            for at in range(0, len(data), PAGE):
                page = data[at : at + PAGE]
                found[hashlib.blake2b(page, digest_size=16, key=salt).digest()] += 1
    except VirtIntrospectError:
        return Counter()
    return found


def _zero(memory: PhysicalMemory, empty: Array) -> int:
    """How many of those pages hold nothing but zeros, by some of them."""
    pages: list[int] = empty.tolist()
    some = random.sample(pages, min(256, len(pages)))
    if not some:
        return 0
    try:
        data = memory.gather(some, PAGE, [])
    except VirtIntrospectError:
        return 0
    nothing = bytes(PAGE)
    zeros = sum(data[at : at + PAGE] == nothing for at in range(0, len(data), PAGE))
    return round(len(pages) * zeros / len(some))


def _batches(memory: PhysicalMemory) -> Iterator[Array]:
    """Addresses of pages that the host has; of large guests, of runs by chance."""
    import numpy as np

    # A guest can make as many runs as it has pages: no more of them are kept than are looked at.
    runs: list[tuple[int, int]] = []
    seen = 0
    for region in memory.resident():
        for start in range(-(-region.start // PAGE) * PAGE, region.end & -PAGE, _RUN * PAGE):
            run = start, min(start + _RUN * PAGE, region.end & -PAGE)
            seen += 1
            if len(runs) < _MOST_PAGES:
                runs.append(run)
            elif (place := random.randrange(seen)) < _MOST_PAGES:  # noqa: S311 - no secret
                runs[place] = run
    total, kept = 0, []
    random.shuffle(runs)
    for start, end in runs:
        if total >= _MOST_PAGES:
            break
        total += (end - start) // PAGE
        kept.append((start, end))
    batch: list[Array] = []
    size = 0
    for start, end in sorted(kept):
        batch.append(np.arange(start, end, PAGE, dtype=np.uint64))
        size += len(batch[-1])
        if size >= _AT_ONCE:
            yield np.concatenate(batch)
            batch, size = [], 0
    if batch:
        yield np.concatenate(batch)
