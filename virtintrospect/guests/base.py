"""What every guest operating system offers, whatever it is."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.space import AddressSpace
from virtintrospect.symbols.table import Symbols
from virtintrospect.symbols.types import Types

if TYPE_CHECKING:
    from virtintrospect.model import (
        BalloonStats,
        BpfObject,
        CacheUse,
        Container,
        ControlGroup,
        Counter,
        CpuSigns,
        CpuTimes,
        Crash,
        EnvironmentVariable,
        InnerGuest,
        Interface,
        Load,
        Login,
        LogRecord,
        MemoryArea,
        MemoryFilesystem,
        MemoryInfo,
        Module,
        Mount,
        Namespace,
        Neighbour,
        OpenFile,
        PageOwners,
        Pressure,
        Problem,
        Process,
        Route,
        RunQueue,
        SlabCache,
        Socket,
        StackFrame,
        Stall,
        Sysctl,
        SystemInfo,
        Timer,
        User,
    )
    from virtintrospect.symbols.layout import Layout


class Guest(abc.ABC):
    """One booted kernel: its symbols, its types, its address spaces and its tables.

    Tables never raise for a single bad structure; they leave the row out, or the field, and
    note it in :attr:`problems`.
    """

    symbols: Symbols
    types: Types
    #: The kernel's own address space.
    kernel: AddressSpace

    #: Whether memory changes while it is read, so that rows need a second look.
    live: bool = True

    def __init__(self) -> None:
        #: What tables could not make sense of, since :meth:`take_problems` was last called.
        self.problems: list[Problem] = []

    def take_problems(self) -> list[Problem]:
        """The problems noted so far, which are then forgotten."""
        problems, self.problems = self.problems, []
        return problems

    @abc.abstractmethod
    def is_current(self) -> bool:
        """Whether this is still the kernel that runs: ``False`` after a reboot."""

    @abc.abstractmethod
    def info(self) -> SystemInfo:
        """Which kernel runs, and since when."""

    @abc.abstractmethod
    def processes(self, *, threads: bool = False, details: bool = False) -> list[Process]:
        """Every process in the order of the kernel's task list; with ``threads`` every thread.

        :param details: read the fields from ``suid`` on, too; else they are ``None``.
        """

    @abc.abstractmethod
    def modules(self) -> list[Module]:
        """Loaded kernel modules, newest first, as ``lsmod`` orders them."""

    @abc.abstractmethod
    def dmesg(self, after: int | None = None) -> list[LogRecord]:
        """The kernel's log buffer, oldest record first.

        :param after: only what came after the record of this sequence number, and is complete.
            A log that does not reach so far belongs to another boot: all of it is given.
        """

    @abc.abstractmethod
    def meminfo(self, names: Collection[str] | None = None) -> MemoryInfo:
        """The guest's own account of its memory, as /proc/meminfo has it.

        :param names: only these fields are read; the others are ``None``.
        """

    @abc.abstractmethod
    def pressure(self, *, cgroups: bool = False) -> list[Pressure]:
        """How much time tasks lose for want of CPU, memory and I/O.

        :param cgroups: of each control group; the root group is the whole guest.
        :raises NotFoundError: the kernel does not measure it (built without, or switched off).
        """

    @abc.abstractmethod
    def cgroups(self, path: bytes | str | None = None) -> list[ControlGroup]:
        """Control groups of all hierarchies, their limits and what they use.

        :param path: only this group and those below it, in any hierarchy.
        :raises NoSuchTargetError: there is no group of that path.
        """

    @abc.abstractmethod
    def cpu(self) -> list[CpuTimes]:
        """What each CPU that is online has spent its time on."""

    @abc.abstractmethod
    def load(self) -> Load:
        """Load averages, and how many tasks run, wait for I/O, and are there."""

    @abc.abstractmethod
    def vmstat(self, names: Collection[bytes] | None = None) -> list[Counter]:
        """Every counter of /proc/vmstat, in its order.

        :param names: only those whose names begin with one of these.
        """

    @abc.abstractmethod
    def slabs(self) -> list[SlabCache]:
        """Caches of kernel objects, as /proc/slabinfo has them.

        :raises NotFoundError: the kernel has another allocator than SLUB.
        """

    @abc.abstractmethod
    def maps(self, pid: int) -> list[MemoryArea]:
        """Memory mappings of a process, lowest address first.

        :raises NoSuchTargetError: there is no such process, or it is a kernel thread.
        """

    @abc.abstractmethod
    def files(self, pid: int | None = None) -> list[OpenFile]:
        """Open files of a process, or of all processes, by descriptor.

        :raises NoSuchTargetError: there is no such process.
        """

    @abc.abstractmethod
    def interfaces(self) -> list[Interface]:
        """Network interfaces of all namespaces, one row for each address."""

    @abc.abstractmethod
    def sockets(self, pid: int | None = None, *, listening: bool = False) -> list[Socket]:
        """Sockets of all families and namespaces, one row for each descriptor.

        :param pid: only those that this process has open.
        :param listening: only those that wait for others to connect, or to send.
        :raises NoSuchTargetError: there is no such process.
        """

    @abc.abstractmethod
    def routes(self) -> list[Route]:
        """Routes of both IP versions, of all tables and namespaces, one row for each next hop."""

    @abc.abstractmethod
    def neighbours(self) -> list[Neighbour]:
        """Addresses on the link and who answers to them (ARP, NDISC), of all namespaces."""

    @abc.abstractmethod
    def bpf(self) -> list[BpfObject]:
        """Loaded eBPF programs and maps.

        :raises NotFoundError: the kernel was built without them.
        """

    @abc.abstractmethod
    def timers(self) -> list[Timer]:
        """Timers that wait on each CPU, and whom they belong to."""

    @abc.abstractmethod
    def sysctl(self, pattern: str | None = None) -> list[Sysctl]:
        """Kernel parameters, those of each network namespace included.

        :param pattern: a shell pattern; or a name, which stands for all below it, too.
        """

    @abc.abstractmethod
    def mounts(self) -> list[Mount]:
        """Mounted file systems of every mount namespace that a process is in, init's first."""

    @abc.abstractmethod
    def containers(self) -> list[Container]:
        """Containers: what control groups and namespaces tell of them."""

    @abc.abstractmethod
    def namespaces(self) -> list[Namespace]:
        """Namespaces of all types, those of the first process first."""

    @abc.abstractmethod
    def environment(self, pid: int) -> list[EnvironmentVariable]:
        """The environment of a process, from its own memory.

        :raises NoSuchTargetError: there is no such process, or it is a kernel thread.
        """

    @abc.abstractmethod
    def stack(self, pid: int, *, threads: bool = False) -> list[StackFrame]:
        """The kernel stack of a process's first thread, or of any thread, innermost frame first.

        :param threads: of all threads of that process.
        :raises NoSuchTargetError: there is no such process or thread.
        """

    @abc.abstractmethod
    def runqueues(self) -> list[RunQueue]:
        """What each CPU that is online is running, and what waits for it."""

    @abc.abstractmethod
    def cpu_signs(self) -> list[CpuSigns]:
        """What wakes each CPU that is online, and what it is doing at this moment."""

    @abc.abstractmethod
    def memory_filesystems(self, *, least_share: float = 0.0) -> list[MemoryFilesystem]:
        """Mounted file systems whose files are memory, the fullest first.

        :param least_share: only those that have used this share of what they may, or of the
            guest's memory where nothing limits them.
        """

    @abc.abstractmethod
    def hung(self, seconds: float = 120.0) -> list[Stall]:
        """Why the guest may hang: tasks that wait without end, CPUs that do not come on.

        :param seconds: how long a task must have waited, or a CPU have run the same task, to be
            named.
        """

    @abc.abstractmethod
    def crash(self) -> Crash:
        """Whether the kernel has crashed, why, and what it was doing."""

    @abc.abstractmethod
    def cpu_stacks(self) -> list[StackFrame]:
        """The kernel stacks of the tasks that the CPUs were running, as far as they can be told."""

    @abc.abstractmethod
    def cache_use(self) -> CacheUse:
        """How much of the page cache is in use, by the flags of some thousand random pages.

        :raises NotFoundError: the kernel does not count such pages.
        """

    @abc.abstractmethod
    def page_owners(self) -> PageOwners:
        """What each page of guest-physical memory is used for, and by whom: arrays by page.

        :raises UnsupportedError: the guest has too much memory for such arrays.
        """

    @abc.abstractmethod
    def layout(
        self,
        name: str,
        members: Sequence[str] | Mapping[str, str],
        text: Collection[str] | None = None,
    ) -> Layout:
        """Compiled access to chosen members of a structure, made once.

        Parameters as of :class:`~virtintrospect.symbols.layout.Layout`.

        :raises TypeNotFoundError: the kernel has no such structure or member.
        """

    @abc.abstractmethod
    def entries(self, head: int | str, name: str, member: str) -> list[int]:
        """Addresses of the structures on one of the kernel's linked lists, in its order.

        :param head: address or symbol of the list's head.
        :param name: the structures' type.
        :param member: their member by which they are linked.
        :raises NotFoundError: the kernel has no such symbol, structure or member.
        """

    @abc.abstractmethod
    def users(self) -> list[User]:
        """Credentials that processes have, and how many have each."""

    @abc.abstractmethod
    def logins(self) -> list[Login]:
        """Who is logged in."""

    @abc.abstractmethod
    def nested(self) -> list[InnerGuest]:
        """Guests that this one runs itself, by its own KVM; none where it has none.

        :raises NoSuchTargetError: its KVM has no types or symbols.
        :raises UnsupportedError: they are not found on its architecture.
        """

    @abc.abstractmethod
    def guestinfo(
        self, kinds: Collection[str] = (), aliases: Mapping[bytes, str] | None = None
    ) -> dict[str, Any]:
        """What a guest agent would tell: keys, their order and units as of ``virsh guestinfo``.

        :param kinds: which of user, os, timezone, hostname, filesystem, disk, interface and
            load; all of them where none is named.
        :param aliases: what the host calls disks, by their PCI address (``0000:04:00.0``) or
            their serial number (:func:`~virtintrospect.domainxml.disk_aliases`).
        """

    @abc.abstractmethod
    def balloon_stats(self) -> BalloonStats:
        """What a balloon driver would tell of the guest's memory."""

    @abc.abstractmethod
    def module_types(self, name: str) -> Types:
        """The types of a loaded kernel module, along with the kernel's own.

        :raises NoSuchTargetError: there is no such module, or it carries no types.
        """

    @abc.abstractmethod
    def process_at(self, root: int) -> int:
        """The process whose page tables these are.

        :param root: physical address of the top table, or CR3 as a CPU has it: its low bits,
            and those that page-table isolation sets in user mode, do not matter.
        :returns: its number, as of ``ps``; the first one's where several share their memory.
        :raises NoSuchTargetError: no process has such tables; those of the kernel are nobody's.
        """

    @abc.abstractmethod
    def process_space(self, pid: int) -> AddressSpace:
        """The address space of a process.

        :raises NoSuchTargetError: there is no such process, or it is a kernel thread.
        """
