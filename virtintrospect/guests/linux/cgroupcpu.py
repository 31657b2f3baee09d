"""CPU time of control groups, as their cpu.stat has it (kernel/cgroup/rstat.c).

Each CPU adds a group's time to a counter of its own. Whoever reads cpu.stat first adds what
the CPUs have gathered to the group, from the leaves up to it. Here the same is done on a copy:
a group's time is what it has, what its CPUs hold back, and what its children have not passed
on yet, dying ones included.
"""

from __future__ import annotations

from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.guests.linux import percpu
from virtintrospect.guests.linux.cputime import adjust

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.cgrouptree import Tree
    from virtintrospect.guests.linux.guest import LinuxGuest

_MASK = (1 << 64) - 1
#: Nanoseconds of 292 years: what a torn or forged sum exceeds.
_LONGEST = 1 << 63
_KINDS = ("utime", "stime", "sum_exec_runtime")
#: Nanoseconds of each of these kinds.
_Times = tuple[int, ...]

#: What is wanted of a ``struct cgroup``. Before 6.16 ``rstat_cpu``, and with it all statistics,
#: was one structure for all controllers.
MEMBERS = {
    "rstat": "rstat_base_cpu|rstat_cpu",
    "prev_utime": "prev_cputime.utime",
    "prev_stime": "prev_cputime.stime",
    **{kind: f"bstat.cputime.{kind}" for kind in _KINDS},
    **{f"passed_{kind}": f"last_bstat.cputime.{kind}" for kind in _KINDS},
}


class Usage(NamedTuple):
    """Nanoseconds of a group and all below it: ``usage_usec`` and its two parts."""

    usage: int
    user: int
    system: int


def usages(
    guest: LinuxGuest, tree: Tree, rows: list[dict[str, Any]], budget: Budget
) -> list[Usage | None]:
    """CPU time of each group of the unified hierarchy, or of a part of it.

    :param rows: :data:`MEMBERS` of each of its groups.
    """
    totals = _added_up(tree.parents, rows, _pending(guest, rows, budget))
    return [_usage(row, total) for row, total in zip(rows, totals, strict=True)]


def _added_up(
    parents: list[int], rows: list[dict[str, Any]], pending: list[_Times | None]
) -> list[_Times | None]:
    """What each group would have if all that is held back below it were passed on now."""
    totals: list[_Times | None] = []
    for row, held in zip(rows, pending, strict=True):
        own = tuple(row[kind] for kind in _KINDS)
        known = held is not None and None not in own
        totals.append(tuple(map(add, own, held or ())) if known else None)
    for index in range(len(rows) - 1, -1, -1):  # children stand behind their parents
        parent, total = parents[index], totals[index]
        if parent < 0 or (above := totals[parent]) is None:
            continue
        if total is None:
            totals[parent] = None
            continue
        passed = (rows[index][f"passed_{kind}"] for kind in _KINDS)
        totals[parent] = tuple(
            there + ((value - then) & _MASK)
            for there, value, then in zip(above, total, passed, strict=True)
        )
    return totals


def _usage(row: dict[str, Any], total: _Times | None) -> Usage | None:
    if total is None or row["prev_utime"] is None:
        return None
    utime, stime, runtime = (value & _MASK for value in total)
    if max(utime, stime, runtime) >= _LONGEST:
        return None
    user, system = adjust(utime, stime, runtime, row["prev_utime"], row["prev_stime"])
    return None if user is None or system is None else Usage(runtime, user, system)


def _pending(guest: LinuxGuest, rows: list[dict[str, Any]], budget: Budget) -> list[_Times | None]:
    """What all CPUs together hold back of each group."""
    name = "cgroup_rstat_base_cpu" if "cgroup_rstat_base_cpu" in guest.types else "cgroup_rstat_cpu"
    members = {kind: f"bstat.cputime.{kind}" for kind in _KINDS}
    members |= {f"passed_{kind}": f"last_bstat.cputime.{kind}" for kind in _KINDS}
    layout = guest.layout(name, members, text=())
    offsets = guest.cpu_offsets
    room = budget.follow(len(rows) * len(offsets)) // max(1, len(offsets))
    places = [
        place
        for row in rows[:room]
        for place in percpu.addresses(guest, row["rstat"] or 0, offsets if row["rstat"] else ())
    ]
    faults: list[int] = []
    values = iter(zip(*layout.lists(guest.kernel, places, faults).values(), strict=True))
    for index in faults[:1]:
        guest.note("unreadable CPU time of a cgroup", places[index])
    found: list[_Times | None] = []
    for row in rows[:room]:
        if not row["rstat"]:
            found.append(None)
            continue
        parts = [next(values) for _ in offsets]
        known = all(None not in part for part in parts)
        sums = [sum(part[i] - part[i + 3] for part in parts) if known else 0 for i in range(3)]
        found.append(tuple(sums) if known else None)
    return found + [None] * (len(rows) - room)


def root_usage(guest: LinuxGuest) -> Usage | None:
    """CPU time of the root group: that of all possible CPUs, as root_cgroup_cputime() adds it.

    Time that the host took (steal) is not in it; kernels before 6.14 counted it as used.
    """
    kinds = guest.types.enumerators("cpu_usage_stat")
    names = ("USER", "NICE", "SYSTEM", "IRQ", "SOFTIRQ")
    members = {name: f"cpustat[{kinds.get(f'CPUTIME_{name}', 0)}]" for name in names}
    layout = guest.layout("kernel_cpustat", members, text=())
    places = percpu.addresses(guest, guest.symbols.address("kernel_cpustat"), guest.cpu_offsets)
    columns = layout.lists(guest.kernel, places, [])
    if any(None in column for column in columns.values()):
        return None
    sums = {name: sum(column) & _MASK for name, column in columns.items()}
    user = sums["USER"] + sums["NICE"]
    system = sums["SYSTEM"] + sums["IRQ"] + sums["SOFTIRQ"]
    return Usage(user + system, user, system)
