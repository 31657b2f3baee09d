"""Processes that one of the kernel's own books has and another has not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import taskviews
from virtintrospect.guests.linux.ps import with_threads
from virtintrospect.insight.checks.rule import Hit, Rule, known, process

if TYPE_CHECKING:
    from virtintrospect.insight.checks.context import Context

#: PF_EXITING (include/linux/sched.h): it is leaving one book after the other.
_PF_EXITING = 0x4
#: PID_MAX_LIMIT (include/linux/threads.h).
_MAX_PID = 4 << 20
_LIST, _PIDS, _CGROUPS, _SCHEDULER, _PARENTS = (
    "task-list", "pid-table", "cgroups", "run-queues", "children",
)  # fmt: skip
#: Books in which every task is, unless it is ending.
_COMPLETE = (_PIDS, _CGROUPS)
_MEMBERS = {
    "pid": "tgid",
    "tid": "pid",
    "comm": "comm",
    "flags": "flags",
    "exit": "exit_state",
    "start": "start_boottime|real_start_time",
    "uid": "real_cred.uid.val",
}


def hidden_processes(context: Context) -> Iterator[Hit]:
    """Tasks that the list of all tasks lacks, and tasks of the list that another book lacks."""
    books = _books(context)
    listed = books.pop(_LIST)
    everyone = listed.union(*books.values())
    rows = _rows(context, sorted(everyone))
    again = _listed(context)  # those that began meanwhile are no secret, nor are they complete
    if context.budget.problem:  # half a book would accuse everyone
        return
    for address, row in rows.items():
        if row["exit"] or row["flags"] & _PF_EXITING:
            continue
        seen = [name for name, tasks in books.items() if address in tasks]
        if address in listed:
            missing = [name for name in _COMPLETE if name in books and name not in seen]
            seen.append(_LIST)
        else:
            missing = [] if address in again else [_LIST]
        if missing:
            yield _hit(address, row, missing, seen)


def _hit(address: int, row: dict[str, Any], missing: list[str], seen: list[str]) -> Hit:
    subject = process(row["pid"], row["comm"])
    if row["tid"] != row["pid"]:
        subject = b"thread %d of " % row["tid"] + subject
    return Hit(
        subject,
        f"it is hidden from the {', '.join(missing)}, and known to the {', '.join(seen)}".encode(),
        known(
            {
                "pid": row["pid"],
                "tid": row["tid"],
                "uid": row["uid"],
                "missing": ",".join(missing),
                "seen": ",".join(seen),
                "address": hex(address),
            }
        ),
    )


def _listed(context: Context) -> set[int]:
    """What ``ps --threads`` goes by."""
    guest = context.guest
    leaders = guest.tasks.addresses(context.budget)
    return set(with_threads(guest, leaders, context.budget))


def _books(context: Context) -> dict[str, set[int]]:
    """All ways to tasks that this kernel offers, the task list among them."""
    guest, budget = context.guest, context.budget
    before = _listed(context)
    found: dict[str, set[int]] = {}
    ways: tuple[tuple[str, Callable[[], list[int]]], ...] = (
        (_PIDS, lambda: taskviews.by_number(guest, budget)),
        (_CGROUPS, lambda: taskviews.by_cgroup(guest, budget)),
        (_SCHEDULER, lambda: taskviews.by_scheduler(guest, budget)),
        (_PARENTS, lambda: taskviews.by_parent(guest, sorted(before), budget)),
    )
    for name, way in ways:
        try:
            found[name] = set(way())
        except VirtIntrospectError as error:
            context.cannot(f"hidden-process: the {name}: {error.message}")
    # A task that ends meanwhile is in none of them at last, one that begins in all.
    return {_LIST: before & _listed(context)} | found


def _rows(context: Context, addresses: list[int]) -> dict[int, dict[str, Any]]:
    """What can be a task, by its address."""
    layout = context.guest.layout("task_struct", _MEMBERS, text=("comm",))
    columns = layout.lists(context.guest.kernel, addresses, [])
    found = {}
    for address, values in zip(addresses, zip(*columns.values(), strict=True), strict=True):
        row = dict(zip(columns, values, strict=True))
        if row["comm"] is None or row["tid"] is None:
            continue
        # The idle task of each CPU has number 0, and is in no book but the scheduler's.
        if 0 < row["tid"] <= _MAX_PID and 0 < row["pid"] <= _MAX_PID:
            found[address] = row
    return found


RULES = (
    Rule(
        id="hidden-process",
        severity="critical",
        title="A process is hidden from one of the kernel's books",
        looks_at="Every task by five ways: the task list with its threads (what `ps` shows), the "
        "table of process numbers (/proc, kill), the control groups, the run queues and running "
        "tasks of all CPUs, and the children of each task. Whoever is in one of them must be in "
        "the task list; whoever is in the list must have a number and a control group.",
        remedy="Take the guest off the network and dump it; the evidence has the task's address. "
        "Look for the module or program that hides it: `check --rule hidden-module`.",
        false_positives="None is known on a live guest, where a task must be missing three times. "
        "An image may have been taken in the middle of a fork or an exit.",
        blind="A process that is in none of the five books, and does not run. A kernel without "
        "symbols of its data lacks some of them, which is said.",
        reference="T1014",
        check=hidden_processes,
    ),
)
