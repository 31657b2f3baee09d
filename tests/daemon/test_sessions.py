"""Sessions of real domains, through all that can happen to them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.descriptors import descriptors
from tests.guests.lab.domain import domain_xml
from tests.guests.lab.guest import Guest
from tests.guests.lab.initramfs import initramfs
from tests.guests.lab.kernels import kernel
from tests.guests.lab.private import Private
from tests.hooks.script import patient

from .conftest import SMALL
from .running import COMMAND, Running, eventually, running

#: Guests boot, some of them twice, on a machine that may be busy.
pytestmark = pytest.mark.timeout(900)

Start = Callable[..., Guest]


def without_daemon(daemon: Running, *arguments: str, code: int = 0) -> Any:
    return daemon.command("--no-daemon", *arguments, code=code)


# -- states ---------------------------------------------------------------------------------


def test_session_is_ready_after_a_start_and_gone_after_the_end(
    shared: Running, start: Start
) -> None:
    guest = start()
    row = shared.wait(guest.name)
    assert row["uuid"] == guest.uuid
    assert row["kernel"] == guest.release
    assert row["driver"] == "kvm"
    assert row["transport"] == "kvm-mmap"
    assert "error" not in row
    assert abs(row["since"] - time.time()) < 600
    guest.destroy()
    shared.wait(guest.name, "gone")


def test_reboot_is_noticed(shared: Running, start: Start) -> None:
    guest = start()
    shared.wait(guest.name)
    before = shared.command("-o", "json", "info", guest.name).stdout
    gone = f"kernel gone domain={guest.name}"
    assert gone not in shared.text()  # booting alone, which unmaps a part of it, is no reboot
    guest.run("(sleep 1; reboot -f) </dev/null >/dev/null 2>&1 &")
    eventually(lambda: gone in shared.text())
    wait_booted_anew(guest)
    shared.wait(guest.name)
    after = shared.command("-o", "json", "info", guest.name).stdout
    assert json.loads(after)["boot_time"] > json.loads(before)["boot_time"] + 1


def wait_booted_anew(guest: Guest) -> None:
    """By its console: a question to the kernel that goes would never be answered."""
    eventually(lambda: guest.console.read_bytes().count(b"lab: ready") > 1, "no second boot", 180)
    guest.wait_ready()


def test_kexec_is_noticed(shared: Running, private: Private) -> None:
    """Another kernel takes over memory in which much of the old one still lies."""
    with Guest(SMALL, private=private) as guest:
        shared.wait(guest.name)
        other = kernel("6.1")
        guest.put("/tmp/vmlinuz", other.vmlinuz.read_bytes())
        guest.put("/tmp/initramfs", initramfs(other).read_bytes())
        guest.install("kexec", "/tmp/kexec")
        assert guest.run("/tmp/kexec /tmp/vmlinuz /tmp/initramfs", 120) == b"loaded\n"
        eventually(lambda: f"kernel gone domain={guest.name}" in shared.text())
        wait_booted_anew(guest)
        assert guest.run("uname -r").decode().strip() == other.release
        eventually(lambda: shared.session(guest.name).get("kernel") == other.release)
        shared.wait(guest.name)
        assert "init" in shared.command("ps", guest.name).stdout
        assert guest.domain.ID() == shared.session(guest.name)["id"]


def test_save_and_restore(shared: Running, private: Private, start: Start) -> None:
    """Restored and not yet resumed, memory is still arriving: as in an incoming migration."""
    import libvirt

    guest = start()
    shared.wait(guest.name)
    place = f"/var/lib/libvirt/{guest.name}.save"
    guest.disconnect()
    guest.domain.save(place)
    shared.wait(guest.name, "gone")
    connection = private.connect()
    try:
        connection.restoreFlags(place, None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
        guest.domain = connection.lookupByName(guest.name)
        eventually(lambda: shared.session(guest.name)["state"] != "gone")
        if tuple(guest.domain.state()) == (3, 2):  # paused, migration
            eventually(lambda: "arriving" in shared.wait(guest.name, "seen").get("error", ""))
        guest.domain.resume()
        shared.wait(guest.name)
        guest.wait_ready()
        assert "init" in shared.command("ps", guest.name).stdout
    finally:
        private.outside(place).unlink()


def test_migration(shared: Running, start: Start, tmp_path: Path) -> None:
    """Out of one libvirt's hands and into another's; the daemon there waits for the memory."""
    import libvirt

    guest = start()
    shared.wait(guest.name)
    guest.disconnect()
    with Private() as other, running(tmp_path, other.uri) as daemon:
        eventually(lambda: daemon.ask("sessions")["libvirt"])  # from when on it is told
        there = other.connect()
        where = {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1"}
        guest.domain.migrate3(there, where, libvirt.VIR_MIGRATE_LIVE)
        shared.wait(guest.name, "gone")
        daemon.wait(guest.name)
        assert "init" in daemon.command("ps", guest.name).stdout
        said = [line for line in daemon.text().splitlines() if guest.name in line]
        resumed = next(n for n, line in enumerate(said) if "happened=resumed" in line)
        opened = next(n for n, line in enumerate(said) if "state=waiting" in line)
        assert resumed < opened
        there.close()


def test_hotplugged_memory_is_seen(
    shared: Running, private: Private, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory map changes under the session, which opens it anew."""
    plugged = """<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target>
        </memory>"""

    def pluggable(*arguments: Any, **options: Any) -> str:
        xml = domain_xml(*arguments, **options)
        most = "<maxMemory slots='2' unit='MiB'>1024</maxMemory><memory "
        node = "<numa><cell id='0' cpus='0' memory='256' unit='MiB' memAccess='shared'/></numa>"
        return xml.replace("<memory ", most, 1).replace("</cpu>", f"{node}</cpu>")

    monkeypatch.setattr("tests.guests.lab.guest.domain_xml", pluggable)
    with Guest(SMALL, private=private) as guest:
        shared.wait(guest.name)
        guest.domain.attachDevice(plugged)
        eventually(lambda: f"memory map changed domain={guest.name}" in shared.text())
        shared.wait(guest.name)
        assert "init" in shared.command("ps", guest.name).stdout


