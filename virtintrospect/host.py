"""A host: its domains as libvirt tells of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Self

from virtintrospect.connection import connection_error, load_libvirt
from virtintrospect.domain import Domain
from virtintrospect.driver import DomainSource, source_for
from virtintrospect.errors import MemoryAccessError, NoSuchTargetError, VirtIntrospectError

#: virDomainState, as `virsh list` prints it.
STATES = {
    0: "no state",
    1: "running",
    2: "idle",
    3: "paused",
    4: "in shutdown",
    5: "shut off",
    6: "crashed",
    7: "pmsuspended",
}

#: (virDomainState, its reason) of a domain whose memory is still being filled: paused for
#: migration, for post-copy or while starting up (from a saved state); running in post-copy.
ARRIVING = {(3, 2), (3, 11), (3, 12), (3, 13), (1, 10), (1, 11)}

_UUID = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")


def default_uri() -> str | None:
    """The URI that virsh itself would use without ``-c``."""
    for variable in ("VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"):
        if value := os.environ.get(variable):
            return value
    return None


def connect(uri: str | None = None) -> DomainSource:
    """Whoever knows the domains of a host: libvirt, or a driver (``xen:``).

    :param uri: ``None`` for the default of virsh.
    :raises MemoryAccessError: it cannot be reached.
    """
    source = source_for(uri or default_uri())
    return Host(uri) if source is None else source


class Host:
    """A connection to libvirt.

    :param uri: connection URI; ``None`` for the default of virsh.
    :param writable: not read-only; only for what the user asked to be changed.
    :raises MemoryAccessError: libvirt is not running, not installed or refuses.
    """

    def __init__(self, uri: str | None = None, *, writable: bool = False) -> None:
        libvirt = load_libvirt()
        wanted = uri or default_uri()
        try:
            opened = libvirt.open(wanted) if writable else libvirt.openReadOnly(wanted)
            self._connection = opened
            self.uri: str = self._connection.getURI()
            self.hypervisor: str = self._connection.getType()
        except libvirt.libvirtError as error:
            raise connection_error(libvirt, error, wanted) from error
        self._libvirt = libvirt

    def domains(self, *, active_only: bool = False) -> Iterator[Domain]:
        """Every domain of the connection, running ones first, as virsh orders them.

        :param active_only: leave out domains that are shut off.
        """
        handles = self._call(self._connection.listAllDomains, 1 if active_only else 0)
        found = [domain for handle in handles if (domain := self._describe(handle)) is not None]
        yield from sorted(found, key=lambda d: (d.id is None, d.id or 0, d.name))

    def domain(self, target: str) -> Domain:
        """The domain with this id, name or UUID (looked up in virsh's order).

        :raises NoSuchTargetError: there is none.
        """
        lookups: list[tuple[Any, int | str]] = []
        if target.isdecimal() and target.isascii() and len(target) < 10:
            lookups.append((self._connection.lookupByID, int(target)))
        if _UUID.fullmatch(target):
            lookups.append((self._connection.lookupByUUIDString, target))
        lookups.append((self._connection.lookupByName, target))
        for lookup, key in lookups:
            try:
                handle = lookup(key)
            except self._libvirt.libvirtError as error:
                if error.get_error_code() != self._libvirt.VIR_ERR_NO_DOMAIN:
                    raise self._error(error) from error
                continue
            except ValueError:  # libvirt-python refuses zero bytes and what is not UTF-8
                continue
            if (domain := self._describe(handle)) is not None:
                return domain
        hint = "`virt-introspect list` shows the domains; a path to a memory image needs a '/'"
        if self.uri.endswith("/session"):
            hint = f"{self.uri} has this user's own domains; the host's are on qemu:///system (-c)"
        raise NoSuchTargetError(f"no domain {target!r} on {self.uri}", hint=hint)

    def versions(self) -> tuple[int, int, int]:
        """Of libvirt's library here, of its daemon, and of the hypervisor: 9000000 is 9.0.0."""
        connection = self._connection
        own: int = self._libvirt.getVersion()
        return own, self._call(connection.getLibVersion), self._call(connection.getVersion)

    def persistent_xml(self, domain: Domain, *, secrets: bool = False) -> str | None:
        """What the domain will be at its next start; ``None`` when it is transient.

        :param secrets: passwords too, without which it must not be defined again. They need a
            writable connection.
        """
        handle = self._call(self._connection.lookupByUUIDString, domain.uuid)
        if not self._call(handle.isPersistent):
            return None
        flags = self._libvirt.VIR_DOMAIN_XML_INACTIVE
        if secrets:
            flags |= self._libvirt.VIR_DOMAIN_XML_SECURE
        xml: str = self._call(handle.XMLDesc, flags)
        return xml

    def has_saved_state(self, domain: Domain) -> bool:
        """Whether the next start goes on from a managed save."""
        handle = self._call(self._connection.lookupByUUIDString, domain.uuid)
        return bool(self._call(handle.hasManagedSaveImage, 0))

    def define(self, xml: str) -> None:
        """Change a domain's persistent definition; a running guest is not affected."""
        self._call(self._connection.defineXMLFlags, xml, self._libvirt.VIR_DOMAIN_DEFINE_VALIDATE)

    def set_memory(self, uuid: str, kib: int) -> None:
        """Set a running domain's balloon target, as ``virsh setmem --live`` does.

        :raises MemoryAccessError: libvirt refuses, or the domain is gone.
        """
        handle = self._call(self._connection.lookupByUUIDString, uuid)
        self._call(handle.setMemoryFlags, kib, self._libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def set_vcpus(self, uuid: str, count: int) -> None:
        """Plug or unplug vCPUs of a running domain, as ``virsh setvcpus --live`` does.

        :raises MemoryAccessError: libvirt refuses, or the domain is gone.
        """
        handle = self._call(self._connection.lookupByUUIDString, uuid)
        self._call(handle.setVcpusFlags, count, self._libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def publish(self, uuid: str, key: str, namespace: str, xml: str | None) -> None:
        """Put an element into the metadata of a running domain, as ``virsh metadata`` does.

        :param key: prefix of its XML namespace.
        :param xml: the element; ``None`` removes it.
        :raises MemoryAccessError: libvirt refuses, or the domain is gone.
        """
        element, live = (
            self._libvirt.VIR_DOMAIN_METADATA_ELEMENT,
            self._libvirt.VIR_DOMAIN_AFFECT_LIVE,
        )
        handle = self._call(self._connection.lookupByUUIDString, uuid)
        self._call(handle.setMetadata, element, xml, key, namespace, live)

    def close(self) -> None:
        """Close the connection; closing twice is harmless."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._call(connection.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _describe(self, handle: Any) -> Domain | None:
        """The domain as data; ``None`` when it vanished while we looked."""
        try:
            number = handle.ID()
            state = handle.state()
            return Domain(
                name=handle.name(),
                uuid=handle.UUIDString(),
                id=None if number < 0 else number,
                state=STATES.get(state[0], "unknown"),
                hypervisor=self.hypervisor,
                uri=self.uri,
                xml=handle.XMLDesc(0),
                arriving=tuple(state) in ARRIVING,
            )
        except self._libvirt.libvirtError as error:
            if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise self._error(error) from error

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._libvirt.libvirtError as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> VirtIntrospectError:
        return MemoryAccessError(
            f"libvirt on {self.uri}: {error}", hint="check that its daemon still runs"
        )
