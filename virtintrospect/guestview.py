"""What a session shows of the kernel that runs at the moment."""

from __future__ import annotations

import abc
import functools
import threading
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from virtintrospect.driver import Target
from virtintrospect.errors import UsageError
from virtintrospect.guests.base import Guest
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.table import Symbols
from virtintrospect.symbols.types import Types

if TYPE_CHECKING:
    import numpy.typing as npt

    from virtintrospect.insight.checks.context import Options
    from virtintrospect.insight.follow import LogBatch
    from virtintrospect.model import Finding

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _of_guest(
    method: Callable[Concatenate[Guest, _P], _R],
) -> Callable[Concatenate[GuestView, _P], _R]:
    """A method of the guest that runs now, as one of the session's; one call at a time."""

    @functools.wraps(method, updated=())
    def call(view: GuestView, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with view.lock:
            view.target.memory.expire()
            found: _R = getattr(view.guest, method.__name__)(*args, **kwargs)
            return found

    return call


class GuestView(abc.ABC):
    """All tables and primitives of :class:`~virtintrospect.guests.base.Guest`.

    Each call goes to the kernel that runs at that moment.
    """

    #: What was opened: its memory, and what else can be done with it.
    target: Target
    #: Held while a method runs.
    lock: threading.RLock

    @property
    @abc.abstractmethod
    def guest(self) -> Guest:
        """The kernel that runs now."""

    info = _of_guest(Guest.info)
    processes = _of_guest(Guest.processes)
    modules = _of_guest(Guest.modules)
    dmesg = _of_guest(Guest.dmesg)
    meminfo = _of_guest(Guest.meminfo)
    pressure = _of_guest(Guest.pressure)
    cpu = _of_guest(Guest.cpu)
    load = _of_guest(Guest.load)
    vmstat = _of_guest(Guest.vmstat)
    slabs = _of_guest(Guest.slabs)
    cgroups = _of_guest(Guest.cgroups)
    containers = _of_guest(Guest.containers)
    namespaces = _of_guest(Guest.namespaces)
    maps = _of_guest(Guest.maps)
    files = _of_guest(Guest.files)
    interfaces = _of_guest(Guest.interfaces)
    sockets = _of_guest(Guest.sockets)
    mounts = _of_guest(Guest.mounts)
    routes = _of_guest(Guest.routes)
    neighbours = _of_guest(Guest.neighbours)
    bpf = _of_guest(Guest.bpf)
    timers = _of_guest(Guest.timers)
    sysctl = _of_guest(Guest.sysctl)
    environment = _of_guest(Guest.environment)
    users = _of_guest(Guest.users)
    logins = _of_guest(Guest.logins)
    nested = _of_guest(Guest.nested)
    guestinfo = _of_guest(Guest.guestinfo)
    balloon_stats = _of_guest(Guest.balloon_stats)
    stack = _of_guest(Guest.stack)
    runqueues = _of_guest(Guest.runqueues)
    cpu_signs = _of_guest(Guest.cpu_signs)
    memory_filesystems = _of_guest(Guest.memory_filesystems)
    hung = _of_guest(Guest.hung)
    crash = _of_guest(Guest.crash)
    cpu_stacks = _of_guest(Guest.cpu_stacks)
    cache_use = _of_guest(Guest.cache_use)
    page_owners = _of_guest(Guest.page_owners)
    layout = _of_guest(Guest.layout)
    entries = _of_guest(Guest.entries)
    module_types = _of_guest(Guest.module_types)
    process_space = _of_guest(Guest.process_space)
    process_at = _of_guest(Guest.process_at)
    take_problems = _of_guest(Guest.take_problems)

    def check(
        self, rules: Collection[str] = (), *, severity: str = "info", options: Options | None = None
    ) -> list[Finding]:
        """What should not be in the guest, by rules; the most urgent first.

        What was not checked is told by :meth:`take_problems`.

        :param rules: ids of rules, of docs/rules.md; all where none is given.
        :param severity: leave out what is less severe.
        :param options: what rules compare with.
        :raises UsageError: there is no such rule or severity.
        """
        from virtintrospect.insight.checks import check

        with self.lock:
            self.target.memory.expire()
            return check(self.guest, rules, severity=severity, options=options)

    def baseline(self) -> dict[str, Any]:
        """What the guest is like now, as JSON can hold it.

        :meth:`check` compares with it: ``Options(baseline=…)``.
        """
        from virtintrospect.insight.checks import take_baseline

        with self.lock:
            self.target.memory.expire()
            return take_baseline(self.guest)

    @property
    def symbols(self) -> Symbols:
        """Symbols of the kernel that runs now."""
        return self.guest.symbols

    @property
    def types(self) -> Types:
        """Types of the kernel that runs now."""
        return self.guest.types

    @property
    def kernel(self) -> AddressSpace:
        """Address space of the kernel that runs now."""
        return self.guest.kernel

    @property
    def tables(self) -> tuple[str, ...]:
        """Names that :meth:`table` and :meth:`columns` take: those of the commands."""
        from virtintrospect.insight.tables import COMMANDS, PS

        return (PS.name, *(table.name for table in COMMANDS))

    def table(self, name: str, **arguments: Any) -> list[Any]:
        """The records of a table by the name of its command: ``table("files", pid=1)``.

        :param arguments: those of the method behind it, e.g. ``threads=True`` of ``ps``.
        :returns: records, one alone where the command shows one object.
        :raises UsageError: there is no such table, or it takes other arguments.
        """
        import inspect

        from virtintrospect.insight.tables import find

        table = find(name)
        method = getattr(self, table.source)
        try:
            inspect.signature(method).bind(**arguments)
        except TypeError as error:
            raise UsageError(f"table {name!r}: {error}") from error
        found = method(**arguments)
        return [found] if table.single else list(found)

    def columns(
        self, name: str, names: Collection[str] | None = None, **arguments: Any
    ) -> dict[str, npt.NDArray[Any]]:
        """The columns of a table as numpy arrays: ``columns("ps", ["pid", "resident_size"])``.

        Numbers are masked arrays in which what is unknown is masked, texts are arrays of
        objects; see :func:`~virtintrospect.insight.arrays.arrays`.

        :param names: which columns; all when not given.
        :param arguments: as of :meth:`table`.
        :raises UsageError: there is no such table or column.
        """
        from virtintrospect.insight.arrays import arrays
        from virtintrospect.insight.tables import PS, PS_DETAILS, find

        if name == PS.name and not PS_DETAILS.isdisjoint(PS_DETAILS if names is None else names):
            arguments = {"details": True} | arguments
        return arrays(find(name), self.table(name, **arguments), names)

    def follow_log(self, interval: float = 0.5) -> Iterator[LogBatch]:
        """The kernel's log, then what comes to it, for ever, through reboots.

        :param interval: seconds between two looks.
        :returns: an iterator of batches: ``records``, ``lost`` (how many were overwritten
            before they could be read) and ``rebooted``.
        :raises TargetGoneError: the guest has ended.
        """
        from virtintrospect.insight.follow import follow_log

        def current() -> Guest:
            self.target.memory.expire()
            return self.guest

        return follow_log(current, interval)
