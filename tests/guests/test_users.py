"""Files of the page cache, users and logins, and what virsh would tell, on every guest.

The lab's guests have no agent and no logins; what systemd and login would leave is put there by
hand. ``test_virsh.py`` has a guest that has them by itself.
"""

from __future__ import annotations

import re
import struct
from collections import Counter as Count

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.pagecache import CachedFile

from .lab import kernels
from .lab.guest import Guest

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

#: Files in all places that matter, made once a guest. Other tests have swap, to which pages of
#: tmpfs may go; then they are not in the page cache.
_FILES = """
rm -f /tmp/counters/big /tmp/counters/copy; swapoff -a
test ! -e /cached || exit 0
mkdir /cached /cached/tmpfs /cached/bound
mount -t tmpfs none /cached/tmpfs
mount -t tmpfs none /cached/tmpfs
mkdir /cached/tmpfs/sub
mount --bind /cached/tmpfs/sub /cached/bound
seq 60000 > /cached/large; cp /cached/large /cached/tmpfs/large
echo -n below > /cached/tmpfs/sub/file
ln -s tmpfs/../large /cached/relative
ln -s /cached/tmpfs/sub/file /cached/absolute
ln -s /./././././././././././././././././././././././././././././././././cached/large /cached/long
ln -s nowhere /cached/dangling
ln -s turning /cached/turning
echo gone > /cached/deleted; sleep 100000 < /cached/deleted & rm /cached/deleted
dd if=/cached/large of=/cached/tmpfs/sparse bs=4096 count=2 2>/dev/null
dd if=/cached/large of=/cached/tmpfs/sparse bs=4096 count=1 seek=64 conv=notrunc 2>/dev/null
"""
_RECORD = struct.Struct("<hxxi32s4s32s256s4xiii36x")
_LOGIN, _USER, _DEAD = 6, 7, 8


@pytest.fixture
def files(guest: Guest) -> Guest:
    guest.run(_FILES, 60)
    assert len(guest.get("/proc/swaps").splitlines()) == 1
    return guest


def read(linux: LinuxGuest, path: str) -> CachedFile:
    found = linux.cached_file(path.encode())
    assert found is not None
    return found


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/cached/large", "/cached/tmpfs/large", "/cached/bound/file",
     "/cached/relative", "/cached/absolute", "/cached/long", "/bin/../cached/./large"],
)  # fmt: skip
def test_content_of_files(linux: LinuxGuest, files: Guest, path: str) -> None:
    assert read(linux, path).whole == files.get(path)
    assert not linux.problems


def test_holes_and_limits(linux: LinuxGuest, files: Guest) -> None:
    content = files.get("/cached/tmpfs/sparse")
    found = read(linux, "/cached/tmpfs/sparse")
    assert found.size == len(content) == 65 * 4096
    assert found.whole is None
    assert found.pieces == ((0, content[:8192]), (64 * 4096, content[64 * 4096 :]))
    limited = linux.cached_file(b"/cached/large", limit=10_000)
    assert limited is not None
    assert limited.pieces == ((0, files.get("/cached/large")[:10_000]),)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "path", ["/cached/deleted", "/cached/dangling", "/cached/turning", "/cached/large/x"]
)
def test_files_that_are_not_there(linux: LinuxGuest, path: str) -> None:
    assert linux.cached_file(path.encode()) is None