def test_paused_guest_is_ready(private: Private, one: Guest, tmp_path: Path) -> None:
    one.domain.suspend()
    try:
        with running(tmp_path, private.uri) as daemon:
            daemon.wait(one.name)
            assert "init" in daemon.command("ps", one.name).stdout
    finally:
        one.domain.resume()


def test_domain_that_vanishes_during_attach(shared: Running, private: Private) -> None:
    """Guests in their firmware are started and destroyed while they are being opened."""
    names = []
    for pause in (0, 0.02, 0.05, 0.1):
        guest = Guest(SMALL, firmware_only=True, private=private)
        names.append(guest.name)
        time.sleep(pause)
        guest.destroy()
    eventually(lambda: all(shared.session(n).get("state", "gone") == "gone" for n in names))
    assert "Traceback" not in shared.text()


def test_guest_without_a_kernel_waits(shared: Running, private: Private) -> None:
    with Guest(SMALL, firmware_only=True, private=private) as guest:
        row = shared.wait(guest.name, "waiting")
        eventually(lambda: "no Linux kernel" in shared.session(guest.name).get("error", ""))
        # Whoever asks looks for himself, and is told the truth.
        assert "firmware" in shared.command("ps", guest.name, code=5).stderr
        assert "kernel" not in row


# -- the command ----------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["ps", "info", "modules", "dmesg", "mounts", "files", "maps 1",
                                   "env 1", "interfaces", "sysctl kernel.*", "routes",
                                   "sockets --listening", "ps --threads",
                                   "ps --tree", "files --pid 1"])  # fmt: skip
@pytest.mark.parametrize("output", ["json", "table"])
def test_answer_is_the_same_with_and_without(
    shared: Running, one: Guest, table: str, output: str
) -> None:
    """The guest is paused, so that both see the same."""
    shared.wait(one.name)
    name, *rest = table.split()
    arguments = ["-o", output, name, one.name, *rest]
    one.domain.suspend()
    try:
        ours = shared.command("--debug", *arguments)
        theirs = without_daemon(shared, *arguments)
    finally:
        one.domain.resume()
    assert ours.stdout == theirs.stdout
    assert "not from the daemon" not in ours.stderr
    assert "no daemon" not in ours.stderr


def test_findings_are_the_same(shared: Running, one: Guest) -> None:
    shared.wait(one.name)
    rules = [word for rule in ("deleted-executable", "taint") for word in ("--rule", rule)]
    arguments = ("-o", "json", "check", one.name, *rules, "--listening-allow", "tcp:22")
    ours = shared.command("--debug", *arguments, code=6)
    theirs = without_daemon(shared, *arguments, code=6)
    assert ours.stdout == theirs.stdout
    assert "deleted-program" in ours.stdout
    assert "not from the daemon" not in ours.stderr


@pytest.mark.parametrize("arguments", [["maps", "99999"], ["files", "--pid", "99999"],
                                       ["maps", "2"]])  # fmt: skip
def test_errors_are_the_same(shared: Running, one: Guest, arguments: list[str]) -> None:
    name, *rest = arguments
    ours = shared.command("-v", name, one.name, *rest, code=3)
    theirs = without_daemon(shared, "-v", name, one.name, *rest, code=3)
    assert ours.stderr == theirs.stderr


