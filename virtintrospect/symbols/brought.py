"""What a file that a person brings says of one kernel build, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from virtintrospect.symbols.table import Symbols

#: Told of long work: what is done, and how much there is.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Brought:
    """Symbols and types out of one file, and which kernel they are of.

    :param format: of the file, as shown to people.
    :param types: raw BTF; ``None`` where the file has no types.
    :param symbols: at the base that the kernel was linked for.
    :param pointer_size: bytes of the kernel's pointers, 4 or 8.
    :param build_id: GNU build id; empty where the file does not say.
    :param note: address, as linked, of the note in the kernel's image that holds the build id.
    :param banner: ``linux_banner`` without its newline; empty where the file does not say.
    :param release: as ``uname -r`` says; empty where the file does not say.
    """

    format: str
    types: bytes | None = None
    symbols: Symbols | None = None
    pointer_size: int = 8
    build_id: bytes = b""
    note: int = 0
    banner: bytes = b""
    release: str = ""
