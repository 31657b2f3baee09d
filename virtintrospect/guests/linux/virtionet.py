"""What virtio_net counts (``virtnet_stats()`` of drivers/net/virtio_net.c), by queue.

Its structures are the module's own: the guest must bring types of modules, as since 5.11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.errors import CorruptDataError, VirtIntrospectError
from virtintrospect.guests.linux.netpriv import counter, driver_types, private
from virtintrospect.symbols.layout import Layout

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

#: Most pairs of queues: VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX (include/uapi/linux/virtio_net.h).
_MAX_PAIRS = 0x8000
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
    types = driver_types(guest, "virtio_net", _INFO)
    if types is None:
        return [None] * len(devices)
    return [_of_device(guest, types, device) for device in devices]


def _of_device(guest: LinuxGuest, types: Types, device: int) -> dict[str, int] | None:
    members = {"pairs": "max_queue_pairs", "device": "dev", **{name: name for name in _QUEUES}}
    found: dict[str, int] = {}
    try:
        place = device + private(types)
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


def _paths(array: str) -> dict[str, str]:
    """Where each column is in a queue; one that this kernel may lack is optional."""
    return {
        column: "|".join(counter(f"stats.{name}") for name in names)
        + ("?" if column == "tx_errors" else "")
        for column, names in _COUNTED[array].items()
    }
