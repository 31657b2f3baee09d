"""What a guest's processor did, as it happens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """What can be waited for."""

    #: A control register was written.
    REGISTER = "register"
    #: Memory was read, written or executed.
    ACCESS = "access"
    #: A breakpoint was met.
    BREAKPOINT = "breakpoint"
    #: An instruction was executed.
    STEP = "step"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that one vCPU did."""

    kind: EventKind
    vcpu: int
    #: When it was heard of, in seconds since 1970.
    time: float
    #: Registers at that moment; of a register's write, CR3 before it.
    rip: int
    cr3: int
    #: The register's name, and what it held before and afterwards.
    register: str | None = None
    previous: int | None = None
    value: int | None = None
    #: What was accessed: a guest-physical and, where it is known, a virtual address.
    paddr: int | None = None
    vaddr: int | None = None
    #: Some of ``rwx``.
    access: str | None = None


@dataclass(frozen=True, slots=True)
class RegisterWrite:
    """To be waited for: writes of a control register."""

    register: str = "cr3"


@dataclass(frozen=True, slots=True)
class MemoryAccess:
    """To be waited for: accesses to the page of an address."""

    paddr: int
    #: Some of ``rwx``.
    access: str = "w"


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """To be waited for: the instruction at an address, which the guest executes unharmed."""

    paddr: int


@dataclass(frozen=True, slots=True)
class SingleStep:
    """To be waited for: each instruction of one vCPU, which waits after it."""

    vcpu: int = 0


#: What :meth:`~virtintrospect.driver.SupportsEvents.watch` takes.
Trigger = RegisterWrite | MemoryAccess | Breakpoint | SingleStep
