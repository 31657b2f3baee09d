"""Every table on kernels that Debian builds otherwise: the full ones, and PREEMPT_RT.

Other options than the cloud kernels of the matrix move members about: a spinlock of PREEMPT_RT
is an rtmutex, and full kernels trace, audit and account more.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.tables import COMMANDS
from virtintrospect.session import Session, open_session

from . import compare
from .conftest import Lab
from .lab.domain import Config
from .lab.guest import Guest
from .test_counters import field

KERNELS = (
    Config("6.1-full", levels=5, backing="anonymous"),
    Config("6.12-full", pti=False),
    Config("6.1-rt", pti=False),
    Config("6.12-rt", levels=5, backing="anonymous", vcpus=2),
)
#: Listens, and holds one file of each of some kinds open.
_SETUP = """
ip link set lo up; cd /tmp; mkdir -p fs; mount -t tmpfs -o size=1m,noexec small fs
nc -l -p 8080 </dev/null >/dev/null 2>&1 &
sleep 3000 < /etc/passwd > /tmp/fs/out 2>/dev/null & echo $!
until netstat -ltn 2>/dev/null | grep -q :8080; do usleep 100000; done
"""


@pytest.fixture(scope="module", params=KERNELS, ids=lambda config: config.id)
def other(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Guest]:
    yield lab.guest(request.param)
    lab.release(request.param)


@pytest.fixture(scope="module")
def holder(other: Guest) -> int:
    """Pid of a process with known files."""
    return int(other.run(_SETUP))


@pytest.fixture(scope="module")
def opened(other: Guest) -> Iterator[Session]:
    with open_session(other.name) as session:
        yield session


@pytest.fixture
def linux(opened: Session, holder: int) -> Iterator[LinuxGuest]:  # noqa: ARG001 (set up first)
    guest = opened.guest
    assert isinstance(guest, LinuxGuest)
    guest.take_problems()
    yield guest
    assert guest.take_problems() == []


def test_info(linux: LinuxGuest, other: Guest) -> None:
    info = linux.info()
    assert info.release.decode() == other.release
    assert info.version == other.get("/proc/sys/kernel/version").strip()
    assert info.cpus == other.config.vcpus
    assert (b"PREEMPT_RT" in info.version) == other.config.kernel.endswith("rt")


def test_processes_threads_modules_and_log(linux: LinuxGuest, other: Guest) -> None:
    before = other.snapshot()
    ours = linux.processes()
    middle = other.snapshot()
    threads = linux.processes(threads=True)
    modules = linux.modules()
    log = linux.dmesg()
    after = other.snapshot()
    assert compare.processes(ours, before, middle) == []
    assert compare.threads(threads, middle, after) == []
    assert compare.modules(modules, after) == []
    assert compare.log(log, middle) == []


def test_counters(linux: LinuxGuest, other: Guest) -> None:
    """The lines that the guest has; what stands still is equal."""
    before = other.snapshot().meminfo
    ours = linux.meminfo()
    lines = {name for name in type(ours).__dataclass_fields__ if getattr(ours, name) is not None}
    # Until 6.17 only zswap's own allocator knows what it takes up.
    assert {field(name) for name in before} ^ lines <= {"zswap"}
    assert ours.memory_total == before["MemTotal"]
    assert abs((ours.memory_free or 0) - before["MemFree"]) < 24 << 20
    names = [line.split()[0] for line in other.get("/proc/vmstat").splitlines()]
    assert [row.name for row in linux.vmstat()] == names
    assert [row.cpu for row in linux.cpu()] == list(range(other.config.vcpus))
    assert linux.load().total > 50


def test_files_mounts_and_maps(linux: LinuxGuest, other: Guest, holder: int) -> None:
    files = {file.fd: file for file in linux.files(holder)}
    for fd in (0, 1, 2):
        link = other.run(f"readlink /proc/{holder}/fd/{fd}").rstrip(b"\n")
        mode = int(other.run(f"stat -L -c %f /proc/{holder}/fd/{fd}"), 16)
        assert files[fd].path == link
        assert (files[fd].type == "regular") == stat.S_ISREG(mode)
    mine = [(m.device, m.path, m.type) for m in linux.mounts()]
    theirs = [tuple(line.split()[:3]) for line in other.get("/proc/1/mounts").splitlines()]
    assert mine[: len(theirs)] == theirs
    areas = [(area.start, area.end) for area in linux.maps(holder)]
    lines = other.get(f"/proc/{holder}/maps").splitlines()
    assert areas == [tuple(int(n, 16) for n in line.split()[0].split(b"-")) for line in lines]
    theirs_names = [entry.split(b"=")[0] for entry in other.get("/proc/1/environ").split(b"\0")]
    assert [variable.name for variable in linux.environment(1)] == theirs_names[:-1]


def test_sockets_and_interfaces(linux: LinuxGuest, other: Guest) -> None:
    ports = {row.local_port: row for row in linux.sockets(listening=True)}
    owner = ports[8080]
    assert owner.pid is not None
    assert other.get(f"/proc/{owner.pid}/cmdline").split(b"\0")[:2] == [b"nc", b"-l"]
    unix = re.findall(rb"^[0-9a-f]+: .* (\d+)(?: \S+)?$", other.get("/proc/net/unix"), re.M)
    ours = {row.socket for row in linux.sockets() if row.family == "unix"}
    assert {int(inode) for inode in unix} <= ours
    names = other.run("ls /sys/class/net").split()
    assert {row.interface for row in linux.interfaces()} == set(names)


def test_every_command_has_an_answer(linux: LinuxGuest, holder: int) -> None:
    for table in COMMANDS:
        if table.name == "pressure":
            continue  # Debian has it switched off
        found = getattr(linux, table.source)(*([holder] if table.argument else []))
        assert found or table.name in (
            "containers",
            "neighbours",
            "routes",
            "bpf",
            "logins",
            "nested",
        ), table.name
