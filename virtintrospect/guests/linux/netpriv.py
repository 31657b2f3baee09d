"""A network driver's own part of a device (``netdev_priv()``), by the types of its module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.errors import NoSuchTargetError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.symbols.types import Types

#: NETDEV_ALIGN (include/linux/netdevice.h): the driver's part begins behind net_device.
_ALIGN = 32


def driver_types(guest: LinuxGuest, module: str, name: str) -> Types | None:
    """Types among which ``name`` is: the kernel's, where the driver is built in, or the module's.

    ``None`` where modules have no types, as before 5.11; other trouble is noted.
    """
    if name in guest.types:
        return guest.types
    try:
        return guest.module_types(module)
    except NoSuchTargetError:
        return None
    except VirtIntrospectError as error:
        guest.note(f"no types of {module}: {error.message}", 0)
        return None


def private(types: Types) -> int:
    """Offset of the driver's part: a member since 6.11 (commit ddc0ee01b3b8), behind all before."""
    if types.has("net_device", "priv"):
        return types.offsetof("net_device", "priv")
    return -(-types.sizeof("net_device") // _ALIGN) * _ALIGN


def counter(path: str) -> str:
    """A counter is ``u64``, or ``u64_stats_t`` in later kernels: both, for a layout."""
    return f"{path}.v.a.a.counter|{path}"
