"""A session: one target, opened, and the guest that was recognised in it."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from virtintrospect.domain import Domain
from virtintrospect.driver import Target, driver_for
from virtintrospect.errors import MemoryAccessError, NoSuchTargetError, UsageError
from virtintrospect.guests import identify
from virtintrospect.guests.base import Guest
from virtintrospect.memory import PhysicalMemory
from virtintrospect.symbols.store import Store, default_directory


class ImageTarget(Target):
    """A memory image in a file."""

    live = False
    transport = "image"

    def __init__(self, path: Path) -> None:
        from virtintrospect.memory.image import open_image

        self._memory = open_image(path)

    @property
    def memory(self) -> PhysicalMemory:
        """What the file holds."""
        return self._memory

    def close(self) -> None:
        """Close the file."""
        self._memory.close()


class CoreTarget(ImageTarget):
    """An image that has the CPUs' registers, too: an ELF core of QEMU's."""

    def __init__(self, memory: PhysicalMemory, registers: list[dict[str, int]]) -> None:
        self._memory = memory
        self._registers = registers

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU at the time of the dump.

        :raises NoSuchTargetError: the image has no vCPU of that number.
        """
        if not 0 <= vcpu < len(self._registers):
            raise NoSuchTargetError(f"the image has no registers of a vCPU {vcpu}")
        return self._registers[vcpu]


def open_image_target(path: Path) -> ImageTarget:
    """A memory image, with what its format says of registers."""
    from virtintrospect.memory.cpunotes import registers

    target = ImageTarget(path)
    found = registers(getattr(target.memory, "notes", ()))
    return CoreTarget(target.memory, found) if found else target


class Session:
    """Domain or image, its memory, and its guest. A context manager.

    :param target: takes it over: closing the session closes the target.
    :param domain: the libvirt domain, where there is one.
    :param store: cache of kernels' symbols and types.
    """

    def __init__(self, target: Target, domain: Domain | None = None, store: Store | None = None):
        self.target = target
        self.domain = domain
        self._store = Store(default_directory()) if store is None else store
        self._guest: Guest | None = None

    @property
    def guest(self) -> Guest:
        """The kernel that runs now: recognised at first use, and anew after a reboot.

        :raises GuestNotRecognisedError: no known kernel is running (yet).
        """
        if self._guest is not None and self.target.live and not self._guest.is_current():
            self._guest = None
        if self._guest is None:
            self._guest = identify(self.target, self._store)
        return self._guest

    def close(self) -> None:
        """Release the guest's memory; closing twice is harmless."""
        self._guest = None
        self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_session(target: str, uri: str | None = None, store: Store | None = None) -> Session:
    """Open what the user named (DESIGN: TARGET).

    :param target: domain name, id or UUID; a path with a ``/``; or a ``file://`` URL.
    :param uri: libvirt connection for domains.
    :raises NoSuchTargetError: there is no such domain or file.
    :raises MemoryAccessError: its memory cannot be reached.
    """
    path = image_path(target)
    if path is not None:
        return Session(open_image_target(path), store=store)
    from virtintrospect.host import Host

    with Host(uri) as host:
        return open_domain(host.domain(target), store)


def open_domain(domain: Domain, store: Store | None = None) -> Session:
    """Open a session on a domain that is already known."""
    if not domain.active:
        raise MemoryAccessError(
            f"domain {domain.name!r} is {domain.state}: it has no memory to look at",
            hint=f"virsh -c {domain.uri} start {domain.name}",
        )
    return Session(driver_for(domain).open(domain), domain, store)


def image_path(target: str) -> Path | None:
    """The path, where a target names a file; ``None`` where it names a domain."""
    if target.startswith("file:"):
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(target)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UsageError(f"{target!r} is no local file", hint="write file:///path/to/image")
        return Path(unquote(parts.path))
    if target.startswith("qmp:"):
        raise UsageError(
            "QEMU without libvirt (qmp:) is not supported yet",
            hint="run the guest under libvirt, or dump its memory and give the file's path",
        )
    if "://" in target:
        raise UsageError(
            f"{target!r} is no target", hint="name a domain, or a file by its path or file:// URL"
        )
    return Path(target) if "/" in target else None
