"""The driver model: a Driver opens a Target, a Target has memory and says what else it can.

Drivers are found through the entry point group ``virtintrospect.drivers``; each entry names a
:class:`Driver` subclass without required arguments. The core never imports a driver.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Protocol, Self, runtime_checkable

from virtintrospect.domain import Domain
from virtintrospect.errors import MemoryAccessError
from virtintrospect.memory import PhysicalMemory

ENTRY_POINT_GROUP = "virtintrospect.drivers"


class Target(abc.ABC):
    """One guest's memory, opened. A context manager; closing releases every resource."""

    #: Short name of the way memory is read, e.g. ``kvm-mmap``.
    transport: str = ""
    #: Whether the memory changes while we look.
    live: bool = True

    @property
    @abc.abstractmethod
    def memory(self) -> PhysicalMemory:
        """Guest-physical memory."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@runtime_checkable
class SupportsRegisters(Protocol):
    """A target that can read vCPU registers."""

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU by their architectural, lower-case names (``cr3``, ``rip``)."""


@runtime_checkable
class SupportsResidentSize(Protocol):
    """A target whose VMM is a process of this host."""

    def resident_size(self) -> int:
        """Bytes of memory that this process has, the guest's RAM included."""


@runtime_checkable
class SupportsAfterlife(Protocol):
    """A target whose memory may be read after its VMM has ended: for what is left of a crash."""

    def outlive(self) -> bool:
        """Do not mind the VMM's end any more; ``False`` where the memory goes with it."""


class Driver(abc.ABC):
    """Opens guests of one kind of VMM."""

    #: Name of the driver, as shown to people.
    name: str = ""

    @abc.abstractmethod
    def serves(self, domain: Domain) -> bool:
        """Whether this driver knows how to reach the memory of ``domain``."""

    @abc.abstractmethod
    def open(self, domain: Domain) -> Target:
        """Open the memory of a running domain.

        :raises MemoryAccessError: and its subclasses, when memory cannot be reached. Nothing
            is left open then.
        """


def installed_drivers() -> Iterator[Driver]:
    """Every driver that this installation has, in the order of their entry points' names."""
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
        driver = entry.load()()
        if not isinstance(driver, Driver):
            raise MemoryAccessError(
                f"entry point {entry.name!r} is not a virtintrospect driver",
                hint=f"remove or update the package that provides {entry.value}",
            )
        yield driver


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
