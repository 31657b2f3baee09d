"""What ``virsh guestinfo`` tells, without its agent: the same keys, in the same units.

Keys and their order are those of libvirt (src/libvirt-domain.c, virDomainGetGuestInfo); how a
value is computed is what the agent does (qga/commands-posix.c and commands-linux.c of QEMU). A
key whose value memory does not tell is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from virtintrospect.errors import CorruptDataError, VirtIntrospectError
from virtintrospect.guests.linux import blockdev, osrelease, statfs
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cpu import averages
from virtintrospect.guests.linux.dcache import Names, names_of
from virtintrospect.guests.linux.interfaces import interfaces
from virtintrospect.guests.linux.mounts import Row, place_of
from virtintrospect.guests.linux.paths import FilePath, PathReader
from virtintrospect.guests.linux.system import wall_time
from virtintrospect.guests.linux.users import find_logins
from virtintrospect.guests.linux.zone import zone_at

if TYPE_CHECKING:
    from virtintrospect.guests.linux.blockdev import BlockDevice
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import Interface

Keys = dict[str, Any]

_OS_RELEASE = (b"/etc/os-release", b"/usr/lib/os-release")
_MAX_OS_RELEASE, _MAX_ZONE = 64 << 10, 64 << 10
_ZONEINFO = b"/zoneinfo/"
_MAX_TEXT = 256
#: Block devices that are made of others, of which memory does not tell here.
_VIRTUAL = (b"dm-", b"md", b"loop")
_FAMILIES = {"inet": "ipv4", "inet6": "ipv6"}
_UTS = ("nodename", "release", "version", "machine")


def guestinfo(
    guest: LinuxGuest, kinds: Collection[str] = (), aliases: Mapping[bytes, str] | None = None
) -> Keys:
    """The keys of ``virsh guestinfo`` in its order; a part that cannot be had is noted.

    :param kinds: which of user, os, timezone, hostname, filesystem, disk, interface and load;
        all of them where none is named.
    :param aliases: what the host calls disks, by their PCI address or else their serial number.
    """
    source = _Source(guest, aliases or {})
    found: Keys = {}
    for kind, part in _PARTS.items():
        if kinds and kind not in kinds:
            continue
        try:
            found |= {key: value for key, value in part(source).items() if value is not None}
        except VirtIntrospectError as error:
            guest.note(f"no {kind}: {error.message}", getattr(error, "address", 0))
    guest.note_all([source.budget.problem])
    return found


class _Disk(NamedTuple):
    alias: str | None
    serial: bytes | None
    #: It hangs on a bus; the agent has an address only of those.
    real: bool


class _Source:
    """What the parts are made of; each thing is read once, when a part first asks for it."""

    def __init__(self, guest: LinuxGuest, aliases: Mapping[bytes, str]) -> None:
        self.guest = guest
        self.aliases = aliases
        self.budget = Budget()

    @cached_property
    def _found(self) -> tuple[Names, dict[int, Row]] | None:
        return names_of(self.guest, self.budget)

    @property
    def names(self) -> Names | None:
        """Files of the first process."""
        return self._found[0] if self._found else None

    @property
    def mounts(self) -> dict[int, Row]:
        """Mounts of the first process's namespace, by address."""
        return self._found[1] if self._found else {}

    @cached_property
    def devices(self) -> list[BlockDevice] | None:
        return blockdev.block_devices(self.guest, self.budget)

    @cached_property
    def disks(self) -> dict[int, _Disk]:
        """What is known of each disk, by the address of its ``gendisk``."""
        whole = [device for device in self.devices or () if not device.partition]
        found = {}
        for device, place in zip(whole, blockdev.pci_addresses(self.guest, whole), strict=True):
            serial = blockdev.serial(self.names, device)
            # A disk behind a controller shares the controller's address with others.
            by_place = place if place and device.name.startswith((b"vd", b"nvme")) else None
            alias = self.aliases.get(by_place or serial or b"")
            found[device.disk] = _Disk(alias, serial, real=place is not None)
        return found

    @cached_property
    def uts(self) -> dict[str, bytes]:
        row = self.guest.read_global("init_uts_ns", {key: f"name.{key}" for key in _UTS}, text=_UTS)
        return {key: value.split(b"\0", 1)[0] for key, value in row.items()}

    def content(self, path: bytes, limit: int) -> bytes | None:
        """A file's content; ``None`` where not all of it is in memory."""
        cached = self.names.read(path, limit=limit) if self.names else None
        return cached.whole if cached else None


