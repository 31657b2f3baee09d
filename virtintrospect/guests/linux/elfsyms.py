"""Symbol tables of modules as they lie in memory (``Elf_Sym``, include/uapi/linux/elf.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: st_name, st_value, st_size, st_info, st_other, st_shndx; 64 bits have them in another order.
_SYMBOL32 = struct.Struct("<IIIBBH")
#: st_name, st_info, st_other, st_shndx, st_value, st_size.
_SYMBOL64 = struct.Struct("<IBBHQQ")


class ElfSymbol(NamedTuple):
    """What is wanted of a symbol."""

    #: Offset of its name in the table of strings.
    name: int
    #: Number of its section; 0 for what another module or the kernel defines.
    section: int
    value: int


def symbol_size(guest: LinuxGuest) -> int:
    """Bytes of a symbol."""
    return (_SYMBOL64 if guest.types.pointer_size == 8 else _SYMBOL32).size


def symbols_of(guest: LinuxGuest, table: bytes) -> Iterator[ElfSymbol]:
    """The whole symbols of a table."""
    size = symbol_size(guest)
    whole = table[: len(table) // size * size]
    if guest.types.pointer_size == 8:
        for name, _, _, section, value, _ in _SYMBOL64.iter_unpack(whole):
            yield ElfSymbol(name, section, value)
    else:
        for name, value, _, _, _, section in _SYMBOL32.iter_unpack(whole):
            yield ElfSymbol(name, section, value)
