"""A QEMU that libvirt knows nothing of, with the small guest of ``small.py`` in it."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from virtintrospect_kvm.qmp import SocketMonitor

from .lab.kernels import kernel
from .lab.paths import listens
from .small import KERNEL_LINE, initrd, pattern_in


@dataclass
class StandaloneQemu:
    """A running QEMU, its QMP socket and what its guest's console said."""

    process: subprocess.Popen[bytes]
    path: str
    console: Path

    @property
    def target(self) -> str:
        return f"qmp:{self.path}"

    def text(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def pattern(self) -> int:
        """Guest-physical address of ``small.PATTERN``."""
        return pattern_in(self.text())


@contextlib.contextmanager
def standalone(*, boot: bool = True) -> Iterator[StandaloneQemu]:
    """Start one, with shared RAM; it is killed at the end.

    :param boot: give it a kernel and wait until its console says that it is up.
    """
    program = shutil.which("qemu-system-x86_64")
    assert program is not None, "make deps installs QEMU"
    with tempfile.TemporaryDirectory(prefix="vi-lab-") as folder:
        path, console = f"{folder}/qmp", Path(folder, "console")
        arguments = [
            program, "-accel", "tcg", "-M", "q35,memory-backend=ram", "-m", "256", "-cpu", "max",
            "-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-nodefaults",
            "-display", "none", "-qmp", f"unix:{path},server=on,wait=off",
            "-serial", f"file:{console}",
        ]  # fmt: skip
        if boot:
            image = kernel("6.1").vmlinuz
            arguments += ["-kernel", str(image), "-initrd", str(initrd()),
                          "-append", KERNEL_LINE]  # fmt: skip
        process = subprocess.Popen(arguments)
        running = StandaloneQemu(process, path, console)
        try:
            deadline = time.monotonic() + 120
            while not listens(path) or (boot and not re.search("MEM-READY", running.text())):
                assert process.poll() is None
                assert time.monotonic() < deadline, running.text()[-500:]
                time.sleep(0.1)
            SocketMonitor(path).close()  # its socket is there before its RAM is
            yield running
        finally:
            process.kill()
            process.wait()