def test_client_loads_neither_libvirt_nor_numpy(shared: Running, one: Guest) -> None:
    program = (
        "import sys\nfrom virtintrospect.cli.main import run\n"
        f"code = run(['-o', 'json', 'ps', {one.name!r}])\n"
        "bad = {'numpy', 'libvirt', 'rich', 'tenacity', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(f'{bad}' if bad else code)"
    )
    shared.wait(one.name)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env=os.environ | {"VIRTINTROSPECT_SOCKET": shared.socket},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert any(row["name"] == "init" for row in json.loads(done.stdout))


@pytest.mark.parametrize("by", ["name", "uuid", "id"])
def test_domain_by_name_uuid_or_id(shared: Running, one: Guest, by: str) -> None:
    shared.wait(one.name)
    target = {"name": one.name, "uuid": one.uuid, "id": str(one.domain.ID())}[by]
    assert shared.ask("table", domain=target, table="load")["rows"]


def test_other_libvirt_is_not_answered_for(shared: Running, one: Guest) -> None:
    shared.wait(one.name)
    done = subprocess.run(  # libvirt's own test driver: always there, and not the daemon's
        [COMMAND, "-c", "test:///default", "ps", one.name], capture_output=True, text=True,
        env=os.environ | {"VIRTINTROSPECT_SOCKET": shared.socket}, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert one.name in done.stderr


def test_list_is_the_same_and_has_the_session(shared: Running, one: Guest) -> None:
    shared.wait(one.name)
    ours = {row["name"]: row for row in json.loads(shared.command("-o", "json", "list").stdout)}
    theirs = json.loads(without_daemon(shared, "-o", "json", "list").stdout)
    row = ours[one.name]
    assert row.pop("session") == "ready"
    assert row == next(row for row in theirs if row["name"] == one.name)


def test_daemon_that_hangs_costs_a_moment(private: Private, one: Guest, tmp_path: Path) -> None:
    with running(tmp_path, private.uri) as daemon:
        daemon.wait(one.name)
        os.kill(daemon.pid, signal.SIGSTOP)
        start = time.monotonic()
        assert "init" in daemon.command("ps", one.name).stdout
        assert time.monotonic() - start < 60


# -- by hand --------------------------------------------------------------------------------


def test_detach_and_attach(private: Private, one: Guest, tmp_path: Path) -> None:
    with running(tmp_path, private.uri) as daemon:
        daemon.wait(one.name)
        opened = _opened(daemon, one)
        assert opened
        assert "detached" in daemon.command("detach", one.name).stdout
        eventually(lambda: not _opened(daemon, one))
        assert daemon.session(one.name)["state"] == "detached"
        assert daemon.session(one.name)["forever"] is False
        assert "init" in daemon.command("ps", one.name).stdout  # by hand it can be looked into
        assert '"session": "detached"' in daemon.command("-o", "json", "list").stdout
        daemon.command("attach", one.name)
        daemon.wait(one.name)
        daemon.command("detach", one.name, "--forever")
        daemon.stop(signal.SIGKILL)
        daemon.start()
        assert daemon.wait(one.name, "detached")
        assert daemon.session(one.name)["forever"] is True
        daemon.command("attach", one.name)
        assert "forever" not in daemon.wait(one.name)
        daemon.stop()
        daemon.start()
        daemon.wait(one.name)
        assert "no session for 'nothing'" in daemon.command("attach", "nothing", code=3).stderr


def test_excluded_domain_is_left_alone(private: Private, one: Guest, tmp_path: Path) -> None:
    with running(tmp_path, private.uri, sessions={"exclude": [one.uuid]}) as daemon:
        daemon.wait(one.name, "detached")
        assert not _opened(daemon, one)
        assert "excludes domain" in daemon.command("attach", one.name, code=1).stderr


def _opened(daemon: Running, guest: Guest) -> list[str]:
    """Descriptors that the daemon has on the guest's QEMU."""
    found = []
    for path in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = str(path.readlink())
            if f"/proc/{guest.pid}" in target or "memory-backend" in target:
                found.append(target)
    return found


# -- restarts -------------------------------------------------------------------------------


def test_libvirt_is_restarted_and_killed(tmp_path: Path) -> None:
    """The sessions go on; guests that are started afterwards are found."""
    with (
        Private() as private,
        Guest(SMALL, private=private) as guest,
        running(tmp_path, private.uri) as daemon,
    ):
        daemon.wait(guest.name)
        private.kill()
        eventually(lambda: daemon.ask("sessions")["libvirt"] is False)
        assert daemon.ask("table", domain=guest.name, table="ps")["rows"]
        private.start()
        eventually(lambda: daemon.ask("sessions")["libvirt"])
        assert daemon.session(guest.name)["state"] == "ready"
        private.restart()
        with Guest(SMALL, firmware_only=True, private=private) as second:
            daemon.wait(second.name, "waiting")
        daemon.wait(second.name, "gone")
        assert daemon.session(guest.name)["state"] == "ready"


def test_daemon_is_killed_at_random_moments(
    private: Private, one: Guest, start: Start, tmp_path: Path
) -> None:
    second = start()
    dice = random.Random(7)
    with running(tmp_path, private.uri) as daemon:
        for _ in range(6):
            time.sleep(dice.uniform(0, 0.6))
            daemon.stop(signal.SIGKILL)
            daemon.start()
        for guest in (one, second):
            daemon.wait(guest.name)
            assert guest.run("echo well") == b"well\n"
        assert {row["name"] for row in daemon.ask("sessions")["rows"]} >= {one.name, second.name}
    assert "tainted" not in second.log


def test_hook_is_heard(private: Private, one: Guest, tmp_path: Path) -> None:
    """Without events and with a list an hour, a hint alone brings the session up."""
    rare = {"uri": private.uri, "reconcile_seconds": 3600.0}
    with running(tmp_path, private.uri, libvirt=rare) as daemon:
        daemon.wait(one.name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hook:
            hook.connect(str(daemon.run / "hook.sock"))
            message = {"version": 1, "driver": "qemu", "domain": one.name, "operation": "started"}
            for data in (b"x" * 4000, b"{}", json.dumps(message).encode()):
                hook.send(data)
        eventually(lambda: f"hook domain={one.name} operation=started" in daemon.text())
        daemon.stop()
        spool = daemon.state / "spool"
        (spool / "1-1.json").write_text(json.dumps(message | {"domain": "\x1b[31mred"}))
        daemon.start()
        eventually(lambda: not list(spool.iterdir()))
        eventually(lambda: r'hook domain="\\x1b[31mred"' in daemon.text())
        daemon.wait(one.name)


HOOK = Path("hooks/qemu.d/50-virtintrospect")


@pytest.mark.skipif(not HOOK.exists(), reason="this tree has no hook")
def test_hook_tells_of_starts_whether_the_daemon_is_there_or_not(
    private: Private, tmp_path: Path
) -> None:
    rare = {"uri": private.uri, "reconcile_seconds": 3600.0}
    with running(tmp_path / "daemon", private.uri, libvirt=rare) as daemon:
        text = patient(HOOK.read_bytes()).decode()
        text = text.replace('"/run/virtintrospect"', f'"{daemon.run}"')
        text = text.replace('"/var/lib/virtintrospect/spool"', f'"{daemon.state}/spool"')
        text = text.replace('"/var/lib/virtintrospect/last-event"', f'"{daemon.state}/last-event"')
        hook = private.hooks / "qemu.d" / HOOK.name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(text)
        hook.chmod(0o755)
        private.restart()  # libvirt looks for hooks when it starts
        try:
            with Guest(SMALL, firmware_only=True, private=private) as guest:
                eventually(lambda: f"hook domain={guest.name} operation=started" in daemon.text())
                daemon.wait(guest.name, "waiting")
            daemon.stop()
            with Guest(SMALL, firmware_only=True, private=private) as guest:
                eventually(lambda: list((daemon.state / "spool").iterdir()))
                daemon.start()
                eventually(lambda: f"hook domain={guest.name} operation=started" in daemon.text())
                daemon.wait(guest.name, "waiting")
                eventually(lambda: not list((daemon.state / "spool").iterdir()))
        finally:
            hook.unlink()


def test_connections_leave_nothing_behind(private: Private) -> None:
    """A connection with its callbacks is closed whole: libvirt restarts now and then."""
    from virtintrospect.host_events import EventHost

    def connect() -> None:
        host = EventHost(private.uri, lambda _: None, lambda: None)
        assert host.alive
        assert list(host.domains()) is not None
        host.close()
        assert not host.alive

    connect()
    before = descriptors()
    for _ in range(10):
        connect()
    # libvirt's event loop closes a socket on its next turn, not in close() itself
    eventually(lambda: not descriptors() - before, "sockets are closed")


def test_nothing_is_left_behind(shared: Running, private: Private) -> None:
    """Domains come and go; descriptors and threads do not grow."""

    def count() -> tuple[int, int]:
        folder = Path(f"/proc/{shared.pid}")
        return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))

    def cycle() -> None:
        with Guest(SMALL, firmware_only=True, private=private) as guest:
            shared.wait(guest.name, "waiting")
        shared.wait(guest.name, "gone")

    cycle()
    before = count()
    for _ in range(5):
        cycle()

    def as_before() -> bool:  # but for workers, which are started when they are needed
        descriptors, threads = count()
        return descriptors <= before[0] + 2 and threads <= before[1] + 4

    eventually(as_before, f"{before} were there before")
