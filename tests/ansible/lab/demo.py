"""``make demo-fleet``: three hosts over SSH, their guests, one audit, one report."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest
from tests.guests.lab.planted import planted

from .fleet import BIN, IDLE, Fleet, Guests

#: Where the report is left.
REPORT = Path("fleet-report")
GUESTS: Guests = {
    "hv1": {"web01": Config("6.12", pti=False, cmdline=f"{IDLE}=12"), "boot01": None},
    "hv2": {"app01": Config("6.12", pti=False, cmdline=f"{IDLE}=20")},
    "hv3": {
        "db01": Config("6.1", pti=False, ram_mib=2048, cmdline=f"{IDLE}=8"),
        "ci01": Config("6.1", pti=False, cmdline=f"{IDLE}=30"),
    },
}


def main() -> int:
    """Run the demo; the exit status is that of the audit."""
    if os.geteuid() != 0:
        print(
            "make demo-fleet makes network namespaces and guests: run it as root", file=sys.stderr
        )
        return 1
    keep = os.environ.get("KEEP", "") not in ("", "0")
    started = time.monotonic()
    print(
        "Fetching kernels (first time only), starting three hosts and booting guests …", flush=True
    )
    folder = Path(tempfile.mkdtemp(prefix="vi-lab-fleet-"))
    try:
        with Fleet(folder, GUESTS) as fleet:
            _plant(fleet.guests["app01"])
            print(
                "app01 on hv2 has a process that is hidden now, db01 on hv3 far too much memory.",
                flush=True,
            )
            status = _audit(fleet)
            print(f"It took {time.monotonic() - started:.0f} s.")
            if keep:
                _wait(fleet)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return status


def _plant(guest: Guest) -> None:
    """A kernel module that hides itself and a process, in a guest of ours."""
    hidden = int(guest.run("sleep 100000 >/dev/null 2>&1 & echo $!"))
    guest.put("/planted.ko", planted(guest.config.kernel))
    guest.run(f"insmod /planted.ko hide_pid={hidden} hide=1")


def _audit(fleet: Fleet) -> int:
    report = REPORT.absolute()
    done = fleet.play("audit", timeout=900, show=True, virtintrospect_report=str(report),
                      virtintrospect_title="Demo fleet", virtintrospect_watch="5s")  # fmt: skip
    if done.returncode == 0:
        print(f"\nThe report: {report / 'report.html'}")
    return done.returncode


def _wait(fleet: Fleet) -> None:
    """Keep hosts and guests until somebody has seen enough."""
    print("\nThe hosts are kept. In another terminal, for example:")
    for name, value in fleet.environment().items():
        if name.startswith("ANSIBLE_"):
            print(f"    export {name}='{value}'")
    print(f"    {BIN}/ansible -i {fleet.folder}/hosts.json all -m ping")
    print(f"    {BIN}/ansible-playbook -i {fleet.folder}/hosts.json virtintrospect.fleet.inventory")
    print("Ctrl+C removes them.", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("\nremoving …")


if __name__ == "__main__":
    sys.exit(main())
