"""Processes of a guest that hold one of each kind of file, mapping and mount (guest/holder.c)."""

from __future__ import annotations

from dataclasses import dataclass

from .lab.guest import Guest
from .lab.kernels import kernel

#: Starts the processes once a guest; later calls find them.
_START = """
[ -e /tmp/holder.pids ] && exec cat /tmp/holder.pids
mkdir -p /tmp/lower /tmp/upper /tmp/work /tmp/over; touch /tmp/namespace
echo content > /tmp/lower/file
insmod /tmp/overlay.ko
mount -t overlay over /tmp/over -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work
/tmp/holder </dev/null >/dev/null 2>/tmp/holder.log &
for i in $(seq 1200); do [ -e /tmp/holder.pids ] && break; usleep 50000; done
cat /tmp/holder.pids
"""


@dataclass(frozen=True)
class Holder:
    """Pids: files and mappings of every kind; a mount namespace; one with a changed root."""

    files: int
    mounts: int
    container: int


@dataclass(frozen=True)
class File:
    """A descriptor as /proc shows it."""

    mode: int
    inode: int
    device: str
    link: bytes
    offset: int
    flags: int


def holder(guest: Guest) -> Holder:
    """The processes, started when they are not there yet."""
    guest.install("holder", "/tmp/holder")
    guest.put("/tmp/overlay.ko", kernel(guest.config.kernel).modules["overlay"][0].read_bytes())
    return Holder(*map(int, guest.run(_START).split()))


def open_files(guest: Guest) -> dict[tuple[int, int], File]:
    """Every descriptor of every process, by pid and number."""
    words = guest.run("/tmp/holder look").split(b"\0")
    found = {}
    for at in range(0, len(words) - 1, 7):
        pid, fd, mode, inode, device, link, text = words[at : at + 7]
        info = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
        if b"pos" in info:
            found[int(pid), int(fd)] = File(
                int(mode), int(inode), device.decode(), link, int(info[b"pos"]),
                int(info[b"flags"], 8),
            )  # fmt: skip
    return found
