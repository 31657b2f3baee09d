"""What every command waits for: importing its modules, before it has looked at any guest."""

from __future__ import annotations

import subprocess
import sys

#: Each takes longer to import than a small command to run; who needs one imports it late.
SLOW = {"numpy", "asyncio", "rich", "elftools", "qemu.qmp"}


def test_drivers_and_commands_import_nothing_slow() -> None:
    code = (
        "import sys, virtintrospect.cli.main, virtintrospect.session\n"
        "from importlib.metadata import entry_points\n"
        "loaded = [e.load() for e in entry_points(group='virtintrospect.drivers')]\n"
        "print(len(loaded), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *modules = done.stdout.split()
    assert int(count) >= 2
    assert set(modules) & SLOW == set()


def test_a_transport_has_the_name_that_its_driver_says() -> None:
    from virtintrospect_xen.driver import XenDriver
    from virtintrospect_xen.target import XenTarget

    assert XenDriver.transports == (XenTarget.transport,)
