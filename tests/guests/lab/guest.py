"""A running guest of the lab, and the channel over which it tells the truth."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from . import libvirtd
from .domain import CHANNEL, PREFIX, Config, destroy, domain_xml, me
from .initramfs import initramfs
from .kernels import kernel
from .paths import runtime
from .truth import Snapshot

#: Seconds within which a guest must have booted, on a loaded machine without KVM.
BOOT_PATIENCE = 120.0


class GuestError(Exception):
    """The guest did not do as it was told; the text has the end of its console."""


@dataclass(frozen=True)
class Answer:
    """What a command in the guest printed."""

    status: int
    stdout: bytes
    stderr: bytes


class Guest:
    """A booted guest. A context manager: at its end the domain is gone.

    :param config: what to boot.
    :param name: libvirt's name of it; made up when not given.
    :param kept: the guest may outlive this process.
    :param firmware_only: give it no kernel: it stays in its firmware for ever.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        name: str = "",
        kept: bool = False,
        firmware_only: bool = False,
    ) -> None:
        self.config = config or Config()
        config = self.config
        self.name = name or f"{PREFIX}{config.id}-{os.urandom(3).hex()}"
        image = None if firmware_only else kernel(config.kernel)
        #: ``uname -r`` of the kernel; empty for a guest without one.
        self.release = image.release if image else ""
        self._folder = runtime(self.name)
        self.console = self._folder / "console.log"
        self._channel: socket.socket | None = None
        self._buffer = b""
        self._connection = libvirtd.connect()
        atexit.register(self.destroy)
        self._kept = kept
        self.domain: Any = self._connection.createXML(
            domain_xml(
                config,
                self.name,
                kernel=image.vmlinuz if image else None,
                initrd=initramfs(image) if image else None,
                log=self.console,
                owner=f"{PREFIX}kept" if kept else me(),
            )
        )
        self.uuid: str = self.domain.UUIDString()
        if not firmware_only:
            try:
                self.wait_ready()
            except BaseException:
                self.destroy()
                raise

    @property
    def pid(self) -> int:
        """PID of the guest's QEMU, as libvirt notes it."""
        return int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    @property
    def log(self) -> str:
        """QEMU's log as kept by libvirt: command line, taints."""
        return Path(f"/var/log/libvirt/qemu/{self.name}.log").read_text(errors="replace")

    @property
    def xml(self) -> str:
        """The live domain XML."""
        xml: str = self.domain.XMLDesc(0)
        return xml

    def wait_ready(self, timeout: float = BOOT_PATIENCE) -> None:
        """Wait until the guest has booted, its workload is in place, and it answers."""
        self.disconnect()
        self._ask("H", b"", timeout)

    def run(self, command: str, timeout: float = 30, *, check: bool = True) -> bytes:
        """Run a shell command in the guest; its standard output, byte for byte.

        :raises GuestError: it failed (unless ``check`` is false) or took too long.
        """
        answer = self.execute(command, timeout)
        if check and answer.status:
            raise GuestError(f"{command!r}: status {answer.status}: {answer.stderr!r}")
        return answer.stdout

    def execute(self, command: str, timeout: float = 30) -> Answer:
        """As :meth:`run`, with everything that came back."""
        payload = struct.pack("<I", int(timeout) or 1) + command.encode()
        got = {name: (status, data) for name, status, data in self._ask("R", payload, timeout + 20)}
        return Answer(got[b"status"][0], got[b"stdout"][1], got[b"stderr"][1])

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        payload = struct.pack("<I", mode) + path.encode() + b"\0" + content
        ((_, status, _),) = self._ask("P", payload, 60)
        if status:
            raise GuestError(f"cannot write {path} in the guest: {os.strerror(status)}")

    def get(self, path: str) -> bytes:
        """Read a file of the guest, whole, a /proc file in one pass."""
        ((_, status, content),) = self._ask("G", path.encode(), 60)
        if status:
            raise GuestError(f"cannot read {path} in the guest: {os.strerror(status)}")
        return content

    def snapshot(self) -> Snapshot:
        """The guest's /proc and kernel log at this moment, gathered by one pass in the guest."""
        return Snapshot({name: (status, data) for name, status, data in self._ask("S", b"", 60)})

    def disconnect(self) -> None:
        """Close the channel; the next question opens it again."""
        channel, self._channel = self._channel, None
        self._buffer = b""
        if channel is not None:
            channel.close()

    def destroy(self) -> None:
        """End the guest and remove what it left; doing so twice is harmless."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        atexit.unregister(self.destroy)
        self.disconnect()
        if not self._kept:
            destroy(connection, self.name)
            shutil.rmtree(self._folder, ignore_errors=True)
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.destroy()

    def _ask(self, op: str, payload: bytes, timeout: float) -> list[tuple[bytes, int, bytes]]:
        deadline = time.monotonic() + timeout
        try:
            channel = self._connected(deadline)
            channel.settimeout(max(0.1, deadline - time.monotonic()))
            channel.sendall(op.encode() + struct.pack("<I", len(payload)) + payload)
            return list(self._records(deadline))
        except OSError as error:
            self.disconnect()
            raise GuestError(f"{self.name} does not answer: {error!r}\n{self._tail()}") from error

    def _records(self, deadline: float) -> Iterator[tuple[bytes, int, bytes]]:
        while True:
            (length,) = struct.unpack("<I", self._exactly(4, deadline))
            name = self._exactly(length, deadline)
            status, size = struct.unpack("<IQ", self._exactly(12, deadline))
            data = self._exactly(size, deadline)
            if not name:
                return
            yield name, status, data

    def _exactly(self, size: int, deadline: float) -> bytes:
        channel = self._connected(deadline)
        chunks = bytearray(self._buffer)
        while len(chunks) < size:
            channel.settimeout(max(0.1, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
            got = channel.recv(1 << 20)
            if not got:
                raise ConnectionResetError("the guest is gone")
            chunks += got
        self._buffer = bytes(chunks[size:])
        return bytes(chunks[:size])

    def _connected(self, deadline: float) -> socket.socket:
        if self._channel is None:
            match = re.search(r"<source mode='bind' path='([^']+)'/>\s*<target type='virtio' "
                              rf"name='{CHANNEL}'", self.xml)
            assert match is not None, "libvirt names the channel's socket in the live XML"
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            channel.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                channel.connect(match[1])
            except OSError:
                channel.close()
                raise
            self._channel = channel
        return self._channel

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "console: " + self.console.read_text(errors="backslashreplace")[-2000:]
        return ""
