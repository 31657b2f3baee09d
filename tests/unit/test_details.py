"""Details of tasks as a hostile guest may have them (synthetic)."""

from __future__ import annotations

import struct
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import PTR, Blob
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.guests.linux import details, paths, ps
from virtintrospect.guests.linux.bitmap import spell
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.capabilities import names
from virtintrospect.guests.linux.cmdline import Arguments, command_line
from virtintrospect.model import Process
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.layout import Layout
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000
SIZE = 1 << 20


def _types() -> Btf:
    blob = Blob()
    int_, unsigned = blob.integer("int", 4, signed=True), blob.integer("unsigned int", 4)
    inner = blob.struct("ns_common", 4, [("inum", unsigned, 0, 0)])
    outer = blob.struct("pid_namespace", 4, [("ns", inner, 0, 0)])
    upid = blob.struct("upid", 16, [("nr", int_, 0, 0), ("ns", blob.add(PTR, word=outer), 64, 0)])
    blob.struct("pid", 24, [("level", unsigned, 0, 0), ("numbers", blob.array(upid, 1), 64, 0)])
    gids = blob.array(unsigned, 0)
    blob.struct("group_info", 8, [("usage", int_, 0, 0), ("ngroups", int_, 32, 0),
                                  ("gid", gids, 64, 0)])  # fmt: skip
    return Btf.parse(blob.build())


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(SIZE)


@pytest.fixture
def guest(memory: BuiltMemory) -> Any:
    types = _types()
    problems: list[str] = []
    return SimpleNamespace(
        kernel=AddressSpace(memory, X86_64_4LEVEL, 0, linear=[LinearRange(BASE, BASE + SIZE, 0)]),
        types=types,
        layout=lambda name, members, text=None: Layout(types, name, members, text),
        note=lambda what, _address: problems.append(what),
        problems=problems,
    )


def _row(**values: Any) -> dict[str, Any]:
    row = dict.fromkeys([*details._TASK, *details._NAMESPACES, "nspid", "pgroup", "session"])
    row |= dict.fromkeys(["pid_namespace", "group_pid", "session_pid"])
    for name in ("inheritable", "permitted", "effective", "bounding", "ambient"):
        row |= {f"cap_{name}": None, f"high_{name}": None}
    return row | values


def test_a_task_of_which_nothing_can_be_read() -> None:
    """A zombie has no nsproxy; a broken one has no credentials and no signal either."""
    assert set(details._fields(_row()).values()) == {None}


def test_numbers_that_mean_nothing() -> None:
    fields = details._fields(
        _row(seccomp=-5, policy=4711, flags=(1 << 64) - 1, ptrace=1, loginuid=0xFFFF_FFFF,
             cap_effective=0xFFFF_FFFF, high_effective=0xFFFF_FFFF, tty=b"t" * 64, tty_major=4,
             read=(1 << 64) - 1, oom=-32768)
    )  # fmt: skip
    assert (fields["seccomp"], fields["policy"], fields["no_new_privs"]) == ("-5", "4711", True)
    assert fields["cap_effective"] == (1 << 64) - 1
    assert len(fields["capabilities"]) == 64
    assert fields["capabilities"][-1] == "63"
    assert (fields["loginuid"], fields["tracer"], fields["tty"]) == (None, None, b"t" * 64)


@pytest.mark.parametrize("count", [-1, 65537, 1 << 30, -(1 << 31)])
def test_groups_beyond_reason(memory: BuiltMemory, guest: Any, count: int) -> None:
    memory.write(0x100, struct.pack("<ii", 1, count))
    rows = [_row(group_info=BASE + 0x100), _row(group_info=None), _row(group_info=0x1234)]
    assert details._groups(guest, rows, Budget()) == [None, None, None]
    assert f"credentials with {count} groups" in guest.problems


def test_groups_few_many_and_cut(memory: BuiltMemory, guest: Any) -> None:
    memory.write(0x100, struct.pack("<ii3I", 1, 3, 7, 8, 0xFFFF_FFFF))
    memory.write(0x1000, struct.pack("<ii100I", 1, 100, *range(100)))
    memory.write(SIZE - 64, struct.pack("<ii", 1, 60_000))  # goes on behind the end of memory
    rows = [_row(group_info=BASE + at) for at in (0x100, 0x1000, SIZE - 64)]
    found = details._groups(guest, rows, Budget())
    assert found == [(7, 8, 0xFFFF_FFFF), tuple(range(100)), None]
    # Shown in every row that shares them: the budget is of what is shown.
    many = details._groups(guest, [rows[1]] * 1000, Budget(size=120_000))
    assert many.count(None) == 900


def test_pid_of_a_level_that_cannot_be(memory: BuiltMemory, guest: Any) -> None:
    memory.write_u64(0x100, 1, 42, 0, 7, BASE + 0x900)
    memory.write(0x900, struct.pack("<I", 4026531836))
    there = BASE + 0x100
    rows = [
        _row(struct_pid=there, level=1, group_pid=there, session_pid=0x10),
        _row(struct_pid=there, level=33),
        _row(struct_pid=there, level=-1),
        _row(struct_pid=(1 << 64) - 8, level=32, group_pid=(1 << 64) - 1),
    ]
    details._pids(guest, rows)
    first, *others = rows
    assert (first["nspid"], first["pid_namespace"], first["pgroup"]) == (7, 4026531836, 42)
    assert first["session"] is None
    assert {row[name] for row in others for name in ("nspid", "pid_namespace", "pgroup")} == {None}


