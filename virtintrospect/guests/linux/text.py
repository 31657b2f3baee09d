"""The kernel's code: what is code at all, whose it is, and what the place is called.

Names are those of kernel/kallsyms.c and kernel/module/kallsyms.c, in the spelling of ``%pB``:
``name+0xoffset/0xsize [module]``.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.elfsyms import symbol_size, symbols_of
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.modules import LIMIT

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More symbols than a module has; amdgpu, the largest, has some 30,000.
_MOST_SYMBOLS = 1 << 17
#: Symbols, as a power of two, that cost as much as one entry.
_DENSITY = 1
#: KSYM_NAME_LEN.
_LONGEST_NAME = 512
#: More code than a module has.
_LARGEST_MODULE = 256 << 20


class Place(NamedTuple):
    """Where an address lies."""

    function: str
    offset: int
    #: Bytes to the next symbol.
    size: int
    module: str

    def __str__(self) -> str:
        text = f"{self.function}+{self.offset:#x}/{self.size:#x}"
        return f"{text} [{self.module}]" if self.module else text


class ModuleText(NamedTuple):
    """A module's code, its unwinding tables and its symbols."""

    name: str
    start: int
    end: int
    #: Places, entries and number of its ORC tables.
    orc: tuple[int, int, int]
    symtab: int
    strtab: int
    symbol_count: int


class KernelText:
    """Code of the image and of all modules; read when made, and as of that moment."""

    def __init__(self, guest: LinuxGuest, budget: Budget) -> None:
        self._guest = guest
        self._budget = budget
        symbols = guest.symbols
        self._image = (symbols.address("_stext"), symbols.address("_etext"))
        self._init = (symbols.get("_sinittext", 0), symbols.get("_einittext", 0))
        #: Functions that wait or switch; a wait channel is the first address outside of them.
        self._scheduling = [
            (symbols.get(f"__{name}_text_start", 0), symbols.get(f"__{name}_text_end", 0))
            for name in ("sched", "lock")
        ]
        self._symbols: dict[int, list[tuple[int, int]]] = {}
        self._places: dict[int, Place | None] = {}

    def in_image(self, address: int) -> bool:
        """Whether an address is in the image's code; that of the boot counts, too."""
        return any(start <= address < end for start, end in (self._image, self._init))

    def is_code(self, address: int) -> bool:
        """Whether an address is in code that can still run."""
        start, end = self._image
        return start <= address < end or self.module(address) is not None

    def is_scheduling(self, address: int) -> bool:
        """Whether it is in the scheduler or a lock: ``in_sched_functions()``."""
        return any(start <= address < end for start, end in self._scheduling)

    def module(self, address: int) -> ModuleText | None:
        """The module whose code an address is in."""
        starts, modules = self._modules
        index = bisect_right(starts, address) - 1
        if index < 0 or address >= modules[index].end:
            return None
        return modules[index]

    def place(self, address: int, *, returns: bool) -> Place | None:
        """What an address is called.

        :param returns: a call returns there: the call itself, one byte before, gives the name
            (it may be the last instruction of its function).
        """
        sought = address - returns
        if sought not in self._places:
            self._places[sought] = self._place(sought)
        found = self._places[sought]
        return found._replace(offset=found.offset + returns) if found else None

    def _place(self, address: int) -> Place | None:
        if self.in_image(address):
            found = self._guest.symbols.span(address)
            return None if found is None else Place(*found, "")
        module = self.module(address)
        return None if module is None else self._in_module(module, address)

    def _in_module(self, module: ModuleText, address: int) -> Place | None:
        """As ``find_kallsyms_symbol()``: nearest symbol below, and the next one above."""
        table = self._module_symbols(module)
        index = bisect_right(table, (address, 1 << 62)) - 1
        if index < 0:
            return None
        value = table[index][0]
        following = table[index + 1][0] if index + 1 < len(table) else module.end
        try:
            name = self._guest.kernel.string(module.strtab + table[index][1], _LONGEST_NAME)
        except FaultError:
            return None
        shown = name.decode("ascii", "backslashreplace")
        return Place(shown, address - value, following - value, module.name)

    def _module_symbols(self, module: ModuleText) -> list[tuple[int, int]]:
        """Address and name of each symbol in the module's code, the first of those that share."""
        if module.start not in self._symbols:
            data = b""
            cost = module.symbol_count >> _DENSITY
            believed = 0 < module.symbol_count <= _MOST_SYMBOLS and module.symtab
            if believed and self._budget.follow(cost) == cost:
                try:
                    data = self._guest.kernel.read(
                        module.symtab, module.symbol_count * symbol_size(self._guest)
                    )
                except FaultError as error:
                    self._guest.note(f"no symbols of module {module.name}", error.address)
            found: dict[int, int] = {}
            for name, section, value in symbols_of(self._guest, data):
                if section and name and module.start <= value < module.end:
                    found.setdefault(value, name)
            self._symbols[module.start] = sorted(found.items())
        return self._symbols[module.start]

    @cached_property
    def _modules(self) -> tuple[list[int], list[ModuleText]]:
        guest = self._guest
        if "modules" not in guest.symbols or not guest.types.has("module", "list"):
            return [], []
        offset = guest.types.offsetof("module", "list")
        head = guest.symbols.address("modules")
        nodes, problem = walk_list(guest.kernel, head, limit=LIMIT, budget=self._budget)
        guest.note_all([problem])
        layout = guest.layout("module", _members(guest), text=("name",))
        columns = layout.lists(
            guest.kernel, [node - offset for node in nodes if node >= offset], []
        )
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        found = sorted(
            (_module(row) for row in rows if row["base"] and row["size"]),
            key=lambda module: module.start,
        )
        return [module.start for module in found], found


def _members(guest: LinuxGuest) -> dict[str, str]:
    members = {
        "name": "name",
        "places": "arch.orc_unwind_ip?",
        "entries": "arch.orc_unwind?",
        "number": "arch.num_orcs?",
        "symtab": "kallsyms.symtab?",
        "strtab": "kallsyms.strtab?",
        "count": "kallsyms.num_symtab?",
    }
    if guest.types.has("module", "mem"):  # since 6.4
        kind = guest.types.enumerators("mod_mem_type").get("MOD_TEXT", 0)
        return members | {"base": f"mem[{kind}].base", "size": f"mem[{kind}].size"}
    return members | {"base": "core_layout.base", "size": "core_layout.text_size"}


def _module(row: dict[str, Any]) -> ModuleText:
    return ModuleText(
        name=row["name"].split(b"\0", 1)[0].decode("latin-1"),
        start=row["base"],
        end=row["base"] + min(row["size"], _LARGEST_MODULE),
        orc=(row["places"] or 0, row["entries"] or 0, row["number"] or 0),
        symtab=row["symtab"] or 0,
        strtab=row["strtab"] or 0,
        symbol_count=row["count"] or 0,
    )
