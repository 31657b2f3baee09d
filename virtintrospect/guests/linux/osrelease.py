"""What os-release(5) says, out of bytes from a stranger."""

from __future__ import annotations

import re

#: Lines that are looked at, and bytes of a value that are believed.
_MAX_LINES, _MAX_VALUE = 1024, 1024
_ASSIGNMENT = re.compile(rb"([A-Z][A-Z0-9_]*)=(.*)")
_ESCAPE = re.compile(rb"\\([\"'$`\\])")


def parse(content: bytes) -> dict[str, bytes]:
    """The assignments of an os-release file; the last one of a name counts."""
    found: dict[str, bytes] = {}
    for line in content.split(b"\n")[:_MAX_LINES]:
        match = _ASSIGNMENT.fullmatch(line.strip())
        if match is None:
            continue
        value = match[2][:_MAX_VALUE]
        if len(value) >= 2 and value[:1] in b"\"'" and value[:1] == value[-1:]:
            quote, value = value[:1], value[1:-1]
            value = _ESCAPE.sub(rb"\1", value) if quote == b'"' else value
        found[match[1].decode()] = value
    return found
