"""The hooks in a real libvirtd: installed by the command, called by libvirt, harmless.

The command runs in the mount namespace of a private libvirtd, whose /etc/libvirt is its own.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.guests.lab.private import PATIENCE, Private
from virtintrospect.plugin import source

from .script import patient

#: The command; the hook that it installs has more time to tell than it has in use.
PROGRAM = (sys.executable, "-c", """
import sys
from tests.hooks.script import patient
from virtintrospect.cli.main import run
from virtintrospect.plugin import source
text = patient(source.shipped())
source.shipped = lambda: text
sys.exit(run(sys.argv[1:]))
""")  # fmt: skip


class Host:
    """A private libvirtd, and the hooks' folders beside it."""

    def __init__(self, private: Private, folder: Path) -> None:
        self.private = private
        self.run, self.spool = folder / "run", folder / "lib/spool"
        self.connection = private.connect()

    def hooks(self, command: str, *options: str, code: int = 0) -> list[dict[str, Any]]:
        """``virt-introspect hooks COMMAND`` as on this libvirtd's host."""
        folders = [f"--run-dir={self.run}", f"--spool-dir={self.spool}"]
        done = self.private.run(
            *PROGRAM, "hooks", command, "-o", "json", *folders, *options,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        found = json.loads(done.stdout)
        assert isinstance(found, list)
        return found

    def define(self, extra: str = "") -> Any:
        """A persistent domain that stays in its firmware, with a password in its XML."""
        return self.connection.defineXML(f"""
<domain type='qemu'><name>vi-hook-{os.urandom(4).hex()}</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>{extra}
<devices><controller type='usb' model='none'/><memballoon model='none'/>
<graphics type='vnc' passwd='s3cr3tpw'><listen type='socket'/></graphics></devices></domain>""")

    def told(self, domain: Any) -> list[str]:
        """What the spool has of a domain: operations, in order."""
        found = []
        for path in sorted(self.spool.glob("*.json")):
            message = json.loads(path.read_text())
            assert b"s3cr3tpw" not in path.read_bytes()
            if message["domain"] == domain.name():
                assert message["uuid"] == domain.UUIDString()
                assert message["driver"] == "qemu"
                found.append(message["operation"])
        return found

    def wait_told(self, domain: Any, what: str) -> None:
        wait(lambda: what in self.told(domain), f"{what} of {self.told(domain)}")

    def reload_until_seen(self) -> None:
        """The daemon looks for hooks a moment after SIGHUP."""
        probe = self.define()

        def called() -> bool:
            probe.create()
            probe.destroy()
            return bool(self.told(probe))

        wait(called, "libvirtd calls the hook")
        probe.undefine()


def wait(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.05)


@pytest.fixture
def host(private: Private, tmp_path: Path) -> Iterator[Host]:
    host = Host(private, tmp_path / "host")
    yield host
    host.connection.close()


def test_life_of_a_domain_is_told(host: Host, tmp_path: Path) -> None:
    """Start, stop, save and restore, and libvirtd's own restart and death."""
    assert host.hooks("status", code=6)[0]["state"] == "missing"
    actions = host.hooks("install")
    assert actions[-1]["action"] == "reloaded"
    assert host.hooks("status")[0]["seen"] is True
    host.reload_until_seen()
    assert host.hooks("status")[0]["last_event"] > time.time() - 3600

    domain = host.define()
    domain.create()
    assert host.told(domain) == ["started"]
    domain.destroy()
    assert host.told(domain) == ["started", "stopped"]

    domain.create()
    domain.save(str(tmp_path / "saved"))
    assert host.told(domain)[2:] == ["started", "stopped"]
    host.connection.restore(str(tmp_path / "saved"))
    assert host.told(domain)[-2:] == ["restore", "started"]
    assert domain.isActive()

    pid = (host.private.folder / f"run/qemu/{domain.name()}.pid").read_text()
    others = [host.define() for _ in range(2)]
    for other in others:
        other.create()
    host.private.restart()
    for each in (domain, *others):  # their hooks run at the same time
        host.wait_told(each, "reconnect")
    for path in host.spool.glob("*.json"):
        path.unlink()
    host.private.kill()
    host.private.start()
    host.wait_told(domain, "reconnect")
    assert Path(f"/proc/{pid}/exe").exists(), "the guest runs on"
    assert host.hooks("status")[0]["seen"] is True
    assert "virtintrospect" not in host.private.log.read_text(), "libvirt has nothing to complain"
    log = host.private.folder / f"log/qemu/{domain.name()}.log"
    assert "tainted" not in log.read_text()

    host.connection = host.private.connect()
    assert host.hooks("install")[-1]["action"] == "unchanged"
    host.hooks("remove")
    assert not host.spool.parent.exists()
    assert not (host.private.hooks / "qemu.d").exists()
    again = host.define()
    again.create()  # without a reload
    again.destroy()


def test_users_hooks_go_on(host: Host, tmp_path: Path) -> None:
    """A hook that libvirt knows of already: no reload is needed; the user's runs first."""
    said = tmp_path / "said"
    hook = host.private.hooks / "qemu"
    hook.write_text(f'#!/bin/sh\ncat >/dev/null\necho "$2" >>{said}\n')
    hook.chmod(0o755)
    host.private.restart()
    host.connection = host.private.connect()
    assert [action["action"] for action in host.hooks("install")][-1] == "created"
    domain = host.define()
    domain.create()
    domain.destroy()
    assert said.read_text().split() == ["prepare", "start", "started", "stopped", "release"]
    assert host.told(domain) == ["started", "stopped"]
    text = hook.read_text()
    host.hooks("remove")
    assert hook.read_text() == text


def _no_spool(host: Host) -> None:
    shutil.rmtree(host.spool)


def _full_spool(host: Host) -> None:
    for number in range(1000):
        (host.spool / f"{number}-0.json").touch()


def _stuck_daemon(host: Host) -> None:
    """Somebody who listens and never reads, in a process that lasts as long as the test."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(host.run / "hook.sock"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            while True:
                sender.sendto(b"x", str(host.run / "hook.sock"))
        except BlockingIOError:
            pass
    _KEPT.append(receiver)


def _no_python(host: Host) -> None:
    path = host.private.hooks / "qemu.d/50-virtintrospect"
    path.write_text(path.read_text().replace("/usr/bin/python3", "/usr/bin/no-python3"))


_KEPT: list[socket.socket] = []


def test_no_broken_thing_stops_a_guest(host: Host) -> None:
    host.hooks("install")
    host.reload_until_seen()
    for breakage in (_stuck_daemon, _full_spool, _no_spool, _no_python):
        breakage(host)
        domain = host.define()
        domain.create()
        assert domain.isActive(), breakage
        if breakage in (_no_spool, _no_python):
            host.private.restart()  # a bad status of "reconnect" would kill it
            host.connection = host.private.connect()
            domain = host.connection.lookupByName(domain.name())
            time.sleep(1)
            assert domain.isActive(), breakage
        domain.destroy()
    _KEPT.clear()
    assert "50-virtintrospect" not in host.private.log.read_text()


def test_hook_that_libvirt_does_not_know_of(host: Host) -> None:
    """One put there by hand is found out, and libvirtd reloaded; an update needs no reload."""
    path = host.private.hooks / "qemu.d/50-virtintrospect"
    path.parent.mkdir()
    text = patient(source.shipped())
    path.write_bytes(source.with_places(text, source.Places(host.run, host.spool)))
    path.chmod(0o755)
    (status,) = host.hooks("status", code=6)
    assert (status["state"], status["seen"]) == ("installed", False)
    assert "reload" in status["advice"]
    done = {action["action"]: action["subject"] for action in host.hooks("install")}
    assert done["unchanged"] == str(path).replace(str(host.private.hooks), "/etc/libvirt/hooks")
    assert done["reloaded"] == f"libvirtd[{host.private.pid}]"
    assert host.hooks("status")[0]["seen"] is True
    path.write_bytes(path.read_bytes() + b"# an older version\n")
    assert host.hooks("status", code=6)[0]["state"] == "differs"
    assert [action["action"] for action in host.hooks("install")] == ["updated"]
    assert host.hooks("status")[0]["seen"] is True


def test_a_daemon_of_another_host_is_left_alone(host: Host) -> None:
    """Installing on this machine does not reload the libvirtd of somebody else's namespace."""
    from virtintrospect.plugin.daemons import running

    inside = list(running(host.private.hooks))
    assert [daemon.pid for daemon in inside] == [host.private.pid]
    machine = Path("/etc/libvirt/hooks")
    assert host.private.pid not in [daemon.pid for daemon in running(machine)]


def test_migration_is_told_where_the_guest_arrives(host: Host, tmp_path: Path) -> None:
    """Two libvirtds of this machine; what the hook prints would replace the guest's XML."""
    host.hooks("install")
    host.reload_until_seen()
    with Private() as private:
        other = Host(private, tmp_path / "other")
        other.hooks("install")
        other.reload_until_seen()
        domain = host.define()
        domain.create()
        uri = {"migrate_uri": "tcp:127.0.0.1", libvirt.VIR_MIGRATE_PARAM_DEST_NAME: domain.name()}
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        flags |= libvirt.VIR_MIGRATE_PERSIST_DEST
        arrived = domain.migrate3(other.connection, uri, flags)
        assert arrived.isActive()
        host.wait_told(arrived, "stopped")
        assert host.told(arrived) == ["started", "stopped"]
        assert other.told(arrived) == ["migrate", "started"]
        assert "s3cr3tpw" in arrived.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        arrived.destroy()
        other.connection.close()
