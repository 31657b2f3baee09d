"""Bends good input: flips, lies about sizes, cuts, repeats, grafts."""

from __future__ import annotations

import struct
from typing import NamedTuple

from hypothesis import strategies as st

#: Numbers that sizes, offsets and counts do not expect.
_NUMBERS = (
    0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 0x1_0000, 0x7FFF_FFFF,
    0x8000_0000, 0xFFFF_FFFF, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
#: The same for texts, and what has a meaning in one.
_WORDS = (
    b"-1", b"0", b"99999999999999999999", b"1e400", b"0x" + b"f" * 40, b"9" * 5000, b"null",
    b"[" * 3000, b'{"a":' * 500, b'"', b"\\", b"\0", b"\n", b"\xff\xfe", b"%s", b",,", b"=",
    b"1.5", b"true", b"\x1b[31m", b" ",
)  # fmt: skip
_LARGEST = 1 << 20


class Edit(NamedTuple):
    """One change: which, where (a fraction of the input), and with what."""

    kind: int
    place: float
    number: int
    other: int


_EDIT = st.builds(
    Edit,
    kind=st.integers(0, 11),
    place=st.one_of(st.floats(0, 1), st.floats(0, 0.05)),
    number=st.one_of(st.integers(0, len(_NUMBERS) * 8 - 1), st.integers(0, (1 << 64) - 1)),
    other=st.integers(0, 255),
)

EDITS = st.lists(_EDIT, min_size=1, max_size=8)


def bent(seed: bytes, others: list[bytes], edits: list[Edit]) -> bytes:
    """A seed with these changes."""
    data = bytearray(seed)
    for edit in edits:
        if data:
            _apply(data, others, edit)
    return bytes(data[:_LARGEST])


def _apply(data: bytearray, others: list[bytes], edit: Edit) -> None:
    at = min(int(edit.place * len(data)), len(data) - 1)
    value = _NUMBERS[edit.number % len(_NUMBERS)]
    span = 1 + edit.number % 64
    match edit.kind:
        case 0:
            data[at] ^= 1 << edit.other % 8
        case 1:
            data[at] = edit.other
        case 2 | 3 | 4:  # where sizes and offsets lie, most often
            size = (2, 4, 8)[edit.kind - 2]
            at -= at % size
            order = "big" if edit.other & 1 else "little"
            data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]
        case 5:
            size = (1, 2, 4, 8)[edit.other % 4]
            code = "BHIQ"[edit.other % 4]
            data[at : at + size] = struct.pack(f"<{code}", edit.number % (1 << 8 * size))
        case 6:
            del data[at : at + span]
        case 7:
            data[at:at] = data[at : at + span] * (1 + edit.other % 8)
        case 8:
            other = others[edit.other % len(others)]
            start = edit.number % max(1, len(other))
            data[at : at + span] = other[start : start + span]
        case 9:
            del data[at:]
        case 10:
            data[at : at + span] = bytes(span)
        case _:
            data[at : at + edit.other % 24] = _WORDS[edit.number % len(_WORDS)]
