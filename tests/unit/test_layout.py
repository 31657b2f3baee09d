"""Layouts over hand-made BTF and memory (synthetic: every kind of member once)."""

from __future__ import annotations

import struct

import pytest

from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import PTR, Blob
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.errors import FaultError, TypeNotFoundError
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.layout import Layout
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000


@pytest.fixture(scope="module")
def types() -> Btf:
    """``struct task { int pid; char comm[8]; unsigned flag:3; int small:4; struct cred *cred;
    u32 counts[3]; char far[8] (at 1024); }`` and ``struct cred { u32 uid; s64 when; }``."""
    blob = Blob()
    int_, u32 = blob.integer("int", 4, signed=True), blob.integer("unsigned int", 4)
    s64, char = blob.integer("long", 8, signed=True), blob.integer("char", 1)
    cred = blob.struct("cred", 16, [("uid", u32, 0, 0), ("when", s64, 64, 0)])
    pointer = blob.add(PTR, word=cred)
    blob.struct(
        "task",
        2048,
        [
            ("pid", int_, 0, 0),
            ("comm", blob.array(char, 8), 64, 0),
            ("flag", u32, 128, 3),
            ("small", int_, 131, 4),
            ("cred", pointer, 192, 0),
            ("counts", blob.array(u32, 3), 256, 0),
            ("far", blob.array(char, 8), 1024 * 8, 0),
        ],
    )
    return Btf.parse(blob.build())


@pytest.fixture(params=[False, True], ids=["copied", "mapped"])
def space(request: pytest.FixtureRequest) -> AddressSpace:
    memory = BuiltMemory(1 << 16, mapped=request.param)
    for index, cred in ((0, BASE + 0x8000), (1, 0), (2, BASE + 0x8000)):
        task = struct.pack("<i4x8sB7xQ3I", index - 1, b"task-%d" % index, 0b1011_101, cred, 7, 8, 9)
        memory.write(0x1000 * (index + 1), task)
        memory.write(0x1000 * (index + 1) + 1024, b"far-%d\0\0\0" % index)
    memory.write(0x8000, struct.pack("<I4xq", 1000, -5))
    linear = LinearRange(BASE, BASE + (1 << 16), 0)
    return AddressSpace(memory, X86_64_4LEVEL, 0, linear=[linear])


TASKS = [BASE + 0x1000, BASE + 0x2000, BASE + 0x3000]
MEMBERS = ["pid", "comm", "flag", "small", "cred.uid", "cred.when", "counts", "far"]


def test_lists(types: Btf, space: AddressSpace) -> None:
    columns = Layout(types, "task", MEMBERS).lists(space, TASKS)
    assert columns["pid"] == [-1, 0, 1]
    assert columns["comm"] == [b"task-0\0\0", b"task-1\0\0", b"task-2\0\0"]
    assert columns["flag"] == [0b101] * 3
    assert columns["small"] == [-5] * 3
    assert columns["cred.uid"] == [1000, None, 1000]
    assert columns["cred.when"] == [-5, None, -5]
    assert columns["counts"] == [struct.pack("<3I", 7, 8, 9)] * 3
    assert columns["far"][2] == b"far-2\0\0\0"


def test_arrays_say_the_same(types: Btf, space: AddressSpace) -> None:
    columns = Layout(types, "task", MEMBERS).columns(space, TASKS)
    assert columns["pid"].tolist() == [-1, 0, 1]
    assert columns["comm"].tolist() == [b"task-0", b"task-1", b"task-2"]
    assert columns["flag"].tolist() == [0b101] * 3
    assert columns["small"].tolist() == [-5] * 3
    assert columns["cred.uid"].tolist() == [1000, 0, 1000]
    assert columns["counts"].tolist() == [[7, 8, 9]] * 3
    assert columns["far"].tolist() == [b"far-0", b"far-1", b"far-2"]


def test_alternatives_and_optional_members(types: Btf, space: AddressSpace) -> None:
    layout = Layout(types, "task", {"id": "tgid|pid", "more": "nothing?"})
    assert layout.read(space, TASKS[0]) == {"id": -1, "more": None}


def test_missing_member_says_what_there_is(types: Btf) -> None:
    with pytest.raises(TypeNotFoundError) as caught:
        Layout(types, "task", ["pidd"])
    assert "pid" in caught.value.hint


def test_unreadable_object_costs_its_row_only(types: Btf, space: AddressSpace) -> None:
    faults: list[int] = []
    columns = Layout(types, "task", ["pid", "far"]).lists(
        space, [TASKS[0], 0xDEAD, TASKS[2]], faults
    )
    assert faults == [1]
    assert columns["pid"] == [-1, None, 1]
    with pytest.raises(FaultError):
        Layout(types, "task", ["pid"]).lists(space, [0xDEAD])


def test_unreadable_target_of_a_pointer_hides_its_members(types: Btf, space: AddressSpace) -> None:
    assert isinstance(space.memory, BuiltMemory)
    space.memory.write_u64(0x1000 + 24, 0xDEAD_BEEF)
    columns = Layout(types, "task", ["pid", "cred.uid"]).lists(space, TASKS, [])
    assert columns == {"pid": [-1, 0, 1], "cred.uid": [None, None, 1000]}


def test_absent_page_is_not_touched_through_the_mapping(types: Btf) -> None:
    memory = BuiltMemory(1 << 16, mapped=True)
    memory.broken.add(0x2000)
    space = AddressSpace(memory, X86_64_4LEVEL, 0, linear=[LinearRange(BASE, BASE + (1 << 16), 0)])
    faults: list[int] = []
    columns = Layout(types, "task", ["pid"]).columns(space, TASKS, faults)
    assert faults == [1]
    assert columns["pid"].tolist() == [0, 0, 0]


def test_nothing_to_read(types: Btf, space: AddressSpace) -> None:
    assert Layout(types, "task", ["pid", "cred.uid"]).lists(space, []) == {
        "pid": [],
        "cred.uid": [],
    }
    assert len(Layout(types, "task", ["pid", "cred.uid"]).columns(space, [])["pid"]) == 0
