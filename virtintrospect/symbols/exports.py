"""Symbols that a kernel exports to its modules (``__ksymtab``).

Without CONFIG_KALLSYMS_ALL kallsyms knows functions alone (Debian's kernels for ARM and i386 up to
6.1 are built so). Exports are in tables of their own, data among them: ``struct kernel_symbol``
of include/linux/export-internal.h, each member a distance from its own place (4.19,
CONFIG_HAVE_ARCH_PREL32_RELOCATIONS): value, name, and since 5.4 namespace.

The tables are found by content: an entry leads to the address of a function that kallsyms knows,
and to that function's name. The guest may have forged it all, as it may have kallsyms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from virtintrospect.symbols.table import Symbols

#: More than kernels export: some 10,000.
_MOST = 1 << 17
_LONGEST_NAME = 512
#: Numbers that lead to a function's beginning that are looked at; Debian's 6.1 has some 9,000.
_MOST_TRIES = 1 << 17
_NAME = re.compile(rb"[A-Za-z_.$][A-Za-z0-9_.$]*\0")


class Exports(NamedTuple):
    """What the tables say.

    ``regions`` (offset in the image, bytes) is what it follows from.
    """

    addresses: dict[str, int]
    regions: list[tuple[int, memoryview]]


def find_exports(image: memoryview, base: int, symbols: Symbols) -> Exports:
    """The exports of an image; empty where there are none, or in another form.

    :param image: a private copy of the image's read-only data; what is absent reads as zeros.
    :param base: virtual address of its first byte.
    :param symbols: the functions that kallsyms knows.
    """
    import numpy as np

    view = image.cast("B")
    words = np.frombuffer(view[: len(view) // 4 * 4], dtype="<i4")
    functions: dict[int, set[str]] = {}
    for symbol in symbols:
        if symbol.type in "TW":
            functions.setdefault(symbol.address - base, set()).add(symbol.name)
    if not functions:
        return Exports({}, [])
    targets = words + np.arange(len(words), dtype=np.int64) * 4
    starts = np.array(sorted(functions), dtype=np.int64)
    near = np.flatnonzero((words != 0) & (targets >= starts[0]) & (targets <= starts[-1]))
    exact = near[starts[np.searchsorted(starts, targets[near])] == targets[near]]
    tables = _Tables(view, words)
    for number in exact[:_MOST_TRIES].tolist():
        place = int(targets[number])
        if number in tables.seen:
            continue
        if tables.name(number) in functions[place]:
            tables.follow(number)
    return Exports({name: base + at for name, at in tables.found.items()}, tables.regions())


class _Tables:
    """The tables found so far."""

    def __init__(self, view: memoryview, words: Any) -> None:
        self._view = view
        self._words = words
        self.found: dict[str, int] = {}
        #: Numbers of words that begin an entry that was seen.
        self.seen: set[int] = set()
        self._names: list[tuple[int, int]] = []
        self._spans: list[tuple[int, int]] = []

    def name(self, number: int) -> str:
        """The name of the entry whose first word has that number; empty where it has none."""
        start, end = self._name_at(number)
        return bytes(self._view[start:end]).decode("ascii") if end else ""

    def follow(self, number: int) -> None:
        """Take all entries around one; how long one is shows by its neighbours."""
        width = 3 if self.name(number + 3) or self.name(number - 3) else 2
        first = number
        while first >= width and self.name(first - width) and len(self.seen) < _MOST:
            first -= width
        last = first
        for entry in self._entries(first, width):
            last = entry + width
        self._spans.append((4 * first, 4 * last))

    def _entries(self, number: int, width: int) -> Iterator[int]:
        while (name := self.name(number)) and len(self.seen) < _MOST:
            self.seen.add(number)
            self._names.append(self._name_at(number))
            self.found.setdefault(name, 4 * number + int(self._words[number]))
            yield number
            number += width

    def regions(self) -> list[tuple[int, memoryview]]:
        """The tables, and the strings that they name."""
        if not self._names:
            return []
        strings = min(start for start, _ in self._names), max(end for _, end in self._names) + 1
        return [(start, self._view[start:end]) for start, end in (*self._spans, strings)]

    def _name_at(self, number: int) -> tuple[int, int]:
        """Where a name is: offsets of its first byte and of its NUL; zeros where there is none."""
        if not 0 <= number < len(self._words) - 1:
            return 0, 0
        start = 4 * (number + 1) + int(self._words[number + 1])
        if not 0 <= start < len(self._view) or not self._words[number + 1]:
            return 0, 0
        match = _NAME.match(self._view[start : start + _LONGEST_NAME])
        return (start, start + match.end() - 1) if match else (0, 0)
