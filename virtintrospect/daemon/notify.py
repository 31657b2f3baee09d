"""systemd's notification protocol (sd_notify(3)): a few datagrams to a socket it names."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Tell systemd; silently nothing where nobody asked to be told."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    if path.startswith("@"):
        path = "\0" + path[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.setblocking(False)
        channel.sendto("\n".join(lines).encode(), path)


def watchdog_seconds() -> float | None:
    """How often systemd wants a sign of life: half of what it waits for, or ``None``."""
    asked = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(asked) / 2e6 if for_us and asked.isdecimal() and int(asked) else None
