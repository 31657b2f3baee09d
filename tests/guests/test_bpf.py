"""``bpf`` against what the bpf system call says of each object, on every guest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.model import BpfObject

from .lab.guest import Guest

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

_SETUP = """
mkdir -p /tmp/pins; mount -t bpf bpf /tmp/pins
rm -f /tmp/bpf.log; /tmp/bpf hold > /tmp/bpf.log 2>&1 &
until grep -q ready /tmp/bpf.log; do usleep 100000; done; cat /tmp/bpf.log
"""


@pytest.fixture(scope="module")
def busy(guest: Guest) -> Iterator[Guest]:
    """The guest with programs and maps."""
    guest.install("bpf", "/tmp/bpf")
    said = guest.run(_SETUP, timeout=60).decode()
    assert said == "ready\n", said
    yield guest
    guest.run("killall bpf; umount /tmp/pins", check=False)


def test_bpf(linux: LinuxGuest, busy: Guest) -> None:
    before = busy.run("/tmp/bpf list").splitlines()
    ours = linux.bpf()
    assert busy.run("/tmp/bpf list").splitlines() == before
    assert linux.take_problems() == []
    assert [mine(row) for row in ours] == [theirs(line) for line in before]
    btime = int(re.findall(rb"btime (\d+)", busy.get("/proc/stat"))[0])
    for row, line in zip(ours, before, strict=True):
        if row.kind == "prog":
            loaded = btime + int(shlex.split(line.decode())[6]) / 1e9
            assert row.loaded_at is not None
            assert abs(row.loaded_at - loaded) < 2


def test_who_has_them(linux: LinuxGuest, busy: Guest) -> None:
    """By /proc/PID/fdinfo, and the files of the bpf file system."""
    said = busy.run("cd /proc; grep -E '^(prog|map)_id:' [0-9]*/fdinfo/* 2>/dev/null", check=False)
    found: dict[tuple[str, int], set[int]] = {}
    for pid, kind, number in re.findall(
        r"^(\d+)/fdinfo/\d+:(prog|map)_id:\s+(\d+)", said.decode(), re.M
    ):
        found.setdefault((kind, int(number)), set()).add(int(pid))
    rows = linux.bpf()
    assert {(row.kind, row.id): set(row.pids) for row in rows if row.pids} == found
    assert {len(row.pids) for row in rows} == {0, 2}
    assert {(row.kind, row.name, row.pinned) for row in rows if row.pinned} == {
        ("map", b"lab_pinned", b"/tmp/pins/a map"),
        ("prog", b"lab_pinned", b"/tmp/pins/program"),
    }


@pytest.mark.usefixtures("busy")
def test_words(linux: LinuxGuest) -> None:
    rows = {(row.kind, row.name): row for row in linux.bpf()}
    kinds = {name: row.type for (_, name), row in rows.items()}
    assert kinds == {
        b"lab_filter": "socket_filter", b"lab_in": "cgroup_skb", b"lab_out": "cgroup_skb",
        b"lab_call": "sched_cls", b"lab_pinned": "hash", b"lab_attached": "socket_filter",
        b"lab_hash": "hash", None: "percpu_array", b"lab_ring": "ringbuf", b"lab_frozen": "array",
    }  # fmt: skip
    assert rows["prog", b"lab_pinned"].type == "xdp"
    assert rows["prog", b"lab_in"].attach_type == "cgroup_inet_ingress"
    assert rows["prog", b"lab_out"].attach_type == "cgroup_inet_egress"
    assert rows["prog", b"lab_filter"].attach_type is None
    assert [name for (_, name), row in rows.items() if row.frozen] == [b"lab_frozen"]


def mine(row: BpfObject) -> tuple[Any, ...]:
    name = (row.name or b"").decode()
    if row.kind == "prog":
        sizes = row.size, row.jited_size
        return "prog", row.id, name, *sizes, row.uid, row.tag, *(row.maps or ())
    return "map", row.id, name, row.key_size, row.value_size, row.max_entries, row.map_flags


def theirs(line: bytes) -> tuple[Any, ...]:
    kind, number, _, name, *rest = shlex.split(line.decode())
    if kind == "prog":
        size, jited, _, uid, tag, *maps = rest
        return kind, int(number), name, int(size), int(jited), int(uid), tag, *map(int, maps)
    return kind, int(number), name, *map(int, rest)
