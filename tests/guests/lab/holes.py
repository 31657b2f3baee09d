"""A file of holes in a guest: what is read of it takes page cache, and nothing else."""

from __future__ import annotations

from .guest import Guest
from .kernels import loose_module

HOLES = "/mnt/disk/holes"
#: ext4 on a disk in memory: a loop device would read for others, which nothing counts.
_DISK = """
insmod /tmp/brd.ko rd_nr=1 rd_size=8192 && busybox mke2fs -F /dev/ram0 && mkdir -p /mnt/disk &&
mount -t ext4 /dev/ram0 /mnt/disk && rm /tmp/brd.ko
"""


def disk(guest: Guest, patience: float = 60.0) -> None:
    """Give it a file system on which files of holes may have any size."""
    guest.put("/tmp/brd.ko", loose_module(guest.config.kernel, "brd"))
    guest.run(_DISK, patience)
