"""Ways to all tasks that do not go by the task list.

What takes itself out of ``init_task.tasks`` to be hidden from ``ps`` is still needed elsewhere: by
its number (kernel/pid.c), by the scheduler, by its control group, by its parent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux import percpu
from virtintrospect.guests.linux.chains import heads, walk_chains
from virtintrospect.guests.linux.xarray import walk_xarray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Lists of a priority array: MAX_RT_PRIO (include/linux/sched/prio.h).
_PRIORITIES = 100
#: CSS_SET_HASH_BITS (kernel/cgroup/cgroup.c).
_CSS_SETS = 1 << 7


def by_number(guest: LinuxGuest, budget: Budget) -> list[int]:
    """Tasks that a number leads to, those of the initial PID namespace: all that there are.

    :raises NotFoundError: the kernel has no such tables.
    """
    space = guest.read_global("init_pid_ns", {"head": "idr.idr_rt.xa_head"})
    pids = [entry for _, entry in walk_xarray(guest, space["head"], budget)]
    # PIDTYPE_PID: include/linux/pid_types.h.
    layout = guest.layout("pid", {"first": "tasks[0].first"}, text=())
    offset = guest.types.offsetof("task_struct", "pid_links[0]")
    firsts = layout.lists(guest.kernel, pids, [])["first"]
    return [first - offset for first in firsts if first and first >= offset]


def by_cgroup(guest: LinuxGuest, budget: Budget) -> list[int]:
    """Tasks that control groups have: ``css_set.tasks`` and ``mg_tasks``, without those that end.

    :raises NotFoundError: the kernel has no such tables.
    """
    table = guest.symbols.address("css_set_table")
    chains = walk_chains(guest, heads(guest, table, _CSS_SETS, budget), budget)
    inner = guest.types.offsetof("css_set", "hlist")
    sets = [link.node - inner for link in chains if link.node >= inner]
    found: list[int] = []
    for member in ("tasks", "mg_tasks"):
        at = guest.types.offsetof("css_set", member)
        found += _listed(guest, [item + at for item in sets], "cg_list", budget)
    return found


def by_scheduler(guest: LinuxGuest, budget: Budget) -> list[int]:
    """Tasks that run, or wait for a CPU: ``curr``, ``cfs_tasks`` and the real-time queues.

    :raises NotFoundError: the kernel has no such tables.
    """
    base = guest.symbols.address("runqueues")
    queues = percpu.addresses(guest, base, list(percpu.online(guest).values()))
    current = guest.layout("rq", {"curr": "curr"}, text=()).lists(guest.kernel, queues, [])["curr"]
    found = [task for task in current if task]
    types = guest.types
    if types.has("rq", "cfs_tasks"):
        at = types.offsetof("rq", "cfs_tasks")
        found += _listed(guest, [queue + at for queue in queues], "se.group_node", budget)
    if not types.has("sched_rt_entity", "my_q"):  # else groups are on it, too
        at = types.offsetof("rq", "rt.active.queue")
        size = types.sizeof("list_head")
        lists = [queue + at + size * number for queue in queues for number in range(_PRIORITIES)]
        found += _listed(guest, lists, "rt.run_list", budget)
    return found


def by_parent(guest: LinuxGuest, parents: Sequence[int], budget: Budget) -> list[int]:
    """Processes that others have as children: ``task_struct.children``."""
    at = guest.types.offsetof("task_struct", "children")
    return _listed(guest, [parent + at for parent in parents], "sibling", budget)


def _listed(guest: LinuxGuest, lists: list[int], member: str, budget: Budget) -> list[int]:
    """The tasks on many lists that link them by a member."""
    lists = lists[: budget.follow(len(lists))]
    faults: list[int] = []
    firsts: list[int | None] = list(guest.kernel.gather_pointers(lists, faults))
    for index in faults:
        firsts[index] = None
    offset = guest.types.offsetof("task_struct", member)
    links = walk_chains(guest, firsts, budget, ends=lists)
    return [link.node - offset for link in links if link.node >= offset]
