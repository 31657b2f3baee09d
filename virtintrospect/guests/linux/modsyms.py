"""Symbols of loaded modules (``struct mod_kallsyms``, kernel/module/kallsyms.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.elfsyms import symbol_size, symbols_of
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.modules import LIMIT

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More symbols than a module has; amdgpu, the largest, has some 30,000.
_MAX_SYMBOLS = 1 << 17


def module_functions(guest: LinuxGuest, wanted: dict[str, str], budget: Budget) -> dict[int, str]:
    """Addresses of functions of modules.

    :param wanted: module → one function of it.
    :returns: address → function; what is not loaded, or has no such function, is left out.
    """
    if not guest.types.has("module", "kallsyms.symtab"):
        return {}  # built without CONFIG_KALLSYMS
    head = guest.symbols.address("modules")
    nodes, problem = walk_list(guest.kernel, head, limit=LIMIT, budget=budget)
    guest.note_all([problem])
    offset = guest.types.offsetof("module", "list")
    layout = guest.layout(
        "module",
        {
            "name": "name",
            "symtab": "kallsyms.symtab",
            "strtab": "kallsyms.strtab",
            "count": "kallsyms.num_symtab",
        },
        text=("name",),
    )
    columns = layout.lists(guest.kernel, [node - offset for node in nodes if node >= offset], [])
    found = {}
    left = dict(wanted)  # no two modules have one name
    for name, symtab, strtab, count in zip(*columns.values(), strict=True):
        function = left.pop((name or b"").split(b"\0", 1)[0].decode("latin-1"), None)
        if function and symtab and strtab and 0 < (count or 0) <= _MAX_SYMBOLS:
            address = _address(guest, function, symtab, strtab, count)
            if address is not None:
                found[address] = function
    return found


def _address(guest: LinuxGuest, function: str, symtab: int, strtab: int, count: int) -> int | None:
    table = guest.kernel.read_available(symtab, count * symbol_size(guest))
    if not table or table[0][0] != symtab:
        guest.note(f"no symbols of the module with {function}", symtab)
        return None
    symbols = list(symbols_of(guest, b"".join(piece for _, piece in table)))
    name = function.encode() + b"\0"
    faults: list[int] = []
    data = guest.kernel.gather([strtab + symbol.name for symbol in symbols], len(name), faults)
    for index, symbol in enumerate(symbols):
        if data[index * len(name) : (index + 1) * len(name)] == name:
            return symbol.value
    return None
