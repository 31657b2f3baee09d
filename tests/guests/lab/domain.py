"""Guests as stock libvirt domains: nothing in their XML taints them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from .accel import kvm_works
from .paths import cache

PREFIX = "vi-lab-"
CHANNEL = "lab.truth"

#: Seconds after which a guest's folder without a guest is nobody's.
_ABANDONED = 900

_BACKINGS = {
    "memfd": "<source type='memfd'/><access mode='shared'/>",
    "file": "<source type='file'/><access mode='shared'/>",
    "hugepages": "<hugepages/><access mode='shared'/>",
    "anonymous": "",
}


class _Machine(NamedTuple):
    """What differs between architectures."""

    features: str
    #: One that has page tables of 4 levels, and one that has 5.
    processor: str
    best: str
    console: str
    #: Kernel parameter that turns page-table isolation on and off.
    isolation: str
    #: Kernel parameters for fewer levels of page tables, where the processor is not asked.
    fewer: Mapping[int, str] = {}


_MACHINES = {
    "x86_64": _Machine(
        "<features><acpi/><apic/></features>",
        "<cpu mode='maximum'><feature policy='disable' name='la57'/></cpu>",
        "<cpu mode='maximum'/>",
        "ttyS0",
        "pti",
    ),
    "i686": _Machine(
        "<features><acpi/><apic/></features>",
        "<cpu mode='maximum'/>",
        "<cpu mode='maximum'/>",
        "ttyS0",
        "pti",
    ),
    "aarch64": _Machine(
        "<features><gic version='3'/></features>",
        "<cpu mode='custom' match='exact'><model>cortex-a72</model></cpu>",
        "<cpu mode='maximum'/>",
        "ttyAMA0",
        "kpti",
    ),
    # This processor has both formats of page tables; a kernel is built for one of them.
    "armv7l": _Machine(
        "<features><gic version='2'/></features>",
        "<cpu mode='custom' match='exact'><model>cortex-a15</model></cpu>",
        "<cpu mode='custom' match='exact'><model>cortex-a15</model></cpu>",
        "ttyAMA0",
        "nopti",
    ),
    # No choice of processor: QEMU 7.2 gives it 5 levels. Nor of isolation: RISC-V needs none.
    # Source of the parameters: arch/riscv/kernel/pi/cmdline_early.c.
    "riscv64": _Machine("", "", "", "ttyS0", "nopti", {4: "no5lvl", 3: "no4lvl"}),
}


@dataclass(frozen=True)
class Config:
    """What a guest is made of. Equal configurations share one boot."""

    kernel: str = "6.12"
    #: Levels of page tables: 4 or 5, of riscv64 also 3; of i686 2, or 3 with PAE, and of
    #: armv7l 2, or 3 with LPAE, as the kernel was built.
    levels: int = 4
    #: memfd, anonymous (libvirt's default), file or hugepages.
    backing: str = "memfd"
    #: Kernel page-table isolation.
    pti: bool = True
    ram_mib: int = 512
    vcpus: int = 1
    machine: str = "q35"
    #: libvirt's name of the architecture.
    arch: str = "x86_64"
    #: More kernel parameters, e.g. ``lab.sleepers=200`` (see guest/workload.c).
    cmdline: str = ""
    #: It has a balloon, as libvirt gives one to each guest.
    balloon: bool = True
    #: It may panic: then it stays as it is, and libvirt is told by a pvpanic device.
    crashes: bool = False

    @property
    def id(self) -> str:
        """A short name, for tests' ids and domain names."""
        parts = [
            self.kernel,
            f"{self.levels}level",
            {"anonymous": "anon"}.get(self.backing, self.backing),
            "pti" if self.pti else "nopti",
        ]
        if self.ram_mib != 512:
            parts.append(f"{self.ram_mib}M")
        if self.vcpus != 1:
            parts.append(f"{self.vcpus}cpu")
        if self.machine != "q35":
            parts.append(self.machine)
        if self.arch != "x86_64":
            parts.append(self.arch)
        if not self.balloon:
            parts.append("noballoon")
        if self.crashes:
            parts.append("crashes")
        if self.cmdline:
            parts.append(re.sub(r"[^A-Za-z0-9]+", "_", self.cmdline).strip("_")[:30])
        return "-".join(parts)


