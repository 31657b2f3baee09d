"""libvirt's daemons on this host: who runs hooks, and who has to be told of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Daemons that run the hooks of a driver: the monolithic one and the modular one.
RUNNERS = {"qemu": ("libvirtd", "virtqemud"), "xen": ("libvirtd", "virtxend")}

_NAMES = {name for names in RUNNERS.values() for name in names}


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon of libvirt, in system mode."""

    name: str
    pid: int
    #: Clock ticks since boot: with the PID, the process's identity.
    start_ticks: int
    #: Seconds since the epoch.
    started: float

    @property
    def key(self) -> str:
        """Names this very process, for as long as the host is up."""
        return f"{self.pid} {self.start_ticks}"

    def runs_hooks_of(self, driver: str) -> bool:
        """Whether it is this daemon that runs the driver's hooks."""
        return self.name in RUNNERS[driver]

    def reload(self) -> None:
        """SIGHUP, as ``systemctl reload`` does; guests and connections go on.

        :raises OSError: there is no such process any more, or no permission.
        """
        descriptor = os.pidfd_open(self.pid)
        try:
            if _start_ticks(self.pid) == self.start_ticks:
                signal.pidfd_send_signal(descriptor, signal.SIGHUP)
        finally:
            os.close(descriptor)


def running(hooks: Path) -> Iterator[Daemon]:
    """The daemons of root that take their hooks from this folder.

    A daemon in a container, or a private one of a test, has another /etc than we have.

    :param hooks: ``/etc/libvirt/hooks``, or the like below another root.
    """
    ours = _identity(hooks) or _identity(hooks.parent)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError):
            name = (entry / "comm").read_text().strip()
            if name not in _NAMES or entry.stat().st_uid != 0:
                continue
            seen = entry / "root/etc/libvirt"
            if ours is None or ours not in (_identity(seen / "hooks"), _identity(seen)):
                continue
            pid = int(entry.name)
            ticks = _start_ticks(pid)
            started = _boot_time() + ticks / os.sysconf("SC_CLK_TCK")
            yield Daemon(name, pid, ticks, started)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _start_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    if fields[0] == b"Z":
        raise ProcessLookupError
    return int(fields[19])


def _boot_time() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
