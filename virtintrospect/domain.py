"""A libvirt domain as plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

#: Bytes of the units that libvirt writes (docs/formatdomain: memory); KiB where it names none.
_UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


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


def current_memory(xml: str) -> int | None:
    """KiB that the balloon leaves the guest, as the live XML of a domain has them."""
    match = re.search(r"<currentMemory(?: unit='(\w+)')?>([0-9]{1,20})</currentMemory>", xml)
    if match is None:
        return None
    return int(match[2]) * _UNITS.get(match[1] or "KiB", 1 << 10) >> 10


def disk_aliases(xml: str) -> dict[bytes, str]:
    """Names of a domain's disks (``vda``), by their PCI address and by their serial number.

    As libvirt itself does, this takes the bus numbers of its XML for those that the guest sees.
    """
    found: dict[bytes, str] = {}
    # Not by one pattern: where no end follows, it would search the rest again and again.
    for piece in re.split(r"<disk\b", xml)[1:]:
        disk, end, _ = piece.partition("</disk>")
        if not end:
            continue
        target = re.search(r"<target dev='([^']+)'", disk)
        address = re.search(r"<address type='pci'([^<>]*)/>", disk)
        serial = re.search(r"<serial>([^<]+)</serial>", disk)
        if target is None:
            continue
        if serial is not None:
            found[serial[1].encode()] = target[1]
        if address is not None:
            parts = {key: int(value, 16) for key, value in _ATTRIBUTE.findall(address[1])}
            place = [parts.get(key, 0) for key in ("domain", "bus", "slot", "function")]
            found[b"%04x:%02x:%02x.%x" % tuple(place)] = target[1]
    return found


_ATTRIBUTE = re.compile(r"(\w+)='0x([0-9a-f]{1,8})'")
