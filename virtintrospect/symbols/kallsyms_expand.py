"""Expanding the compressed names of kallsyms, all of them at once.

See :mod:`~virtintrospect.symbols.kallsyms` for the format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import GuestNotRecognisedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from virtintrospect.symbols.kallsyms import KallsymsTables

    Array = npt.NDArray[np.int64]

#: Most bytes of all names together, expanded; those of Debian's 7.2 have 4.5 MB.
MAX_EXPANDED = 64 << 20

_SLAB = 1 << 14


def expand(view: memoryview, tables: KallsymsTables) -> tuple[bytes, Any]:
    r"""Expand all names: ``"\0" type name`` of each, and where each name begins.

    A record's length becomes a token of its own, which expands to the NUL between two names.
    The work is done in slabs that fit the processor's cache.
    """
    import numpy as np

    tokens, sizes, source = _token_arrays(view, tables)
    codes, heads = _codes(view, tables)
    offsets = np.empty(len(heads) + 1, dtype=np.uint32)
    parts, done = [], 0
    for first in range(0, len(codes), _SLAB):
        slab = codes[first : first + _SLAB]
        lengths = sizes[slab]
        starts = np.cumsum(lengths, dtype=np.int32) - lengths
        size = int(starts[-1]) + int(lengths[-1])
        if done + size > MAX_EXPANDED:
            raise GuestNotRecognisedError("kallsyms: the names expand beyond all bounds")
        positions = np.repeat(tokens[slab] - starts, lengths)
        positions += np.arange(size, dtype=np.int32)
        parts.append(source[positions].tobytes())
        low, high = np.searchsorted(heads, (first, first + len(slab)))
        offsets[low:high] = starts[heads[low:high] - first] + (done + 2)
        done += size
    offsets[-1] = done + 2
    return b"".join(parts), offsets


def _token_arrays(view: memoryview, tables: KallsymsTables) -> tuple[Any, Any, Any]:
    """Start and size of each token's text, and the text; 256 is a NUL, 257 is nothing."""
    import numpy as np

    raw = view[tables.token_index : tables.token_index + 512]
    tokens = np.frombuffer(raw, f"{tables.byteorder}u2").astype(np.int32)
    text = bytes(view[tables.token_table : tables.token_index])
    sizes = [max(text.find(b"\0", start), start) - start for start in tokens.tolist()]
    source = np.frombuffer(text + b"\0\0", np.uint8)
    starts = np.append(tokens, np.array([len(text), len(text)], np.int32))
    return starts, np.array([*sizes, 1, 0], np.int32), source


def _codes(view: memoryview, tables: KallsymsTables) -> tuple[Any, Array]:
    """The names as token numbers, and the positions in them at which a record begins."""
    import numpy as np

    codes = np.frombuffer(view[tables.names : tables.names_end], np.uint8).astype(np.int16)
    heads = np.asarray(tables.starts) - tables.names
    # The second byte of a two-byte length is no token either.
    payload = np.diff(np.append(heads, len(codes))) - 1
    wide = (codes[heads] >= 0x80) & (payload == _wide_lengths(codes, heads) + 1)
    codes[heads[wide] + 1] = 257
    codes[heads] = 256
    return codes, heads


def _wide_lengths(codes: Any, heads: Array) -> Any:
    import numpy as np

    second = codes[np.minimum(heads + 1, len(codes) - 1)].astype(np.int64)
    return codes[heads].astype(np.int64) & 0x7F | second << 7
