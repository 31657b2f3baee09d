"""Mappings, open files, mounts and environments against the guest's own /proc."""

from __future__ import annotations

import re
import stat

import pytest

from virtintrospect.errors import NoSuchTargetError
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.maps import keeps_names
from virtintrospect.model import MemoryArea, OpenFile

from .holder import File, Holder, holder, open_files
from .lab.guest import Guest, GuestError

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

_MAPPING = re.compile(rb"(\w+)-(\w+) (\S{4}) (\w+) (\S+) (\d+) *(.*)")
_FORMATS = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "directory",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "symlink",
}


@pytest.fixture(scope="session")
def held(guest: Guest) -> Holder:
    return holder(guest)


def _theirs(guest: Guest, pid: int) -> list[MemoryArea]:
    found = []
    for line in guest.get(f"/proc/{pid}/maps").splitlines():
        match = _MAPPING.fullmatch(line)
        assert match is not None
        start, end, permissions, offset, device, inode, path = match.groups()
        found.append(
            MemoryArea(
                pid,
                int(start, 16),
                int(end, 16),
                permissions.decode(),
                int(offset, 16),
                device.decode(),
                int(inode),
                path.replace(rb"\012", b"\n") or None,
            )
        )
    return found


def test_maps_of_all_kinds(linux: LinuxGuest, guest: Guest, held: Holder) -> None:
    ours = linux.maps(held.files)
    assert ours == _theirs(guest, held.files)
    assert len(ours) > 3000
    paths = {area.path for area in ours}
    assert {b"[heap]", b"[stack]", b"[vdso]", b"[vvar]", b"/memfd:mapped (deleted)"} <= paths
    assert {b"/tmp/doomed-map (deleted)", b"/dev/zero (deleted)", b"/tmp/over/file"} <= paths
    assert b"/tmp/odd file \x1b[7m\n\\ \xff" in paths
    if keeps_names(linux):
        assert b"[anon:a name of its own]" in paths
    assert linux.take_problems() == []


@pytest.mark.usefixtures("held")
def test_maps_of_everybody(linux: LinuxGuest, guest: Guest) -> None:
    looked = 0
    for process in linux.processes():
        if not process.total_size:
            continue
        try:
            ours = linux.maps(process.pid)
            theirs = _theirs(guest, process.pid)
        except (NoSuchTargetError, GuestError):
            # It has ended, as shells of other tests' workloads do; then the guest says so, too.
            assert guest.execute(f"test -e /proc/{process.pid}").status
            continue
        assert ours == theirs, process
        looked += 1
    assert looked > 80
    assert linux.take_problems() == []


@pytest.mark.parametrize("pid", [2, 4_000_000])
def test_no_memory_of_its_own(linux: LinuxGuest, pid: int) -> None:
    with pytest.raises(NoSuchTargetError):
        linux.maps(pid)
    with pytest.raises(NoSuchTargetError):
        linux.environment(pid)


@pytest.mark.usefixtures("held")
def test_files(linux: LinuxGuest, guest: Guest) -> None:
    before = open_files(guest)
    ours = {(file.pid, file.fd): file for file in linux.files()}
    after = open_files(guest)
    stable = {key: file for key, file in before.items() if after.get(key) == file}
    assert len(stable) > 300
    assert stable.keys() - ours.keys() == set()
    # The agent and its shell open files for each question.
    assert len(ours.keys() - before.keys() - after.keys()) < 10
    assert [ours[key] for key in stable] == [_file(key, file) for key, file in stable.items()]
    assert linux.take_problems() == []


def test_files_of_one_process(linux: LinuxGuest, held: Holder) -> None:
    ours = linux.files(held.files)
    assert {file.pid for file in ours} == {held.files}
    assert [file for file in linux.files() if file.pid == held.files] == ours
    kinds = {file.type for file in ours}
    assert kinds >= set(_FORMATS.values())
    assert kinds >= {"eventfd", "eventpoll", "inotify", "memfd", "namespace", "pidfd"}
    assert kinds >= {"signalfd", "timerfd", "bpf-map", "fscontext"}
    assert {file.fd for file in ours} >= {300, 5000}
    assert linux.files(2) == []
    with pytest.raises(NoSuchTargetError):
        linux.files(4_000_000)


def _file(key: tuple[int, int], file: File) -> OpenFile:
    return OpenFile(
        *key, path=file.link, type=_kind(file), flags=file.flags, offset=file.offset,
        inode=file.inode, device=file.device,
    )  # fmt: skip


def _kind(file: File) -> str:
    if file.link.startswith(b"anon_inode:"):
        return file.link.removeprefix(b"anon_inode:").strip(b"[]").decode()
    if re.fullmatch(rb"[a-z_]+:\[\d+\]", file.link) and stat.S_ISREG(file.mode):
        return "namespace"
    if file.link.startswith(b"/memfd:"):
        return "memfd"
    return _FORMATS[stat.S_IFMT(file.mode)]


def _unescaped(word: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), word)


def test_mounts(linux: LinuxGuest, guest: Guest, held: Holder) -> None:
    ours = linux.mounts()
    namespaces = list(dict.fromkeys(mount.namespace for mount in ours))
    for number, pid in enumerate((1, held.mounts, held.container)):
        inode = int(guest.run(f"readlink /proc/{pid}/ns/mnt").strip()[5:-1])
        assert (namespaces[0] == inode) == (number == 0)
        mine = [mount for mount in ours if mount.namespace == inode]
        theirs = guest.get(f"/proc/{pid}/mounts").splitlines()
        assert len(mine) == len(theirs)
        for mount, line in zip(mine, theirs, strict=True):
            device, path, kind, options, *_ = line.split(b" ")
            assert mount.device == _unescaped(device)
            assert mount.path == _unescaped(path)
            assert mount.type == kind
            assert _generic(options) == mount.flags
    assert len(namespaces) >= 4
    assert linux.take_problems() == []


def _generic(options: bytes) -> str:
    """Options without those that a file system adds: they have no common form."""
    ours = "ro rw sync dirsync mand lazytime nosuid nodev noexec noatime nodiratime relatime"
    words = options.decode().split(",")
    return ",".join(word for word in words if word in {*ours.split(), "nosymfollow"})


def test_environment(linux: LinuxGuest, guest: Guest, held: Holder) -> None:
    for pid in (1, held.files, held.mounts):
        theirs = guest.get(f"/proc/{pid}/environ").rstrip(b"\0").split(b"\0")
        ours = linux.environment(pid)
        joined = [
            entry.name if entry.value is None else entry.name + b"=" + entry.value for entry in ours
        ]
        assert joined == theirs
    ours = linux.environment(held.files)
    assert [entry.name for entry in ours] == [
        b"FIRST", b"EMPTY", b"NOEQUALS", b"ODD", b"", b"BIG", b"LAST",
    ]  # fmt: skip
    assert [entry.value for entry in ours[1:3]] == [b"", None]
    assert len(ours[5].value or b"") > 99_000
    assert linux.take_problems() == []