def _users(source: _Source) -> Keys:
    """Each user once, since the earliest login (qmp_guest_get_users())."""
    since: dict[bytes, int] = {}
    for login in find_logins(source.guest, source.names, source.budget):
        if login.type == "user" and login.user is not None and login.time is not None:
            time = round(login.time * 1000)
            since[login.user] = min(time, since.get(login.user, time))
    keys: Keys = {"user.count": len(since)}
    for number, (name, time) in enumerate(since.items()):
        keys |= {f"user.{number}.name": name, f"user.{number}.login-time": time}
    return keys


def _os(source: _Source) -> Keys:
    contents = (source.content(path, _MAX_OS_RELEASE) for path in _OS_RELEASE)
    content = next((content for content in contents if content is not None), None)
    if content is None:
        source.guest.note("os-release is not in the guest's memory: no os.id and the like", 0)
    told = osrelease.parse(content or b"")
    return {
        "os.id": told.get("ID"),
        "os.name": told.get("NAME"),
        "os.pretty-name": told.get("PRETTY_NAME"),
        "os.version": told.get("VERSION"),
        "os.version-id": told.get("VERSION_ID"),
        "os.machine": source.uts["machine"],
        "os.variant": told.get("VARIANT"),
        "os.variant-id": told.get("VARIANT_ID"),
        "os.kernel-release": source.uts["release"],
        "os.kernel-version": source.uts["version"],
    }


