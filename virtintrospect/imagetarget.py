"""Targets that are files: a memory image, with or without registers."""

from __future__ import annotations

from pathlib import Path

from virtintrospect.driver import READ_ONLY, Access, Capability, Target
from virtintrospect.errors import NoSuchTargetError, UnsupportedError, UsageError
from virtintrospect.memory import PhysicalMemory

#: What images say of their guest's architecture, as targets name it. One of a 32-bit x86 may be
#: that of a 64-bit kernel, too: QEMU goes by what the CPU was at.
_ARCHITECTURES = {
    "x86-64": "x86_64",
    "x86_64": "x86_64",
    "aarch64": "aarch64",
    "arm": "arm",
    "riscv64": "riscv64",
}


class ImageTarget(Target):
    """A memory image in a file."""

    live = False
    transport = "image"

    def __init__(self, path: Path, access: Access = READ_ONLY) -> None:
        from virtintrospect.memory.image import open_image

        self._access = access
        self._memory = open_image(path, in_place=access.write and access.in_place)
        self.architecture = _ARCHITECTURES.get(getattr(self._memory, "machine", ""), "")

    @property
    def memory(self) -> PhysicalMemory:
        """What the file holds."""
        return self._memory

    def write(self, paddr: int, data: bytes) -> None:
        """Change the file where it is; see :class:`~virtintrospect.driver.SupportsWrite`."""
        self._memory.write(paddr, data)

    def without(self, what: Capability) -> UnsupportedError:
        """As of every target; says why an image cannot be changed though the user allows it."""
        if what is Capability.WRITE and self._access.write and self._access.in_place:
            return UnsupportedError(
                "this image cannot be changed: its format does not hold memory as it is",
                hint="raw, ELF and LiME images can be; unpack one that is compressed",
            )
        return super().without(what)

    def close(self) -> None:
        """Close the file."""
        self._memory.close()


class CoreTarget(ImageTarget):
    """An image that has the CPUs' registers, too: an ELF core of QEMU's, of kdump's or of Xen's."""

    def __init__(
        self,
        memory: PhysicalMemory,
        registers: list[dict[str, int]],
        architecture: str = "",
        access: Access = READ_ONLY,
    ) -> None:
        self._memory = memory
        self._access = access
        self._registers = registers
        self.architecture = architecture

    @property
    def vcpus(self) -> int:
        """How many vCPUs the image has registers of."""
        return len(self._registers)

    def registers(self, vcpu: int) -> dict[str, int]:
        """Registers of one vCPU at the time of the dump.

        :raises NoSuchTargetError: the image has no vCPU of that number.
        """
        if not 0 <= vcpu < len(self._registers):
            raise NoSuchTargetError(f"the image has no registers of a vCPU {vcpu}")
        return self._registers[vcpu]


def open_image_target(path: Path, access: Access = READ_ONLY) -> ImageTarget:
    """A memory image, with what its format says of registers.

    :param access: with ``write`` and ``in_place`` the file itself may be changed.
    """
    from virtintrospect.memory.cpunotes import registers

    target = ImageTarget(path, access)
    found = getattr(target.memory, "registers", None)
    if found is None:
        machine = getattr(target.memory, "machine", "")
        found = registers(getattr(target.memory, "notes", ()), machine)
    if not found:
        return target
    return CoreTarget(target.memory, found, target.architecture, access)


def image_path(target: str) -> Path | None:
    """The path, where a target names a file; ``None`` where it names a domain.

    Ask :func:`~virtintrospect.driver.driver_for_url` first.
    """
    if target.startswith("file:"):
        from urllib.parse import unquote, urlsplit

        try:
            parts = urlsplit(target)
        except ValueError as error:
            raise UsageError(f"{target!r} is no URL: {error}") from error
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UsageError(f"{target!r} is no local file", hint="write file:///path/to/image")
        return Path(unquote(parts.path))
    if "://" in target:
        raise UsageError(
            f"{target!r} is no target", hint="name a domain, or a file by its path or file:// URL"
        )
    return Path(target) if "/" in target else None
