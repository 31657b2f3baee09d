"""Finding the names of kallsyms, and the tokens they are compressed with, by structure alone.

See :mod:`~virtintrospect.symbols.kallsyms` for the format and its history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from virtintrospect.errors import CorruptDataError, NotFoundError
from virtintrospect.symbols.vmcoreinfo import VmCoreInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.int64]

#: Most symbols taken; distribution kernels have 100,000 to 250,000.
MAX_SYMBOLS = 1 << 20

#: Most bytes of all compressed names; those of Debian's 7.2 have 2.7 MB.
MAX_NAMES = 16 << 20

#: Longest compressed name: KSYM_NAME_LEN is 512 since 6.1, and the type letter counts.
_MAX_RECORD = 2 + 1024
_MAX_TOKEN = 1024
_CHUNK = 1 << 20

#: Look-alikes of token tables, and of names, that are looked at before giving up.
_MAX_TRIES = 32
_MAX_CLAIMS = 32

#: The markers are right before the tokens; only in 6.2 and 6.3 there are three or four bytes
#: for each symbol in between.
_NEAR = 128 << 10
_FAR = _NEAR + 4 * MAX_SYMBOLS

#: Digits occur in symbol names, and a character that occurs is always a token of its own.
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))


@dataclass(frozen=True)
class Tokens:
    """A token table and its index, in bytes from the start of the image."""

    table: int
    index: int
    byteorder: str


@dataclass(frozen=True)
class Names:
    """The names, and where each one's record begins, in bytes from the start of the image."""

    num_syms: int
    num_syms_offset: int
    start: int
    end: int
    markers: int
    markers_size: int
    starts: Array


@dataclass(frozen=True)
class _Claim:
    """Names and markers that look right at first sight."""

    num_syms: int
    num_syms_offset: int
    start: int
    markers_offset: int
    markers: Array
    marker_size: int


# Tokens.


def find_tokens(view: memoryview, base: int, info: VmCoreInfo | None) -> Iterator[Tokens]:
    """Token tables, with an index that bears them out."""
    for digits in islice(_digit_runs(view, base, info), _MAX_TRIES):
        tokens = _tokens_at(view, digits)
        if tokens is not None:
            yield tokens


def _digit_runs(view: memoryview, base: int, info: VmCoreInfo | None) -> Iterator[int]:
    """Offsets of the digits' tokens: where VMCOREINFO says, then anywhere in the image."""
    start = _announced(base, info)
    if 0 <= start < len(view):
        near = bytes(view[start : start + 48 * _MAX_TOKEN]).find(_DIGITS)
        if near >= 0:
            yield start + near
    overlap = len(_DIGITS) - 1
    for start in range(0, len(view), _CHUNK):
        chunk = bytes(view[start : start + _CHUNK + overlap])
        position = chunk.find(_DIGITS)
        while position >= 0:
            yield start + position
            position = chunk.find(_DIGITS, position + 1)


def _announced(base: int, info: VmCoreInfo | None) -> int:
    """Offset of the token table as VMCOREINFO has it; -1 before 6.0, or where it is nonsense."""
    try:
        return info.symbol("kallsyms_token_table") - base if info is not None else -1
    except (NotFoundError, CorruptDataError):
        return -1


