"""What a task in state D waits for, where its stack says so beyond doubt.

Since 6.14 a task notes the lock that it waits for (``blocker``, CONFIG_DETECT_HUNG_TASK_BLOCKER,
include/linux/hung_task.h). Before, only the waiting code knows it: its ``struct mutex_waiter``
or ``struct rwsem_waiter`` lies on the stack, names the task, and is in the lock's list. The
lock is believed when that list leads to it and back, and its owner is a task of this guest.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import CorruptDataError, FaultError
from virtintrospect.guests.linux.lists import walk_list

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.guests.linux.stack import TaskStack

#: Frames in which a task waits for a lock, by what they begin with.
_WAITING = {
    "mutex": ("__mutex_lock", "__ww_mutex_lock", "mutex_lock"),
    "rw_semaphore": ("rwsem_down_", "down_read", "down_write", "__down_read", "__down_write"),
}
_WAITER = {"mutex": "mutex_waiter", "rw_semaphore": "rwsem_waiter"}
#: BLOCKER_TYPE_… (include/linux/hung_task.h).
_BLOCKERS = ("mutex", "semaphore", "rw_semaphore", "rw_semaphore")
#: Flags in the low bits of an owner (kernel/locking/mutex.h, rwsem.c).
_OWNER_FLAGS, _READER_OWNED = 7, 1
#: Bytes of a stack in which a waiter is looked for: it lies in the innermost frames.
_NEAR = 2048
#: Waiters of one lock that are followed, super blocks that are looked at.
_MOST_WAITERS, _MOST_FILE_SYSTEMS = 4096, 65536


class Frozen(NamedTuple):
    """A file system that is frozen: whoever writes to it waits."""

    device: bytes
    type: bytes
    level: int
    #: Where its ``s_writers`` is.
    start: int
    end: int


class Wait(NamedTuple):
    """What a task waits for."""

    what: str
    lock: int | None = None
    #: The ``task_struct`` of who holds it.
    owner: int | None = None


class Waits:
    """Finds what tasks wait for; what they share is read once.

    :param tasks: every task of the guest, with its ``vfork_done``.
    """

    def __init__(self, guest: LinuxGuest, tasks: Mapping[int, int], budget: Budget) -> None:
        self._guest = guest
        self._tasks = tasks
        self._budget = budget
        self.frozen = sorted(_frozen(guest, budget), key=lambda frozen: frozen.start)
        self._starts = [frozen.start for frozen in self.frozen]
        #: Where each vfork's parent is told, and the child.
        self._vforks = sorted((done, task) for task, done in tasks.items() if done)

    def find(self, item: TaskStack, functions: tuple[str, ...], blocker: int) -> Wait | None:
        """What one task waits for; ``None`` where nothing is certain.

        :param functions: its frames' functions, innermost first.
        :param blocker: ``task_struct.blocker``, 0 where it is not there.
        """
        if blocker & ~3:
            return self._lock(_BLOCKERS[blocker & 3], blocker & ~3)
        for kind, names in _WAITING.items():
            if any(name.startswith(names) for name in functions[:8]):
                lock = self._by_waiter(item, kind)
                return Wait(kind) if lock is None else self._lock(kind, lock)
        return self._frozen_file_system(item, functions) or self._vfork(item)

    def _lock(self, kind: str, lock: int) -> Wait:
        """A lock and who holds it."""
        if kind not in _WAITER:
            return Wait(kind, lock)
        guest = self._guest
        try:
            owner = guest.kernel.read_pointer(lock + guest.types.offsetof(kind, "owner"))
        except FaultError:
            return Wait(kind, lock)
        if kind == "rw_semaphore" and owner & _READER_OWNED:
            # Several may hold it; the pointer is one that did, not one that does.
            return Wait("rw_semaphore held by readers", lock)
        holder = owner & ~_OWNER_FLAGS
        return Wait(kind, lock, holder if holder in self._tasks else None)

    def _by_waiter(self, item: TaskStack, kind: str) -> int | None:
        """The lock in whose list a waiter on the task's stack is."""
        types, waiter = self._guest.types, _WAITER[kind]
        if not types.has(kind, "wait_list") or item.copy is None or not item.frames:
            return None
        inner = types.offsetof(waiter, "task"), types.offsetof(waiter, "list")
        for at in _slots(item, item.task, types.pointer_size):
            node = at - inner[0] + inner[1]
            lock = self._of_list(kind, node)
            if lock is not None:
                return lock
        return None

    def _of_list(self, kind: str, node: int) -> int | None:
        """The lock whose list a node is in: the one element that has an owner with a flag."""
        guest = self._guest
        head, owner_at = (guest.types.offsetof(kind, name) for name in ("wait_list", "owner"))
        try:
            if guest.kernel.pointers(guest.kernel.read_pointer(node), 2)[1] != node:
                return None
        except FaultError:
            return None
        nodes, problem = walk_list(guest.kernel, node, limit=_MOST_WAITERS, budget=self._budget)
        if problem is not None:
            return None
        for other in nodes:
            lock = other - head
            try:
                owner = guest.kernel.read_pointer(lock + owner_at)
            except FaultError:
                continue
            # Others in the list are waiters on stacks, with no such thing at that place.
            if owner & _OWNER_FLAGS and owner & ~_OWNER_FLAGS in self._tasks:
                return lock
        return None

    def _frozen_file_system(self, item: TaskStack, functions: tuple[str, ...]) -> Wait | None:
        if item.copy is None or "percpu_rwsem_wait" not in functions[:6]:
            return None
        word = self._guest.types.pointer_size
        for at in range(0, min(len(item.copy.data), _NEAR) - word + 1, word):
            value = int.from_bytes(item.copy.data[at : at + word], "little")
            index = bisect_right(self._starts, value) - 1
            if index >= 0 and value < self.frozen[index].end:
                frozen = self.frozen[index]
                name = f"{frozen.type.decode('latin-1')} on {frozen.device.decode('latin-1')}"
                return Wait(f"thaw of {name}")
        return None

    def _vfork(self, item: TaskStack) -> Wait | None:
        """A child that has this task's memory: its ``vfork_done`` is on this task's stack."""
        if item.copy is None:
            return None
        index = bisect_left(self._vforks, (item.copy.start, 0))
        if index < len(self._vforks) and self._vforks[index][0] < item.copy.end:
            return Wait("vfork", None, self._vforks[index][1])
        return None


