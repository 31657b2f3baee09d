"""System.map: a kernel's symbols as its build lists them, a line ``address type name`` each.

It names no kernel: the file's name does (``System.map-6.1.0-57-amd64``), or whoever brings it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from virtintrospect.errors import CorruptDataError
from virtintrospect.symbols.brought import Brought
from virtintrospect.symbols.table_build import Entry, build_table

#: Largest file; that of a distribution kernel has 4 to 9 MB.
MAX_SIZE = 64 << 20
#: Most symbols of one kernel; distributions have some 200,000.
MAX_SYMBOLS = 1 << 21

_LINE = re.compile(rb"([0-9a-fA-F]{8}|[0-9a-fA-F]{16}) (\S) (\S{1,512})(?:[ \t].*)?\r?")
_NAME = re.compile(r"System\.map-([A-Za-z0-9][\w.+~-]{0,126})\Z", re.ASCII)


def looks_like(data: bytes | memoryview) -> bool:
    """Whether a file begins as a System.map does."""
    return bool(_LINE.fullmatch(bytes(data[:1024]).split(b"\n", 1)[0]))


def read(data: bytes | memoryview, name: str) -> Brought:
    """The symbols of a file.

    :param name: of the file, which may say the kernel's release.
    :raises CorruptDataError: a line is no symbol, or there are none.
    """
    if len(data) > MAX_SIZE:
        raise CorruptDataError(f"System.map: {len(data)} bytes are more than any kernel's has", 0)
    content = bytes(data)
    width = len(content.split(b" ", 1)[0])
    release = _NAME.match(name)
    return Brought(
        format="System.map",
        symbols=build_table(_entries(content), 4 * width),
        pointer_size=width // 2,
        release=release[1] if release else "",
    )


def _entries(content: bytes) -> Iterator[Entry]:
    number = 0
    for number, line in enumerate(content.splitlines()):
        found = _LINE.fullmatch(line)
        if found is None or number >= MAX_SYMBOLS:
            raise CorruptDataError(
                f"System.map: line {number + 1} is no symbol ({line[:40]!r})", number + 1
            )
        yield Entry(int(found[1], 16), found[2], found[3])
