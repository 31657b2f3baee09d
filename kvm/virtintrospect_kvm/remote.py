"""Guests whose memory others read for us: libvirt, or QEMU itself by its monitor."""

from __future__ import annotations

from virtintrospect.connection import DomainLink
from virtintrospect.domain import Domain
from virtintrospect.driver import READ_ONLY, Access
from virtintrospect.errors import MemoryAccessError
from virtintrospect.memory import Region
from virtintrospect_kvm.control import Control, ControlledTarget, control_of
from virtintrospect_kvm.domainxml import arguments_of
from virtintrospect_kvm.layout import Layout, layout_of
from virtintrospect_kvm.options import CommandLine
from virtintrospect_kvm.pulled import PulledMemory
from virtintrospect_kvm.qmp import open_libvirt_monitor, refuse_taint
from virtintrospect_kvm.saved import MonitorReader

PEEK, MONITOR = "peek", "monitor"


class PulledTarget(ControlledTarget):
    """A guest whose memory somebody else reads for us.

    :param transport: by which way, as shown to people.
    :param memory: taken over.
    :param architecture: the guest's, as QEMU names it.
    :param control: the way to stop the guest and to its registers; taken over.
    """

    def __init__(
        self, transport: str, memory: PulledMemory, architecture: str, control: Control
    ) -> None:
        self.transport = transport
        self.architecture = architecture
        self.control = control
        self._memory = memory

    @property
    def memory(self) -> PulledMemory:
        """Guest-physical memory."""
        return self._memory

    def close(self) -> None:
        """Release everything; closing twice is harmless."""
        try:
            if self.control is not None:
                self.control.close()  # may need the monitor that reads the memory
        finally:
            self._memory.close()


def open_peek(domain: Domain, access: Access = READ_ONLY) -> PulledTarget:
    """A domain's memory by virDomainMemoryPeek: also of another host, taints nothing.

    :param access: what else is allowed.
    :raises AccessDeniedError: libvirt lets this user only look.
    :raises EncryptedMemoryError: a confidential guest.
    :raises MemoryAccessError: libvirt cannot be reached, or the machine is not known.
    """
    link = DomainLink(domain)
    try:
        memory = PulledMemory(_regions(link), link.peek, lambda: link.most, link.close)
        _try(memory)
    except BaseException:
        link.close()
        raise
    return PulledTarget(PEEK, memory, _architecture(link), control_of(domain, access))


def open_monitor(domain: Domain, access: Access) -> PulledTarget:
    """A domain's memory by QEMU's monitor, through libvirt, which taints the domain.

    :raises UsageError: ``access`` does not allow that.
    :raises MemoryAccessError: and its subclasses as of :func:`open_peek`.
    """
    refuse_taint(domain, access)
    link = DomainLink(domain)
    reader: MonitorReader | None = None
    try:
        regions = _regions(link)
        reader = MonitorReader(open_libvirt_monitor(link, access))
        found = reader

        def release() -> None:
            found.close()
            link.close()

        memory = PulledMemory(regions, reader.read, reader.most, release)
        _try(memory)
    except BaseException:
        if reader is not None:
            reader.close()
        link.close()
        raise
    return PulledTarget(MONITOR, memory, _architecture(link), control_of(domain, access))


def regions_of(layout: Layout) -> list[Region]:
    """Where the guest has RAM."""
    return [Region(piece.start, piece.end) for piece in layout.pieces]


def _regions(link: DomainLink) -> list[Region]:
    xml = link.domain.xml

    def host_is_amd() -> bool:
        return link.host_cpu_vendor() == "AMD"

    return regions_of(layout_of(arguments_of(xml), xml, host_is_amd))


def _architecture(link: DomainLink) -> str:
    return CommandLine(arguments_of(link.domain.xml)).architecture


def _try(memory: PulledMemory) -> None:
    """Read something at once: what cannot be read at all is to be known when it is opened."""
    if not memory.regions:
        raise MemoryAccessError("the guest has no RAM")
    memory.read(memory.regions[0].start, 8)
