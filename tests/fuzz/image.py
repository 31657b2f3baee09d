"""RAM of a lab guest as a file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest

#: All RAM of so small a guest lies below the PCI hole: file offset is guest-physical address.
CONFIG = Config(os.environ.get("FUZZ_KERNEL", "6.1"), ram_mib=256, cmdline="lab.sleepers=10")


def copy_ram(guest: Guest, path: Path) -> None:
    """Copy the RAM of a guest of :data:`CONFIG`, paused meanwhile."""
    guest.domain.suspend()
    try:
        for descriptor in Path(f"/proc/{guest.pid}/fd").iterdir():
            if "memory-backend-memfd" in str(descriptor.readlink()):
                with descriptor.open("rb") as ram, path.open("wb") as file:
                    shutil.copyfileobj(ram, file, 1 << 20)
                return
    finally:
        guest.domain.resume()
    raise AssertionError("QEMU holds no memfd")
