"""Block devices (block/bdev.c, block/genhd.c): disks, their partitions, and where they hang.

Each has an inode on a file system of the kernel's own (``bdev_inode``) as long as it is there:
since 5.11 (commit 22ae8ce8b892); before, only while somebody has it open.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.guests.linux.lists import walk_list

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.dcache import Names
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More block devices than any guest has.
_MAX_DEVICES = 1 << 14
#: Devices between a disk and the bus that it hangs on; longest name of a device.
_MAX_ABOVE, _MAX_NAME = 16, 256
#: Bits of a minor number within ``dev_t`` (include/linux/kdev_t.h).
MINOR_BITS = 20
_PCI = re.compile(rb"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
#: Bytes of an entry of udev's database, and of a serial number, that are read.
_MAX_ENTRY, _MAX_SERIAL = 64 << 10, 256


class BlockDevice(NamedTuple):
    """A disk or a partition."""

    #: As below /dev: ``vda``, ``vda1``.
    name: bytes
    device: int
    #: Address of its ``struct gendisk``, which its partitions share.
    disk: int
    partition: bool
    sectors: int
    #: By which sysfs orders its directories (``kernfs_sd_compare()``, fs/kernfs/dir.c).
    hash: int
    #: Address of its ``struct device``.
    node: int

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor."""
        return self.device >> MINOR_BITS, self.device & (1 << MINOR_BITS) - 1


def block_devices(guest: LinuxGuest, budget: Budget) -> list[BlockDevice] | None:
    """All that sysfs shows, in its order: each disk, then its partitions.

    ``None`` where the kernel has no such list.
    """
    types = guest.types
    if not types.has("block_device", "bd_device") or "blockdev_superblock" not in guest.symbols:
        return None
    head = guest.pointer("blockdev_superblock") + types.offsetof("super_block", "s_inodes")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_DEVICES, budget=budget)
    guest.note_all([problem])
    inner = types.offsetof("bdev_inode", "vfs_inode") + types.offsetof("inode", "i_sb_list")
    members = {
        "device": "bd_dev",
        "disk": "bd_disk",
        "whole": "bd_disk.part0",
        "sectors": "bd_nr_sectors",
        "name": "bd_device.kobj.name",
        "hash": "bd_device.kobj.sd.hash",
    }
    at = types.offsetof("bdev_inode", "bdev")
    addresses = [node - inner + at for node in nodes if node >= inner]
    columns = guest.layout("block_device", members, text=()).lists(guest.kernel, addresses, [])
    names = _names(guest, columns["name"])
    node_at = types.offsetof("block_device", "bd_device")
    found = [
        BlockDevice(name, device, disk, whole != address, sectors, order, address + node_at)
        for address, name, device, disk, whole, sectors, order in zip(
            addresses, names, columns["device"], columns["disk"], columns["whole"],
            columns["sectors"], columns["hash"], strict=True,
        )
        if name and device and disk and order is not None and sectors is not None
    ]  # fmt: skip
    disks = {device.disk: device for device in found if not device.partition}
    found = [device for device in found if device.disk in disks]

    def place(device: BlockDevice) -> tuple[int, bytes, bool, int, bytes]:
        disk = disks[device.disk]
        return disk.hash, disk.name, device.partition, device.hash, device.name

    return sorted(found, key=place)


def pci_addresses(guest: LinuxGuest, devices: list[BlockDevice]) -> list[bytes | None]:
    """The PCI function that each hangs on, e.g. ``0000:04:00.0``."""
    found: list[bytes | None] = [None] * len(devices)
    layout = guest.layout("device", {"parent": "parent", "name": "kobj.name"}, text=())
    level = {index: device.node for index, device in enumerate(devices)}
    for _ in range(_MAX_ABOVE):
        columns = layout.lists(guest.kernel, list(level.values()), [])
        names = _names(guest, columns["name"])
        above: dict[int, int] = {}
        for index, parent, name in zip(level, columns["parent"], names, strict=True):
            if name and _PCI.fullmatch(name):
                found[index] = name
            elif parent:
                above[index] = parent
        level = above
        if not level:
            break
    return found


def serial(names: Names | None, device: BlockDevice) -> bytes | None:
    """The serial number that udev has noted of a disk (ID_SERIAL of its database, on tmpfs)."""
    path = b"/run/udev/data/b%d:%d" % device.number
    cached = names.read(path, limit=_MAX_ENTRY) if names else None
    for _, data in cached.pieces if cached else ():
        match = re.search(rb"^E:ID_SERIAL=(.+)$", data, re.MULTILINE)
        if match:
            return match[1][:_MAX_SERIAL]
    return None


def _names(guest: LinuxGuest, pointers: list[int | None]) -> list[bytes | None]:
    return guest.kernel.strings([pointer or 0 for pointer in pointers], _MAX_NAME)
