"""libvirt's daemons: started where nobody else does, stopped by the last user of the lab."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .accel import kvm_works
from .paths import cache, locked

URI = "qemu:///system"
_DAEMONS = ("virtlogd", "libvirtd")
_PATIENCE = 60

#: Gives a daemon a /dev of its own. $0 is where the real one is mounted for a moment, $1 the
#: name of a device to leave out; the rest is the daemon's command.
_PRIVATE_DEV = """
set -e
hidden=$1
shift
mount --rbind /dev "$0"
mount -t tmpfs -o mode=755 dev /dev
for entry in "$0"/*; do
    name=${entry##*/}
    if [ "$name" = "$hidden" ]; then
        continue
    elif [ -d "$entry" ] && ! [ -L "$entry" ]; then
        mkdir "/dev/$name"
        mount --rbind "$entry" "/dev/$name"
    else
        cp -a "$entry" "/dev/$name"
    fi
done
umount -l "$0"
if ! grep -q ' hugetlbfs ' /proc/mounts; then
    mkdir -p /dev/hugepages
    mount -t hugetlbfs hugetlbfs /dev/hugepages
fi
exec "$@"
"""


def connect() -> Any:
    """A read-write connection to the system's libvirt, its daemons started when needed."""
    import libvirt

    _ensure_running()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt.open(URI)


@functools.cache
def _ensure_running() -> None:
    """Start the daemons once a process, and be counted as one of their users."""
    with locked("libvirtd"):
        users = (cache() / "libvirtd.users").open("w")
        fcntl.flock(users, fcntl.LOCK_SH)
        if not _answers():
            if Path("/run/systemd/system").is_dir():
                subprocess.run(["systemctl", "start", "libvirtd"], check=True, timeout=_PATIENCE)
            else:
                _start_by_hand()
            _wait(_answers, f"libvirt does not answer on {URI}")
    atexit.register(_release, users)


def _start_by_hand() -> None:
    started = []
    for daemon in _DAEMONS:
        if not _pid(daemon):
            command = [*private_dev(), daemon, "-d"]
            if subprocess.run(command, check=False, timeout=_PATIENCE).returncode:
                # No mount namespaces here, as in some containers: guests may start slowly.
                subprocess.run([daemon, "-d"], check=True, timeout=_PATIENCE)
            _wait(lambda daemon=daemon: _pid(daemon), f"{daemon} does not start")
            started.append(f"{daemon} {_pid(daemon)}\n")
    _marker().write_text("".join(started))


def private_dev() -> list[str]:
    """Do for a daemon what systemd and udev would: huge pages, and a /dev/kvm that makes sense.

    Without udev, /dev/kvm belongs to root alone (0600). libvirt 9.0 probes QEMU with
    CAP_DAC_OVERRIDE (qemuProcessQMPInit), finds KVM, then finds that the guests' user may not
    use it (virQEMUCapsIsValid), and probes anew at every look: a minute for each start. A /dev
    without it settles that. It is in a mount namespace of the daemon's own: the machine's
    devices and their permissions are the administrator's and stay as they are.
    """
    real = cache() / "dev"
    real.mkdir(exist_ok=True)
    hidden = "" if kvm_works() else "kvm"
    unshare = ["unshare", "--mount", "--propagation", "slave"]
    return [*unshare, "sh", "-c", _PRIVATE_DEV, str(real), hidden]


def _release(users: IO[str]) -> None:
    """Stop the daemons that the lab started, unless somebody still uses them."""
    with locked("libvirtd"):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        finally:
            users.close()
        if not _marker().exists() or _guests_run():
            return
        for line in reversed(_marker().read_text().splitlines()):
            daemon, pid = line.split()
            if _pid(daemon) == int(pid):  # else somebody else's, started since
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGTERM)
                _wait(lambda daemon=daemon: not _pid(daemon), f"{daemon} does not stop")
        _marker().unlink()


def _marker() -> Path:
    return cache() / "libvirtd.started"


def _guests_run() -> bool:
    return any(path.stem != "driver" for path in Path("/run/libvirt/qemu").glob("*.pid"))


def _answers() -> bool:
    command = ["virsh", "-c", URI, "uri"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _pid(daemon: str) -> int:
    """PID of a running daemon, or 0."""
    try:
        pid = int(Path(f"/run/{daemon}.pid").read_text())
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return 0
    return pid if name == daemon and state != "Z" else 0


def _wait(condition: Any, complaint: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(0.1)


@contextlib.contextmanager
def connection() -> Iterator[Any]:
    """As :func:`connect`, closed at the end."""
    handle = connect()
    try:
        yield handle
    finally:
        handle.close()
