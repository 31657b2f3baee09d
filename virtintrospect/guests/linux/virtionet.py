"""What virtio_net counts (``virtnet_stats()`` of drivers/net/virtio_net.c), by queue.

Its structures are the module's own: the guest must bring types of modules, as since 5.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.errors import CorruptDataError, NoSuchTargetError, VirtIntrospectError
from virtintrospect.symbols.layout import Layout

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

#: Most pairs of queues: VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX (include/uapi/linux/virtio_net.h).
_MAX_PAIRS = 0x8000
#: NETDEV_ALIGN (include/linux/netdevice.h): a driver's own part of net_device begins behind it.
_ALIGN = 32
#: The driver's own part of a device, and its two arrays of queues.
_INFO = "virtnet_info"
_QUEUES = {"rq": "receive_queue", "sq": "send_queue"}
#: What is added up of each queue.
_COUNTED: dict[str, dict[str, tuple[str, ...]]] = {
    "rq": {"rx_bytes": ("bytes",), "rx_packets": ("packets",), "rx_dropped": ("drops",)},
    "sq": {
        "tx_bytes": ("bytes",),
        "tx_packets": ("packets",),
        # Since 5.17 (commit a520794b4a27), with a shorter name since 6.8.
        "tx_errors": ("timeouts", "tx_timeouts"),
    },
}


def counters(guest: LinuxGuest, devices: list[int]) -> list[dict[str, int] | None]:
    """The sums over the queues of each device.

    :param devices: addresses of ``net_device``.
    :returns: one a device: what it counted, by the names of ``rtnl_link_stats64``; what is left
        out it never counts. ``None`` where that is not known.
    """
    if not devices:
        return []
    try:
        types = guest.types if _INFO in guest.types else guest.module_types("virtio_net")
    except VirtIntrospectError as error:
        if not isinstance(error, NoSuchTargetError):  # a kernel that gives modules no types
            guest.note(f"no counters of virtio_net: {error.message}", devices[0])
        return [None] * len(devices)
    return [_of_device(guest, types, device) for device in devices]


def _of_device(guest: LinuxGuest, types: Types, device: int) -> dict[str, int] | None:
    members = {"pairs": "max_queue_pairs", "device": "dev", **{name: name for name in _QUEUES}}
    found: dict[str, int] = {}
    try:
        place = device + _private(types)
        info = Layout(types, _INFO, members, text=()).read(guest.kernel, place)
        if info["device"] != device or not 0 < info["pairs"] <= _MAX_PAIRS:
            raise CorruptDataError("virtnet_info is not that of its device", place)
        for array, structure in _QUEUES.items():
            size = types.sizeof(structure)
            queues = [info[array] + number * size for number in range(info["pairs"])]
            layout = Layout(types, structure, _paths(array), text=())
            for name, column in layout.lists(guest.kernel, queues).items():
                found[name] = sum(value or 0 for value in column) % (1 << 64)
    except VirtIntrospectError as error:
        guest.note(f"no counters of virtio_net: {error.message}", device)
        return None
    return found


def _private(types: Types) -> int:
    """``netdev_priv()``: a member since 6.11 (commit ddc0ee01b3b8), behind the rest before."""
    if types.has("net_device", "priv"):
        return types.offsetof("net_device", "priv")
    return -(-types.sizeof("net_device") // _ALIGN) * _ALIGN


def _paths(array: str) -> dict[str, str]:
    """Counters are ``u64``, or ``u64_stats_t`` since 6.4; one that is missing is optional."""
    return {
        column: "|".join(f"stats.{name}{end}" for name in names for end in (".v.a.a.counter", ""))
        + ("?" if column == "tx_errors" else "")
        for column, names in _COUNTED[array].items()
    }
