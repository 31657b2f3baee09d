"""Stopping a guest and letting it go on: through libvirt, or through QEMU's own monitor."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable
from typing import Any

from virtintrospect.connection import DomainLink
from virtintrospect.domain import Domain
from virtintrospect_kvm.qmp import LibvirtMonitor, Monitor, SocketMonitor

#: virDomainState: running, blocked.
_RUNNING = (1, 2)


class Brake(abc.ABC):
    """How one guest is stopped."""

    @abc.abstractmethod
    def runs(self) -> bool:
        """Whether the guest's vCPUs run."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop all vCPUs; returns when they stand still."""

    @abc.abstractmethod
    def release(self) -> None:
        """Let them go on."""


class LibvirtBrake(Brake):
    """``virsh suspend`` and ``virsh resume``: no taint, and libvirt knows of it.

    :param link: the domain; not closed with this.
    """

    def __init__(self, link: DomainLink) -> None:
        self._link = link

    def runs(self) -> bool:  # noqa: D102 (inherited)
        return self._link.call("state")[0] in _RUNNING

    def stop(self) -> None:  # noqa: D102 (inherited)
        self._link.call("suspend")

    def release(self) -> None:  # noqa: D102 (inherited)
        self._link.call("resume")


class MonitorBrake(Brake):
    """``stop`` and ``cont`` of QEMU's monitor, for a QEMU without libvirt.

    :param monitor: not closed with this.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def runs(self) -> bool:  # noqa: D102 (inherited)
        status = self._monitor.command("query-status")
        return isinstance(status, dict) and status.get("running") is True

    def stop(self) -> None:  # noqa: D102 (inherited)
        self._monitor.command("stop")

    def release(self) -> None:  # noqa: D102 (inherited)
        self._monitor.command("cont")


def place_of(domain: Domain) -> dict[str, Any]:
    """What :func:`open_brake` needs to find a domain again, as plain data."""
    return {"uri": domain.uri, "uuid": domain.uuid, "id": domain.id, "name": domain.name}


def open_brake(
    place: dict[str, Any], stack: contextlib.ExitStack
) -> tuple[Brake, Callable[[], Monitor]]:
    """The brake of a guest, and its monitor for those who need it; in another process.

    :param place: of :func:`place_of`, or ``{"qmp": path}``.
    :param stack: closes what is opened.
    """
    if "qmp" in place:
        monitor = stack.enter_context(SocketMonitor(place["qmp"]))
        return MonitorBrake(monitor), lambda: monitor
    domain = Domain(
        place["name"], place["uuid"], place["id"], "paused", "QEMU", place["uri"]
    )  # fmt: skip
    link = stack.enter_context(DomainLink(domain))
    return LibvirtBrake(link), lambda: LibvirtMonitor(link)
