"""A libvirt domain as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Domain:
    """What libvirt says of a domain at one moment. Holds no connection and no handle."""

    name: str
    uuid: str
    #: virDomainGetID: a number while the domain runs, else ``None``.
    id: int | None
    #: As ``virsh list`` prints it: running, paused, shut off, crashed, …
    state: str
    #: Driver behind the connection, as virConnectGetType names it: QEMU, Xen, …
    hypervisor: str
    #: URI of the connection the domain was found on.
    uri: str
    #: Live domain XML, without secrets (virDomainGetXMLDesc, flags 0).
    xml: str = field(default="", repr=False)
    #: Its memory is not all there yet: it is being migrated to this host, or restored.
    arriving: bool = False

    @property
    def active(self) -> bool:
        """Whether there is a VMM process with memory behind the domain."""
        return self.id is not None


class Event(NamedTuple):
    """Something that happened to a domain."""

    #: A lifecycle event by its name in ``virsh event``; reboot, device-added, device-removed,
    #: memory-size.
    what: str
    name: str
    uuid: str
    #: virDomainEvent…DetailType of a lifecycle event.
    detail: int = 0
