from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.symbols import btf_blob
from tests.unit.symbols.btf_blob import Blob, kernel
from virtintrospect.errors import CorruptDataError, TypeNotFoundError, VirtIntrospectError
from virtintrospect.symbols.btf import Btf, BtfSections
from virtintrospect.symbols.types import Kind

RAW = kernel().build()


@pytest.fixture(params=["<", ">"])
def types(request: pytest.FixtureRequest) -> Btf:
    return Btf.parse(kernel(request.param).build())


def test_plain_members(types: Btf) -> None:
    assert types.sizeof("task_struct") == types.sizeof("struct task_struct") == 256
    assert types.offsetof("task_struct", "comm") == 32
    assert types.offsetof("task_struct", "tasks.prev") == 16
    assert types.offsetof("task_struct", "high") == 52
    (comm,) = types.resolve("task_struct", "comm")
    assert (comm.kind, comm.size, comm.count, comm.element_size) == (Kind.ARRAY, 16, 16, 1)
    assert (comm.type_name, comm.signed, comm.target) == ("char[16]", True, None)
    (state,) = types.resolve("task_struct", "state")
    assert (state.kind, state.size, state.signed) == (Kind.ENUM, 4, True)


def test_a_pointer_begins_a_new_hop(types: Btf) -> None:
    first, second = types.resolve("task_struct", "cred.uid.val")
    assert (first.offset, first.kind, first.target) == (24, Kind.POINTER, types.find("cred"))
    assert (second.offset, second.size, second.type_name) == (4, 4, "uid_t")
    hops = types.resolve("task_struct", "parent.parent.tasks.next.next")
    assert [hop.offset for hop in hops] == [120, 120, 8, 0]
    with pytest.raises(TypeNotFoundError, match=r"cred\.uid"):
        types.offsetof("task_struct", "cred.uid")


def test_elements_of_arrays(types: Btf) -> None:
    assert types.offsetof("task_struct", "mem[3].size") == 56 + 3 * 16 + 8
    (memory,) = types.resolve("task_struct", "mem")
    assert (memory.count, memory.element_size) == (4, 16)
    assert memory.target == types.find("module_memory")
    assert types.offsetof("task_struct", "grid[1][2]") == 136 + 16 + 8
    (grid,) = types.resolve("task_struct", "grid")
    assert (grid.count, grid.element_size, grid.size) == (16, 4, 64)
    for path in ("mem[4]", "comm[16]", "state[0]", "mem.base", "cred[0]"):
        assert not types.has("task_struct", path), path


def test_bit_fields(types: Btf) -> None:
    (flag,) = types.resolve("task_struct", "flag_b")
    assert (flag.offset, flag.size, flag.bit_offset, flag.bit_size) == (4, 4, 1, 3)
    assert flag.signed
    # Before the kind flag, the width is the integer's own.
    (old,) = types.resolve("old_bits", "three")
    assert (old.offset, old.size, old.bit_offset, old.bit_size) == (0, 4, 5, 3)
    assert types.resolve("old_bits", "plain")[0].bit_size == 0


def test_a_bit_field_across_its_unit() -> None:
    blob = Blob()
    wide = blob.integer("unsigned long", 8)
    blob.struct("s", 16, [("a", wide, 60, 10), ("b", wide, 59, 62)])
    types = Btf.parse(blob.build())
    (field,) = types.resolve("s", "a")
    assert (field.offset, field.size, field.bit_offset, field.bit_size) == (7, 2, 4, 10)
    with pytest.raises(CorruptDataError):
        types.resolve("s", "b")


def test_a_struct_so_large_that_offsets_take_all_32_bits() -> None:
    blob = Blob()
    byte = blob.integer("char", 1)
    blob.struct("large", 1 << 23, [("far", byte, (1 << 25) + 8, 0)])
    (far,) = Btf.parse(blob.build()).resolve("large", "far")
    assert (far.offset, far.bit_size) == ((1 << 22) + 1, 0)


def test_enumerators(types: Btf) -> None:
    assert types.enumerators("enum state") == {"RUNNING": 0, "DEAD": -2}
    assert types.enumerators("big") == {"LOW": 1, "HIGH": 1 << 40, "ALL": (1 << 64) - 1}
    assert types.enumerators("negative") == {"NONE": -1}
    with pytest.raises(TypeNotFoundError, match="cred"):
        types.enumerators("cred")


