"""The driver model: a Driver opens a Target, a Target has memory and says what else it can.

Drivers are found through the entry point group ``virtintrospect.drivers``; each entry names a
:class:`Driver` subclass without required arguments. The core never imports a driver.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, cast, runtime_checkable

from virtintrospect.domain import Domain
from virtintrospect.domain import Event as DomainEvent
from virtintrospect.errors import MemoryAccessError, UnsupportedError, UsageError
from virtintrospect.memory import PhysicalMemory

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from virtintrospect.model.event import Event, Trigger

ENTRY_POINT_GROUP = "virtintrospect.drivers"


@dataclass(frozen=True, slots=True)
class Access:
    """How a target is to be opened, and what the user allows. Nothing that disturbs by default."""

    #: Name of the way to reach memory (``--transport``); ``None``: the best that works.
    transport: str | None = None
    #: Guest memory and registers may be changed (``--allow-write``).
    write: bool = False
    #: What makes libvirt mark the domain as tainted may be used (``--allow-taint``).
    taint: bool = False
    #: An image file may be changed where it is (``--in-place``).
    in_place: bool = False
    #: Where no transport is named: one may be taken whose reads last milliseconds each, and for
    #: which libvirt and QEMU must work. Who looks all the time does not want it.
    slow: bool = True
    #: Not the target itself, but a guest that it runs by its own KVM: PID or name of that
    #: (``--nested``). The rest is of the target.
    nested: str = ""


#: Look, and leave everything as it is.
READ_ONLY = Access()


class Capability(StrEnum):
    """What a target may be able to do; reading memory is what every one can."""

    #: Many ranges by one call, not one after the other.
    GATHER = "gather"
    #: Zero-copy windows on memory.
    VIEW = "view"
    WRITE = "write"
    REGISTERS = "registers"
    SET_REGISTERS = "set-registers"
    PAUSE = "pause"
    EVENTS = "events"


class Target(abc.ABC):
    """One guest's memory, opened. A context manager; closing releases every resource."""

    #: Short name of the way memory is read, e.g. ``kvm-mmap``.
    transport: str = ""
    #: Whether the memory changes while we look.
    live: bool = True
    #: The guest's architecture as QEMU names it (``x86_64``, ``i386``, ``aarch64``, ``arm``,
    #: ``riscv64``); empty where that is not known.
    architecture: str = ""

    @property
    @abc.abstractmethod
    def memory(self) -> PhysicalMemory:
        """Guest-physical memory."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything; closing twice is harmless."""

    def capabilities(self) -> frozenset[Capability]:
        """What this target can do besides reading: the protocols that it satisfies.

        What the memory does better than one read after the other is its own word: the methods
        that it overrides. A target that cannot do it after all (no permission, an image
        without notes) takes it away here.
        """
        memory = type(self.memory)
        found = {what for what, protocol in PROTOCOLS.items() if _satisfies(type(self), protocol)}
        if memory.gather is not PhysicalMemory.gather:
            found.add(Capability.GATHER)
        if memory.view is not PhysicalMemory.view:
            found.add(Capability.VIEW)
        if not self.memory.writable:
            found.discard(Capability.WRITE)
        return frozenset(found)

    def require(self, what: Capability) -> None:
        """For whoever is about to use ``what``: make sure that it is there.

        :raises UnsupportedError: it is not; see :meth:`without`.
        """
        if what not in self.capabilities():
            raise self.without(what)

    def without(self, what: Capability) -> UnsupportedError:
        """What to raise when ``what`` is asked for and not there: names a way that has it."""
        return UnsupportedError(
            f"{self.transport or 'this target'} cannot {SAYS[what]}", hint=WAYS.get(what, "")
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@runtime_checkable
class SupportsWrite(Protocol):
    """A target whose memory can be changed, when it was opened with ``Access(write=True)``.

    Its memory then is ``writable``; what it refuses is the memory's word
    (:meth:`PhysicalMemory.write <virtintrospect.memory.base.PhysicalMemory.write>`).
    """

    def write(self, paddr: int, data: bytes) -> None:
        """Write at a guest-physical address, and make sure by reading it back.

        :raises FaultError: some byte of the range has no RAM; nothing was written.
        :raises NotWritableError: some byte is ROM or on a page that the host has not got, and
            nothing was written; or it reads back as something else.
        :raises UsageError: the target was not opened for writing.
        """


@runtime_checkable
class SupportsRegisters(Protocol):
    """A target that can read vCPU registers."""

    @property
    def vcpus(self) -> int:
        """How many vCPUs have registers that can be read."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU by their architectural, lower-case names (``cr3``, ``rip``).

        :raises NoSuchTargetError: there is no vCPU of that number.
        """


@runtime_checkable
class SupportsSetRegisters(Protocol):
    """A target that can change vCPU registers, when opened with ``Access(write=True)``."""

    def set_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Set some registers of one vCPU, and make sure by reading them back."""


@runtime_checkable
class SupportsPause(Protocol):
    """A target whose guest can be stopped and let go on.

    Pauses are counted: the guest goes on with the last :meth:`resume`, and only where it was
    the first :meth:`pause` that stopped it; a guest that was paused before stays so. Closing
    the target, and the end of this process, let it go on.
    """

    def pause(self) -> float:
        """Stop all vCPUs; returns when they stand still.

        :returns: when they were asked to (:func:`time.monotonic`): the way to the VMM may have
            to be opened first, and takes longer than the pause. Now, where they stood already.
        """

    def resume(self) -> None:
        """Undo one :meth:`pause`."""


class EventStream(Protocol):
    """Events of one guest, from :meth:`SupportsEvents.watch` to its end. A context manager."""

    def read(self, timeout: float) -> list[Event]:
        """Events that have happened; waits for the first one.

        :param timeout: seconds to wait at most.
        :returns: none where nothing has happened in that time.
        """

    def close(self) -> None:
        """Watch no more: the guest is as it was. Twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


@runtime_checkable
class SupportsEvents(Protocol):
    """A target that reports what its vCPUs do, when opened with ``Access(write=True)``.

    A vCPU may stand still until its event has been read, so whoever watches reads all the time.
    The end of the stream, and of this process, leaves the guest as it was.
    """

    def watch(self, *triggers: Trigger) -> EventStream:
        """Report these from now on.

        :raises UnsupportedError: it cannot report one of them.
        :raises UsageError: the target was not opened for writing, or a trigger makes no sense.
        :raises MemoryAccessError: the VMM refuses, or somebody else watches this guest.
        """


@runtime_checkable
class SupportsResidentSize(Protocol):
    """A target whose VMM is a process of this host."""

    def resident_size(self) -> int:
        """Bytes of memory that this process has, the guest's RAM included."""


class VcpuTime(NamedTuple):
    """What a vCPU had of this host's CPUs, in nanoseconds since it was started."""

    vcpu: int
    ran: int
    #: It could have run, and had to wait for a CPU.
    waited: int
    #: On how many CPUs of this host it may run.
    allowed: int | None = None


@runtime_checkable
class SupportsVcpuTimes(Protocol):
    """A target of whose vCPUs this host's scheduler keeps times."""

    def vcpu_times(self) -> list[VcpuTime]:
        """The times of each vCPU; none where they cannot be told from other threads."""


@runtime_checkable
class SupportsVmmFigures(Protocol):
    """A target whose VMM is a process of this host, of which the host tells more."""

    def vmm_figures(self) -> dict[str, Any]:
        """How this host keeps its memory, in bytes, and what limits it.

        ``id``, which another VMM of the same guest does not have; ``resident``, ``anonymous``,
        ``anon_huge``, ``shmem_huge``, ``hugetlb``, ``swapped``, ``merged`` (by KSM), ``nodes``
        (pairs of a NUMA node and bytes); and ``limits`` of control groups: ``memory_max``,
        ``memory_used``, ``memory_group``, ``cpus_max``, ``cpu_group``, ``throttled`` and
        ``throttled_ms``. What is not known, or does not limit it, is left out.
        """


@runtime_checkable
class SupportsAfterlife(Protocol):
    """A target whose memory may be read after its VMM has ended: for what is left of a crash."""

    def outlive(self) -> bool:
        """Do not mind the VMM's end any more; ``False`` where the memory goes with it."""


#: The protocol behind each capability; the memory itself tells of GATHER and VIEW.
PROTOCOLS: dict[Capability, type] = {
    Capability.WRITE: SupportsWrite,
    Capability.REGISTERS: SupportsRegisters,
    Capability.SET_REGISTERS: SupportsSetRegisters,
    Capability.PAUSE: SupportsPause,
    Capability.EVENTS: SupportsEvents,
}


def _satisfies(target: type[Target], protocol: type) -> bool:
    """Whether a class has what a protocol names.

    ``isinstance`` would ask the object for its properties, and one may be found out by asking
    the VMM.
    """
    return all(hasattr(target, name) for name in vars(protocol) if not name.startswith("_"))


def registers_of(target: Target) -> SupportsRegisters | None:
    """The target as one that has registers, where it has them; the VMM is not asked for it."""
    if Capability.REGISTERS not in target.capabilities():
        return None
    return cast("SupportsRegisters", target)


#: "TARGET cannot …"
SAYS = {
    Capability.GATHER: "read many ranges at once",
    Capability.VIEW: "show memory without a copy",
    Capability.WRITE: "change memory",
    Capability.REGISTERS: "read registers",
    Capability.SET_REGISTERS: "change registers",
    Capability.PAUSE: "stop the guest",
    Capability.EVENTS: "report events",
}

#: Which target can do it; for the error that says that this one cannot. What none can has none.
WAYS: dict[Capability, str] = {
    Capability.GATHER: "a running KVM guest can, and so can kdump and AVML images",
    Capability.VIEW: "a running KVM guest with shared memory can (memoryBacking: memfd)",
    Capability.WRITE: "with --allow-write a running KVM guest can; with --in-place, too, raw, "
    "ELF and LiME images",
    Capability.REGISTERS: "a running KVM guest can with --allow-taint (x86), or with "
    "--transport gdbstub --allow-taint; so can an ELF core with QEMU's notes: "
    "virsh dump --memory-only",
    Capability.SET_REGISTERS: "a running KVM guest can: "
    "--transport gdbstub --allow-taint --allow-write",
    Capability.PAUSE: "a running guest can",
    Capability.EVENTS: "HVM and PVH guests of Xen can, with --allow-write",
}


class DomainSource(Protocol):
    """Who knows the domains of a host: libvirt, or a driver that can do without it."""

    @property
    def uri(self) -> str:
        """How the user names it."""

    def domains(self, *, active_only: bool = False) -> Iterable[Domain]:
        """Every domain, running ones first."""

    def domain(self, target: str) -> Domain:
        """The domain with this id, name or UUID.

        :raises NoSuchTargetError: there is none.
        """

    def close(self) -> None:
        """Close it; twice is harmless."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Driver(abc.ABC):
    """Opens guests of one kind of VMM."""

    #: Name of the driver, as shown to people.
    name: str = ""
    #: Names that ``--transport`` takes, the one that is preferred first.
    transports: tuple[str, ...] = ()
    #: Beginnings of TARGETs that need no libvirt and that this driver opens: ``("qmp",)`` for
    #: ``qmp:/run/qemu.sock``.
    schemes: tuple[str, ...] = ()

    @abc.abstractmethod
    def serves(self, domain: Domain) -> bool:
        """Whether this driver knows how to reach the memory of ``domain``."""

    @abc.abstractmethod
    def open(self, domain: Domain, access: Access = READ_ONLY) -> Target:
        """Open the memory of a running domain.

        :param access: how, and what is allowed.
        :raises UsageError: there is no transport of that name, or it needs what is not allowed.
        :raises MemoryAccessError: and its subclasses, when memory cannot be reached. Nothing
            is left open then.
        """

    def open_url(self, scheme: str, rest: str, access: Access = READ_ONLY) -> Target:  # noqa: ARG002
        """Open what a TARGET names without libvirt; for each of :attr:`schemes`.

        :param scheme: what is in front of the first colon, one of :attr:`schemes`.
        :param rest: what is behind it.
        :param access: how, and what is allowed.
        :raises UsageError: ``rest`` makes no sense, or as of :meth:`open`.
        :raises NoSuchTargetError: there is no such thing.
        :raises MemoryAccessError: as of :meth:`open`.
        """
        raise UsageError(f"driver {self.name} opens nothing by {scheme}:")

    def source(
        self,
        scheme: str,
        on_event: Callable[[DomainEvent], None] | None = None,  # noqa: ARG002
        on_close: Callable[[], None] | None = None,  # noqa: ARG002
    ) -> DomainSource:
        """The domains of this host without libvirt, where ``-c`` names one of :attr:`schemes`.

        :param on_event: called, in a thread of the source's own, when a domain comes or goes.
        :param on_close: called once when it cannot tell any more.
        :raises UsageError: this driver needs libvirt for that.
        :raises MemoryAccessError: what would tell cannot be reached.
        """
        raise UsageError(f"driver {self.name} does not list domains by {scheme}:")

    def check(self, access: Access) -> None:
        """Refuse what this driver has no use for, before anything is opened.

        :raises UsageError: there is no transport of that name, or an option of images was given.
        """
        refuse_unknown(access, self.transports, f"driver {self.name}")
        if access.in_place:
            raise UsageError("--in-place is for memory images, and this is a guest", hint="omit it")


def refuse_unknown(access: Access, transports: Sequence[str], whose: str) -> None:
    """Make sure that the transport asked for is one of those.

    :param whose: of what they are, as shown to people.
    :raises UsageError: it is not; the hint lists them.
    """
    if access.transport is not None and access.transport not in transports:
        raise UsageError(
            f"{whose} has no transport {access.transport!r}",
            hint=f"it has: {', '.join(transports)}" if transports else "it has only one way",
        )


def installed_drivers() -> Iterator[Driver]:
    """Every driver that this installation has, in the order of their entry points' names."""
    for entry in _entry_points():
        driver = entry.load()()
        if not isinstance(driver, Driver):
            raise MemoryAccessError(
                f"entry point {entry.name!r} is not a virtintrospect driver",
                hint=f"remove or update the package that provides {entry.value}",
            )
        yield driver


@cache
def _entry_points() -> list[EntryPoint]:
    """Looked up once: a file of each package that is installed has to be read."""
    from importlib.metadata import entry_points

    return sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)


