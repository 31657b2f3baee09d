"""RAM of a lab guest as a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest

#: All RAM of so small a guest lies below the PCI hole: file offset is guest-physical address.
CONFIG = Config(
    os.environ.get("FUZZ_KERNEL", "6.1"), ram_mib=256, cmdline="lab.sleepers=10 no_timer_check"
)


def copy_ram(guest: Guest, path: Path) -> None:
    """Copy the RAM of a guest of :data:`CONFIG`, paused meanwhile.

    It has sockets of every kind open, addresses, routes, neighbours, control groups with
    controllers, eBPF objects and timers; afterwards it has them no more.
    """
    for name in ("sockets", "bpf", "timers"):
        guest.install(name, f"/tmp/{name}")
    guest.run(
        "ip link set lo up; ip addr add 10.99.0.1/16 dev dummy0; ip link set dummy0 up;"
        "rm -f /tmp/fuzz.log /tmp/bpf.log /tmp/timers.log;"
        "/tmp/sockets fuzz > /tmp/fuzz.log 2>&1 & until grep -q ready /tmp/fuzz.log; do"
        " usleep 100000; done;"
        "cd /sys/fs/cgroup; echo '+memory +cpu +pids' > cgroup.subtree_control; mkdir -p a/b;"
        "ip route add default via 10.99.0.2; ip route add 192.0.2.0/24 via 10.99.0.3 table 100;"
        "ip -6 route add 2001:db8::/32 dev dummy0; ping -c 1 -W 1 10.99.0.9;"
        "/tmp/bpf hold > /tmp/bpf.log 2>&1 & /tmp/timers > /tmp/timers.log 2>&1 &"
        "until grep -q ready /tmp/bpf.log && grep -q ready /tmp/timers.log; do"
        " usleep 100000; done"
    )
    guest.domain.suspend()
    try:
        for descriptor in Path(f"/proc/{guest.pid}/fd").iterdir():
            if "memory-backend-memfd" in str(descriptor.readlink()):
                with descriptor.open("rb") as ram, path.open("wb") as file:
                    shutil.copyfileobj(ram, file, 1 << 20)
                return
    finally:
        guest.domain.resume()
        guest.run("killall sockets bpf timers; ip addr flush dev dummy0; ip link set dummy0 down")
    raise AssertionError("QEMU holds no memfd")
