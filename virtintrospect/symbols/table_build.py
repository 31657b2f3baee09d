"""A symbol table made from a list, as :mod:`~virtintrospect.symbols.table` stores it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.index import build_index
from virtintrospect.symbols.table import IMAGE_ABOVE, IMAGE_BELOW, Symbols, SymbolTable

#: What the image begins with, by preference: all architectures have the first.
_ANCHORS = (b"_text", b"_stext")


class Entry(NamedTuple):
    """A symbol: address as linked, type letter as ``nm`` gives it, name."""

    address: int
    type: bytes
    name: bytes


def build_table(entries: Iterable[Entry], bits: int) -> Symbols:
    """The table, at the base that the kernel was linked for.

    :param bits: of an address, 32 or 64.
    :raises CorruptDataError: there is no ``_text``, by which the kernel's slide is told.
    """
    import numpy as np

    listed = sorted(entries, key=lambda entry: entry.address)
    if bits not in (32, 64):
        raise CorruptDataError(f"addresses of {bits} bits", 0)
    anchors = {entry.name: entry.address for entry in listed if entry.name in _ANCHORS}
    base = next((anchors[name] for name in _ANCHORS if name in anchors), 0)
    if not IMAGE_BELOW <= base < 1 << bits:
        raise CorruptDataError("the symbols have no _text: they are no kernel's", 0)
    addresses = np.array([entry.address for entry in listed], dtype=np.uint64)
    bias = np.uint64(base - IMAGE_BELOW)
    first = int(np.searchsorted(addresses, bias))
    last = int(np.searchsorted(addresses, np.uint64(min(base + IMAGE_ABOVE, (1 << 64) - 1))))
    addresses[first:last] -= bias
    names = [entry.type[:1] + entry.name for entry in listed]
    lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
    ends = np.cumsum(lengths + 1)
    offsets = np.concatenate((ends - lengths + 1, ends[-1:] + 2)).astype(np.uint32)
    table = SymbolTable(
        names=memoryview(b"\0" + b"\0".join(names)),
        offsets=memoryview(offsets.tobytes()),
        addresses=memoryview(addresses.tobytes()),
        index=memoryview(build_index(entry.name for entry in listed)),
        first_relative=first,
        end_relative=last,
    )
    return Symbols(table, base)