def driver_for(domain: Domain) -> Driver:
    """The driver that serves ``domain``.

    :raises MemoryAccessError: no installed driver does.
    """
    for driver in installed_drivers():
        if driver.serves(domain):
            return driver
    raise MemoryAccessError(
        f"no driver for domain {domain.name!r} on {domain.hypervisor} ({domain.uri})",
        hint="install the driver's package; virtintrospect ships those for QEMU/KVM and Xen",
    )


def source_for(
    uri: str | None,
    on_event: Callable[[DomainEvent], None] | None = None,
    on_close: Callable[[], None] | None = None,
) -> DomainSource | None:
    """What tells of a host's domains without libvirt, for a URI such as ``xen:``.

    :returns: ``None`` for what is libvirt's.
    """
    claimed = driver_for_url(uri or "")
    if claimed is None or claimed[2]:
        return None
    driver, scheme, _ = claimed
    return driver.source(scheme, on_event, on_close)


def driver_for_url(target: str) -> tuple[Driver, str, str] | None:
    """The driver that opens a TARGET such as ``qmp:/run/qemu.sock``, its scheme and the rest.

    :returns: ``None`` for what no installed driver claims: the name of a domain, or a path.
    """
    scheme, colon, rest = target.partition(":")
    if not colon or "/" in scheme:
        return None
    for driver in installed_drivers():
        if scheme in driver.schemes:
            return driver, scheme, rest
    return None
