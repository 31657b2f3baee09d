"""A guest of QEMU's in the same dom0, emulated once more: what the KVM driver takes there.

Its RAM is QEMU's own, as libvirt's default is, so it is read through ``kvm-process``. Kernel,
initramfs and number of processes are those of a Xen guest, and so is the machine: what is timed
on both differs by the driver alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from virtintrospect_kvm.driver import PROCESS, KvmDriver

from tests.guests.lab.channel import Channel
from tests.guests.lab.domain import CHANNEL
from tests.xen.lab.parts import PARTS
from virtintrospect.domain import Domain
from virtintrospect.driver import Access
from virtintrospect.session import Session

_NAME = "beside"
_RAM_MIB = 256
#: An emulated machine boots it, which is emulated itself.
_BOOT_PATIENCE = 900.0


class Beside:
    """The guest, booted and stopped: it takes no time of the processor."""

    def __init__(self, uuid_: str) -> None:
        self._uuid = uuid_

    def open(self) -> Session:
        """A new session on it."""
        xml = f"<domain type='kvm'><memory unit='MiB'>{_RAM_MIB}</memory></domain>"
        domain = Domain(_NAME, self._uuid, 1, "running", "QEMU", "qemu:///system", xml)
        return Session(KvmDriver().open(domain, Access(transport=PROCESS)), domain)


def wait_for_processes(guest: Channel, count: int) -> None:
    """Wait until a guest has so many: a slow one answers before all of them are started."""
    deadline = time.monotonic() + _BOOT_PATIENCE
    while int(guest.run("ls -d /proc/[0-9]* | wc -l", 120)) < count:
        assert time.monotonic() < deadline, f"{guest.name} has fewer than {count} processes"
        time.sleep(2)


@contextlib.contextmanager
def beside(kernel: str, cmdline: str, processes: int) -> Iterator[Beside]:
    """Boot it, and wait until it has so many processes; it is killed at the end."""
    _, image, initramfs, _ = json.loads(os.environ[PARTS])["kernels"][kernel]
    identity, pid_file = str(uuid.uuid4()), Path(f"/run/libvirt/qemu/{_NAME}.pid")
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vi-lab-", dir="/run") as folder:
        socket, console = Path(folder, "truth"), Path(folder, "console")
        command = [
            str(shutil.which("qemu-system-x86_64")), "-name", f"guest={_NAME}", "-uuid", identity,
            "-M", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", str(_RAM_MIB),
            "-display", "none", "-nodefaults", "-no-user-config", "-pidfile", str(pid_file),
            "-kernel", image, "-initrd", initramfs, "-serial", f"file:{console}",
            "-append", f"console=ttyS0 quiet panic=-1 {cmdline}", "-device", "virtio-serial",
            "-chardev", f"socket,id=truth,path={socket},server=on,wait=off",
            "-device", f"virtserialport,chardev=truth,name={CHANNEL}",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not socket.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            channel = Channel(_NAME, lambda: str(socket), console)
            channel.wait_ready(_BOOT_PATIENCE)
            wait_for_processes(channel, processes)
            channel.disconnect()
            os.kill(process.pid, signal.SIGSTOP)
            yield Beside(identity)
        finally:
            process.kill()
            process.wait(30)
