"""``make demo``: boot a small, stock guest and look into it.

``python -m tests.guests.lab.demo remove`` removes a guest that ``KEEP=1`` left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import libvirtd
from .domain import PREFIX, Config, destroy, sweep
from .guest import Guest

NAME = f"{PREFIX}demo"
CONFIG = Config("6.12", cmdline="lab.sleepers=5")
COMMANDS = ("list", "info NAME", "ps NAME", "modules NAME", "dmesg NAME")


def main() -> int:
    """Run the demo; the exit status is that of the first command that failed."""
    if os.geteuid() != 0:
        print("make demo starts a guest and reads its memory: run it as root", file=sys.stderr)
        return 1
    keep = os.environ.get("KEEP", "") not in ("", "0")
    with libvirtd.connection() as connection:
        sweep(connection)
        destroy(connection, NAME)
    if sys.argv[1:] == ["remove"]:
        return 0
    print("Fetching a Debian kernel (first time only) and booting a guest …", flush=True)
    with Guest(CONFIG, name=NAME, kept=keep) as guest:
        print(f"{NAME} runs Linux {guest.release}: no agent, no symbols, stock libvirt domain.")
        status = look()
    if keep:
        print(f"\n{NAME} is kept. Go on with, for example,")
        print(f"    {command()} -c {libvirtd.URI} ps --tree {NAME}")
        print("and remove it with\n    make demo-remove")
    return status


def look() -> int:
    """Run every command of the demo on the guest, each under a headline."""
    status = 0
    for text in COMMANDS:
        arguments = text.replace("NAME", NAME).split()
        headline = f"$ virt-introspect {' '.join(arguments)}"
        print(f"\n\033[1m{headline}\033[0m" if sys.stdout.isatty() else f"\n{headline}", flush=True)
        done = subprocess.run([command(), "-c", libvirtd.URI, *arguments], timeout=120, check=False)
        status = status or done.returncode
    return status


def command() -> str:
    """The installed command, beside the interpreter that runs this."""
    return str(Path(sys.executable).with_name("virt-introspect"))


if __name__ == "__main__":
    sys.exit(main())
