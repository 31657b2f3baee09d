"""Slab caches against the guest's own /proc/slabinfo, on every guest."""

from __future__ import annotations

import pytest

from virtintrospect.guests.linux.guest import LinuxGuest

from .lab.guest import Guest
from .test_counters import agree

#: What the tables read does not depend on page tables or on how the host holds RAM.
pytestmark = pytest.mark.once_a_kernel(pti=False)

#: Objects that a shell may make or free between two readings.
SLACK = 8192
_FIELDS = ("active_objs", "num_objs", "objsize", "objperslab", "pagesperslab")
_SLABS = ("active_slabs", "num_slabs")

#: Slabs of which every other object is free: inodes, names and directory entries.
HOLES = """
test ! -e /tmp/holes || exit 0; mkdir /tmp/holes; cd /tmp/holes
touch $(seq 1000 2500); rm *[13579]
"""


def slabinfo(guest: Guest) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in guest.get("/proc/slabinfo").decode().splitlines()[2:]:
        name, *words = line.split()
        values = (*words[:5], *words[12:14])
        found |= {
            f"{name} {field}": int(value)
            for field, value in zip((*_FIELDS, *_SLABS), values, strict=True)
        }
    return found


def our_slabinfo(linux: LinuxGuest) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in linux.slabs():
        assert row.num_slabs is not None
        assert row.size == row.num_slabs * row.pagesperslab * linux.page_size
        for field in (*_FIELDS, *_SLABS):
            found[f"{row.name.decode()} {field}"] = getattr(row, field)
    return found


def test_every_cache(linux: LinuxGuest, guest: Guest) -> None:
    guest.run(HOLES, 60)
    mine = agree(guest, lambda: slabinfo(guest), lambda: our_slabinfo(linux), SLACK)
    name = next(n for n in mine if n.startswith("shmem_inode_cache") and n.endswith("active_objs"))
    used, total = mine[name], mine[name.replace("active_objs", "num_objs")]
    assert 700 < used < total - 300
    assert linux.take_problems() == []


def test_a_guest_that_runs(linux: LinuxGuest, guest: Guest) -> None:
    """Nothing is paused: what rests is equal, and nothing is taken for damage."""
    guest.run("cd /tmp; touch slabs; (while test -e slabs; do cp slabs s2; rm s2; done) & true")
    try:
        for _ in range(3):
            theirs, mine = slabinfo(guest), our_slabinfo(linux)
            assert list(mine) == list(theirs)
            for name, value in theirs.items():
                still = name.endswith(("objsize", "perslab"))
                assert abs(mine[name] - value) <= (0 if still else SLACK), name
    finally:
        guest.run("rm /tmp/slabs")
    assert linux.take_problems() == []
