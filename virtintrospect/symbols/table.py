"""Symbols: name to address and back, straight from the sections of a cache file.

One table serves every boot of a kernel: addresses inside the kernel image are stored relative
to its first byte (``_text``), and a :class:`Symbols` is such a table seen from one base.
"""

from __future__ import annotations

import fnmatch
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

from virtintrospect.errors import SymbolNotFoundError
from virtintrospect.symbols.index import NameIndex

#: The kernel image is looked for between ``base - IMAGE_BELOW`` and ``base + IMAGE_ABOVE``
#: (x86-64: KERNEL_IMAGE_SIZE is at most 1 GiB). What lies outside does not move with KASLR.
IMAGE_BELOW = 16 << 20
IMAGE_ABOVE = 1 << 30

#: For a hint, names with the same beginning and nearly the same length are compared.
_MOST_COMPARED, _LENGTH_SLACK = 50_000, 3

#: Searches for similar names that errors of one table may cost.
_MOST_HINTS = 16
#: Names whose number is kept.
_MOST_FOUND = 1 << 12

#: An address this far above the last symbol is no longer "in" it.
_LAST_SYMBOL_SIZE = 4096

_MASK = (1 << 64) - 1


class Symbol(NamedTuple):
    """One symbol of the kernel."""

    name: str
    address: int
    #: As ``nm`` and /proc/kallsyms show it: ``T`` text, ``d`` local data, ``B`` bss, …
    type: str


@dataclass(frozen=True, slots=True)
class SymbolTable:
    r"""The stored form: sections of bytes, made once per kernel build.

    :param names: ``"\0" type name`` of every symbol, one after the other, in address order.
    :param offsets: u32 of each symbol: where its name (after the type) begins in ``names``; one
        more at the end.
    :param addresses: u64 of each symbol. Those numbered ``first_relative`` to
        ``end_relative - 1`` count from ``base - IMAGE_BELOW``, the others are absolute.
    :param index: a :mod:`~virtintrospect.symbols.index` section over the names.
    """

    names: memoryview
    offsets: memoryview
    addresses: memoryview
    index: memoryview
    first_relative: int
    end_relative: int


