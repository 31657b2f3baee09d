"""Lies that random changes of a real guest do not hit upon (synthetic)."""

from __future__ import annotations

import struct
import time

import pytest

from tests.unit.built import BASE, SIZE, BuiltKernel
from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import FUNC_PROTO, PTR, STRUCT, Blob
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.errors import CorruptDataError, TypeNotFoundError, VirtIntrospectError
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.layout import Layout
from virtintrospect.translation import LinearRange


def space(memory: BuiltMemory) -> AddressSpace:
    linear = LinearRange(BASE, BASE + SIZE, 0)
    return AddressSpace(memory, X86_64_4LEVEL, 0, linear=[linear])


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(SIZE)


# -- lists and budgets ----------------------------------------------------------------------


def test_cycle_of_100000_entries(memory: BuiltMemory) -> None:
    count = 100_000
    nodes = [BASE + 32 * (number + 1) for number in range(count)]
    for node, following in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        memory.write_u64(node - BASE, following, nodes[0])
    memory.write_u64(0, nodes[0], nodes[0])
    start = time.process_time()
    found, problem = walk_list(space(memory), BASE)
    assert time.process_time() - start < 5
    assert found == nodes
    assert problem is not None
    assert "cycle" in problem.what


def test_many_lists_share_one_budget(memory: BuiltMemory) -> None:
    for number in range(10):
        memory.write_u64(16 * number, BASE + 16 * ((number + 1) % 10), 0)
    budget = Budget(entries=15)
    assert len(walk_list(space(memory), BASE, budget=budget).nodes) == 9
    assert len(walk_list(space(memory), BASE, budget=budget).nodes) == 6
    assert walk_list(space(memory), BASE, budget=budget).nodes == []
    assert budget.problem is not None
    assert "too many" in budget.problem.what


def test_budget_of_time_and_text() -> None:
    budget = Budget(seconds=-1, size=10)
    assert budget.keep(10)
    assert not budget.keep(1)
    assert budget.late()
    assert budget.problem is not None
    assert "too much text" in budget.problem.what  # the first thing that was cut


# -- types ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "text"),
    [("comm", ()), ("pid", ("pid",)), ("cred", ("cred",)), ("long", ("long",)), ("inner", ())],
)
def test_member_of_another_kind_than_the_table_needs(member: str, text: tuple[str, ...]) -> None:
    blob = Blob()
    int_, char = blob.integer("int", 4), blob.integer("char", 1)
    inner = blob.struct("inner", 4, [("x", int_, 0, 0)])
    blob.struct(
        "task",
        4096,
        [
            ("pid", int_, 0, 0),
            ("comm", blob.array(char, 16), 64, 0),
            ("cred", blob.add(PTR, word=inner), 256, 0),
            ("inner", inner, 512, 0),
            ("long", blob.array(char, 3000), 1024, 0),
        ],
    )
    with pytest.raises(CorruptDataError):
        Layout(Btf.parse(blob.build()), "task", [member], text)


def test_pointer_at_an_absurd_offset() -> None:
    blob = Blob()
    int_ = blob.integer("int", 4)
    cred = blob.struct("cred", 4, [("uid", int_, 0, 0)])
    big = blob.array(blob.array(blob.array(int_, 1 << 31), 1 << 31), 2)
    tail = blob.struct("tail", 8, [("cred", blob.add(PTR, word=cred), 0, 0)])
    blob.struct("task", 8, [("many", blob.array(tail, 3), 0, 0), ("big", big, 0, 0)])
    types = Btf.parse(blob.build())
    with pytest.raises(VirtIntrospectError):
        Layout(types, "task", ["big[1]"])
    with pytest.raises(VirtIntrospectError):
        Layout(types, "task", ["many[99999999].cred.uid"])


def test_types_that_take_for_ever_to_spell() -> None:
    """Functions of 32 functions of 32 functions, to which 8,000 members point."""
    blob = Blob()
    inner = blob.integer("x", 4)
    for _ in range(6):
        for _ in range(4):
            inner = blob.add(FUNC_PROTO, word=inner)
            inner = blob.add(PTR, word=inner)
        inner = blob.add(PTR, word=blob.proto(inner, [inner] * 32))
    blob.struct("bomb", 8, [(f"m{number}", inner, 0, 0) for number in range(8000)])
    types = Btf.parse(blob.build())
    start = time.process_time()
    described = types.describe("bomb")
    assert time.process_time() - start < 10
    assert all(len(member.type) <= 4096 for member in described.members)


def test_types_of_nothing_but_strings() -> None:
    blob = Blob()
    blob.integer("int", 4)
    blob.strings += bytes(8 << 20)
    with pytest.raises(CorruptDataError, match="strings"):
        Btf.parse(blob.build())


def test_types_without_any_type() -> None:
    with pytest.raises(VirtIntrospectError):
        Btf.parse(Blob().build()).sizeof("task_struct")


def test_many_types_of_one_name() -> None:
    blob = Blob()
    name = blob.string("task_struct")
    blob.types += struct.pack("<3I", name, STRUCT << 24, 0) * 300_000
    types = Btf.parse(blob.build())
    start = time.process_time()
    with pytest.raises(TypeNotFoundError):
        types.offsetof("task_struct", "tasks")
    assert time.process_time() - start < 3


# -- the direct map -------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0, 0x1000, (1 << 64) - 4096, 1 << 63, 0xFFFF_FFFF_8000_0000])
def test_direct_map_is_not_where_nothing_is_mapped(base: int) -> None:
    kernel = BuiltKernel()
    kernel.number("page_offset_base", base)
    assert [linear.start for linear in kernel.guest().kernel.linear] == [BASE]
