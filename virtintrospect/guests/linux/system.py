"""Which kernel runs: utsname, boot time, command line, CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.errors import CorruptDataError, FaultError, NotFoundError
from virtintrospect.guests.linux import bitmap

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import SystemInfo

_NANOSECONDS = 1_000_000_000
#: NTP_SCALE_SHIFT (include/linux/timex.h), and what a tick can last: 10 kHz to 10 Hz.
_TICK_SHIFT = 32
_TICKS = 100_000, 100_000_000
_UTS = ("release", "version", "machine", "nodename")


def system_info(guest: LinuxGuest) -> SystemInfo:
    """The row of ``info``."""
    from virtintrospect.model import SystemInfo

    uts = guest.read_global("init_uts_ns", {key: f"name.{key}" for key in _UTS}, text=_UTS)
    clock = _clock(guest)
    return SystemInfo(
        os="Linux",
        release=_text(uts["release"]),
        version=_text(uts["version"]),
        machine=_text(uts["machine"]),
        hostname=_text(uts["nodename"]),
        arguments=_arguments(guest),
        boot_time=clock[0] if clock else None,
        uptime_seconds=clock[1] if clock else None,
        cpus=len(bitmap.read(guest, "__cpu_online_mask")),
        page_mode=guest.mapping.mode.name,
        kernel_base=guest.mapping.image.start,
        kaslr_slide=_kaslr_slide(guest),
        build_id=guest.build_id,
    )


def boot_time(guest: LinuxGuest) -> int | None:
    """When the guest booted, in nanoseconds since the epoch, by its own clock.

    As ``btime`` of /proc/stat: getboottime64() of kernel/time/timekeeping.c.
    """
    keeper = _timekeeper(guest)
    return None if keeper is None else keeper["offs_real"] - keeper["offs_boot"]


def _clock(guest: LinuxGuest) -> tuple[int, int] | None:
    """Boot time in seconds since the epoch, and seconds of uptime at the last timer tick."""
    keeper = _timekeeper(guest)
    if keeper is None:
        return None
    booted = keeper["offs_real"] - keeper["offs_boot"]
    now = keeper["xtime_sec"] * _NANOSECONDS + (keeper["nsec"] >> (keeper["shift"] & 63))
    return booted // _NANOSECONDS, max(0, now - booted) // _NANOSECONDS


def wall_time(guest: LinuxGuest) -> int | None:
    """Nanoseconds since the epoch at the last timer tick, by the guest's own clock."""
    keeper = _timekeeper(guest)
    if keeper is None:
        return None
    return keeper["xtime_sec"] * _NANOSECONDS + (keeper["nsec"] >> (keeper["shift"] & 63))


def monotonic_time(guest: LinuxGuest) -> int | None:
    """Nanoseconds of CLOCK_MONOTONIC at the last timer tick."""
    keeper = _timekeeper(guest)
    if keeper is None:
        return None
    wall = keeper["xtime_sec"] * _NANOSECONDS + (keeper["nsec"] >> (keeper["shift"] & 63))
    return max(0, wall - keeper["offs_real"])


def tick(guest: LinuxGuest) -> int | None:
    """Nanoseconds of a jiffy: HZ is written nowhere, but the clock has the length of a tick."""
    keeper = _timekeeper(guest)
    length = (keeper.get("tick") or 0) >> _TICK_SHIFT if keeper else 0
    return (
        round(_NANOSECONDS / round(_NANOSECONDS / length))
        if _TICKS[0] < length < _TICKS[1]
        else None
    )


def _timekeeper(guest: LinuxGuest) -> dict[str, int] | None:
    """The kernel's timekeeper.

    Until 6.12 it sits in an anonymous structure (``tk_core``) that BTF cannot name, so its
    shadow copy is read; since 6.13 in a ``struct tk_data`` (kernel/time/timekeeping.c).
    """
    members = {
        "offs_real": "offs_real",
        "offs_boot": "offs_boot",
        "xtime_sec": "xtime_sec",
        "nsec": "tkr_mono.xtime_nsec",
        "shift": "tkr_mono.shift",
        "tick": "ntp_tick?",
    }
    try:
        if "shadow_timekeeper" in guest.symbols:
            return guest.read_global("shadow_timekeeper", members)
        symbol = "timekeeper_data" if "timekeeper_data" in guest.symbols else "tk_core"
        inside = {key: f"timekeeper.{path}" for key, path in members.items()}
        return guest.read_global(symbol, inside)
    except (NotFoundError, FaultError, CorruptDataError) as error:
        guest.note(f"no clock: {error}", 0)
        return None


def _kaslr_slide(guest: LinuxGuest) -> int | None:
    """The slide as the kernel itself noted it (KERNELOFFSET), else from where it is linked."""
    info = guest.vmcoreinfo
    if info is not None and info.kernel_offset is not None:
        return info.kernel_offset
    link_base = guest.machine.link_base
    return None if link_base is None else guest.mapping.image.start - link_base


def _arguments(guest: LinuxGuest) -> bytes | None:
    """The kernel's command line; COMMAND_LINE_SIZE is at most 4096."""
    try:
        return guest.kernel.string(guest.pointer("saved_command_line"), 4096)
    except FaultError as error:
        guest.note("unreadable kernel command line", error.address)
    except NotFoundError as error:
        guest.note(f"no kernel command line: {error}", 0)
    return None


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]
