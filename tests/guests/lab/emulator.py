"""A machine that QEMU emulates, without libvirt: one in which another hypervisor is to run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from .channel import Answer, Channel, GuestError
from .domain import CHANNEL, PREFIX
from .paths import listens, runtime

_SHARE = "security_model=none,readonly=on,multidevs=remap"
#: Seconds within which QEMU listens.
_PATIENCE = 120.0


def mount_tree(tree: str, shares: Sequence[str]) -> str:
    """Shell commands that make folders of this machine one tree that can be written to.

    What is written stays in the emulated machine. With what a program needs besides: ``/dev``,
    ``/proc``, ``/sys`` and an empty ``/run``.

    :param tree: where, in the emulated machine.
    :param shares: tags of the folders; of a file in several, the first one's counts.
    """
    places = [f"/mnt/{share}" for share in shares]
    return f"""
set -e
mkdir -p {" ".join(places)} /mnt/upper {tree} /dev/shm /dev/pts
for share in {" ".join(shares)}; do
    mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 $share /mnt/$share
done
mount -t tmpfs -o size=80% upper /mnt/upper
mkdir /mnt/upper/files /mnt/upper/work
mount -t overlay -o lowerdir={":".join(places)},upperdir=/mnt/upper/files,workdir=/mnt/upper/work \\
    tree {tree}
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
for place in dev dev/pts dev/shm sys; do mount --bind /$place {tree}/$place; done
mount -t proc proc {tree}/proc
mount -t tmpfs run {tree}/run
"""


class Emulator(Channel):
    """The machine, once it was started. A context manager.

    :param name: how to call it in errors.
    :param console: name of the file with what its console prints.
    """

    def __init__(self, name: str, console: str) -> None:
        folder = runtime(f"{PREFIX}nested-{os.getpid()}-{time.time_ns():x}")
        super().__init__(name, lambda: str(folder / CHANNEL), folder / console)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the machine; twice is harmless."""
        self.disconnect()
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(
        self,
        options: Mapping[str, str | Sequence[str]],
        shares: Mapping[str, Path],
        ports: Sequence[str] = (CHANNEL,),
    ) -> None:
        """Start it, and wait until its ports can be connected to.

        :param options: QEMU's; one with several values is given so often.
        :param shares: folders of this machine, which it may read, by their tags.
        :param ports: of virtio-serial; each is a socket of that name in the machine's folder.
        """
        words = []
        for option, values in options.items():
            for value in [values] if isinstance(values, str) else values:
                words += [option, value]
        for tag, path in shares.items():
            words += ["-virtfs", f"local,path={path},mount_tag={tag},{_SHARE}"]
        words += ["-device", "virtio-serial"]
        for name in ports:
            path = self._folder / name
            words += ["-chardev", f"socket,id={name},path={path},server=on,wait=off"]
            words += ["-device", f"virtserialport,chardev={name},name={name}"]
        # It must not outlive this process, however that ends.
        qemu = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-M", "q35"]
        qemu += ["-accel", "tcg", "-display", "none", "-nodefaults", "-no-user-config"]
        with (self._folder / "qemu.log").open("w") as log:
            self._process = subprocess.Popen(
                [*qemu, "-no-reboot", *words], stdin=subprocess.DEVNULL, stderr=log
            )
        deadline = time.monotonic() + _PATIENCE
        while not listens(self._folder / ports[-1]):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise GuestError((self._folder / "qemu.log").read_text(errors="replace"))
            time.sleep(0.05)

    def _execute_in(
        self, tree: str, environment: Mapping[str, str], command: str, timeout: float
    ) -> Answer:
        """Run a shell command in a tree of its files; the working directory is this process's."""
        words = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
        inside = f"cd {shlex.quote(str(Path.cwd()))} && {command}"
        return self.execute(
            f"chroot {tree} /usr/bin/env {' '.join(words)} /bin/sh -c {shlex.quote(inside)}",
            timeout,
        )
