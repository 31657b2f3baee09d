"""A true ``type=kvm`` guest where the hardware offers none: KVM inside an emulated machine.

The outer machine is QEMU/TCG with AMD's SVM and nested paging; its kernel has kvm_amd, and this
machine's own files (read-only, over 9p) as a tree to chroot into. There QEMU runs the inner guest
under KVM, and commands run beside it as on a host with KVM.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import Self

from .channel import Answer, Channel, GuestError
from .domain import CHANNEL, PREFIX
from .initramfs import STOCK_MODULES, initramfs
from .kernels import kernel
from .paths import runtime

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
_SHARE = "security_model=none,readonly=on,multidevs=remap"
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


class Nested(Channel):
    """The outer machine, running, with the inner guest booted. A context manager.

    :param kernel_name: kernel of the inner guest.
    """

    def __init__(self, kernel_name: str = "6.12") -> None:
        folder = runtime(f"{PREFIX}nested-{os.getpid()}-{time.time_ns():x}")
        super().__init__("the outer machine", lambda: str(folder / CHANNEL), folder / "console.log")
        self._folder = folder
        #: QMP socket of the outer machine.
        self.monitor = folder / "qmp"
        #: Of the outer machine.
        self.uuid = str(uuid.uuid4())
        #: Truth from the inner guest, through the outer machine.
        self.inner = Channel("the inner guest", lambda: str(folder / _INNER_PORT), folder / "none")
        with (folder / "qemu.log").open("w") as log:
            self._process = subprocess.Popen(self._outer(), stdin=subprocess.DEVNULL, stderr=log)
        try:
            self._wait_for_socket()
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
        words = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
        inside = f"cd {shlex.quote(str(Path.cwd()))} && {command}"
        return self.execute(
            f"chroot {_TREE} /usr/bin/env {' '.join(words)} /bin/sh -c {shlex.quote(inside)}",
            timeout,
        )

    def close(self) -> None:
        """End the outer machine, and the inner guest with it; twice is harmless."""
        self.disconnect()
        self.inner.disconnect()
        self._process.kill()
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _outer(self) -> list[str]:
        image = kernel(_OUTER_KERNEL)
        options = {
            "-uuid": self.uuid,
            "-M": "q35",
            "-accel": "tcg",
            "-cpu": "max,+svm,+npt",
            "-m": "2048",
            "-display": "none",
            "-kernel": str(image.vmlinuz),
            "-initrd": str(initramfs(image, _OUTER_MODULES)),
            "-append": "console=ttyS0 quiet panic=-1 lab.workload=0",
            "-serial": f"file:{self.console}",
            "-qmp": f"unix:{self.monitor},server=on,wait=off",
            "-virtfs": f"local,path=/,mount_tag=host,{_SHARE}",
        }
        flat = [word for option in options.items() for word in option]
        ports = ["-device", "virtio-serial"]
        for name in (CHANNEL, _INNER_PORT):
            path = self._folder / name
            ports += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
            ports += ["-device", f"virtserialport,chardev={name},name={name}"]
        # It must not outlive this process, however that ends.
        qemu = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
        return [*qemu, "-nodefaults", "-no-user-config", "-no-reboot", *flat, *ports]

    def _wait_for_socket(self) -> None:
        deadline = time.monotonic() + 30
        while not (self._folder / _INNER_PORT).exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise GuestError((self._folder / "qemu.log").read_text(errors="replace"))
            time.sleep(0.05)

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
