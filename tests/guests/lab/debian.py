"""A Debian system on a disk, with systemd, users who are logged in, and the QEMU guest agent.

What the lab's own guests are too small for: file systems on disks, sessions, and libvirt's word
about them. The root is built by debootstrap once and kept in the cache; each guest gets a copy.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from . import libvirtd
from .domain import PREFIX, Config, destroy, domain_type, me
from .initramfs import Archive, busybox, store
from .kernels import Kernel, kernel
from .paths import cache, copied, locked, runtime

_SUITE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_PACKAGES = (
    "systemd,systemd-sysv,udev,dbus,libpam-systemd,qemu-guest-agent,login,util-linux,kmod,tzdata"
)
#: Left out of the image: nobody reads it, and everybody copies it.
_UNREAD = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n", "usr/share/info",
    "usr/lib/x86_64-linux-gnu/gconv", "var/cache/apt", "var/lib/apt/lists",
)  # fmt: skip
#: Who logs in where, by itself.
LOGINS = {"tty1": "root", "ttyS0": "alice"}
HOSTNAME, ZONE = "lab-debian", "Europe/Vienna"
#: Boots what the tests are about and nothing else.
_TARGET = """[Unit]
Requires=basic.target
After=basic.target
Wants=qemu-guest-agent.service systemd-logind.service dbus.service
Wants=serial-getty@ttyS0.service getty@tty1.service
AllowIsolate=yes
"""
_GETTY = """[Unit]
After=systemd-logind.service
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin {user} --noclear %I linux
"""
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
    "fstrim.timer", "systemd-tmpfiles-clean.timer", "systemd-hwdb-update.service",
    "systemd-journal-flush.service", "systemd-journal-catalog-update.service",
    "ldconfig.service", "systemd-update-done.service", "systemd-firstboot.service",
    "systemd-random-seed.service", "systemd-binfmt.service", "modprobe@drm.service",
    "systemd-timesyncd.service", "systemd-sysusers.service", "systemd-sysctl.service",
    "systemd-modules-load.service", "kmod-static-nodes.service", "e2scrub_reap.service",
    "systemd-pstore.service", "modprobe@configfs.service", "modprobe@fuse.service",
    "modprobe@efi_pstore.service", "user@0.service",
)  # fmt: skip
#: Emulated, on a machine that has other things to do, everything takes long.
_PATIENT = """[Manager]
DefaultTimeoutStartSec=infinity
DefaultDeviceTimeoutSec=infinity
DefaultStartLimitIntervalSec=0
"""
_KERNEL_LINE = (
    "console=ttyS0 quiet panic=-1 no_timer_check systemd.show_status=0 udev.event_timeout=900"
)
_INIT = """#!/bin/busybox sh
PATH=/bin
for system in proc:proc sysfs:sys devtmpfs:dev; do
    busybox mount -t ${system%:*} ${system%:*} /${system#*:}
done
for module in /modules/*; do busybox insmod $module; done
until busybox mount -t ext4 /dev/vda /root; do busybox sleep 0.1; done 2>/dev/null
for system in proc sys dev; do busybox mount --move /$system /root/$system; done
exec busybox switch_root /root /sbin/init
"""
_MIB = 1 << 20
_ROOT_SIZE, _DATA_SIZE = 320 * _MIB, 32 * _MIB
#: Seconds for debootstrap, and for the boot, on a loaded machine without KVM.
_PATIENCE = 1200.0
BOOT_PATIENCE = 600.0


class DebianGuest:
    """A booted Debian. A context manager: at its end the domain is gone."""

    def __init__(self) -> None:
        image = kernel("6.1-debian")
        disks = _root_disk(), _data_disk()
        self.name = f"{PREFIX}debian-{os.urandom(3).hex()}"
        folder = runtime(self.name)
        self.console = folder / "console.log"
        self._connection = libvirtd.connect()
        atexit.register(self.destroy)
        for disk in disks:
            command = ["cp", "--sparse=always", "--reflink=auto", str(disk), str(folder)]
            subprocess.run(command, check=True, timeout=120)
        self.domain: Any = self._connection.createXML(
            _xml(
                self.name,
                copied(image.vmlinuz, self.name),
                copied(_initramfs(image), self.name),
                [folder / disk.name for disk in disks],
                self.console,
            )
        )
        try:
            self._wait_ready()
        except BaseException:
            self.destroy()
            raise

    def virsh(self, *command: str) -> str:
        """What virsh prints for a command on this guest; fails where it does."""
        line = ["virsh", "-c", libvirtd.URI, command[0], self.name, *command[1:]]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def destroy(self) -> None:
        """End the guest and remove what it left; doing so twice is harmless."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        atexit.unregister(self.destroy)
        destroy(connection, self.name)
        connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.destroy()

    def _wait_ready(self) -> None:
        """Wait until the agent answers and says that everybody is logged in."""
        deadline = time.monotonic() + BOOT_PATIENCE
        said = ""
        while time.monotonic() < deadline:
            try:
                said = self.virsh("guestinfo", "--user")
            except RuntimeError as error:
                said = str(error)
            if said.count(".login-time") == len(LOGINS):
                return
            time.sleep(1)
        end = self.console.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} is not ready: {said}\n{end}")


def _initramfs(image: Kernel) -> Path:
    """Loads drivers, mounts the disk, and goes there."""
    archive = Archive()
    for folder in ("proc", "sys", "dev", "root"):
        archive.folder(folder)
    archive.node("dev/console", 5, 1)
    archive.program("bin/busybox", busybox())
    archive.add("init", _INIT.encode(), 0o100755)
    wanted = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_net", "virtio_balloon")
    for number, module in enumerate(image.load_order(wanted)):
        archive.add(f"modules/{number:02}-{module}", image.modules[module][0].read_bytes())
    return store("initramfs", archive.finish())


def _root_disk() -> Path:
    """An ext4 image with the system, built when what makes it has changed."""
    parts = (
        inspect.getsource(_debootstrap),
        inspect.getsource(_configure),
        _SUITE,
        _PACKAGES,
        _UNREAD,
        LOGINS,
        HOSTNAME,
        ZONE,
        _TARGET,
        _GETTY,
        _PATIENT,
        _MASKED,
        _ROOT_SIZE,
    )
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
    path = cache() / "built" / f"debian-root-{digest}"
    with locked("debian"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=cache(), prefix=".debian-") as scratch:
                root, fresh = Path(scratch, "root"), Path(scratch, "image")
                _debootstrap(root)
                _configure(root)
                _mke2fs(fresh, _ROOT_SIZE, "-d", str(root))
                for old in path.parent.glob("debian-root-*"):
                    old.unlink()
                fresh.rename(path)
    return path


def _debootstrap(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(root)]
    done = subprocess.run(
        [*command, _MIRROR], capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def _configure(root: Path) -> None:
    for unread in _UNREAD:
        shutil.rmtree(root / unread, ignore_errors=True)
    for name, line in (
        ("passwd", "alice:x:1000:1000:Alice:/home/alice:/bin/bash"),
        ("group", "alice:x:1000:"),
        ("shadow", "alice:*:19000:0:99999:7:::"),
    ):
        with (root / "etc" / name).open("a") as file:
            file.write(line + "\n")
    home = root / "home/alice"
    home.mkdir()
    os.chown(home, 1000, 1000)
    (root / "data").mkdir()
    (root / "etc/hostname").write_text(HOSTNAME + "\n")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4\n/dev/vdb1 /data ext4\n")
    _link(root / "etc/localtime", f"/usr/share/zoneinfo/{ZONE}")
    units = root / "etc/systemd/system"
    (units / "lab.target").write_text(_TARGET)
    _link(units / "default.target", "/etc/systemd/system/lab.target")
    (root / "etc/systemd/system.conf.d").mkdir()
    (root / "etc/systemd/system.conf.d/lab.conf").write_text(_PATIENT)
    with (root / "etc/login.defs").open("a") as file:
        file.write("LOGIN_TIMEOUT 0\n")
    for terminal, user in LOGINS.items():
        name = f"serial-getty@{terminal}" if terminal.startswith("ttyS") else f"getty@{terminal}"
        folder = units / f"{name}.service.d"
        folder.mkdir()
        (folder / "lab.conf").write_text(_GETTY.format(user=user))
    for unit in _MASKED:
        _link(units / unit, "/dev/null")


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _data_disk() -> Path:
    """A disk with one partition (an MBR, made by hand) and ext4 in it."""
    path = cache() / "built" / "debian-data"
    with locked("debian-data"):
        if not path.exists():
            fresh = path.with_name(f".{path.name}.{os.getpid()}")
            _mke2fs(fresh, _DATA_SIZE - _MIB, "-E", f"offset={_MIB}")
            entry = struct.pack(
                "<B3sB3sII", 0, bytes(3), 0x83, bytes(3), 2048, (_DATA_SIZE - _MIB) // 512
            )
            with fresh.open("r+b") as disk:
                disk.seek(446)
                disk.write(entry + bytes(48) + b"\x55\xaa")
            fresh.rename(path)
    return path


def _mke2fs(path: Path, size: int, *options: str) -> None:
    command = ["mke2fs", "-q", "-F", "-t", "ext4", *options, str(path), f"{size // 1024}k"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    path.chmod(0o644)


def _xml(name: str, vmlinuz: Path, initrd: Path, disks: list[Path], log: Path) -> str:
    drives = "".join(
        f"""<disk type='file' device='disk'><driver name='qemu' type='raw'/>
        <source file='{disk}'/><target dev='vd{letter}' bus='virtio'/>
        <serial>lab-{letter}</serial></disk>"""
        for letter, disk in zip("ab", disks, strict=True)
    )
    return f"""
<domain type='{domain_type(Config())}'>
  <name>{name}</name>
  <description>{me()}</description>
  <memory unit='MiB'>512</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{vmlinuz}</kernel><initrd>{initrd}</initrd>
    <cmdline>{_KERNEL_LINE}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'><feature policy='disable' name='la57'/></cpu>
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{log}'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    {drives}
    <interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>
    <memballoon model='virtio'><stats period='1'/></memballoon>
  </devices>
</domain>
"""