def _slots(item: TaskStack, value: int, word: int) -> list[int]:
    """Addresses of the innermost part of a stack that hold a value."""
    assert item.copy is not None
    sought = value.to_bytes(word, "little")
    data = item.copy.data[:_NEAR]
    places = range(0, len(data) - word + 1, word)
    return [item.copy.start + at for at in places if data[at : at + word] == sought]


def _frozen(guest: LinuxGuest, budget: Budget) -> list[Frozen]:
    """File systems that FIFREEZE has frozen (``sb_writers.frozen``, fs/super.c)."""
    types = guest.types
    if "super_blocks" not in guest.symbols or not types.has("super_block", "s_writers.frozen"):
        return []
    offset = types.offsetof("super_block", "s_list")
    head = guest.symbols.address("super_blocks")
    nodes, problem = walk_list(guest.kernel, head, limit=_MOST_FILE_SYSTEMS, budget=budget)
    guest.note_all([problem])
    blocks = [node - offset for node in nodes if node >= offset]
    members = {"device": "s_id", "frozen": "s_writers.frozen", "name": "s_type.name"}
    try:
        layout = guest.layout("super_block", members, text=("device",))
        columns = layout.lists(guest.kernel, blocks, [])
    except CorruptDataError as error:
        guest.note(str(error), error.address)
        return []
    field = types.resolve("super_block", "s_writers")[-1]
    found = []
    for block, device, level, name in zip(blocks, *columns.values(), strict=True):
        if level and device is not None:
            (kind,) = guest.kernel.strings([name or 0], 32)
            start = block + field.offset
            found.append(
                Frozen(device.split(b"\0", 1)[0], kind or b"?", level, start, start + field.size)
            )
    return found
