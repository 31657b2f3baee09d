"""A Xen guest with the lab's workload; this runs in dom0.

Its agent answers over the guest's console: Xen without a device model gives a guest no other
channel. Kernel and initramfs are made outside and found by :data:`PARTS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from virtintrospect_xen.calls import Hypervisor

from tests.guests.lab.channel import Channel, GuestError
from tests.guests.lab.initramfs import program
from tests.xen.lab.parts import PARTS

_BOOT_PATIENCE = 300.0
_HELLO = b"lab: agent\n"
#: The agent's answer to a greeting: a record without a name.
_END = bytes(16)


_NO_SCREEN = {"vga": "none", "vnc": 0, "nographic": 1}


@dataclass(frozen=True)
class XenConfig:
    """What a guest is made of."""

    kind: str = "pvh"
    kernel: str = "6.1"
    ram_mib: int = 256
    #: Page-table levels: Xen gives PV and PVH guests four here.
    levels: int = 4
    cmdline: str = ""
    vcpus: int = 1
    arch: str = "x86_64"

    @property
    def id(self) -> str:
        """A short name, for tests' ids and domain names."""
        return f"{self.kind}-{self.kernel}"


class XenGuest(Channel):
    """A booted guest. A context manager: at its end the domain is gone.

    :param wait: until it has booted and answers.
    """

    def __init__(self, config: XenConfig, *, wait: bool = True) -> None:
        self.config = config
        name = f"vi-{config.id}-{os.urandom(2).hex()}"
        self._domain = name
        super().__init__(f"xen:{name}", str, Path(f"/var/log/xen/console/guest-{name}.log"))
        made = json.loads(os.environ[PARTS])
        self.release, plain, initramfs, packed = made["kernels"][config.kernel]
        self._known: dict[str, str] = made["known"]
        settings = {
            "name": name,
            "type": config.kind,
            # An HVM guest boots as a machine does: the kernel unpacks itself, at a random place.
            "kernel": packed if config.kind == "hvm" else plain,
            "ramdisk": initramfs,
            "memory": config.ram_mib,
            "vcpus": config.vcpus,
            "cmdline": f"console=hvc0 loglevel=4 panic=-1 lab.console=1 {config.cmdline}".strip(),
            "on_crash": "preserve",
            "on_reboot": "destroy",
        } | (_NO_SCREEN if config.kind == "hvm" else {})
        path = Path(f"/run/guests/{name}.cfg")
        path.write_text("".join(f"{key}={value!r}\n" for key, value in settings.items()))
        xl("create", str(path))
        self.domid = int(xl("domid", name))
        self.huge_pages = config.kind != "pv"
        #: What tests ask of libvirt's handle.
        self.domain = _Handle(self.domid)
        try:
            if wait:
                self.wait_ready(_BOOT_PATIENCE)
        except BaseException:
            self.destroy()
            raise

    def wait_ready(self, timeout: float) -> None:
        """Wait until the agent has taken the console and answers."""
        deadline = time.monotonic() + timeout
        try:
            channel = self._connected(deadline)
            seen = b""
            while _HELLO not in seen:
                channel.settimeout(max(0.1, deadline - time.monotonic()))
                seen = (seen + channel.recv(65536))[-(1 << 20) :]
            channel.sendall(b"H" + bytes(4))
            while not seen.endswith(_END):
                channel.settimeout(max(0.1, deadline - time.monotonic()))
                seen = (seen + channel.recv(65536))[-(1 << 20) :]
        except OSError as error:
            log = subprocess.run(["xl", "dmesg"], capture_output=True, text=True, check=False)
            raise GuestError(
                f"{self.name} is not ready: {error!r}\n{self._tail()}\nXen: {log.stdout[-2000:]}"
            ) from error

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest; what is long should be in its initramfs already."""
        known = self._known.get(hashlib.sha256(content).hexdigest())
        if known is None:
            super().put(path, content, mode)
        else:
            self.run(f"cp {known} {path} && chmod {mode:o} {path}")

    def install(self, program_name: str, path: str) -> None:
        """Put one of the lab's programs into the guest."""
        self.put(path, program(program_name).read_bytes(), 0o755)

    def destroy(self) -> None:
        """End the guest; doing so twice is harmless."""
        self.disconnect()
        subprocess.run(
            ["xl", "destroy", self._domain], capture_output=True, check=False, timeout=60
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.destroy()

    def _connected(self, deadline: float) -> Any:
        if self._socket is None:
            path = f"/local/domain/{self.domid}/console/tty"
            while not (tty := _output("xenstore-read", path, check=False)):
                if time.monotonic() > deadline:
                    raise TimeoutError("its console has no terminal")
                time.sleep(0.1)
            self._socket = Terminal(tty)  # type: ignore[assignment]  # what Channel uses of one
        return self._socket


class _Handle:
    """A domain that can be stopped, by the names of libvirt's methods."""

    def __init__(self, domid: int) -> None:
        self._domid = str(domid)

    def state(self) -> tuple[int, int]:
        """virDomainState and no reason: 1 runs, 3 is paused, 0 is anything else."""
        with Hypervisor() as hypervisor:
            state = hypervisor.info(int(self._domid)).state
        return {"running": 1, "paused": 3}.get(state, 0), 0

    def suspend(self) -> None:
        xl("pause", self._domid)

    def resume(self) -> None:
        xl("unpause", self._domid)


class Terminal:
    """A terminal that can be used as a socket."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self._timeout = 30.0

    def settimeout(self, seconds: float) -> None:
        """Seconds that a read or write may wait."""
        self._timeout = seconds

    def sendall(self, data: bytes) -> None:
        """Write all.

        On a console ^O is the SysRq key; twice it is itself (drivers/tty/hvc/hvc_console.c).
        """
        data = data.replace(b"\x0f", b"\x0f\x0f")
        while data:
            self._wait(for_write=True)
            data = data[os.write(self._descriptor, data[:1024]) :]

    def recv(self, size: int) -> bytes:
        """Read what is there, at least a byte."""
        self._wait(for_write=False)
        return os.read(self._descriptor, size)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def _wait(self, *, for_write: bool) -> None:
        own = [self._descriptor]
        ready = select.select([] if for_write else own, own if for_write else [], [], self._timeout)
        if not any(ready):
            raise TimeoutError("timed out")


def xl(*words: str, timeout: float = 90) -> str:
    """What ``xl`` prints; fails where it does."""
    return _output("xl", *words, timeout=timeout)


def _output(*command: str, timeout: float = 60, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise GuestError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()
