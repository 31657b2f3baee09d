"""Namespaces of guests that lie, built by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.unit.built import BASE, SIZE, built_guest
from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import Blob
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.namespaces import _details, _pid_namespaces
from virtintrospect.symbols.btf import Btf

#: Offsets of our own kernel.
INUM, PARENT, USER, OWNER, LEVEL, NUMBERS = 0, 8, 16, 24, 4, 32
FIRST = BASE + 0x10000


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(SIZE)


@pytest.fixture
def guest(memory: BuiltMemory) -> LinuxGuest:
    blob = Blob()
    long, int_ = blob.integer("long", 8), blob.integer("int", 4)
    common = blob.struct("ns_common", 4, [("inum", int_, 0, 0)])
    kuid = blob.struct("kuid_t", 4, [("val", int_, 0, 0)])
    members = [("ns", common, INUM * 8, 0), ("parent", long, PARENT * 8, 0)]
    blob.struct("pid_namespace", 64, [*members, ("user_ns", long, USER * 8, 0)])
    blob.struct("user_namespace", 64, [*members, ("owner", kuid, OWNER * 8, 0)])
    upid = blob.struct("upid", 16, [("nr", int_, 0, 0), ("ns", long, 64, 0)])
    blob.struct("pid", 48, [("numbers", upid, NUMBERS * 8, 0)])
    memory.write_u64(48, BASE)
    return built_guest(memory, {"page_offset_base": BASE + 48}, Btf.parse(blob.build()))


def space(memory: BuiltMemory, address: int, parent: int, user: int = 0) -> None:
    memory.write_u64(address - BASE, address & 0xFFFFFF, parent, user, 1000)


def test_ancestors_are_found_and_circles_end(guest: LinuxGuest, memory: BuiltMemory) -> None:
    a, b, user = FIRST, FIRST + 64, FIRST + 128
    space(memory, a, b, user)
    space(memory, b, a, user)
    space(memory, user, user)
    found = _details(guest, [("pid", a)], Budget())
    assert set(found) == {("pid", a), ("pid", b), ("user", user)}
    assert found["pid", a].parent == b
    assert found["user", user].owner == 1000
    assert found["pid", a].owner is None
    assert guest.take_problems() == []


def test_an_endless_line_of_ancestors_is_cut(guest: LinuxGuest, memory: BuiltMemory) -> None:
    line = list(range(FIRST, FIRST + 64 * 1000, 64))
    for child, parent in pairwise(line):
        space(memory, child, parent)
    assert len(_details(guest, [("user", line[0])], Budget())) == 66


def test_a_namespace_that_cannot_be_read(guest: LinuxGuest, memory: BuiltMemory) -> None:
    space(memory, FIRST, 0xDEAD_0000_0000_0000, FIRST + 64)
    found = _details(guest, [("pid", FIRST)], Budget())
    assert set(found) == {("pid", FIRST)}
    assert sorted(p.address for p in guest.take_problems()) == sorted(
        [0xDEAD_0000_0000_0000, FIRST + 64]
    )


def test_levels_out_of_reach(guest: LinuxGuest, memory: BuiltMemory) -> None:
    memory.write_u64(0x10000 + NUMBERS + 8, 111)
    memory.write_u64(0x10000 + NUMBERS + 16 + 8, 222)
    found = _pid_namespaces(guest, [FIRST, FIRST, FIRST, None, 0, 5], [0, 1, 1 << 31, 0, 0, None])
    assert found == [111, 222, 0, 0, 0, 0]
