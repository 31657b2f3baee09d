"""The tables of a booted Linux kernel; each is read by a file of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux.kernel import LinuxKernel
from virtintrospect.space import AddressSpace

if TYPE_CHECKING:
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
    from virtintrospect.symbols.types import Types


class LinuxGuest(LinuxKernel):
    """One booted Linux kernel, found in guest memory."""

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

    def vmstat(self, names: Collection[bytes] | None = None) -> list[Counter]:
        """Counters: :mod:`~virtintrospect.guests.linux.vmstat`."""
        from virtintrospect.guests.linux.vmstat import vmstat

        return vmstat(self, names)

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