def test_users_are_those_of_proc(linux: LinuxGuest, guest: Guest) -> None:
    def theirs() -> Count[tuple[int, ...]]:
        text = guest.run("cat /proc/[0-9]*/status 2>/dev/null", check=False).decode(
            errors="replace"
        )
        uids = re.findall(r"^Uid:\s+(\d+)\s+(\d+)", text, re.MULTILINE)
        gids = re.findall(r"^Gid:\s+(\d+)\s+(\d+)", text, re.MULTILINE)
        found = ((*uid, *gid) for uid, gid in zip(uids, gids, strict=True))
        return Count((int(uid), int(gid), int(e), int(g)) for uid, e, gid, g in found)

    before, ours, after = theirs(), linux.users(), theirs()
    found = {(user.uid, user.gid, user.euid, user.egid) for user in ours}
    assert set(before & after) <= found <= set(before | after)
    for user in ours:
        key = user.uid, user.gid, user.euid, user.egid
        # `cat` itself, and workers that come and go.
        low, high = sorted((before[key], after[key]))
        assert low - 4 <= user.processes <= high + 4
    assert next(user.name for user in ours if user.uid == 0) == b"root"


@pytest.fixture
def logged_in(guest: Guest) -> list[int]:
    """Two processes with an audit session each, of which utmp knows one."""
    if not guest.execute("test -e /logged-in").status:
        return [int(pid) for pid in guest.get("/logged-in").split()]
    start = (
        "(echo 1000 > /proc/self/loginuid; exec sleep 100000) >/dev/null 2>&1 & echo $!;"
        " until grep -qx 1000 /proc/$!/loginuid; do usleep 50000; done"
    )
    pids = [int(guest.run(start)) for _ in range(2)]
    records = [
        (2, 0, b"~", b"reboot", b"6.1", 100),
        (_LOGIN, pids[0], b"tty1", b"LOGIN", b"", 200),
        (_USER, pids[0], b"pts/7", b"alice\x1b[31m", b"192.0.2.7", 300),
        (_USER, 4_000_000, b"pts/8", b"stale", b"", 400),
        (_DEAD, pids[0], b"pts/9", b"", b"", 500),
    ]
    content = b"".join(
        _RECORD.pack(kind, pid, tty, b"", user, host, 0, time, 250_000)
        for kind, pid, tty, user, host, time in records
    )
    guest.put("/run/utmp", content)
    guest.put("/etc/os-release", b'ID=lab\nNAME="Lab \\"1\\""\nVERSION_ID=\'1\'\nVARIANT=\x1b[5m\n')
    guest.put("/logged-in", f"{pids[0]} {pids[1]}".encode())
    return pids


def test_logins(linux: LinuxGuest, guest: Guest, logged_in: list[int]) -> None:
    first, second, *others = linux.logins()
    known, unknown = logged_in
    assert (first.type, first.user, first.pid, first.uid) == ("login", b"LOGIN", known, None)
    assert (second.type, second.user, second.pid) == ("user", b"alice\x1b[31m", known)
    assert (second.tty, second.host, second.time) == (b"pts/7", b"192.0.2.7", 300.25)
    assert {login.source for login in (first, second)} == {"utmp"}
    assert int(guest.get(f"/proc/{unknown}/loginuid")) == 1000  # auditing is built in
    # Other tests' workloads may have sessions, too.
    for login in others:
        assert login.source == "audit"
        assert int(guest.get(f"/proc/{login.pid}/loginuid")) == login.uid
    (other,) = [login for login in others if login.pid == unknown]
    assert other.uid == 1000
    assert other.user is None  # /etc/passwd does not have him
    assert second.uid == 1000


@pytest.mark.usefixtures("logged_in")
def test_guestinfo(linux: LinuxGuest, guest: Guest) -> None:
    values = linux.guestinfo()
    uname = guest.run("uname -n; uname -r; uname -v; uname -m").decode().split("\n")
    assert values["hostname"].decode() == uname[0]
    assert [values[f"os.{key}"].decode() for key in ("kernel-release", "kernel-version")] == uname[
        1:3
    ]
    assert values["os.machine"].decode() == uname[3]
    assert values["os.id"] == b"lab"
    assert values["os.name"] == b'Lab "1"'
    assert values["os.version-id"] == b"1"
    assert values["os.variant"] == b"\x1b[5m"
    assert "os.version" not in values
    # Who has no name cannot be counted by name.
    users = {values[f"user.{n}.name"]: n for n in range(values["user.count"])}
    assert users.keys() == {login.user for login in linux.logins() if login.type == "user"} - {None}
    assert values[f"user.{users[b'alice' + bytes([27]) + b'[31m']}.login-time"] == 300_250
    names = guest.run('cd /sys/class/net; for name in *; do echo "$name"; done').splitlines()
    mine = {values[f"if.{number}.name"] for number in range(values["if.count"])}
    assert mine == set(names)
    assert list(linux.guestinfo(["hostname"])) == ["hostname"]


