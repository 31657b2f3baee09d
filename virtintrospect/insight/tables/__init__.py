"""The tables of the command contract, one file a subject.

Names follow osquery where it has the table (processes, kernel_modules, kernel_info).
"""

from __future__ import annotations

from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import Table
from virtintrospect.insight.tables.checks import CHECK, RULES
from virtintrospect.insight.tables.files import FILES, MOUNTS
from virtintrospect.insight.tables.hints import HINTS
from virtintrospect.insight.tables.live import TOP, TOP_PROCESSES
from virtintrospect.insight.tables.memory import MAP, MAP_PROCESSES, MAP_RANGES, SEARCH
from virtintrospect.insight.tables.network import INTERFACES, NEIGHBOURS, ROUTES, SOCKETS
from virtintrospect.insight.tables.plugin import LIST, SESSIONS
from virtintrospect.insight.tables.primitives import (
    DUMP,
    IMPORTED,
    READ,
    REGISTERS,
    SYMBOLS,
    TARGET,
    TRANSLATE,
    TYPES,
    WRITE,
)
from virtintrospect.insight.tables.processes import (
    CONTAINERS,
    ENV,
    LOGINS,
    MAPS,
    NAMESPACES,
    PS,
    PS_DETAILS,
    USERS,
)
from virtintrospect.insight.tables.resources import (
    CGROUPS,
    CPU,
    LOAD,
    MEMORY,
    PRESSURE,
    RUNQUEUES,
    SLABS,
    VMSTAT,
)
from virtintrospect.insight.tables.system import (
    BPF,
    DMESG,
    INFO,
    MODULES,
    NESTED,
    SYSCTL,
    TIMERS,
)
from virtintrospect.insight.tables.trouble import CRASH, HUNG, STACK
from virtintrospect.insight.tables.virsh import DOMMEMSTAT, guestinfo_table

__all__ = [
    "ALL",
    "BPF",
    "CGROUPS",
    "CHECK",
    "COMMANDS",
    "CONTAINERS",
    "CPU",
    "CRASH",
    "DMESG",
    "DOMMEMSTAT",
    "DUMP",
    "ENV",
    "FILES",
    "HINTS",
    "HUNG",
    "IMPORTED",
    "INFO",
    "INTERFACES",
    "LIST",
    "LOAD",
    "LOGINS",
    "MAP",
    "MAPS",
    "MAP_PROCESSES",
    "MAP_RANGES",
    "MEMORY",
    "MODULES",
    "MOUNTS",
    "NAMESPACES",
    "NEIGHBOURS",
    "NESTED",
    "PRESSURE",
    "PS",
    "PS_DETAILS",
    "READ",
    "REGISTERS",
    "ROUTES",
    "RULES",
    "RUNQUEUES",
    "SEARCH",
    "SESSIONS",
    "SLABS",
    "SOCKETS",
    "STACK",
    "SYMBOLS",
    "SYSCTL",
    "TARGET",
    "TIMERS",
    "TOP",
    "TOP_PROCESSES",
    "TRANSLATE",
    "TYPES",
    "USERS",
    "VMSTAT",
    "WRITE",
    "find",
    "guestinfo_table",
]

#: Tables that need no more than their declaration to be commands.
COMMANDS = (
    INFO,
    MODULES,
    DMESG,
    MEMORY,
    PRESSURE,
    CPU,
    LOAD,
    VMSTAT,
    SLABS,
    CGROUPS,
    MAPS,
    FILES,
    MOUNTS,
    CONTAINERS,
    NAMESPACES,
    ENV,
    INTERFACES,
    SOCKETS,
    ROUTES,
    NEIGHBOURS,
    BPF,
    TIMERS,
    SYSCTL,
    STACK,
    RUNQUEUES,
    USERS,
    LOGINS,
    NESTED,
)

#: Every table, by its command's name.
ALL = {
    table.name: table
    for table in (
        LIST,
        PS,
        *COMMANDS,
        HUNG,
        CRASH,
        HINTS,
        TOP,
        CHECK,
        DOMMEMSTAT,
        SYMBOLS,
        TYPES,
        TRANSLATE,
        READ,
        WRITE,
        REGISTERS,
        DUMP,
        MAP,
        SEARCH,
    )
}


def find(name: str) -> Table:
    """The table of a command that shows one of a guest.

    :raises UsageError: there is none of that name.
    """
    known = {table.name: table for table in (PS, *COMMANDS)}
    if name not in known:
        raise UsageError(f"there is no table {name!r}", hint=f"there are: {', '.join(known)}")
    return known[name]
