"""A running guest of the lab, and the channel over which it tells the truth."""

from __future__ import annotations

import atexit
import os
import re
import time
from pathlib import Path
from typing import Any, Self

from . import libvirtd
from .channel import Answer, Channel, GuestError
from .domain import CHANNEL, PREFIX, Config, destroy, domain_xml, me
from .initramfs import initramfs, program
from .kernels import kernel, teach
from .paths import copied, runtime
from .private import Private

__all__ = ["Answer", "Guest", "GuestError"]

#: Seconds within which a guest must have booted, on a loaded machine without KVM; of another
#: architecture, which is emulated everywhere, and costs more.
BOOT_PATIENCE, FOREIGN_PATIENCE = 180.0, 280.0

_SOCKET = re.compile(
    rf"<source mode='bind' path='([^']+)'/>\s*<target type='virtio' name='{re.escape(CHANNEL)}'"
)


class Guest(Channel):
    """A booted guest. A context manager: at its end the domain is gone.

    :param config: what to boot.
    :param name: libvirt's name of it; made up when not given.
    :param kept: the guest may outlive this process.
    :param firmware_only: give it no kernel: it stays in its firmware for ever.
    :param private: the libvirtd to run it under, if not the machine's.
    :param patience: seconds within which it must have booted, where it is not booted alone.
    """

    cards = frozenset({b"eth0"})

    def __init__(
        self,
        config: Config | None = None,
        *,
        name: str = "",
        kept: bool = False,
        firmware_only: bool = False,
        private: Private | None = None,
        patience: float | None = None,
    ) -> None:
        self.config = config or Config()
        config = self.config
        name = name or f"{PREFIX}{config.id}-{os.urandom(3).hex()}"
        super().__init__(name, self._channel_path, runtime(name) / "console.log")
        image = None if firmware_only else kernel(config.kernel)
        #: ``uname -r`` of the kernel; empty for a guest without one.
        self.release = image.release if image else ""
        if image:
            teach(image.release)
        self._private = private
        self._connection = private.connect() if private else libvirtd.connect()
        atexit.register(self.destroy)
        self._kept = kept
        self.domain: Any = self._connection.createXML(
            domain_xml(
                config,
                self.name,
                kernel=copied(image.vmlinuz, name) if image else None,
                initrd=copied(initramfs(image), name) if image else None,
                log=self.console,
                owner=f"{PREFIX}kept" if kept else me(),
            )
        )
        self.uuid: str = self.domain.UUIDString()
        if not firmware_only:
            try:
                self.wait_ready(patience)
            except BaseException:
                self.destroy()
                raise

    @property
    def pid(self) -> int:
        """PID of the guest's QEMU, as libvirt notes it."""
        return int(self._outside(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    @property
    def log(self) -> str:
        """QEMU's log as kept by libvirt: command line, taints."""
        path = self._outside(f"/var/log/libvirt/qemu/{self.name}.log")
        return path.read_text(errors="replace")

    @property
    def xml(self) -> str:
        """The live domain XML."""
        xml: str = self.domain.XMLDesc(0)
        return xml

    @property
    def destroyed(self) -> bool:
        """Whether :meth:`destroy` has ended it."""
        return self._connection is None

    def wait_rebooted(self, boots: int = 2, timeout: float = BOOT_PATIENCE) -> None:
        """Wait until the same QEMU has booted so often, then as :meth:`wait_ready`.

        A question that comes to the kernel that is about to end is never answered.
        """
        deadline = time.monotonic() + timeout
        while self.console.read_bytes().count(b"lab: ready") < boots:
            if time.monotonic() > deadline:
                raise GuestError(f"{self.name} does not reboot\n{self._tail()}")
            time.sleep(0.1)
        self.wait_ready()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the guest has booted, its workload is in place, and it answers."""
        self.disconnect()  # after a reboot it may hold half an answer
        usual = BOOT_PATIENCE if self.config.arch == "x86_64" else FOREIGN_PATIENCE
        super().wait_ready(timeout or usual)

    def install(self, program_name: str, path: str) -> None:
        """Put one of the lab's programs into the guest."""
        architecture = kernel(self.config.kernel).architecture
        self.put(path, program(program_name, architecture).read_bytes(), 0o755)

    def restore(self, path: Path) -> None:
        """Bring the guest back that ``virsh save`` put into a file, in the state it had then."""
        self.disconnect()
        self._connection.restore(str(path))
        self.domain = self._connection.lookupByName(self.name)

    def destroy(self) -> None:
        """End the guest and remove what it left; doing so twice is harmless."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        atexit.unregister(self.destroy)
        self.disconnect()
        if not self._kept:
            destroy(connection, self.name)
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.destroy()

    def _channel_path(self) -> str:
        """Path that libvirt gave the channel's socket, from the live XML."""
        match = _SOCKET.search(self.xml)
        assert match is not None, "libvirt names the channel's socket in the live XML"
        return str(self._outside(match[1]))

    def _outside(self, path: str) -> Path:
        """Where a file of libvirt's is for us."""
        return self._private.outside(path) if self._private else Path(path)
