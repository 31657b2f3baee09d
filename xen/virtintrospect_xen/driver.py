"""The driver for Xen guests: recognises them, cannot read them yet."""

from __future__ import annotations

from typing import NoReturn

from virtintrospect.domain import Domain
from virtintrospect.driver import READ_ONLY, Access, Driver
from virtintrospect.errors import MemoryAccessError


class XenDriver(Driver):
    """Says of a Xen guest that it cannot be read, instead of "no driver"."""

    name = "xen"

    def serves(self, domain: Domain) -> bool:
        """Whether the domain belongs to libvirt's Xen driver (libxl)."""
        return domain.hypervisor == "Xen"

    def open(self, domain: Domain, access: Access = READ_ONLY) -> NoReturn:  # noqa: ARG002
        """Refuse.

        :raises MemoryAccessError: always.
        """
        raise MemoryAccessError(
            f"domain {domain.name!r} is a Xen guest, and this release does not read those",
            hint="guests of QEMU/KVM and memory images (raw, ELF core) can be read",
        )
