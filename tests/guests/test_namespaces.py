"""Namespaces against the links in /proc/PID/ns and the kernel's own ioctls, on every guest."""

from __future__ import annotations

import re

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import Namespace

from .lab.guest import Guest

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

#: Nested PID and user namespaces, a time namespace for children only, and some that nobody is
#: in: held by a bind mount.
WORKLOAD = """
test ! -e /tmp/ns || exit 0; mkdir /tmp/ns
unshare -p -f unshare -p -f sh -c 'touch /tmp/ns/pids; exec sleep 99999' &
unshare -U -r unshare -U -r sh -c 'touch /tmp/ns/users; exec sleep 99999' &
unshare -n -u -i -m sh -c 'touch /tmp/ns/held; exec sleep 99999' & holder=$!
until test -e /tmp/ns/pids -a -e /tmp/ns/users -a -e /tmp/ns/held; do usleep 100000; done
for kind in net uts ipc; do
    touch /tmp/ns/$kind; mount --bind /proc/$holder/ns/$kind /tmp/ns/$kind; done
kill -9 $holder; wait $holder || true  # it has left them then
"""

Key = tuple[str, int]


@pytest.fixture(scope="module")
def spaces(guest: Guest) -> Guest:
    guest.install("nsinfo", "/tmp/nsinfo")
    guest.run(WORKLOAD, 180)
    return guest


def theirs(guest: Guest) -> dict[Key, set[int]]:
    """Who is in each namespace, by the links of all processes."""
    found: dict[Key, set[int]] = {}
    listing = guest.run("ls -l /proc/[0-9]*/ns/ 2>/dev/null", 180, check=False).decode()
    pid = 0
    for line in listing.splitlines():
        if match := re.fullmatch(r"/proc/(\d+)/ns/:", line):
            pid = int(match[1])
        elif match := re.search(r" (\w+) -> (\w+):\[(\d+)\]$", line):
            members = found.setdefault((match[2], int(match[3])), set())
            if match[1] == match[2]:
                members.add(pid)
    return found


def test_every_namespace_and_who_is_in_it(linux: LinuxGuest, spaces: Guest) -> None:
    before = theirs(spaces)
    rows = {(row.type, row.inode): row for row in linux.namespaces()}
    after = theirs(spaces)
    assert {kind for kind, _ in rows} == {
        "cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts",
    }  # fmt: skip
    assert before.keys() & after.keys() <= rows.keys()
    for key, row in rows.items():
        first, last = before.get(key, set()), after.get(key, set())
        # Kernel threads come and go meanwhile, and so does who told us.
        assert len(first & last) <= row.processes <= len(first | last), key
        assert row.pid is None or row.pid in first | last
    assert rows["pid", min(i for kind, i in rows if kind == "pid")].pid == 1
    assert linux.take_problems() == []


def test_owners_and_parents(linux: LinuxGuest, spaces: Guest) -> None:
    rows = {(row.type, row.inode): row for row in linux.namespaces()}
    files = [f"/proc/{row.pid}/ns/{row.type}" for row in rows.values() if row.pid]
    seen = set()
    for line in spaces.run("/tmp/nsinfo " + " ".join(files), 180).decode().splitlines():
        file, *words = line.split()
        user, parent, owner = (None if word == "-" else int(word) for word in words)
        row = next(r for r in rows.values() if file == f"/proc/{r.pid}/ns/{r.type}")
        seen.add(row.type)
        assert row.parent == parent, file
        assert row.owner == owner, file
        assert row.user_namespace == user, file
    assert len(seen) == 8
    deepest = max(depth(rows, row) for row in rows.values() if row.type == "pid")
    assert deepest >= 2
    assert max(depth(rows, row) for row in rows.values() if row.type == "user") >= 2


def depth(rows: dict[Key, Namespace], row: Namespace) -> int:
    return 0 if row.parent is None else 1 + depth(rows, rows[row.type, row.parent])


def test_namespaces_that_nobody_is_in(linux: LinuxGuest, spaces: Guest) -> None:
    """Network namespaces are listed by every kernel, the others since 6.18."""
    listed = ("net", "uts", "ipc") if spaces.config.kernel == "7.2" else ("net",)
    rows = {(row.type, row.inode): row for row in linux.namespaces()}
    for kind in listed:
        inode = int(spaces.run(f"stat -c %i /tmp/ns/{kind}"))
        assert rows[kind, inode].processes == 0
        assert rows[kind, inode].pid is None