#: A file system on a disk that is a file; ext4 is built into all kernels of the lab.
_EXT = """
mkdir /ext && dd if=/dev/zero of=/ext.img bs=1M count=8 2>/dev/null && losetup /dev/loop5 /ext.img
mke2fs -F /dev/loop5 >/dev/null && mount -t ext4 /dev/loop5 /ext && seq 100000 > /ext/file && sync
"""


def test_file_systems(linux: LinuxGuest, guest: Guest) -> None:
    try:
        guest.run(_EXT)
        used, available = guest.run("df -P -k /ext | tail -n 1").split()[2:4]
        values = linux.guestinfo(["filesystem"])
        (number,) = [
            n for n in range(values["fs.count"]) if values[f"fs.{n}.mountpoint"] == b"/ext"
        ]
        head = f"fs.{number}."
        assert values[head + "name"] == b"loop5"
        assert values[head + "fstype"] == b"ext4"
        if kernels.KERNELS[guest.config.kernel].debug:  # ext4 is a module, its types are unknown
            assert head + "used-bytes" not in values
            return
        assert values[head + "used-bytes"] == int(used) * 1024
        assert values[head + "total-bytes"] == (int(used) + int(available)) * 1024
        assert not linux.problems
    finally:
        guest.run("umount /ext; losetup -d /dev/loop5; rm -r /ext /ext.img", check=False)


def test_disks(linux: LinuxGuest, guest: Guest) -> None:
    guest.run(
        "dd if=/dev/zero of=/disk.img bs=1M count=1 2>/dev/null; losetup /dev/loop6 /disk.img"
    )
    values = linux.guestinfo(["disk"])
    listed = guest.run("cd /sys/block; for d in *; do echo $d $(cat $d/size); done").decode()
    theirs = {f"/dev/{line.split()[0]}" for line in listed.splitlines() if line.split()[1] != "0"}
    assert {values[f"disk.{n}.name"].decode() for n in range(values["disk.count"])} == theirs


def test_balloon_stats(linux: LinuxGuest, guest: Guest) -> None:
    """The figures that a balloon driver would send are those of /proc."""

    def theirs() -> dict[str, int]:
        lines = guest.get("/proc/vmstat").decode() + guest.get("/proc/meminfo").decode()
        return {
            name: int(value) for name, value in re.findall(r"^(\w+):?\s+(\d+)", lines, re.MULTILINE)
        }

    before, ours, after = theirs(), linux.balloon_stats(), theirs()
    for mine, name, unit in (
        (ours.swap_in, "pswpin", 4), (ours.swap_out, "pswpout", 4),
        (ours.major_fault, "pgmajfault", 1), (ours.minor_fault, "pgfault", 1),
        (ours.hugetlb_pgalloc, "htlb_buddy_alloc_success", 1),
        (ours.hugetlb_pgfail, "htlb_buddy_alloc_fail", 1),
    ):  # fmt: skip
        assert mine is not None
        assert before[name] * unit <= mine <= after[name] * unit
    assert ours.available == before["MemTotal"]
    for mine, name in ((ours.unused, "MemFree"), (ours.usable, "MemAvailable")):
        assert (
            min(before[name], after[name]) - 4096 <= mine <= max(before[name], after[name]) + 4096
        )
    caches = [word["nr_file_pages"] * 4 for word in (before, after)]
    assert min(caches) - 1024 <= ours.disk_caches <= max(caches) + 1024
