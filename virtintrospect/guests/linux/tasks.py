"""The task list (``init_task.tasks``), and chosen members of every task in bulk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import CorruptDataError
from virtintrospect.guests.linux.chains import walk_chains
from virtintrospect.guests.linux.lists import LIMIT, walk_list
from virtintrospect.symbols.types import Kind

if TYPE_CHECKING:
    import numpy.typing as npt

    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: How often a bulk read is repeated when the list changed meanwhile.
_ATTEMPTS = 3


class Tasks:
    """Every thread-group leader, ``init_task`` (PID 0) left out, as ``ps`` does.

    Each call reads the list anew; the addresses that the last call saw only serve to read all
    of its pointers at once.
    """

    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest
        self._offset = guest.types.offsetof("task_struct", "tasks")
        pointer = guest.types.resolve("task_struct", "tasks.next")[-1]
        if pointer.kind is not Kind.POINTER or pointer.bit_size or pointer.offset != self._offset:
            raise CorruptDataError("task_struct.tasks is no list", self._offset)
        self._head = guest.symbols.address("init_task") + self._offset
        self._known: list[int] = []
        self._known_array: npt.NDArray[Any] | None = None

    def addresses(self, budget: Budget | None = None) -> list[int]:
        r"""Addresses of the ``task_struct``\\ s, in list order.

        :param budget: of the table that wants them.
        """
        for _ in range(_ATTEMPTS):
            nodes, problem = walk_list(
                self._guest.kernel, self._head, guess=self._known, budget=budget
            )
            if problem is None or not self._guest.live:
                break
            # It may have led to a task that ended just then.
            self._guest.memory.expire()
        self._guest.note_all([problem])
        self._known = nodes
        offset = self._offset
        # No task lies so low; its address would be below zero.
        return [node - offset for node in nodes if node >= offset]

    def rows(
        self, members: Sequence[str] | Mapping[str, str], text: Collection[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Chosen members of each task; tasks that cannot be read are noted and left out.

        :param text: as of :class:`~virtintrospect.symbols.layout.Layout`.
        """
        layout = self._guest.layout("task_struct", members, text)
        addresses = self.addresses()
        faults: list[int] = []
        columns = layout.lists(self._guest.kernel, addresses, faults)
        bad = set(faults)
        for index, values in enumerate(zip(*columns.values(), strict=True)):
            if index in bad:
                self._guest.note("unreadable task", addresses[index])
            else:
                yield dict(zip(columns, values, strict=True))

    def columns(self, members: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Chosen members of all tasks as numpy arrays, every time from fresh memory.

        The list's own pointers are read along with the members: while they still chain up, one
        bulk read is both the enumeration and the data.
        """
        import numpy as np

        layout = self._guest.layout("task_struct", ["tasks.next", *members])
        if self._known_array is None:
            self._known_array = np.array(self.addresses(), dtype=np.uint64)
        for _ in range(_ATTEMPTS):
            known = self._known_array
            columns = layout.columns(self._guest.kernel, known, [])
            nexts = columns.pop("tasks.next")
            if self._chains_up(known, nexts):
                return columns
            self._guest.memory.expire()
            self._known_array = np.array(self.addresses(), dtype=np.uint64)
        return columns  # changing faster than we look: rows of an instant ago

    def _chains_up(self, known: npt.NDArray[Any], nexts: npt.NDArray[Any]) -> bool:
        """Whether head → known[0] → … → known[-1] → head is what memory says."""
        offset, head = self._offset, self._head
        first = self._guest.kernel.read_pointer(head)
        if not len(known):
            return first == head
        following = nexts[:-1] - type(nexts[0])(offset)
        return bool(
            first == int(known[0]) + offset
            and int(nexts[-1]) == head
            and (following == known[1:]).all()
        )


def thread_group(guest: LinuxGuest, signal: int, budget: Budget, limit: int = LIMIT) -> list[int]:
    """Addresses of the tasks that share a ``signal_struct``.

    ``signal->thread_head`` is there since 3.14; the older ring (``thread_group``) went in 6.7.
    """
    head = signal + guest.types.offsetof("signal_struct", "thread_head")
    offset = guest.types.offsetof("task_struct", "thread_node")
    nodes, problem = walk_list(guest.kernel, head, limit=limit, budget=budget)
    if problem and guest.live:  # it may have been changing just then
        first = problem
        nodes, problem = walk_list(guest.kernel, head, limit=limit, budget=budget)
        problem = problem if problem == first else None
    guest.note_all([problem])
    return [node - offset for node in nodes if node >= offset]


def thread_groups(
    guest: LinuxGuest, signals: Sequence[int], counts: Sequence[int], budget: Budget
) -> list[list[int]]:
    """:func:`thread_group` of many processes at once, a level of all their lists at a time.

    :param counts: how many threads each has; a list that has another number of them is walked
        again by itself.
    """
    offset = guest.types.offsetof("task_struct", "thread_node")
    inner = guest.types.offsetof("signal_struct", "thread_head")
    heads = [signal + inner for signal in signals]
    firsts = guest.layout("signal_struct", {"first": "thread_head.next"}, text=()).lists(
        guest.kernel, signals, []
    )["first"]
    groups: list[list[int]] = [[] for _ in signals]
    for link in walk_chains(guest, firsts, budget, ends=heads):
        if link.node >= offset:
            groups[link.chain].append(link.node - offset)
    for index, (group, count) in enumerate(zip(groups, counts, strict=True)):
        if len(group) != count and not budget.late() and budget.entries > 0:
            groups[index] = thread_group(guest, signals[index], budget)
    return groups
