"""What can be done with a QEMU guest besides reading its memory: stop it, read its registers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from virtintrospect.connection import DomainLink
from virtintrospect.domain import Domain
from virtintrospect.driver import READ_ONLY, Access, Capability, Target
from virtintrospect.errors import MemoryAccessError, NoSuchTargetError
from virtintrospect_kvm import cpudump
from virtintrospect_kvm.brake import Brake, LibvirtBrake, MonitorBrake, place_of
from virtintrospect_kvm.pausing import Pauser
from virtintrospect_kvm.qmp import Monitor, SocketMonitor, open_libvirt_monitor

#: More vCPUs than any machine has.
_MOST_VCPUS = 8192
#: Architectures whose ``info registers`` is known (:mod:`.cpudump`).
_DUMPED = ("x86_64", "i386")


class Control:
    """The way to a guest's VMM, opened when it is first needed.

    :param place: where another process finds the guest (:func:`.brake.open_brake`).
    :param brake: opens the way to stop it; closed by what is pushed on the stack it is given.
    :param monitor: opens QEMU's monitor, or raises where that is not allowed.
    :param registers: whether the monitor may be used.
    """

    def __init__(
        self,
        place: dict[str, Any],
        brake: Callable[[contextlib.ExitStack], Brake],
        monitor: Callable[[contextlib.ExitStack], Monitor],
        *,
        registers: bool,
    ) -> None:
        self.place = place
        self.has_registers = registers
        self._open_brake, self._open_monitor = brake, monitor
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._pauser: Pauser | None = None
        self._monitor: Monitor | None = None
        self._vcpus: int | None = None
        self._closed = False

    @property
    def pauser(self) -> Pauser:
        """Stops the guest and lets it go on; raises where it cannot be reached."""
        with self._lock:
            self._check()
            if self._pauser is None:
                self._pauser = Pauser(self._open_brake(self._stack), self.place)
                self._stack.callback(self._pauser.close)
            return self._pauser

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor; raises where it is not allowed or cannot be reached."""
        with self._lock:
            self._check()
            if self._monitor is None:
                self._monitor = self._open_monitor(self._stack)
            return self._monitor

    @property
    def vcpus(self) -> int:
        """How many vCPUs the guest has."""
        if self._vcpus is None:
            found = self.monitor.command("query-cpus-fast")
            if not isinstance(found, list) or not 0 < len(found) <= _MOST_VCPUS:
                raise MemoryAccessError("QEMU's answer to 'query-cpus-fast' makes no sense")
            self._vcpus = len(found)
        return self._vcpus

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU, which runs on meanwhile, by QEMU's monitor.

        :raises NoSuchTargetError: there is no vCPU of that number.
        """
        if not 0 <= vcpu < self.vcpus:
            raise NoSuchTargetError(
                f"there is no vCPU {vcpu}", hint=f"they are numbered 0 to {self.vcpus - 1}"
            )
        text = self.monitor.command(
            "human-monitor-command", {"command-line": "info registers", "cpu-index": vcpu}
        )
        return cpudump.parse(str(text).replace("\r\n", "\n"))

    def close(self) -> None:
        """Let the guest go on and release everything; closing twice is harmless."""
        self._closed = True
        self._stack.close()

    def _check(self) -> None:
        if self._closed:
            raise MemoryAccessError("the way to the guest's VMM is closed")


def control_of(domain: Domain, access: Access = READ_ONLY) -> Control:
    """The way to a domain of libvirt; what taints only as ``access`` allows."""
    link: list[DomainLink] = []

    def linked(stack: contextlib.ExitStack) -> DomainLink:
        if not link:
            link.append(stack.enter_context(DomainLink(domain)))
        return link[0]

    return Control(
        place_of(domain),
        lambda stack: LibvirtBrake(linked(stack)),
        lambda stack: open_libvirt_monitor(linked(stack), access),
        registers=access.taint,
    )


def control_of_socket(path: str, monitor: Monitor | None = None) -> Control:
    """The way to a QEMU without libvirt, which nothing taints.

    :param path: its QMP socket.
    :param monitor: the connection to it, where there is one already: QEMU serves one client at
        a time. Not closed with this.
    """
    found: list[Monitor] = [] if monitor is None else [monitor]

    def connected(stack: contextlib.ExitStack) -> Monitor:
        if not found:
            found.append(stack.enter_context(SocketMonitor(path)))
        return found[0]

    return Control(
        {"qmp": path}, lambda stack: MonitorBrake(connected(stack)), connected, registers=True
    )


class ControlledTarget(Target):
    """A target whose guest can be stopped, and its registers read, where there is a way."""

    #: ``None``: nobody said how the VMM is reached.
    control: Control | None = None

    def pause(self) -> float:
        """Stop all vCPUs; see :class:`~virtintrospect.driver.SupportsPause`."""
        return self._controlled(Capability.PAUSE).pauser.pause()

    def resume(self) -> None:
        """Undo one :meth:`pause`."""
        self._controlled(Capability.PAUSE).pauser.resume()

    @property
    def vcpus(self) -> int:
        """How many vCPUs have registers."""
        return self._controlled(Capability.REGISTERS).vcpus

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU, which runs on; see :meth:`Control.registers`."""
        return self._controlled(Capability.REGISTERS).registers(vcpu)

    def capabilities(self) -> frozenset[Capability]:
        """As of every target, less what is not allowed."""
        found = super().capabilities()
        if self.control is None:
            return found - {Capability.PAUSE, Capability.REGISTERS}
        if self.control.has_registers and self.architecture in _DUMPED:
            return found
        return found - {Capability.REGISTERS}

    def _controlled(self, what: Capability) -> Control:
        self.require(what)
        assert self.control is not None  # else it would lack the capability
        return self.control