def _timezone(source: _Source) -> Keys:
    """Abbreviation of the zone of /etc/localtime now, and seconds east of Greenwich."""
    names, now = source.names, wall_time(source.guest)
    entry = names.find(b"/etc/localtime", follow=False) if names else None
    if names is None or entry is None or now is None:
        source.guest.note("/etc/localtime is not in the guest's memory: no timezone", 0)
        return {}
    if not entry.inode:
        return {"timezone.name": "UTC", "timezone.offset": 0}
    target = names.link(entry.inode) or b""
    content = source.content(b"/etc/localtime", _MAX_ZONE)
    try:
        name, offset = zone_at(now // 1_000_000_000, content, target.rpartition(_ZONEINFO)[2])
    except CorruptDataError as error:
        source.guest.note(f"no timezone: {error.message}", entry.inode)
        return {}
    if content is None:
        source.guest.note("the zone's rules are not in the guest's memory: they are this host's", 0)
    return {"timezone.name": name, "timezone.offset": offset}


def _hostname(source: _Source) -> Keys:
    return {"hostname": source.uts["nodename"]}


class _FileSystem(NamedTuple):
    """A mount of a file system that has a device of its own."""

    place: FilePath
    superblock: int
    device: int
    kind: bytes
    #: The device's name, as the file system noted it (``super_block.s_id``).
    name: bytes


def _mounted(source: _Source) -> list[_FileSystem]:
    """Mounts of block devices, in the order of /proc/self/mountinfo."""
    guest = source.guest
    layout = guest.layout(
        "super_block", {"device": "s_dev", "type": "s_type.name", "name": "s_id"}, text=("name",)
    )
    rows = [(address, row) for address, row in source.mounts.items() if row["superblock"]]
    columns = layout.lists(guest.kernel, [row["superblock"] for _, row in rows], [])
    kinds = guest.kernel.strings([pointer or 0 for pointer in columns["type"]], _MAX_TEXT)
    return [
        _FileSystem(
            place_of(guest, address, row),
            row["superblock"],
            device,
            kind,
            name.split(b"\0", 1)[0],
        )
        for (address, row), device, name, kind in zip(
            rows, columns["device"], columns["name"], kinds, strict=True
        )
        if kind is not None and device is not None and device >> blockdev.MINOR_BITS
    ]


def _filesystems(source: _Source) -> Keys:
    found = _mounted(source)
    devices = {device.device: device for device in source.devices or ()}
    paths = PathReader(source.guest, source.budget).files(item.place for item in found)
    keys: Keys = {}
    count = 0
    for item in found:
        if source.budget.late():
            break
        path = paths.get(item.place)
        if path is None:
            continue
        known = devices.get(item.device)
        name = known.name if known else item.name
        head = f"fs.{count}."
        keys |= {head + "name": name, head + "mountpoint": path, head + "fstype": item.kind}
        figures = statfs.usage(source.guest, item.kind, item.superblock)
        if figures and figures.total:
            used = figures.total - figures.free
            keys[head + "total-bytes"] = used + figures.available
            keys[head + "used-bytes"] = used
        if not name.startswith(_VIRTUAL):
            about = source.disks.get(known.disk) if known else None
            keys[head + "disk.count"] = 1
            keys[head + "disk.0.alias"] = about.alias if about else None
            keys[head + "disk.0.serial"] = about.serial if about else None
            keys[head + "disk.0.device"] = b"/dev/" + name
        count += 1
    return {"fs.count": count} | keys


def _disks(source: _Source) -> Keys:
    """Disks and partitions: the agent puts each in front of those that it found before."""
    if source.devices is None:
        source.guest.note("this kernel has no list of its disks", 0)
        return {}
    shown = [device for device in source.devices if device.sectors or device.partition]
    names = {device.disk: device.name for device in shown if not device.partition}
    shown = [device for device in shown if device.disk in names][::-1]
    keys: Keys = {"disk.count": len(shown)}
    for number, device in enumerate(shown):
        head, about = f"disk.{number}.", source.disks[device.disk]
        keys[head + "name"] = b"/dev/" + device.name
        keys[head + "partition"] = device.partition
        if device.partition:
            keys[head + "dependency.count"] = 1
            keys[head + "dependency.0.name"] = b"/dev/" + names[device.disk]
        elif about.real:
            keys[head + "serial"] = about.serial
            keys[head + "alias"] = about.alias
    return keys


def _interfaces(source: _Source) -> Keys:
    """Interfaces of the first process's network namespace."""
    guest = source.guest
    first = guest.tasks.addresses(source.budget)[:1]
    layout = guest.layout("task_struct", {"namespace": "nsproxy.net_ns.ns.inum"}, text=())
    namespaces = layout.lists(guest.kernel, first, [])["namespace"]
    every = interfaces(guest, counted=False)
    rows = [row for row in every if row.net_namespace in namespaces]
    by_name: dict[bytes, list[Interface]] = {}
    for row in rows:
        by_name.setdefault(row.interface, []).append(row)
    keys: Keys = {"if.count": len(by_name)}
    for number, (name, mine) in enumerate(by_name.items()):
        addresses = [row for row in mine if row.address is not None]
        head = f"if.{number}."
        keys[head + "name"] = name
        keys[head + "hwaddr"] = mine[0].mac
        keys[head + "addr.count"] = len(addresses)
        for index, row in enumerate(addresses):
            keys[f"{head}addr.{index}.type"] = _FAMILIES.get(row.family or "")
            keys[f"{head}addr.{index}.addr"] = row.address
            keys[f"{head}addr.{index}.prefix"] = row.prefix
    return keys


def _load(source: _Source) -> Keys:
    return dict(zip(("load.1m", "load.5m", "load.15m"), averages(source.guest), strict=True))


_PARTS: dict[str, Callable[[_Source], Keys]] = {
    "user": _users,
    "os": _os,
    "timezone": _timezone,
    "hostname": _hostname,
    "filesystem": _filesystems,
    "disk": _disks,
    "interface": _interfaces,
    "load": _load,
}