def test_names_and_tags(types: Btf) -> None:
    assert types.sizeof("struct overlap") == 8
    assert types.resolve("overlap", "twin")
    assert types.sizeof("uid_t") == types.sizeof("kuid_t") == 4
    for name in ("union overlap", "enum task_struct", "struct uid_t", "", "struct ", "nothing"):
        assert name not in types, name
    assert "struct list_head" in set(types.names("list_*"))
    assert list(types.names("struct c*")) == ["struct cred"]
    assert types.variable("current_task") is not None
    assert types.variable("task_struct") is None


def test_hints_say_what_there_is(types: Btf) -> None:
    with pytest.raises(TypeNotFoundError) as error:
        types.resolve("task_struct", "com")
    assert "comm" in error.value.hint
    with pytest.raises(TypeNotFoundError) as error:
        types.sizeof("task_strict")
    assert "task_struct" in error.value.hint
    for path in ("", ".", "comm.", "comm[x]", "a b", "x" * 1000, "state.x", "files.x"):
        with pytest.raises(TypeNotFoundError):
            types.resolve("task_struct", path)


def test_describe(types: Btf) -> None:
    task = types.describe("task_struct")
    assert (task.kind, task.name, task.size) == (Kind.STRUCT, "task_struct", 256)
    spelled = {member.name: member.type for member in task.members}
    assert spelled["tasks"] == "struct list_head"
    assert spelled["cred"] == "const struct cred *"
    assert spelled["open"] == "int (*)(struct file *, const char *, ...)"
    assert spelled["mem"] == "struct module_memory[4]"
    assert spelled["grid"] == "row_t[4]"
    assert spelled[""] == "union <anonymous>"
    assert types.describe("kuid_t").target == "struct <anonymous>"
    assert types.describe("enum state").enumerators == (("RUNNING", 0), ("DEAD", -2))
    assert types.describe("double").kind is Kind.FLOAT
    assert types.describe("file").kind is Kind.FORWARD


def test_split_btf_continues_its_base() -> None:
    base_blob = kernel()
    base = Btf.parse(base_blob.build())
    module_blob = Blob(base=base_blob)
    list_head = base.find("list_head")
    file = module_blob.struct("file", 24, [("f_list", list_head, 0, 0), ("f_pos", 4, 128, 0)])
    module_blob.add(btf_blob.PTR, word=file)
    module = Btf.parse(module_blob.build(), base=base)
    assert module.find("file") == file == base.end_id
    assert module.offsetof("file", "f_list.prev") == 8
    assert module.offsetof("task_struct", "comm") == 32
    # The kernel's BTF only declares it: the module's defines it.
    assert [hop.offset for hop in module.resolve("task_struct", "files.f_pos")] == [200, 16]
    assert {"struct file", "struct cred"} <= set(module.names())
    assert not base.has("task_struct", "files.f_pos")


def test_split_btf_takes_names_from_its_base() -> None:
    base_blob = kernel()
    base = Btf.parse(base_blob.build())
    name = base_blob.strings.index(b"\0module_memory\0") + 1
    module_blob = Blob(base=base_blob)
    module_blob.struct("other", 40, [])
    raw = bytearray(module_blob.build())
    struct.pack_into("<I", raw, 24, name)
    module = Btf.parse(bytes(raw), base=base)
    assert (module.sizeof("module_memory"), base.sizeof("module_memory")) == (40, 16)


def test_a_name_that_is_the_tail_of_another() -> None:
    blob = Blob()
    blob.integer("unsigned int", 4)
    raw = bytearray(blob.build())
    struct.pack_into("<I", raw, 24, struct.unpack_from("<I", raw, 24)[0] + len("unsigned "))
    assert Btf.parse(bytes(raw)).sizeof("int") == 4


def test_a_longer_header_and_unknown_kinds_with_their_layout() -> None:
    blob = kernel()
    blob.add(20, "future", 1, blob.words(1, 2), 2)
    blob.struct("after", 4, [])
    with pytest.raises(CorruptDataError, match="unknown kind"):
        Btf.parse(blob.build(40))
    layout = b"".join(struct.pack("<BBH", 0, 4, 0) for _ in range(21))
    at = 32 - 40
    extra = struct.pack("<II", at & 0xFFFFFFFF, 0)
    raw = bytearray(blob.build(40, extra))
    struct.pack_into("<II", raw, 24, len(raw) - 40, len(layout))
    assert Btf.parse(bytes(raw) + layout).sizeof("after") == 4


