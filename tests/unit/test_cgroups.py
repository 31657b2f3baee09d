"""Control groups of guests that lie, built by hand; the arithmetic of kernel/cgroup/rstat.c."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.unit.built import BASE, SIZE, built_guest
from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import Blob
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cgroupcpu import _added_up, _usage
from virtintrospect.guests.linux.cgroups import _limit, _weight
from virtintrospect.guests.linux.cgrouptree import Tree, below, in_order, trees
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.symbols.btf import Btf

ROOTS, UNIFIED, LEGACY = BASE + 0x8000, BASE + 0x9000, BASE + 0xA000
#: Offsets of our own kernel.
CGRP, ROOT_LIST, MASK, NAME, CHILDREN, SIBLING, PARENT = 0x100, 0, 16, 24, 16, 32, 48


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(SIZE)


@pytest.fixture
def guest(memory: BuiltMemory) -> LinuxGuest:
    blob = Blob()
    long, int_, char = (
        blob.integer("long", 8), blob.integer("int", 4), blob.integer("char", 1)
    )  # fmt: skip
    heads = blob.struct("list_head", 16, [("next", long, 0, 0), ("prev", long, 64, 0)])
    css = blob.struct(
        "cgroup_subsys_state",
        64,
        [
            ("children", heads, CHILDREN * 8, 0),
            ("sibling", heads, SIBLING * 8, 0),
            ("parent", long, PARENT * 8, 0),
        ],
    )
    group = blob.struct("cgroup", 128, [("self", css, 0, 0)])
    blob.struct(
        "cgroup_root",
        512,
        [
            ("root_list", heads, ROOT_LIST * 8, 0),
            ("subsys_mask", int_, MASK * 8, 0),
            ("name", blob.array(char, 64), NAME * 8, 0),
            ("cgrp", group, CGRP * 8, 0),
        ],
    )
    blob.enum("cgroup_subsys_id", {"cpu_cgrp_id": 0, "io_cgrp_id": 1, "CGROUP_SUBSYS_COUNT": 2})
    addresses = {"cgroup_roots": ROOTS, "cgrp_dfl_root": UNIFIED, "page_offset_base": BASE + 48}
    memory.write_u64(48, BASE)
    guest = built_guest(memory, addresses, Btf.parse(blob.build()))
    ring(memory, ROOTS, UNIFIED + ROOT_LIST)
    for root in (UNIFIED, LEGACY):
        ring(memory, root + CGRP + CHILDREN)
    return guest


def ring(memory: BuiltMemory, head: int, *nodes: int) -> None:
    """Link list heads in a circle."""
    circle = [head, *nodes]
    for index, node in enumerate(circle):
        following = circle[(index + 1) % len(circle)]
        memory.write_u64(node - BASE, following, circle[index - 1])


def family(memory: BuiltMemory, parent: int, *children: int) -> None:
    ring(memory, parent + CHILDREN, *(child + SIBLING for child in children))
    for child in children:
        ring(memory, child + CHILDREN)
        memory.write_u64(child + PARENT - BASE, parent)


def test_trees_of_both_versions(guest: LinuxGuest, memory: BuiltMemory) -> None:
    ring(memory, ROOTS, LEGACY + ROOT_LIST, UNIFIED + ROOT_LIST)
    memory.write(LEGACY + MASK - BASE, (3).to_bytes(4, "little"))
    memory.write(LEGACY + NAME - BASE, b"odd\0")
    a, b, c = BASE + 0x10000, BASE + 0x11000, BASE + 0x12000
    family(memory, UNIFIED + CGRP, a, b)
    family(memory, a, c)
    unified, legacy = trees(guest, Budget())
    assert unified == Tree(b"unified", [UNIFIED + CGRP, a, b, c], [-1, 0, 0, 1])
    assert [unified.groups[index] for index in in_order(unified)] == [UNIFIED + CGRP, a, c, b]
    assert legacy == Tree(b"cpu,blkio,name=odd", [LEGACY + CGRP], [-1])
    assert below(unified, {1}) == Tree(b"unified", [a, c], [-1, 0])
    assert below(unified, {1, 3}) == Tree(b"unified", [a, c], [-1, 0])
    assert below(unified, set()) == Tree(b"unified", [], [])
    assert guest.take_problems() == []


def test_a_group_is_its_own_ancestor(guest: LinuxGuest, memory: BuiltMemory) -> None:
    a, b = BASE + 0x10000, BASE + 0x11000
    family(memory, UNIFIED + CGRP, a)
    family(memory, a, b)
    ring(memory, b + CHILDREN, a + SIBLING)
    memory.write_u64(a + SIBLING - BASE, UNIFIED + CGRP + CHILDREN)
    found = trees(guest, Budget())[0]
    assert found.groups == [UNIFIED + CGRP, a, b]
    assert any("wrong place" in problem.what for problem in guest.take_problems())


def test_groups_that_cannot_be_read(guest: LinuxGuest, memory: BuiltMemory) -> None:
    a, b = BASE + 0x10000, BASE + 0x11000
    family(memory, UNIFIED + CGRP, a, b)
    memory.write_u64(a + CHILDREN - BASE, 0xDEAD_0000_0000_0100)
    memory.broken.add(b - BASE)
    found = trees(guest, Budget())[0]
    assert found.groups[:2] == [UNIFIED + CGRP, a]
    assert guest.take_problems()


def test_a_chain_of_groups_without_end(guest: LinuxGuest, memory: BuiltMemory) -> None:
    """As deep as memory is large: the walk ends, and says why."""
    groups = [UNIFIED + CGRP, *range(BASE + 0x20000, BASE + SIZE, 64)]
    for parent, child in pairwise(groups):
        family(memory, parent, child)
    found = trees(guest, Budget())[0]
    assert len(found.groups) <= 2049
    assert "deeper" in guest.take_problems()[0].what


def row(own: int, passed: int) -> dict[str, int]:
    kinds = ("utime", "stime", "sum_exec_runtime")
    return dict.fromkeys(kinds, own) | {f"passed_{k}": passed for k in kinds}


def test_what_is_held_back_reaches_all_ancestors() -> None:
    """Each below the one before; the CPUs hold back 1, 10, 100 and 1000."""
    rows = [row(5, 0), row(50, 40), row(500, 450), row(5000, 5000)]
    pending = [(1,) * 3, (10,) * 3, (100,) * 3, (1000,) * 3]
    totals = _added_up([-1, 0, 1, 2], rows, [*pending])
    assert [total and total[0] for total in totals] == [1176, 1210, 1600, 6000]


def test_a_group_that_cannot_be_read_makes_its_ancestors_unknown() -> None:
    rows = [row(5, 0), row(50, 40), row(7, 7)]
    totals = _added_up([-1, 0, 0], rows, [(0,) * 3, None, (2,) * 3])
    assert totals == [None, None, (9, 9, 9)]


def test_absurd_times_are_unknown() -> None:
    before = {"prev_utime": 0, "prev_stime": 0}
    assert _usage(before, (1, 1, 1 << 63)) is None
    assert _usage(before, (-5, 0, 0)) is None
    assert _usage(before, None) is None
    assert _usage(before, (10, 30, 400)) == (400, 100, 300)


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(1024 << 10, 100), (2 << 10, 0), (102 << 10, 10), (102400 << 10, 10000), (1, 0), (None, None)],
)
def test_weights(shares: int | None, weight: int | None) -> None:
    assert _weight(shares, 10) == weight
    assert _weight(shares and shares >> 10, 0) == weight


def test_limits() -> None:
    assert _limit(0, 10) == 0
    assert _limit(9, 10) == 9
    assert _limit(10, 10) is None
    assert _limit(None, 10) is None
