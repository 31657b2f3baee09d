"""A true ``type=kvm`` guest where the hardware offers none: KVM inside an emulated machine.

The outer machine is QEMU/TCG with AMD's SVM and nested paging; its kernel has kvm_amd, and this
machine's own files (read-only, over 9p) as a tree to chroot into. There QEMU runs the inner guest
under KVM, and commands run beside it as on a host with KVM.
"""

from __future__ import annotations

import shlex
import uuid
from pathlib import Path

from .channel import Answer, Channel, GuestError
from .domain import CHANNEL
from .emulator import Emulator
from .initramfs import STOCK_MODULES, initramfs
from .kernels import kernel

#: The inner guest, as the outer machine sees it.
INNER_NAME = "inner"
INNER_UUID = "6f1c2c1e-5a0b-4f0e-9d59-0c5d8a1d7a11"
INNER_RAM_MIB = 256
INNER_PID_FILE = "/run/inner.pid"
INNER_CONSOLE = "/run/inner.log"

_OUTER_KERNEL = "6.12-full"
_OUTER_MODULES = (*STOCK_MODULES[:2], ("9pnet_virtio", ""), ("9p", ""), ("kvm_amd", ""))
_INNER_PORT = "lab.inner"
_BOOT_PATIENCE = 150.0
_TREE = "/mnt/host"

_PREPARE = f"""
set -e
mkdir -p {_TREE}
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 host {_TREE}
mount -t proc proc {_TREE}/proc
mount --bind /sys {_TREE}/sys
mount --bind /dev {_TREE}/dev
mkdir -p /dev/shm
mount -t tmpfs shm {_TREE}/dev/shm
mount -t tmpfs run {_TREE}/run
"""


class Nested(Emulator):
    """The outer machine, running, with the inner guest booted. A context manager.

    :param kernel_name: kernel of the inner guest.
    """

    def __init__(self, kernel_name: str = "6.12") -> None:
        super().__init__("the outer machine", "console.log")
        folder = self._folder
        #: QMP socket of the outer machine.
        self.monitor = folder / "qmp"
        #: Of the outer machine.
        self.uuid = str(uuid.uuid4())
        #: Truth from the inner guest, through the outer machine.
        self.inner = Channel("the inner guest", lambda: str(folder / _INNER_PORT), folder / "none")
        try:
            self._start(self._outer(), {"host": Path("/")}, (CHANNEL, _INNER_PORT))
            self.wait_ready(_BOOT_PATIENCE)
            self.run(_PREPARE, 60)
            self._start_inner(kernel_name)
        except BaseException:
            self.close()
            raise

    def run_nested(
        self, command: str, timeout: float = 120, *, environment: dict[str, str] | None = None
    ) -> Answer:
        """Run a shell command beside the inner guest's QEMU, in this machine's file tree.

        The tree is read-only but for /run; the working directory is this process's own.
        """
        settings = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            # Only /run can be written to.
            "HOME": "/run",
            "TMPDIR": "/run",
            "XDG_CACHE_HOME": "/run/cache",
            **(environment or {}),
        }
        return self._execute_in(_TREE, settings, command, timeout)

    def close(self) -> None:
        """End the outer machine, and the inner guest with it; twice is harmless."""
        self.inner.disconnect()
        super().close()

    def _outer(self) -> dict[str, str]:
        image = kernel(_OUTER_KERNEL)
        return {
            "-uuid": self.uuid,
            "-cpu": "max,+svm,+npt",
            "-m": "2048",
            "-kernel": str(image.vmlinuz),
            "-initrd": str(initramfs(image, _OUTER_MODULES)),
            "-append": "console=ttyS0 quiet panic=-1 lab.workload=0",
            "-serial": f"file:{self.console}",
            "-qmp": f"unix:{self.monitor},server=on,wait=off",
        }

    def _start_inner(self, kernel_name: str) -> None:
        image = kernel(kernel_name)
        # The other end first: a port that nobody holds reads as closed, and QEMU would give up.
        self.inner.connect()
        names = self.run("cd /sys/class/virtio-ports; grep -lx lab.inner */name").decode()
        port = names.split("/")[0]
        options = {
            "-name": f"guest={INNER_NAME}",
            "-uuid": INNER_UUID,
            "-M": "q35,memory-backend=pc.ram",
            "-accel": "kvm",
            "-cpu": "host",
            "-m": str(INNER_RAM_MIB),
            "-object": f"memory-backend-memfd,id=pc.ram,size={INNER_RAM_MIB}M,share=on",
            "-display": "none",
            "-kernel": str(image.vmlinuz),
            "-initrd": str(initramfs(image)),
            "-append": "console=ttyS0 quiet panic=-1 lab.sleepers=5",
            "-serial": f"file:{INNER_CONSOLE}",
            "-pidfile": INNER_PID_FILE,
            "-chardev": f"pipe,id=truth,path=/dev/{port}",
        }
        flat = [word for option in options.items() for word in option]
        flat += ["-device", "virtio-serial"]
        flat += ["-device", f"virtserialport,chardev=truth,name={CHANNEL}"]
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-daemonize", *flat]
        started = self.run_nested(
            f"{shlex.join(command)} >/run/inner.err 2>&1 || cat /run/inner.err"
        )
        if started.stdout or started.status:
            raise GuestError(f"the inner guest does not start: {started}")
        self.inner.wait_ready(_BOOT_PATIENCE)
