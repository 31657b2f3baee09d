"""Block devices (block/bdev.c, block/genhd.c): disks, their partitions, and where they hang.

Since 5.11 (commit 22ae8ce8b892) each has an inode on a file system of the kernel's own
(``bdev_inode``) as long as it is there; before, only while somebody has it open.
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
    #: An address that a disk shares with its partitions, and with nobody else.
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
    if guest.types.has("block_device", "bd_device"):
        found = _by_inode(guest, budget)
    elif guest.types.has("hd_struct", "__dev") and guest.types.has("class", "p"):
        found = _by_class(guest, budget)
    else:
        return None
    disks = {device.disk: device for device in found if not device.partition}
    found = [device for device in found if device.disk in disks]

    def place(device: BlockDevice) -> tuple[int, bytes, bool, int, bytes]:
        disk = disks[device.disk]
        return disk.hash, disk.name, device.partition, device.hash, device.name

    return sorted(found, key=place)


def _by_inode(guest: LinuxGuest, budget: Budget) -> list[BlockDevice]:
    """Since 5.11: the inodes of ``blockdev_superblock``."""
    types = guest.types
    head = guest.pointer("blockdev_superblock") + types.offsetof("super_block", "s_inodes")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_DEVICES, budget=budget)
    guest.note_all([problem])
    inner = types.offsetof("bdev_inode", "vfs_inode") + types.offsetof("inode", "i_sb_list")
    members = {
        "device": "bd_dev",
        "sectors": "bd_nr_sectors",
        "hash": "bd_device.kobj.sd.hash",
        "name": "bd_device.kobj.name",
        "disk": "bd_disk",
        "whole": "bd_disk.part0",
    }
    at = types.offsetof("bdev_inode", "bdev")
    addresses = [node - inner + at for node in nodes if node >= inner]
    *columns, names, disks, wholes = (
        guest.layout("block_device", members, text=()).lists(guest.kernel, addresses, []).values()
    )
    partitions = [whole != address for whole, address in zip(wholes, addresses, strict=True)]
    node_at = types.offsetof("block_device", "bd_device")
    places = [address + node_at for address in addresses]
    return _devices(guest, columns, names, disks, partitions, places)


def _by_class(guest: LinuxGuest, budget: Budget) -> list[BlockDevice]:
    """Before: the devices of ``block_class``, each within a ``struct hd_struct``."""
    types = guest.types
    layout = guest.layout("class", {"private": "p"}, text=())
    private = layout.read(guest.kernel, guest.symbols.address("block_class"))["private"]
    head = private + types.offsetof("subsys_private", "klist_devices.k_list")
    nodes, problem = walk_list(guest.kernel, head, limit=_MAX_DEVICES, budget=budget)
    guest.note_all([problem])
    inner = types.offsetof("device_private", "knode_class.n_node")
    layout = guest.layout("device_private", {"device": "device"}, text=())
    privates = [node - inner for node in nodes if node >= inner]
    places = [place for place in layout.lists(guest.kernel, privates, [])["device"] if place]
    members = {
        "device": "__dev.devt",
        "sectors": "nr_sects",
        "hash": "__dev.kobj.sd.hash",
        "name": "__dev.kobj.name",
        "parent": "__dev.parent",
        "number": "partno",
    }
    outer = types.offsetof("hd_struct", "__dev")
    addresses = [place - outer for place in places if place >= outer]
    *columns, names, parents, numbers = (
        guest.layout("hd_struct", members, text=()).lists(guest.kernel, addresses, []).values()
    )
    partitions = [bool(number) for number in numbers]
    # A partition hangs on its disk; the device of the disk stands for both.
    disks = [
        parent if partition else place
        for parent, partition, place in zip(parents, partitions, places, strict=True)
    ]
    return _devices(guest, columns, names, disks, partitions, places)


def _devices(
    guest: LinuxGuest,
    columns: list[list[int | None]],
    pointers: list[int | None],
    disks: list[int | None],
    partitions: list[bool],
    places: list[int],
) -> list[BlockDevice]:
    """Those of them that have a name and are in sysfs."""
    return [
        BlockDevice(name, device, disk, partition, sectors, order, place)
        for name, device, sectors, order, disk, partition, place in zip(
            _names(guest, pointers), *columns, disks, partitions, places, strict=True
        )
        if name and device and disk and order is not None and sectors is not None
    ]


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