class Symbols:
    """A kernel's symbols as they lie in memory with its image at ``base``.

    :param table: the stored symbols; damaged sections lose symbols, they raise nothing.
    :param base: virtual address of ``_text``.
    """

    __slots__ = (
        "_addresses",
        "_bias",
        "_count",
        "_first",
        "_found",
        "_hints",
        "_index",
        "_last",
        "_more",
        "_names",
        "_offsets",
        "base",
        "table",
    )

    def __init__(self, table: SymbolTable, base: int) -> None:
        self.table = table
        #: Virtual address of ``_text``.
        self.base = base
        self._bias = base - IMAGE_BELOW
        self._names = table.names
        self._offsets = _words(table.offsets, "I")
        self._addresses = _words(table.addresses, "Q")
        self._count = max(0, min(len(self._offsets) - 1, len(self._addresses)))
        self._first = min(max(table.first_relative, 0), self._count)
        self._last = min(max(table.end_relative, self._first), self._count)
        self._index = NameIndex(table.index)
        self._more: Callable[[str], int | None] = _none
        self._hints = _MOST_HINTS
        #: Numbers by name: a sample of a guest asks for the same ones each second.
        self._found: dict[str, int] = {}

    def slid(self, base: int) -> Symbols:
        """The same symbols with the kernel image at ``base``; nothing is copied."""
        return Symbols(self.table, base)

    def extended(self, more: Callable[[str], int | None]) -> Symbols:
        """The same symbols; ``more`` is asked for those that the table does not have."""
        symbols = Symbols(self.table, self.base)
        symbols._more = more
        return symbols

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Symbol]:
        return map(self._symbol, range(self._count))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def address(self, name: str) -> int:
        """Virtual address of ``name``; the lowest, where several static symbols share it.

        :raises SymbolNotFoundError: there is none; the hint names similar ones.
        """
        address = self.get(name)
        if address is None:
            raise SymbolNotFoundError(name, hint=self._similar(name))
        return address

    @overload
    def get(self, name: str) -> int | None: ...

    @overload
    def get(self, name: str, default: int) -> int: ...

    def get(self, name: str, default: int | None = None) -> int | None:
        """Virtual address of ``name``, or ``default``."""
        number = self._find(name)
        if number >= 0:
            return self._address(number)
        found = self._more(name)
        return default if found is None else found

    def all(self, name: str) -> list[int]:
        """Every address that bears ``name``, in rising order; empty when there is none."""
        return [self._address(number) for number in self._numbers(name)]

    def type_of(self, name: str) -> str:
        """Type letter of ``name``, as in /proc/kallsyms.

        :raises SymbolNotFoundError: there is no such symbol.
        """
        number = self._find(name)
        if number < 0:
            raise SymbolNotFoundError(name, hint=self._similar(name))
        return self._symbol(number).type

    def lookup(self, address: int) -> tuple[str, int] | None:
        """The symbol at or nearest below a virtual ``address``, and the distance in bytes.

        Of several symbols at one address the first is given. ``None`` outside the kernel image
        (a module, the heap), for which the nearest symbol would mean nothing.
        """
        found = self.span(address)
        return None if found is None else found[:2]

    def span(self, address: int) -> tuple[str, int, int] | None:
        """As :meth:`lookup`, and the bytes from that symbol to the next one.

        The last symbol of all is taken to have a page.
        """
        if 0 <= address - self._bias < IMAGE_BELOW + IMAGE_ABOVE:
            low, high, sought = self._first, self._last, address - self._bias
        elif 0 <= address < self._bias:
            low, high, sought = 0, self._first, address
        else:
            low, high, sought = self._last, self._count, address
        number = bisect_right(self._addresses, sought, low, high) - 1
        if number < low:
            return None
        start = self._addresses[number]
        size = self._addresses[number + 1] - start if number < high - 1 else _LAST_SYMBOL_SIZE
        if sought - start >= size:
            return None
        number = bisect_left(self._addresses, start, low, number)
        return _text(self._name(number)), sought - start, size

    def search(self, pattern: str, limit: int = 1000) -> Iterator[Symbol]:
        """Symbols whose name matches a shell ``pattern`` (``*``, ``?``, ``[…]``; case counts).

        :param limit: most symbols given.
        """
        matches = re.compile(fnmatch.translate(pattern)).match
        for number in range(self._count):
            if limit <= 0:
                return
            if matches(_text(self._name(number))):
                limit -= 1
                yield self._symbol(number)

    def _numbers(self, name: str) -> Iterator[int]:
        sought = name.encode("utf-8", "replace")
        for number in self._index.candidates(sought):
            if number < self._count and self._name(number) == sought:
                yield number

    def _find(self, name: str) -> int:
        """Number of the first symbol of that name, below zero where there is none."""
        number = self._found.get(name)
        if number is None:
            if len(self._found) >= _MOST_FOUND:
                self._found.clear()
            number = self._found[name] = next(self._numbers(name), -1)
        return number

    def _name(self, number: int) -> bytes:
        offsets = self._offsets
        return bytes(self._names[offsets[number] : max(offsets[number + 1] - 2, 0)])

    def _address(self, number: int) -> int:
        address: int = self._addresses[number]
        if self._first <= number < self._last:
            address = (address + self._bias) & _MASK
        return address

    def _symbol(self, number: int) -> Symbol:
        start = self._offsets[number]
        kind = bytes(self._names[start - 1 : start]) if start else b""
        return Symbol(_text(self._name(number)), self._address(number), _text(kind) or "?")

    def _similar(self, name: str) -> str:
        """Name a few symbols that the user may have meant; only ever for an error's hint."""
        import difflib

        if self._hints <= 0:
            return ""
        self._hints -= 1
        head = fnmatch_escape(name[:3])
        near = {
            symbol.name
            for symbol in self.search(f"{head}*", _MOST_COMPARED)
            if abs(len(symbol.name) - len(name)) <= _LENGTH_SLACK
        }
        found = difflib.get_close_matches(name[:128], near, n=3, cutoff=0.6)
        return f"similar: {', '.join(found)}" if found else ""


def _none(_: str) -> None:
    return None


def fnmatch_escape(text: str) -> str:
    """Quote what a shell pattern would take as special."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def _text(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


def _words(section: memoryview, code: Literal["I", "Q"]) -> memoryview:
    view = memoryview(section).cast("B")
    size = 4 if code == "I" else 8
    return view[: len(view) // size * size].cast(code)
