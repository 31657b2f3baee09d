"""The ways to a guest's memory: each shows the same guest, and each ends in words."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtintrospect_kvm.driver import KvmDriver
from virtintrospect_kvm.pulled import PulledMemory

from tests.descriptors import descriptors, left_open
from virtintrospect.driver import Access, Capability
from virtintrospect.errors import (
    EncryptedMemoryError,
    FaultError,
    MemoryAccessError,
    TargetGoneError,
)
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.host import Host
from virtintrospect.session import open_domain, open_session

from . import compare
from .conftest import Lab
from .lab import libvirtd
from .lab.domain import Config
from .lab.guest import Guest
from .lab.private import Private
from .test_counters import paused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="libvirt's system mode needs root")

ROOT = Path(__file__).parents[2]
#: Some 256 processes in the guest, kernel threads and all.
CROWD = Config("6.1", cmdline="lab.sleepers=200")
#: Calls that `ps` of the crowd may take by virDomainMemoryPeek: 3 s, at 5 ms each.
MOST_CALLS = 600
#: VIR_DOMAIN_MESSAGE_TAINTING
TAINTING = 2


@pytest.fixture
def crowd(lab: Lab) -> Guest:
    return lab.guest(CROWD)


def command(*arguments: str, uri: str = libvirtd.URI, code: int = 0) -> tuple[str, str]:
    """Output and errors of a command."""
    program = str(Path(sys.executable).with_name("virt-introspect"))
    line = [program, "-c", uri, "--no-daemon", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def taints(guest: Guest) -> list[str]:
    return list(guest.domain.messages(TAINTING))


# In this order: the monitor taints the guest for good.
@pytest.mark.parametrize("transport", ["kvm-mmap", "kvm-process", "peek", "monitor"])
def test_every_way_shows_what_the_guest_says(crowd: Guest, transport: str) -> None:
    tainted_before = taints(crowd)
    access = Access(transport, taint=transport == "monitor")
    before_us = descriptors()
    with open_session(crowd.name, libvirtd.URI, access=access) as session:
        assert session.target.transport == transport
        guest = session.guest
        assert isinstance(guest, LinuxGuest)
        before = crowd.snapshot()
        started = time.process_time()
        ours = guest.processes(details=True)
        took = time.process_time() - started
        after = crowd.snapshot()
        assert len(ours) >= 256
        assert compare.processes(ours, before, after) == []
        assert guest.take_problems() == []
        types = guest.kernel.translate(guest.symbols.address("__start_BTF"))
        out = memoryview(bytearray(128 << 10))
        session.memory.read_into(types, out)
        assert out == session.memory.read(types, len(out))
        assert bytes(out[:2]) == b"\x9f\xeb"  # BTF's magic
        able = session.target.capabilities()
        assert Capability.GATHER in able
        assert (Capability.VIEW in able) == (transport == "kvm-mmap")
        if isinstance(session.memory, PulledMemory):
            assert session.memory.calls < MOST_CALLS
            assert took < 3
            # A method of the session looks anew, however young what it saw last is.
            calls = session.memory.calls
            assert session.info().hostname == session.info().hostname
            assert session.memory.calls >= calls + 2
    assert left_open(before_us) == set()
    if transport == "monitor":
        assert any("custom" in text for text in taints(crowd))
    else:
        assert taints(crowd) == tainted_before


@pytest.mark.parametrize("transport", ["kvm-process", "peek"])
def test_command_by_a_transport(crowd: Guest, transport: str) -> None:
    out, err = command("info", "--target", crowd.name, "--transport", transport, "-o", "json")
    found = json.loads(out)
    assert (found["transport"], found["live"], found["view"]) == (transport, True, False)
    assert "0xc0000-0x20000000" in found["regions"]
    assert not err
    out, err = command("info", crowd.name, "--transport", transport, "-o", "json")
    assert json.loads(out)["release"] == crowd.release
    assert not err


def test_monitor_is_asked_only_when_that_is_allowed(crowd: Guest) -> None:
    before = taints(crowd)
    _, err = command("info", crowd.name, "--transport", "monitor", code=2)
    assert "tainted" in err
    assert "--allow-taint" in err
    assert taints(crowd) == before
    out, err = command("info", crowd.name, "--transport", "monitor", "--allow-taint", "-o", "json")
    assert json.loads(out)["release"] == crowd.release
    assert crowd.name in err
    assert "tainted (custom-monitor)" in err


def test_unknown_names_are_told_the_known_ones(crowd: Guest) -> None:
    _, err = command("ps", crowd.name, "--transport", "kvm", code=2)
    assert "no transport 'kvm'; it has: kvm-mmap, kvm-process, peek, monitor" in err
    _, err = command("ps", crowd.name, "--in-place", code=2)
    assert "memory images" in err


def test_peek_of_odd_places(crowd: Guest) -> None:
    with open_session(crowd.name, libvirtd.URI, access=Access("peek")) as session:
        memory = session.memory
        with open_session(crowd.name, libvirtd.URI) as direct, paused(crowd):
            for paddr, size in ((0xF0000, 65536), (0xFFFF8, 16), (1 << 20, 5 << 20)):
                assert memory.read(paddr, size) == direct.memory.read(paddr, size)
        for outside in (0xA0000, 0x9FFFC, 512 << 20, 0xFEC00000, 1 << 45):
            with pytest.raises(FaultError):
                memory.read(outside, 8)
        faults: list[int] = []
        assert memory.gather([0xFFFF0, 0xB0000], 16, faults)[16:] == bytes(16)
        assert faults == [1]


def test_domain_that_ends_or_comes_back(private: Private) -> None:
    with Guest(Config("6.1", ram_mib=64), firmware_only=True, private=private) as guest:
        xml = guest.xml
        with Host(private.uri) as host:
            domain = host.domain(guest.name)
        driver = KvmDriver()
        for changes in ({"id": None}, {"id": 4711}):
            with pytest.raises((TargetGoneError, MemoryAccessError), match=guest.name):
                driver.open(dataclasses.replace(domain, **changes), Access("peek"))
        sev = xml.replace("<devices>", "<launchSecurity type='sev'/><devices>")
        for transport in ("peek", "monitor", None):
            with pytest.raises(EncryptedMemoryError):
                driver.open(dataclasses.replace(domain, xml=sev), Access(transport, taint=True))
        before = descriptors()
        with open_domain(domain, access=Access("peek")) as session:
            session.memory.read(0xFFFF0, 16)
            guest.domain.destroy()
            session.memory.expire()
            with pytest.raises(TargetGoneError, match="does not run any more"):
                session.memory.read(0xFFFF0, 16)
            connection = private.connect()
            again = connection.createXML(xml)  # the same name and UUID, another guest
            try:
                session.memory.expire()
                time.sleep(1.1)  # that often it is made sure of (connection.py)
                with pytest.raises(TargetGoneError):
                    session.memory.read(0xFFFF0, 16)
            finally:
                again.destroy()
                connection.close()
                del again, connection  # domains keep their connection open
        assert left_open(before) == set()


#: In one process, since nobody may not even reach this Python: once as root, to have all
#: modules loaded, then as nobody.
_AS_NOBODY = """
import os, sys
from virtintrospect.driver import Access
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.session import open_session
uri, name = sys.argv[1:]
with open_session(name, uri, access=Access("peek")) as session:
    session.memory.read(0xFFFF0, 16)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with open_session(name, uri) as session:
    print(session.target.transport, session.memory.read(0xFFFF0, 16).hex())