def test_circles_and_bombs_have_an_end() -> None:
    blob = Blob()
    one = blob.next
    blob.add(btf_blob.TYPEDEF, "circle", one + 1)
    blob.add(btf_blob.CONST, word=one)
    selfish = blob.next
    blob.struct("selfish", 8, [("", selfish, 0, 0), ("x", selfish, 0, 0)])
    doubling = blob.struct("", 4, [("leaf", one, 0, 0)])
    for _ in range(19):
        doubling = blob.struct("", 4, [("", doubling, 0, 0), ("", doubling, 0, 0)])
    blob.struct("bomb", 4, [("", doubling, 0, 0), ("", doubling, 0, 0)])
    huge = blob.integer("int", 4)
    for _ in range(20):
        huge = blob.array(huge, 0xFFFFFFFF)
    blob.struct("huge", 4, [("all", huge, 0, 0)])
    chain = blob.array(blob.next, 2)
    blob.struct("endless", 4, [("a", chain, 0, 0), ("p", blob.next + 1, 0, 0)])
    blob.add(btf_blob.PTR, word=blob.next)
    types = Btf.parse(blob.build())
    for name in ("circle", "selfish", "bomb", "endless"):
        for ask in (types.describe, lambda name: types.resolve(name, "x"), types.sizeof):
            try:
                ask(name)
            except VirtIntrospectError:
                continue
    with pytest.raises(CorruptDataError, match="impossibly many"):
        types.resolve("bomb", "leaf")
    assert types.resolve("huge", "all")[0].size > 1 << 600
    assert types.spell(types.members_of(types.find("endless"))["p"].type_id) == "…"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        RAW[:23],
        b"\x9f\xeb\x02" + RAW[3:],
        b"\x00" + RAW[1:],
        RAW[:-1],
        RAW[:4] + b"\x08" + RAW[5:],
        RAW[:12] + b"\xff\xff\xff\x7f" + RAW[16:],
        RAW[:12] + struct.pack("<I", struct.unpack_from("<I", RAW, 12)[0] - 4) + RAW[16:],
    ],
)
def test_what_is_no_btf(raw: bytes) -> None:
    with pytest.raises(CorruptDataError):
        Btf.parse(raw)


def ask_everything(types: Btf) -> None:
    for name in ("task_struct", "cred", "state", "big", "kuid_t", "list_head", "old_bits"):
        for path in ("comm", "cred.uid.val", "mem[1].base", "grid[1][1]", "tasks.next", "three"):
            try:
                types.resolve(name, path)
            except VirtIntrospectError:
                continue
        for ask in (types.describe, types.sizeof, types.enumerators, types.find):
            try:
                ask(name)
            except VirtIntrospectError:
                continue
    try:
        list(types.names())
    except VirtIntrospectError:
        return


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.binary(min_size=1, max_size=4)), max_size=6)
)
def test_damage_gives_a_typed_error(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(RAW)
    for position, junk in changes:
        raw[position : position + len(junk)] = junk
    try:
        types = Btf.parse(bytes(raw))
    except VirtIntrospectError:
        return
    ask_everything(types)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_stored_sections_give_a_typed_error(data: st.DataObject) -> None:
    stored = Btf.parse(RAW).sections
    parts = [bytearray(stored.raw), bytearray(stored.records), bytearray(stored.index)]
    for part in parts:
        for _ in range(data.draw(st.integers(0, 3))):
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
        del part[data.draw(st.integers(len(part) - 9, len(part))) :]
    try:
        raw, records, index = (memoryview(part) for part in parts)
        types = Btf(BtfSections(raw, records, index))
    except VirtIntrospectError:
        return
    ask_everything(types)


@pytest.mark.parametrize("size", [4, 8])
def test_words_have_the_size_of_a_pointer(size: int) -> None:
    types = Btf.parse(Blob().build())
    types.pointer_size = size
    top = (1 << 8 * size) - 1
    assert types.words(top.to_bytes(size, "little") + (7).to_bytes(size, "little")) == (top, 7)
    assert types.words(memoryview(b"")) == ()
