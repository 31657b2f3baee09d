"""Containers: real namespaces and control groups, named as the runtimes name theirs.

The names are imitated (their sources: containernames.py), all else is real; and one container
is made by a real runtime, Debian's runc, as Docker has it make its own. What the guest says of
each comes from its own files.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Container
from virtintrospect.session import open_session

from .lab import apt
from .lab.domain import Config
from .lab.guest import Guest
from .lab.runc import runc

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

HEX = [f"{number:x}" * 64 for number in range(16)]
POD = "8c5d1f0e-3c4b-4b6a-9d52-0123456789ab"


class Kind(NamedTuple):
    """A container to make, and what is to be said of it."""

    runtime: str
    id: str
    #: Its own control group, and one further below where its processes are.
    group: str
    inside: str = ""
    name: str | None = None
    pod: str | None = None
    #: Arguments of the helper of the runtime that is its parent.
    helper: str = "/usr/bin/helper"


_PODS = f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{POD.replace('-', '_')}"
KINDS = (
    Kind("docker", HEX[0], f"/docker/{HEX[0]}"),
    Kind("docker", HEX[1], f"/system.slice/docker-{HEX[1]}.scope", "/init.scope"),
    Kind(
        "podman", HEX[2], f"/machine.slice/libpod-{HEX[2]}.scope", "/container", "web",
        helper="/usr/bin/conmon --api-version 1 -c ID -u ID -n web -b /run",
    ),
    Kind("podman", HEX[3], f"/libpod_parent/libpod-{HEX[3]}"),
    Kind("containerd", HEX[4], f"{_PODS}.slice/cri-containerd-{HEX[4]}.scope", pod=POD),
    Kind("cri-o", HEX[5], f"{_PODS}.slice/crio-{HEX[5]}.scope", pod=POD),
    Kind("kubernetes", HEX[6], f"/kubepods/burstable/pod{POD}/{HEX[6]}", pod=POD),
    Kind(
        "containerd", HEX[7], f"/kubepods/burstable/pod{POD}/{HEX[7]}", pod=POD,
        helper="/bin/containerd-shim-runc-v2 -namespace k8s.io -id ID",
    ),
    Kind("containerd", "redis", "/default/redis"),
    Kind(
        "systemd-nspawn", "deb12", "/machine.slice/systemd-nspawn@deb12.service", "/payload",
        "deb12",
    ),
    Kind("systemd-nspawn", "a-b", r"/machine.slice/machine-a\x2db.scope", name="a-b"),
    Kind("libvirt-lxc", "box", r"/machine.slice/machine-lxc\x2d3\x2dbox.scope", name="box"),
    Kind("lxc", "c1", "/lxc.payload.c1", "/system.slice", "c1"),
    Kind(
        "incus", "c2", "/lxc.payload.c2", name="c2",
        helper="[lxc monitor] /var/lib/incus/containers c2",
    ),
    Kind(
        "lxd", "c3", "/lxc.payload.c3", name="c3",
        helper="[lxc monitor] /var/snap/lxd/common/lxd/containers c3",
    ),
)  # fmt: skip

#: What is no container, and the namespaces and the root that it has: a virtual machine, what
#: guards a container, a service with mounts of its own, one that was only chrooted, a group that
#: looks like one of ctr's.
NEITHER = (
    (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope", "-", "-"),
    (f"/machine.slice/libpod-conmon-{HEX[2]}.scope", "-", "-"),
    ("/machine.slice/systemd-nspawn@deb12.service/supervisor", "-", "-"),
    ("/lxc.monitor.c1", "-", "-"),
    ("/system.slice/private.service", "m", "-"),
    ("/system.slice/jail.service", "-", "/tmp/ctroot"),
    ("/default/folder", "-", "-"),
)
#: Containers of no runtime: PID namespace, mount namespace with another root.
UNKNOWN = {"/anywhere/pid": ("p", "-"), "/anywhere/mnt": ("mu", "/tmp/ctroot")}

SPACES = "muip"


def words(*arguments: str) -> str:
    return " ".join(shlex.quote(argument) for argument in ("/tmp/container", *arguments))


@pytest.fixture(scope="module")
def contained(guest: Guest) -> Iterator[Guest]:
    guest.install("container", "/tmp/container")
    commands = ["mkdir /tmp/ctroot", "echo +memory > /sys/fs/cgroup/cgroup.subtree_control"]
    for number, kind in enumerate(KINDS):
        helper = kind.helper.replace("ID", kind.id).split(" ")
        if kind.helper.startswith("["):
            helper = [kind.helper]
        root = "/tmp/ctroot" if number % 2 else "-"
        group = kind.group + kind.inside
        commands.append(words(group, f"box{number}", root, SPACES, *helper))
    for group, spaces, root in NEITHER:
        commands.append(words(group, "none", root, spaces, "/bin/service"))
    for group, (spaces, root) in UNKNOWN.items():
        commands.append(words(group, "own", root, spaces, "/bin/service"))
    guest.run("; ".join(commands), 90)
    yield guest
    guest.run(
        "for p in /proc/[0-9]*; do case $(readlink $p/exe) in /tmp/container) kill -9 ${p#/proc/};;"
        " esac; done; true"
    )


def test_every_pattern(linux: LinuxGuest, contained: Guest) -> None:
    before = memory(contained)
    rows = {(row.runtime, row.id.decode()): row for row in linux.containers()}
    for number, kind in enumerate(KINDS):
        row = rows[kind.runtime, kind.id]
        assert row.cgroup_path == kind.group.encode()
        assert row.name == (kind.name.encode() if kind.name else None)
        assert row.pod_uid == kind.pod
        assert row.hostname == f"box{number}".encode()
        assert row.root == (b"/ctroot" if number % 2 else b"/")
        agrees(contained, row, kind.group + kind.inside, memory_before=before)
    assert linux.take_problems() == []


def test_what_is_of_no_known_runtime(linux: LinuxGuest, contained: Guest) -> None:
    rows = {row.cgroup_path: row for row in linux.containers() if row.runtime == "unknown"}
    for group, (spaces, _) in UNKNOWN.items():
        row = rows[group.encode()]
        kind = "pid" if "p" in spaces else "mnt"
        assert [row.id.decode()] == links(contained, row.pid, [kind])
        agrees(contained, row, group, {"p": ["pid"], "mu": ["mnt", "uts"]}[spaces])


def test_what_is_no_container(linux: LinuxGuest, contained: Guest) -> None:
    shown = {pid for row in linux.containers() for pid in row.pids}
    for group, _, _ in NEITHER:
        pids = contained.get(f"/sys/fs/cgroup{group}/cgroup.procs").split()
        assert len(pids) == 2
        assert not shown & set(map(int, pids)), group


def links(guest: Guest, pid: int, kinds: Sequence[str]) -> list[str]:
    files = " ".join(f"/proc/{pid}/ns/{kind}" for kind in kinds)
    return re.findall(r"-> (\S+)", guest.run(f"ls -l {files}").decode())


def memory(guest: Guest) -> dict[str, int]:
    """What each of the topmost groups takes up, by its path."""
    said = guest.run("cd /sys/fs/cgroup; grep -H . */memory.current").decode("latin-1")
    lines = (line.rpartition("/memory.current:") for line in said.splitlines())
    return {f"/{path}": int(value) for path, _, value in lines}


def agrees(
    guest: Guest,
    row: Container,
    group: str,
    kinds: Sequence[str] = ("ipc", "mnt", "pid", "uts"),
    *,
    memory_before: Mapping[str, int] | None = None,
) -> None:
    """Processes, namespaces, start and memory are what the guest says.

    :param memory_before: as of :func:`memory`; the kernel gives some of it back with a delay.
    """
    pids = list(map(int, guest.get(f"/sys/fs/cgroup{group}/cgroup.procs").split()))
    assert list(row.pids) == pids
    assert row.processes == len(pids) == 2
    assert row.pid == pids[0]
    assert list(row.namespaces) == links(guest, row.pid, kinds)
    path = (row.cgroup_path or b"").decode()
    if row.runtime != "unknown" and memory_before is not None and path.count("/") == 1:
        # Only the topmost groups have their memory counted here.
        low, high = sorted((memory_before[path], memory(guest)[path]))
        assert row.memory_current is not None
        assert low <= row.memory_current <= high
    ticks = int(guest.get(f"/proc/{row.pid}/stat").rpartition(b")")[2].split()[19])
    boot = re.search(r"^btime (\d+)$", guest.get("/proc/stat").decode(), re.MULTILINE)
    assert boot is not None
    assert row.started is not None
    assert abs(row.started - int(boot[1]) - ticks // 100) <= 1


def test_a_container_of_a_real_runtime(one_guest: Guest) -> None:
    """runc with a bundle of busybox, and the ``cgroupsPath`` that Docker gives it."""
    guest, identity = one_guest, HEX[15]
    try:
        files = runc()
    except apt.NoSuchPackageError as error:
        pytest.skip(str(error))
    guest.run("mkdir -p /lib64 /lib/x86_64-linux-gnu /tmp/bundle/rootfs/bin")
    for path, content in files.items():
        guest.put(path, content, 0o755)
    guest.put("/tmp/bundle/config.json", json.dumps(bundle(identity)).encode())
    guest.run(
        "cp /bin/busybox /tmp/bundle/rootfs/bin;"
        f"runc run --no-pivot -d -b /tmp/bundle {identity} </dev/null >/tmp/runc.log 2>&1",
        90,
    )
    # What runc needed to start it goes a moment later.
    usage = f"/sys/fs/cgroup/docker/{identity}/memory.current"
    while guest.get(usage) != guest.run(f"sleep 0.5; cat {usage}"):
        pass
    before = int(guest.get(usage))
    with open_session(guest.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        (row,) = (row for row in session.guest.containers() if row.id == identity.encode())
        (group,) = session.guest.cgroups(f"/docker/{identity}")
    state = json.loads(guest.run(f"runc state {identity}", 60))
    assert row.runtime == "docker"
    assert row.pid == state["pid"]
    assert row.pids == (row.pid,)
    assert row.hostname == b"real"
    assert row.root == b"/bundle/rootfs"
    assert row.cgroup_path == f"/docker/{identity}".encode()
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
    assert list(row.namespaces) == links(guest, row.pid, kinds)
    low, high = sorted((before, int(guest.get(usage))))
    assert row.memory_current is not None
    assert low <= row.memory_current <= high
    assert (group.memory_max, group.pids_max) == (64 << 20, 20)
    guest.run(f"runc delete -f {identity}", 60)
    with open_session(guest.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        assert identity.encode() not in {row.id for row in session.guest.containers()}


def bundle(identity: str) -> dict[str, object]:
    """config.json of the OCI runtime specification."""
    kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup")
    return {
        "ociVersion": "1.0.2",
        "hostname": "real",
        "root": {"path": "rootfs"},
        "process": {
            "args": ["/bin/busybox", "sleep", "99999"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
        },
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"/docker/{identity}",
            "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 20}},
            "namespaces": [{"type": kind} for kind in kinds],
        },
    }


def test_patterns_in_hierarchies_of_version_1(boot: Callable[[Config], Guest]) -> None:
    """Docker and LXC as of 2019: groups in the hierarchy of each controller."""
    guest = boot(Config("5.10", cmdline="lab.workload=0"))
    guest.install("container", "/tmp/container")
    guest.run(
        "umount /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup; cd /sys/fs/cgroup;"
        "for c in memory pids; do mkdir $c; mount -t cgroup -o $c none $c; done;"
        f"mkdir -p pids/docker/{HEX[0]}/below memory/docker/{HEX[0]}/below memory/lxc/c1"
    )
    for group, name in ((f"docker/{HEX[0]}/below", "whale"), ("lxc/c1", "box")):
        guest.run(words(f"/memory/{group}", name, "-", SPACES, "/bin/helper"))
    procs = f"docker/{HEX[0]}/below/cgroup.procs"
    guest.run(f"cd /sys/fs/cgroup; for p in $(cat memory/{procs}); do echo $p > pids/{procs}; done")
    usage = "/sys/fs/cgroup/memory/lxc/c1/memory.usage_in_bytes"
    before = int(guest.get(usage))
    with open_session(guest.name) as session:
        assert isinstance(session.guest, LinuxGuest)
        rows = {row.runtime: row for row in session.guest.containers()}
        assert session.guest.take_problems() == []
    assert set(rows) == {"docker", "lxc"}
    assert rows["docker"].cgroup_path == f"/docker/{HEX[0]}".encode()
    assert rows["docker"].hostname == b"whale"
    assert rows["lxc"].id == b"c1"
    low, high = sorted((before, int(guest.get(usage))))
    assert rows["lxc"].memory_current is not None
    assert low <= rows["lxc"].memory_current <= high
    assert rows["lxc"].processes == 2