try:
    open_session(name, uri, access=Access("kvm-process"))
except VirtIntrospectError as error:
    print(type(error).__name__, error.exit_code, error.hint)
"""


def test_user_who_may_ask_libvirt_only(private: Private) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "kvm", "xen"))
    with Guest(Config("6.1", ram_mib=64), firmware_only=True, private=private) as guest:
        answer = subprocess.run(
            [sys.executable, "-B", "-c", _AS_NOBODY, private.uri, guest.name],
            env={"PYTHONPATH": path, "PATH": os.environ["PATH"]}, capture_output=True, text=True,
            check=True, cwd="/",
        )  # fmt: skip
    first, second = answer.stdout.splitlines()
    assert first.startswith("peek ea5be000f0")  # where a PC begins: SeaBIOS's far jump
    assert second.startswith("AccessDeniedError 4 run as root")


@pytest.fixture
def private() -> Iterator[Private]:
    with Private() as daemon:
        yield daemon


# -- another host: this one, by ssh ---------------------------------------------------------


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[str]:
    """A URI of the machine's libvirt by ssh: a server with keys of its own, on a free port."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("needs openssh-server")
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for name in ("host", "user"):
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(line, check=True)
    port = _free_port()
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.2\nHostKey {tmp_path}/host\n"
        f"AuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\n"
    )
    server = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not _listens(port):
        assert server.poll() is None, server.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    uri = (
        f"qemu+ssh://root@127.0.0.2:{port}/system"
        f"?keyfile={tmp_path}/user&no_verify=1&no_tty=1&known_hosts={tmp_path}/known"
    )
    try:
        yield uri
    finally:
        server.terminate()
        server.communicate(timeout=60)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.2", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        port: int = listener.getsockname()[1]
        return port


def test_guest_of_another_host(crowd: Guest, sshd: str) -> None:
    with open_session(crowd.name, sshd) as session:
        assert session.target.transport == "peek"
        before = crowd.snapshot()
        ours = session.processes(details=True)
        domain = session.domain
        assert session.take_problems() == []
    assert compare.processes(ours, before, crowd.snapshot()) == []
    assert domain is not None
    with pytest.raises(MemoryAccessError, match="its memory is not here"):
        open_domain(domain, access=Access("kvm-process"))
    # QEMU cannot be given a file from another host, so its monitor prints memory.
    with open_domain(domain, access=Access("monitor", taint=True)) as session:
        assert session.info().release.decode() == crowd.release