def _tokens_at(view: memoryview, digits: int) -> Tokens | None:
    """The table whose token for ``"0"`` is at ``digits``, if its index bears it out."""
    import numpy as np

    tail = bytes(view[digits : digits + 208 * _MAX_TOKEN])
    ends, position = [], -1
    for _ in range(0x30, 0x100):
        position = tail.find(b"\0", position + 1)
        if position < 0:
            return None
        ends.append(position)
    table_end = digits + ends[-1] + 1
    for align in (8, 4):
        index = -(-table_end // align) * align
        if index + 512 > len(view):
            continue
        for order in "<>":
            offsets = np.frombuffer(view[index : index + 512], f"{order}u2").astype(np.int64)
            start = digits - int(offsets[0x30])
            if start < 0 or offsets[0] != 0:
                continue
            table = bytes(view[start:table_end])
            if _index_agrees(table, offsets.tolist()):
                return Tokens(start, index, order)
    return None


def _index_agrees(table: bytes, offsets: list[int]) -> bool:
    """Whether the index points at the beginning of each of 256 strings, in order."""
    position = 0
    for offset in offsets:
        if offset != position:
            return False
        position = table.find(b"\0", position) + 1
        if position == 0 or position - offset > _MAX_TOKEN:
            return False
    return position == len(table)


# Names and markers.


def find_names(view: memoryview, tokens: Tokens, pointer_size: int) -> Iterator[Names]:
    """Names and markers that agree with each other."""
    claims = (
        claim
        for size in ((4, 8) if pointer_size == 8 else (4,))
        for reach in (_NEAR, _FAR)
        for start, markers in _find_markers(view, tokens, size, reach)
        # Where the table is not padded, what follows it may look like one marker more.
        for trimmed in (markers, markers[:-1])
        for claim in _names_before(view, tokens, start, trimmed, size, pointer_size)
    )
    for claim in islice(claims, _MAX_CLAIMS):
        starts = _record_starts(view, claim)
        if starts is not None:
            yield Names(
                len(starts) - 1,
                claim.num_syms_offset,
                claim.start,
                int(starts[-1]),
                claim.markers_offset,
                claim.marker_size * len(claim.markers),
                starts[:-1],
            )


def _find_markers(
    view: memoryview, tokens: Tokens, size: int, reach: int
) -> Iterator[tuple[int, Array]]:
    """Tables that begin with 0 and rise by a plausible length of 256 names, longest first."""
    import numpy as np

    end = tokens.table // size * size
    begin = max(0, end - reach) // size * size
    words = np.frombuffer(view[begin:end], f"{tokens.byteorder}u{size}")
    if len(words) < 3:
        return
    steps = words[1:] - words[:-1]
    rising = (words[1:] > words[:-1]) & (steps >= 2 * 256) & (steps <= 256 * _MAX_RECORD)
    zeros = np.flatnonzero((words[:-1] == 0) & rising)
    breaks = np.append(np.flatnonzero(~rising), len(rising))
    ends = breaks[np.searchsorted(breaks, zeros)]
    order = np.argsort(zeros - ends, kind="stable")[:16]
    for first, last in zip(zeros[order].tolist(), ends[order].tolist(), strict=True):
        if last - first < MAX_SYMBOLS // 256:
            yield begin + first * size, words[first : last + 1].astype(np.int64)


def _names_before(
    view: memoryview,
    tokens: Tokens,
    offset: int,
    markers: Array,
    marker_size: int,
    pointer_size: int,
) -> Iterator[_Claim]:
    """Names that end where the markers begin: their count stands right before them."""
    import numpy as np

    count = len(markers)
    if count < 2:
        return
    last = int(markers[-1])
    high = (offset - last - 2) // 4 * 4
    low = max(8, offset - last - 8 - 256 * _MAX_RECORD) // 4 * 4
    if high < low:
        return
    words = np.frombuffer(view[low - 8 : high], f"{tokens.byteorder}u4")
    likely = np.flatnonzero((words > (count - 1) * 256) & (words <= count * 256))
    for index in likely[:_MAX_CLAIMS].tolist():
        position = low - 8 + index * 4
        for start in sorted({position + 4, position + pointer_size}):
            if low <= start <= high and _first_lane(view, start, int(markers[1])):
                yield _Claim(int(words[index]), position, start, offset, markers, marker_size)


def _first_lane(view: memoryview, start: int, second: int) -> bool:
    """Whether 256 names from ``start`` on end where the second marker says; a cheap check."""
    lane = bytes(view[start : start + second + 2])
    for wide in (True, False):
        position = 0
        for _ in range(256):
            if position >= second:
                break
            size = lane[position]
            if wide and size & 0x80:
                size = (size & 0x7F | lane[position + 1] << 7) + 1
            position += size + 1
        else:
            if position == second:
                return True
    return False


def _record_starts(view: memoryview, claim: _Claim) -> Array | None:
    """Offsets of all names' records, and of the end; ``None`` unless every marker agrees.

    The lanes between two markers are walked side by side: 256 steps, however many symbols.
    """
    import numpy as np

    start, limit, markers = claim.start, claim.markers_offset, claim.markers
    num_syms = claim.num_syms
    if limit - start > MAX_NAMES:
        return None
    # Two bytes more than the names: a length of two bytes may be looked at in the last one.
    data = np.frombuffer(view[start : limit + 2], np.uint8)
    if len(data) < limit - start + 2:
        data = np.append(data, np.zeros(2, np.uint8))
    size = limit - start
    last_lane = num_syms - (len(markers) - 1) * 256
    for wide in (True, False):
        position = markers.copy()
        grid = np.empty((256, len(markers)), dtype=np.int64)
        for step in range(256):
            grid[step] = position
            length = data[np.minimum(position, size)].astype(np.int64)
            if wide:
                second = data[np.minimum(position, size) + 1].astype(np.int64)
                big = length >= 0x80
                length = np.where(big, (length & 0x7F | second << 7) + 1, length)
            position = position + length + 1
        if not np.array_equal(position[:-1], markers[1:]):
            continue
        flat = np.append(grid.T.reshape(-1), position[-1])[: num_syms + 1]
        end = int(flat[-1])
        # Only padding may lie between the last name and the first marker.
        if last_lane >= 1 and 0 <= size - end < 8 and int(np.diff(flat).min()) >= 2:
            return np.asarray(flat + start)
    return None
