"""Thousands of processes, open files and sockets in a guest (guest/scale.c)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .lab.guest import Guest


class Load(NamedTuple):
    """What guest/scale.c is told to make."""

    processes: int
    files: int
    sockets: int


@contextmanager
def loaded(guest: Guest, load: Load) -> Iterator[int]:
    """The guest with that many processes more; gives the first one's pid."""
    guest.install("scale", "/tmp/scale-program")
    numbers = " ".join(map(str, load))
    guest.run(
        f"rm -f /tmp/scale.pid; /tmp/scale-program {numbers} </dev/null >/tmp/scale.pid 2>&1 &"
        "for i in $(seq 1500); do [ -s /tmp/scale.pid ] && break; usleep 100000; done",
        180,
    )
    group = int(guest.get("/tmp/scale.pid"))
    try:
        yield group
    finally:
        guest.run(
            f"kill -9 -{group}; while [ -e /proc/{group} ]; do usleep 100000; done;"
            "while pidof scale-program >/dev/null; do usleep 100000; done; rm -rf /tmp/scale", 120
        )  # fmt: skip
