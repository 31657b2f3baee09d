"""How much of files can have been used since boot, by what the kernel counts.

A page of a file is used by calls that read or write, or by a process that maps it. Of calls the
kernel counts how often and how many bytes (``task_struct.ioac``, as /proc/PID/io shows it); what
a process has counted goes to its parent when that waits for it (wait_task_zombie() of
kernel/exit.c). What is mapped comes with page faults, each of which maps a few pages around at
most (do_fault_around() of mm/memory.c), or a huge page, of which there is a count.

Some readers are in none of these sums; where there are such, that is told.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import FaultError, NotFoundError, TargetGoneError, VirtIntrospectError
from virtintrospect.guests.linux.blockdev import block_devices
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.counters import Counters, number
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.process import PF_KTHREAD
from virtintrospect.guests.linux.ps import with_threads

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

_log = logging.getLogger(__name__)

#: ``struct task_io_accounting`` (include/linux/task_io_accounting.h): bytes, and calls.
_BYTES, _CALLS = ("rchar", "wchar"), ("syscr", "syscw")
#: A call of few bytes uses a page, or two where they lie on both sides of a boundary.
_PAGES_A_CALL = 2
#: What fault_around_bytes is at first.
_AROUND = 64 << 10
#: SIGCHLD, SIG_IGN and SA_NOCLDWAIT (include/uapi/asm-generic/signal.h): nobody waits then, and
#: what children have counted is lost.
_SIGCHLD, _IGNORED, _NOT_WAITED = 17, 1, 2
#: Kernel threads that read files for others, and modules that do.
_THREADS = (b"nfsd", b"ksmbd", b"iscsi_", b"nvmet", b"loop")
_MODULES = frozenset({
    b"nfsd", b"ksmbd", b"target_core_file", b"nvmet", b"usb_f_mass_storage", b"cachefiles",
    b"erofs",  # it can be on a file
})  # fmt: skip
_MAX_MODULES = 1 << 12
#: How often the sums are made whose tasks changed meanwhile.
_ATTEMPTS = 4


class Touched(NamedTuple):
    """A counter, and who is not in it."""

    #: Bytes of files that can have been used since boot; ``None`` where the kernel does not
    #: count, or tasks came and went each time that it was looked at.
    size: int | None
    #: What reads files without being counted.
    uncounted: tuple[str, ...]


def touched(guest: LinuxGuest, counters: Counters) -> Touched:
    """How much of files can have been used."""
    try:
        found, faults = _of_tasks(guest), _of_faults(guest, counters)
        if found is not None and faults is not None:
            size, uncounted = found
            return Touched(size + faults, tuple(sorted(uncounted | _servers(guest))))
    except TargetGoneError:
        raise
    except VirtIntrospectError as error:  # the rest of what is known of the cache stands
        _log.debug("what is used of files: %s", error)
    return Touched(None, ())


def _of_faults(guest: LinuxGuest, counters: Counters) -> int | None:
    """Bytes that page faults can have mapped since boot."""
    events = {row.name: row.value for row in guest.vmstat([b"pgfault", b"thp_file_mapped"])}
    if b"pgfault" not in events:
        return None
    huge = events.get(b"thp_file_mapped", 0) * counters.huge_page * guest.page_size
    return events[b"pgfault"] * _around(guest, counters) + huge


def _of_tasks(guest: LinuxGuest) -> tuple[int, set[str]] | None:
    """Sums of all tasks that there are, and of all that were waited for.

    A task that ends meanwhile would count twice, or not at all.
    """
    if not guest.types.has("task_struct", "ioac.syscw"):
        return None  # built without CONFIG_TASK_XACCT
    for _ in range(_ATTEMPTS if guest.live else 1):
        budget = Budget()
        forks = _forks(guest)
        tasks = with_threads(guest, guest.tasks.addresses(budget), budget)
        found = _sums(guest, tasks)
        guest.memory.expire()
        again = with_threads(guest, guest.tasks.addresses(budget), budget)
        if found is not None and again == tasks and _forks(guest) == forks and not budget.problem:
            return found
    return None


def _forks(guest: LinuxGuest) -> int | None:
    """How many tasks there have been (``total_forks`` of kernel/fork.c)."""
    try:
        return number(guest, "total_forks")
    except (NotFoundError, FaultError):
        return None


def _sums(guest: LinuxGuest, tasks: list[int]) -> tuple[int, set[str]] | None:
    members = {name: f"ioac.{name}" for name in (*_BYTES, *_CALLS)}
    handler = f"sighand.action[{_SIGCHLD - 1}].sa"
    more = {
        "flags": "flags",
        "comm": "comm",
        "signal": "signal",
        "io_uring": "io_uring?",
        "aio": "mm.ioctx_table?",
        "handler": f"{handler}.sa_handler",
        "handling": f"{handler}.sa_flags",
    }
    layout = guest.layout("task_struct", members | more, text=("comm",))
    rows = layout.lists(guest.kernel, tasks, [])
    signals = [signal for signal in dict.fromkeys(rows["signal"]) if signal]
    ended = guest.layout("signal_struct", members, text=()).lists(guest.kernel, signals, [])
    total = 0
    for table in (rows, ended):
        for name in members:
            if any(value is None for value in table[name]):
                return None  # one that cannot be read
            scale = 1 if name in _BYTES else _PAGES_A_CALL * guest.page_size
            total += scale * sum(table[name])
    keys = ("flags", "comm", "io_uring", "aio", "handler", "handling")
    columns = [rows[key] for key in keys]
    found = {why for row in zip(*columns, strict=True) for why in _uncounted(*row)}
    return total, found


def _uncounted(
    flags: int, comm: bytes, io_uring: Any, aio: Any, handler: Any, handling: Any
) -> list[str]:
    """What of a task is not in the sums."""
    if flags & PF_KTHREAD:
        return [name.decode().rstrip("_") for name in _THREADS if comm.startswith(name)]
    lost = handler == _IGNORED or (handling or 0) & _NOT_WAITED
    found = {"io_uring": io_uring, "aio": aio, "SIGCHLD": lost}
    return [name for name, there in found.items() if there]


def _servers(guest: LinuxGuest) -> set[str]:
    """Modules that read files, and loop devices, whose workers have no names of their own."""
    found = {name.decode() for name in _modules(guest) if name in _MODULES}
    try:
        devices = block_devices(guest, Budget()) or ()
    except VirtIntrospectError:
        return found | {"unknown block devices"}
    return found | {"loop" for one in devices if one.sectors > 0 and one.name.startswith(b"loop")}


def _modules(guest: LinuxGuest) -> list[bytes]:
    if "modules" not in guest.symbols:
        return []  # built without CONFIG_MODULES
    head, offset = guest.symbols.address("modules"), guest.types.offsetof("module", "list")
    nodes, _ = walk_list(guest.kernel, head, limit=_MAX_MODULES, budget=Budget())
    modules = [node - offset for node in nodes if node >= offset]
    names = guest.layout("module", ["name"], ("name",)).lists(guest.kernel, modules, [])["name"]
    return [name.split(b"\0", 1)[0] for name in names if name]


def _around(guest: LinuxGuest, counters: Counters) -> int:
    """Bytes that a page fault maps at most: what the kernel is set to, which may be changed."""
    most = counters.huge_page * guest.page_size
    for symbol, scale in (("fault_around_pages", guest.page_size), ("fault_around_bytes", 1)):
        if symbol in guest.symbols:
            try:
                return min(max(number(guest, symbol) * scale, guest.page_size), most)
            except FaultError:
                break
    return max(_AROUND, guest.page_size)