def domain_xml(
    config: Config, name: str, *, kernel: Path | None, initrd: Path | None, log: Path, owner: str
) -> str:
    """XML of a domain; ``kernel`` None gives a guest that stays in its firmware."""
    boot, machine = "", _MACHINES[config.arch]
    if kernel is not None:
        isolation = f"{machine.isolation}={'on' if config.pti else 'off'}"
        panic = 0 if config.crashes else -1
        # On a busy machine an emulated timer may tick too late for the kernel's check, which
        # panics then ("IO-APIC + timer doesn't work!").
        timer = "no_timer_check" if config.arch in ("x86_64", "i686") else ""
        console = f"console={machine.console} quiet panic={panic}"
        fewer = machine.fewer.get(config.levels, "")
        words = (console, isolation, timer, fewer, config.cmdline)
        cmdline = " ".join(word for word in words if word)
        boot = (
            f"<kernel>{escape(str(kernel))}</kernel><initrd>{escape(str(initrd))}</initrd>"
            f"<cmdline>{escape(cmdline.strip())}</cmdline>"
        )
    backing = _BACKINGS[config.backing]
    # A kernel with short descriptors cannot reach PCI of this machine, which is above 4 GiB.
    bus = "<address type='virtio-mmio'/>" if (config.arch, config.levels) == ("armv7l", 2) else ""
    processor = machine.processor if config.levels == 4 else machine.best
    return f"""
<domain type='{domain_type(config)}'>
  <name>{escape(name)}</name>
  <description>{escape(owner)}</description>
  <memory unit='MiB'>{config.ram_mib}</memory>
  {f"<memoryBacking>{backing}</memoryBacking>" if backing else ""}
  <vcpu>{config.vcpus}</vcpu>
  <os><type arch='{config.arch}' machine='{config.machine}'>hvm</type>{boot}</os>
  {machine.features}
  {processor}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>{"preserve" if config.crashes else "destroy"}</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    {"<panic model='isa'/>" if config.crashes else ""}
    {"" if config.balloon else "<memballoon model='none'/>"}
    <serial type='file'><source path='{escape(str(log))}'/></serial>
    {f"<controller type='virtio-serial'>{bus}</controller>" if bus else ""}
    <channel type='unix'><target type='virtio' name='{CHANNEL}'/></channel>
    <interface type='user'><model type='virtio'/>{bus or "<rom enabled='no'/>"}</interface>
  </devices>
</domain>
"""


def domain_type(config: Config) -> str:
    """KVM where it works; it cannot give a guest 5 levels on a processor that has only 4."""
    if config.arch != "x86_64":
        return "qemu"
    flags = Path("/proc/cpuinfo").read_text()
    possible = config.levels == 4 or re.search(r"^flags\b.*\bla57\b", flags, re.MULTILINE)
    return "kvm" if possible and kvm_works() else "qemu"


def me() -> str:
    """Names this process in a domain's description, so that its leftovers can be told."""
    return f"{PREFIX}owner {os.getpid()} {start_time(os.getpid())}"


def sweep(connection: Any) -> list[str]:
    """Destroy guests of the lab whose owner is gone; returns their names."""
    import libvirt

    gone = []
    known = {domain.name() for domain in connection.listAllDomains(0)}
    for folder in (cache() / "run").glob("*"):
        nested = re.match(rf"{PREFIX}nested-(\d+)-", folder.name)
        if nested and start_time(int(nested[1])):
            continue
        with contextlib.suppress(FileNotFoundError):  # somebody else's, ended just now
            if folder.name not in known and time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
    for domain in connection.listAllDomains(0):
        name = domain.name()
        if not name.startswith(PREFIX):
            continue
        with contextlib.suppress(libvirt.libvirtError):  # somebody else's, ended just now
            match = re.search(rf"{PREFIX}owner (\d+) (\d+)", domain.XMLDesc(0))
            if match and start_time(int(match[1])) != int(match[2]):
                destroy(connection, name)
                gone.append(name)
    return gone


def destroy(connection: Any, name: str) -> None:
    """End a domain now, whatever its state; a domain that is gone is fine."""
    import libvirt

    with contextlib.suppress(libvirt.libvirtError):
        connection.lookupByName(name).destroy()
    for log in Path("/var/log/libvirt/qemu").glob(f"{name}.log*"):
        log.unlink(missing_ok=True)
    shutil.rmtree(cache() / "run" / name, ignore_errors=True)


def start_time(pid: int) -> int:
    """Start of a process in clock ticks after boot, 0 when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat.rpartition(b")")[2].split()[19])