def test_counters_that_would_overflow(guest: Any) -> None:
    most = (1 << 64) - 1
    rows = [_row(read=most, ended_read=most), _row(read=1, ended_read=None)]
    guest.layout = lambda *_, **__: SimpleNamespace(
        lists=lambda *_: {name: [most, None] for name in details._SUMS}
    )
    details._add_threads(guest, rows, [[1, 2], []])
    assert [row["read"] for row in rows] == [3 * most, None]


def test_bitmaps_are_spelled_as_the_kernel_does() -> None:
    assert spell(0) == ""
    assert spell(0b1) == "0"
    assert spell(0b1011_0111) == "0-2,4-5,7"
    start = time.process_time()
    assert len(spell(int("5" * 2048, 16))) > 10_000
    assert time.process_time() - start < 5


def test_capabilities_by_name() -> None:
    assert names(0) == ()
    assert names(1 << 39 | 1 << 12 | 1 << 41) == ("cap_net_admin", "cap_bpf", "41")


# -- command lines --------------------------------------------------------------------------


def _process(pages: dict[int, bytes]) -> Any:
    class Space:
        def read_available(self, start: int, size: int) -> list[tuple[int, bytes]]:
            whole = ((at, pages[at]) for at in sorted(pages))
            found = []
            for at, page in whole:
                low, high = max(at, start), min(at + 4096, start + size)
                if low < high:
                    found.append((low, page[low - at : high - at]))
            return found

        def string(self, _vaddr: int, limit: int) -> bytes:
            return b"environment"[:limit]

    return SimpleNamespace(user_space=lambda _pgd: Space())


def _page(letter: bytes, end: bytes = b"") -> bytes:
    return letter * (4096 - len(end)) + end


@pytest.mark.parametrize(
    ("pages", "text", "missing"),
    [
        ({0: _page(b"a"), 8192: _page(b"c", b"\0")}, b"a" * 4096 + b" " + b"c" * 4095, 4096),
        ({0: _page(b"a")}, b"a" * 4096, 8192),  # no title: what its end is like is unknown
        ({4096: _page(b"b", b"\0")}, b"b" * 4095, 8192),
        ({}, None, 12288),
        ({0: _page(b"a"), 4096: _page(b"b"), 8192: _page(b"c")},
         b"a" * 4096 + b"b" * 4096 + b"c" * 4096 + b"environment", 0),
    ],
)  # fmt: skip
def test_holes_in_a_command_line(pages: dict[int, bytes], text: bytes | None, missing: int) -> None:
    found = command_line(_process(pages), 1, Arguments(0, 12288, 12299), Budget())
    assert found == (text, missing)


@pytest.mark.parametrize("where", [(5, 5, 0), (9, 3, 0), (1 << 64, 0, 0)])
def test_arguments_that_end_before_they_begin(where: tuple[int, int, int]) -> None:
    assert command_line(_process({}), 1, Arguments(*where), Budget()) == (b"", 0)


# -- second looks ---------------------------------------------------------------------------


def _process_record() -> Process:
    text = {"name": b"n", "path": b"/p", "cmdline": b"c", "cwd": b"/w", "root": b"/", "state": "S"}
    rest = {name: 1 for name in Process.__slots__ if name not in text}
    return Process(**(rest | text | {"confidence": 1.0}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "hidden", "confidence"),
    [
        ([], set(), 0.8),
        (["mm", "arg_start"], {"path", "cmdline", "resident_size", "total_size"}, 0.8),
        (["cwd_dentry", "comm"], {"cwd"}, 0.6),
        (["mm", "cwd_mount", "root_mount", "exe_dentry", "uid", "comm"],
         {"path", "cmdline", "resident_size", "total_size", "cwd", "root"}, 0.0),
    ],
)  # fmt: skip
def test_what_hangs_on_a_structure_that_changed(
    changed: list[str], hidden: set[str], confidence: float
) -> None:
    record = ps._doubted(_process_record(), changed)
    assert {name for name in Process.__slots__ if getattr(record, name) is None} == hidden
    assert record.confidence == confidence


def test_dentries_that_changed_or_are_being_renamed() -> None:
    before: dict[str, list[Any]] = {"parent": [1, 2, None, 4], "seq": [0, 2, None, 5]}
    assert paths._changed(before, {"parent": [1, 2, None, 4], "seq": [0, 2, None, 5]}) == [3]
    assert paths._changed(before, {"parent": [1, 9, None, 4], "seq": [0, 2, 0, 6]}) == [1, 2, 3]
    still: dict[str, list[Any]] = {"parent": [1], "seq": [None]}
    assert paths._changed(still, {"parent": [1], "seq": [None]}) == []
