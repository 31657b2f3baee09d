"""Small real guests for the tests of memory access: they boot, print what they know, and wait.

The guest's init prints /proc/iomem, and where in guest-physical memory the environment of one
of its processes lies; both go to the serial console, which libvirt writes to a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtintrospect.domain import Domain

from .lab import libvirtd
from .lab.initramfs import Archive, busybox, store
from .lab.kernels import kernel
from .lab.paths import copied, runtime

PATTERN = b"VIRTINTROSPECT_PATTERN=" + b"0123456789abcdef" * 16
URI = "qemu:///system"
#: On a busy machine an emulated timer may tick too late for the kernel's check, which panics then.
KERNEL_LINE = "console=ttyS0 quiet no_timer_check"

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t devtmpfs dev /dev
cat /proc/iomem
env -i {PATTERN.decode()} sleep 1000000 &
until grep -q '(sleep) S' /proc/$!/stat; do usleep 20000; done
environment=$(cut -d' ' -f50 /proc/$!/stat)
echo PATTERN $environment $(dd if=/proc/$!/pagemap bs=8 skip=$((environment / 4096)) count=1 \
  2>/dev/null | hexdump -v -e '8/1 "%02x"')
echo MEM-READY
while :; do sleep 1000; done
"""

BACKINGS = {
    "memfd": "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
    "file": "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>",
    "hugepages": "<memoryBacking><hugepages/><access mode='shared'/></memoryBacking>",
    "private-hugepages": "<memoryBacking><hugepages/></memoryBacking>",
    "anonymous": "",
}


@dataclass
class SmallGuest:
    """A running domain and what its console said."""

    name: str
    handle: Any
    console: Path

    @property
    def domain(self) -> Domain:
        """As the core sees it, from fresh XML."""
        return Domain(
            self.name, self.handle.UUIDString(), self.handle.ID(), "running", "QEMU", URI,
            self.handle.XMLDesc(0),
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return int(Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    def text(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait(self, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while "MEM-READY" not in self.text():
            assert time.monotonic() < deadline, f"{self.name} did not boot: {self.text()[-500:]}"
            time.sleep(0.1)

    def system_ram(self) -> list[tuple[int, int]]:
        """``System RAM`` of the guest's /proc/iomem, ends exclusive."""
        found = re.findall(r"^([0-9a-f]{8,16})-([0-9a-f]{8,16}) : System RAM", self.text(), re.M)
        return [(int(start, 16), int(end, 16) + 1) for start, end in found]

    def pattern(self) -> int:
        """Guest-physical address of :data:`PATTERN`."""
        return pattern_in(self.text())

    def resident_kib(self) -> int:
        """Host memory of the guest: QEMU's VmRSS, in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    def allocated_kib(self) -> int:
        """What the guest's memfds take up, mapped by QEMU or not, in KiB."""
        total = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            if "memory-backend" in str(entry.readlink()):
                total += entry.stat().st_blocks // 2
        return total


def pattern_in(text: str) -> int:
    """Guest-physical address of :data:`PATTERN`, as the guest's console tells it."""
    match = re.search(r"PATTERN (\d+) ([0-9a-f]{16})", text)
    assert match is not None, text[-500:]
    entry = int.from_bytes(bytes.fromhex(match[2]), "little")
    assert entry >> 63, "the page is present"
    return (entry & ((1 << 55) - 1)) * 4096 + int(match[1]) % 4096


def initrd() -> Path:
    """The guest's initramfs, in the lab's cache."""
    archive = Archive()
    for path in ("proc", "dev", "bin"):
        archive.folder(path)
    archive.node("dev/console", 5, 1)  # before devtmpfs is mounted
    archive.program("bin/busybox", busybox())
    archive.add("init", _INIT.encode(), 0o100755)
    return store("small", archive.finish())


@contextlib.contextmanager
def small_guest(
    *,
    machine: str = "q35",
    mib: int = 256,
    backing: str = "memfd",
    boot: bool = True,
    cpu: str = "",
    maximum: str = "",
) -> Iterator[SmallGuest]:
    """Boot one; it is destroyed at the end.

    :param boot: wait until its console says that it is up.
    :param cpu: children of ``<cpu>``, e.g. ``<numa>``.
    :param maximum: a ``<maxMemory>`` element.
    """
    connection = libvirtd.connect()
    name = f"mem-{machine}-{mib}-{backing}-{os.urandom(3).hex()}"
    folder = runtime(name)
    image = kernel("6.1").vmlinuz
    handle = None
    try:
        handle = connection.createXML(f"""
<domain type='qemu'><name>{name}</name>{maximum}<memory unit='MiB'>{mib}</memory>
{BACKINGS[backing]}<vcpu>1</vcpu>
<os><type arch='x86_64' machine='{machine}'>hvm</type><kernel>{copied(image, name)}</kernel>
<initrd>{copied(initrd(), name)}</initrd>
<cmdline>{KERNEL_LINE}</cmdline></os>
<features><acpi/></features><cpu mode='maximum'>{cpu}</cpu>
<devices><controller type='usb' model='none'/><memballoon model='none'/>
<serial type='file'><source path='{folder}/console.log'/></serial></devices></domain>""")
        guest = SmallGuest(name, handle, folder / "console.log")
        if boot:
            guest.wait()
        yield guest
    finally:
        with contextlib.suppress(Exception):
            if handle is not None:
                handle.destroy()
        for leftover in [*folder.glob("*"), Path(f"/var/log/libvirt/qemu/{name}.log")]:
            leftover.unlink(missing_ok=True)
        folder.rmdir()
        connection.close()
