"""The driver for Xen guests: those of libvirt's libxl, and ``xen:NAME`` without libvirt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from virtintrospect.domain import Domain, Event
from virtintrospect.driver import READ_ONLY, Access, Driver
from virtintrospect.errors import MemoryAccessError, UsageError

# What they import, numpy among it, costs more than most commands: only who meets Xen pays.
if TYPE_CHECKING:
    from virtintrospect_xen.source import XenSource
    from virtintrospect_xen.target import XenTarget


class XenDriver(Driver):
    """PV, PVH and HVM guests of the Xen host whose domain 0 this is."""

    name = "xen"
    transports = ("xen-map",)
    schemes = ("xen",)

    def serves(self, domain: Domain) -> bool:
        """Whether the domain belongs to libvirt's Xen driver (libxl)."""
        return domain.hypervisor == "Xen"

    def open(self, domain: Domain, access: Access = READ_ONLY) -> XenTarget:
        """Open a running domain.

        :raises MemoryAccessError: and its subclasses, see :class:`XenTarget`.
        """
        from virtintrospect_xen.target import XenTarget

        if domain.id is None:
            raise MemoryAccessError(f"domain {domain.name!r} is {domain.state}: it has no memory")
        if domain.arriving:
            raise MemoryAccessError(
                f"the memory of domain {domain.name!r} is not all there yet", hint="try again"
            )
        return XenTarget(domain.id, access, domain.uuid)

    def open_url(self, scheme: str, rest: str, access: Access = READ_ONLY) -> XenTarget:
        """Open ``xen:NAME`` or ``xen:NUMBER``; a name is looked up in xenstore.

        :raises UsageError: nothing is named.
        :raises NoSuchTargetError: there is no such domain.
        :raises MemoryAccessError: and its subclasses, see :class:`XenTarget`.
        """
        from virtintrospect_xen.store import Store
        from virtintrospect_xen.target import XenTarget

        if not rest or "/" in rest:
            raise UsageError(
                f"{scheme}:{rest} names no domain",
                hint="write xen:NAME or xen:NUMBER; libvirt's Xen is -c xen:///system NAME",
            )
        with Store() as store:
            domid = store.find(rest)
        return XenTarget(domid, access)

    def source(
        self,
        scheme: str,  # noqa: ARG002
        on_event: Callable[[Event], None] | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> XenSource:
        """The domains of this host: for ``-c xen:``."""
        from virtintrospect_xen.source import XenSource

        return XenSource(on_event, on_close)
