"""A booted Linux kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import (
    CorruptDataError,
    FaultError,
    NotFoundError,
    VirtIntrospectError,
)
from virtintrospect.guests.base import Guest
from virtintrospect.guests.linux import bitmap
from virtintrospect.guests.linux.machine import KernelMapping
from virtintrospect.memory import PhysicalMemory
from virtintrospect.model import Problem
from virtintrospect.space import AddressSpace, LinearRange
from virtintrospect.symbols import vmcoreinfo
from virtintrospect.symbols.layout import Layout
from virtintrospect.symbols.table import Symbols
from virtintrospect.symbols.types import Types
from virtintrospect.symbols.vmcoreinfo import VmCoreInfo

if TYPE_CHECKING:
    from virtintrospect.driver import SupportsRegisters
    from virtintrospect.guests.linux.pagecache import CachedFile
    from virtintrospect.guests.linux.tasks import Tasks
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

#: Pages that look like VMCOREINFO that are tried.
_MOST_TEXTS = 32
#: Problems remembered until somebody takes them.
_MAX_PROBLEMS = 1000
#: Globals have no BTF type; these are the types of those that the tables read.
GLOBALS = {
    "gate_vma": "vm_area_struct",
    "init_task": "task_struct",
    "init_uts_ns": "uts_namespace",
    "prb": "printk_ringbuffer",
    "shadow_timekeeper": "timekeeper",
    "timekeeper_data": "tk_data",
    "tk_core": "tk_data",
    "vm_committed_as": "percpu_counter",
    "init_pid_ns": "pid_namespace",
    "psi_system": "psi_group",
    "psi_cgroups_enabled": "static_key_true",
    "prog_idr": "idr",
    "map_idr": "idr",
    "psi_disabled": "static_key_false",
}


class LinuxGuest(Guest):
    """One booted Linux kernel, found in guest memory.

    :param memory: guest-physical memory.
    :param mapping: where the kernel's image was found.
    :param symbols: its symbols, already at the image's base.
    :param types: its types.
    :param build_id: GNU build id of the kernel.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        mapping: KernelMapping,
        symbols: Symbols,
        types: Types,
        build_id: bytes,
        *,
        live: bool,
    ) -> None:
        super().__init__()
        self.live = live
        #: Where the registers of its CPUs can be read; ``None`` where they cannot.
        self.registers: SupportsRegisters | None = None
        #: The kernel has no symbols of its data (CONFIG_KALLSYMS_ALL); most had to be searched.
        self.functions_only = False
        self.memory = memory
        self.mapping = mapping
        self.machine = mapping.machine
        #: PAGE_SHIFT and PAGE_SIZE: what the smallest page of its tables has, and what the kernel
        #: counts in.
        self.page_shift = mapping.mode.levels[-1].shift
        self.page_size = 1 << self.page_shift
        self.symbols = symbols
        self.types = types
        self.build_id = build_id
        self.kernel = self._kernel_space()
        self.banner = self.kernel.string(symbols.address("linux_banner"), 512)
        self._layouts: dict[object, Layout] = {}

    # -- tables -----------------------------------------------------------------------------

    def info(self) -> SystemInfo:
        """Which kernel runs: :mod:`~virtintrospect.guests.linux.system`."""
        from virtintrospect.guests.linux.system import system_info

        return system_info(self)

    def processes(self, *, threads: bool = False, details: bool = False) -> list[Process]:
        """The task list: :mod:`~virtintrospect.guests.linux.ps`."""
        from virtintrospect.guests.linux.ps import processes

        return processes(self, threads=threads, details=details)

    def modules(self) -> list[Module]:
        """Loaded modules: :mod:`~virtintrospect.guests.linux.modules`."""
        from virtintrospect.guests.linux.modules import modules

        return modules(self)

    def dmesg(self, after: int | None = None) -> list[LogRecord]:
        """The log: :mod:`~virtintrospect.guests.linux.printk`."""
        from virtintrospect.guests.linux.printk import records

        return records(self, after)

    def meminfo(self, names: Collection[str] | None = None) -> MemoryInfo:
        """Memory as /proc/meminfo: :mod:`~virtintrospect.guests.linux.meminfo`."""
        from virtintrospect.guests.linux.meminfo import meminfo

        return meminfo(self, names)

    def pressure(self, *, cgroups: bool = False) -> list[Pressure]:
        """Pressure stall information: :mod:`~virtintrospect.guests.linux.psi`."""
        from virtintrospect.guests.linux.psi import pressure

        return pressure(self, cgroups=cgroups)

    def cgroups(self, path: bytes | str | None = None) -> list[ControlGroup]:
        """Control groups: :mod:`~virtintrospect.guests.linux.cgroups`."""
        from virtintrospect.guests.linux.cgroups import cgroups

        return cgroups(self, path)

    def cpu(self) -> list[CpuTimes]:
        """CPU times: :mod:`~virtintrospect.guests.linux.cpu`."""
        from virtintrospect.guests.linux.cpu import times

        return times(self)

    def load(self) -> Load:
        """Load averages: :mod:`~virtintrospect.guests.linux.cpu`."""
        from virtintrospect.guests.linux.cpu import load

        return load(self)

    def vmstat(self) -> list[Counter]:
        """Counters: :mod:`~virtintrospect.guests.linux.vmstat`."""
        from virtintrospect.guests.linux.vmstat import vmstat

        return vmstat(self)

    def slabs(self) -> list[SlabCache]:
        """Slab caches: :mod:`~virtintrospect.guests.linux.slabs`."""
        from virtintrospect.guests.linux.slabs import slabs

        return slabs(self)

    def maps(self, pid: int) -> list[MemoryArea]:
        """Memory mappings: :mod:`~virtintrospect.guests.linux.maps`."""
        from virtintrospect.guests.linux.maps import maps

        return maps(self, pid)

    def files(self, pid: int | None = None) -> list[OpenFile]:
        """Open files: :mod:`~virtintrospect.guests.linux.files`."""
        from virtintrospect.guests.linux.files import files

        return files(self, pid)

    def mounts(self) -> list[Mount]:
        """Mounted file systems: :mod:`~virtintrospect.guests.linux.mounts`."""
        from virtintrospect.guests.linux.mounts import mounts

        return mounts(self)

    def containers(self) -> list[Container]:
        """Containers: :mod:`~virtintrospect.guests.linux.containers`."""
        from virtintrospect.guests.linux.containers import containers

        return containers(self)

    def namespaces(self) -> list[Namespace]:
        """Namespaces: :mod:`~virtintrospect.guests.linux.namespaces`."""
        from virtintrospect.guests.linux.namespaces import namespaces

        return namespaces(self)

    def environment(self, pid: int) -> list[EnvironmentVariable]:
        """A process's environment: :mod:`~virtintrospect.guests.linux.environment`."""
        from virtintrospect.guests.linux.environment import environment

        return environment(self, pid)

    def interfaces(self) -> list[Interface]:
        """Network interfaces: :mod:`~virtintrospect.guests.linux.interfaces`."""
        from virtintrospect.guests.linux.interfaces import interfaces

        return interfaces(self)

    def sockets(self, pid: int | None = None, *, listening: bool = False) -> list[Socket]:
        """Sockets: :mod:`~virtintrospect.guests.linux.sockets`."""
        from virtintrospect.guests.linux.sockets import sockets

        return sockets(self, pid=pid, listening=listening)

    def routes(self) -> list[Route]:
        """Routes: :mod:`~virtintrospect.guests.linux.routes`."""
        from virtintrospect.guests.linux.routes import routes

        return routes(self)

    def neighbours(self) -> list[Neighbour]:
        """Neighbours: :mod:`~virtintrospect.guests.linux.neighbours`."""
        from virtintrospect.guests.linux.neighbours import neighbours

        return neighbours(self)

    def bpf(self) -> list[BpfObject]:
        """EBPF programs and maps: :mod:`~virtintrospect.guests.linux.bpf`."""
        from virtintrospect.guests.linux.bpf import bpf

        return bpf(self)

    def timers(self) -> list[Timer]:
        """Pending timers: :mod:`~virtintrospect.guests.linux.timers`."""
        from virtintrospect.guests.linux.timers import timers

        return timers(self)

    def sysctl(self, pattern: str | None = None) -> list[Sysctl]:
        """Kernel parameters: :mod:`~virtintrospect.guests.linux.sysctl`."""
        from virtintrospect.guests.linux.sysctl import sysctl

        return sysctl(self, pattern)

    def stack(self, pid: int, *, threads: bool = False) -> list[StackFrame]:
        """Kernel stacks: :mod:`~virtintrospect.guests.linux.stack`."""
        from virtintrospect.guests.linux.stack import stack

        return stack(self, pid, threads=threads)

    def runqueues(self) -> list[RunQueue]:
        """Run queues: :mod:`~virtintrospect.guests.linux.runqueues`."""
        from virtintrospect.guests.linux.runqueues import runqueues

        return runqueues(self)

    def cpu_signs(self) -> list[CpuSigns]:
        """Timers and locks: :mod:`~virtintrospect.guests.linux.cpusigns`."""
        from virtintrospect.guests.linux.cpusigns import cpu_signs

        return cpu_signs(self)

    def memory_filesystems(self, *, least_share: float = 0.0) -> list[MemoryFilesystem]:
        """Tmpfs and ramfs: :mod:`~virtintrospect.guests.linux.memoryfs`."""
        from virtintrospect.guests.linux.memoryfs import memory_filesystems

        return memory_filesystems(self, least_share=least_share)

    def hung(self, seconds: float = 120.0) -> list[Stall]:
        """What hangs: :mod:`~virtintrospect.guests.linux.hung`."""
        from virtintrospect.guests.linux.hung import hung

        return hung(self, seconds)

    def crash(self) -> Crash:
        """What has crashed: :mod:`~virtintrospect.guests.linux.crash`."""
        from virtintrospect.guests.linux.crash import crash

        return crash(self)

    def cpu_stacks(self) -> list[StackFrame]:
        """Stacks of the CPUs: :mod:`~virtintrospect.guests.linux.cpustack`."""
        from virtintrospect.guests.linux.cpustack import cpu_stacks

        return cpu_stacks(self)

    def cache_use(self) -> CacheUse:
        """Page cache in use: :mod:`~virtintrospect.guests.linux.filecache`."""
        from virtintrospect.guests.linux.filecache import cache_use

        return cache_use(self)

    def page_owners(self) -> PageOwners:
        """Owners of pages: :mod:`~virtintrospect.guests.linux.pageowners`."""
        from virtintrospect.guests.linux.pageowners import page_owners

        return page_owners(self)

    def users(self) -> list[User]:
        """Credentials in use: :mod:`~virtintrospect.guests.linux.users`."""
        from virtintrospect.guests.linux.users import users

        return users(self)

    def logins(self) -> list[Login]:
        """Who is logged in: :mod:`~virtintrospect.guests.linux.users`."""
        from virtintrospect.guests.linux.users import logins

        return logins(self)

    def nested(self) -> list[InnerGuest]:
        """Guests inside it: :mod:`~virtintrospect.guests.linux.kvm`."""
        from virtintrospect.guests.linux.kvm import inner_guests

        return inner_guests(self)

    def guestinfo(
        self, kinds: Collection[str] = (), aliases: Mapping[bytes, str] | None = None
    ) -> dict[str, Any]:
        """The keys of ``virsh guestinfo``: :mod:`~virtintrospect.guests.linux.guestinfo`."""
        from virtintrospect.guests.linux.guestinfo import guestinfo

        return guestinfo(self, kinds, aliases)

    def balloon_stats(self) -> BalloonStats:
        """Memory statistics: :mod:`~virtintrospect.guests.linux.balloon`."""
        from virtintrospect.guests.linux.balloon import balloon_stats

        return balloon_stats(self)

    def cached_file(self, path: bytes, *, limit: int = 1 << 20) -> CachedFile | None:
        """What the guest has in memory of a file, as its first process would find it.

        Nothing is read from its disks. ``None`` where it knows no such file, or has not looked
        it up lately.

        :param limit: bytes from its start that are read at most.
        """
        from virtintrospect.guests.linux.budget import Budget
        from virtintrospect.guests.linux.dcache import names_of

        found = names_of(self, Budget(size=limit))
        return found[0].read(path, limit=limit) if found else None

    @cached_property
    def tasks(self) -> Tasks:
        """The task list, for bulk work: ``guest.tasks.columns(["pid", "comm"])``."""
        from virtintrospect.guests.linux.tasks import Tasks

        return Tasks(self)

    def process_space(self, pid: int) -> AddressSpace:
        """The page tables of a process (``mm_struct.pgd``)."""
        from virtintrospect.guests.linux.process import find_user_process

        return self.user_space(find_user_process(self, pid, {})["pgd"])

    def process_at(self, root: int) -> int:
        """By ``mm_struct.pgd``: :mod:`~virtintrospect.guests.linux.process`."""
        from virtintrospect.guests.linux.process import process_at

        return process_at(self, root)

    def module_types(self, name: str) -> Types:
        """The types of a loaded module: its own, and the kernel's.

        :raises NoSuchTargetError: no module of that name is loaded, or it came without types.
        """
        from virtintrospect.guests.linux.modules import module_types

        return module_types(self, name)

    # -- primitives of the tables -----------------------------------------------------------

    def is_current(self) -> bool:
        """Whether the page table by which it was found still leads to it.

        After a reboot the old kernel may lie untouched in RAM, tables and all; only the
        trampoline is always written anew.
        """
        try:
            banner = self.kernel.read(self.symbols.address("linux_banner"), len(self.banner))
            same = self.machine.maps(self.memory, self.mapping)
        except VirtIntrospectError:
            return False
        return banner == self.banner and same

    def layout(
        self,
        name: str,
        members: Sequence[str] | Mapping[str, str],
        text: Collection[str] | None = None,
    ) -> Layout:
        """A compiled :class:`~virtintrospect.symbols.layout.Layout`, made once."""
        wanted = members if isinstance(members, Mapping) else {m: m for m in members}
        key = (name, tuple(wanted.items()), None if text is None else tuple(text))
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = Layout(self.types, name, members, text)
        return layout

    def entries(self, head: int | str, name: str, member: str) -> list[int]:
        """A linked list: :func:`~virtintrospect.guests.linux.lists.walk_list`."""
        from virtintrospect.guests.linux.lists import walk_list

        start = self.symbols.address(head) if isinstance(head, str) else head
        offset = self.types.offsetof(name, member)
        nodes, problem = walk_list(self.kernel, start)
        self.note_all([problem])
        return [node - offset for node in nodes if node >= offset]

    def read_global(
        self,
        symbol: str,
        members: Sequence[str] | Mapping[str, str],
        text: Collection[str] = (),
    ) -> dict[str, Any]:
        """Members of a global variable whose type :data:`GLOBALS` tells; ``text`` as Layout's."""
        layout = self.layout(GLOBALS[symbol], members, text)
        return layout.read(self.kernel, self.symbols.address(symbol))

    def pointer(self, symbol: str) -> int:
        """The pointer, or number of that size, that a global variable holds."""
        return self.kernel.read_pointer(self.symbols.address(symbol))

    def user_space(self, pgd: int) -> AddressSpace:
        """The address space behind ``mm_struct.pgd``, a kernel virtual address."""
        kernel = self.kernel
        mode = self.machine.user_mode(kernel.mode)
        root = kernel.translate(pgd)
        return AddressSpace(self.memory, mode, root, pointer_size=kernel.pointer_size)

    def without(self, what: str) -> NotFoundError:
        """What to raise where the symbols of a part of the kernel are not there."""
        if self.functions_only:
            return NotFoundError(
                f"no {what}: the guest's kernel has symbols of its functions, and few of its data",
                hint="bring its symbols (docs/kernels-without-btf.md)",
            )
        return NotFoundError(f"the guest's kernel was built without {what}")

    def note(self, what: str, address: int) -> None:
        """Remember something that cost a row or a field."""
        self.note_all([Problem(what, address)])

    def note_all(self, problems: Iterable[Problem | None]) -> None:
        """Remember several; ``None`` is no problem. Those above a bound are forgotten."""
        for problem in problems:
            if problem and len(self.problems) < _MAX_PROBLEMS:
                self.problems.append(problem)

    @cached_property
    def vmcoreinfo(self) -> VmCoreInfo | None:
        """What the kernel notes of itself for crash dumps; ``None`` where it notes nothing."""
        try:
            return vmcoreinfo.parse(self.kernel.read(self.pointer("vmcoreinfo_data"), 4096))
        except NotFoundError:  # no such symbol: it may be there all the same
            return self._searched_vmcoreinfo()
        except (FaultError, CorruptDataError):
            return None

    def _searched_vmcoreinfo(self) -> VmCoreInfo | None:
        """By a scan of memory; it must be of this kernel, and of this boot's place of it."""
        start = self.mapping.image.start
        for _, text in islice(vmcoreinfo.find(self.memory), _MOST_TEXTS):
            info = vmcoreinfo.parse(text)
            try:
                if info.build_id == self.build_id and info.symbol("_stext") >= start:
                    return info
            except (NotFoundError, CorruptDataError):
                continue
        return None

    @cached_property
    def cpu_offsets(self) -> list[int]:
        """What to add to a per-CPU address, for each possible CPU (``__per_cpu_offset``)."""
        table = self.symbols.address("__per_cpu_offset")
        cpus = bitmap.read(self, "__cpu_possible_mask")
        size = self.kernel.pointer_size
        return list(self.kernel.gather_pointers([table + size * cpu for cpu in cpus]))

    def _kernel_space(self) -> AddressSpace:
        """The kernel's address space, its two linear ranges checked against the tables."""
        image, mode, size = self.mapping.image, self.mapping.mode, self.types.pointer_size
        partial = AddressSpace(
            self.memory, mode, self.mapping.root, linear=[image], pointer_size=size
        )
        root = self.machine.kernel_root(self.symbols, partial, self.mapping)
        walked = AddressSpace(self.memory, mode, root)
        linear = [image] if walked.verify(image) else []
        direct = self.machine.direct_map(self.symbols, partial, self.mapping)
        if direct is not None and self._direct_map_holds(walked, direct):
            linear.insert(0, direct)
        return AddressSpace(self.memory, mode, root, linear=linear, pointer_size=size)

    def _direct_map_holds(self, walked: AddressSpace, direct: LinearRange) -> bool:
        """Whether the tables map the direct map as we compute it, at both ends of RAM."""
        image, end = self.mapping.image, direct.paddr + direct.end - direct.start
        probes = {image.paddr, self.memory.regions[-1].start if self.memory.regions else 0}
        confirmed = False
        for paddr in probes:
            if not direct.paddr <= paddr < end:
                continue
            try:
                found = walked.translate(direct.start + paddr - direct.paddr)
            except FaultError:
                continue  # a hole, or a page taken out of the direct map: says nothing
            if found != paddr:
                return False
            confirmed = True
        return confirmed
