"""Bounds that hold whatever a guest claims: work times rows, lengths, and counts below zero."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.symbols.btf_blob import Blob
from virtintrospect.daemon.guestlog import kind_of
from virtintrospect.errors import FaultError, TypeNotFoundError
from virtintrospect.guests.linux import (
    bpf,
    containers,
    fib4,
    files,
    guestinfo,
    modsyms,
    neighbours,
    printk,
    printk_ring,
    routes,
    text,
    xarray,
)
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.cputime import adjust
from virtintrospect.guests.linux.orc import Format
from virtintrospect.guests.linux.stack import StackReader
from virtintrospect.guests.linux.sysctlvalues import values
from virtintrospect.insight.arrays import arrays
from virtintrospect.insight.columns import Column, Table, Unit
from virtintrospect.model import LogRecord
from virtintrospect.symbols.btf import Btf

#: Seconds for what takes milliseconds, on a busy machine; without its bound each takes longer.
PATIENCE = 4.0


def quickly(run: Callable[[], Any]) -> Any:
    start = time.process_time()
    found = run()
    assert time.process_time() - start < PATIENCE
    return found


class Fake:
    """A guest of a few answers."""

    def __init__(self, **members: Any) -> None:
        self.problems: list[str] = []
        self.__dict__.update(members)

    def note(self, what: str, _address: int) -> None:
        self.problems.append(what)

    def layout(self, name: str, *_: Any, **__: Any) -> Any:
        answers = self.__dict__["columns"][name]
        return SimpleNamespace(
            lists=lambda _space, addresses, _faults=None: {
                key: [value] * len(addresses) for key, value in answers.items()
            }
        )


def fake(**members: Any) -> Any:
    return Fake(**members)


def space(**members: Any) -> Any:
    """A kernel's address space: what ``read`` and ``gather`` give, as pointers too."""

    def pointers(vaddr: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", members["read"](vaddr, 8 * count))

    def gather_pointers(vaddrs: list[int], faults: list[int]) -> tuple[int, ...]:
        return struct.unpack(f"<{len(vaddrs)}Q", members["gather"](vaddrs, 8, faults))

    more = {"pointers": pointers, "gather_pointers": gather_pointers, "pointer_size": 8}
    return SimpleNamespace(**more, **members)


# -- work times rows ------------------------------------------------------------------------


@pytest.mark.parametrize("word", [b"out of memory", b"INFO: task x", b"Out of memory: Kill"])
def test_lines_of_a_log_are_searched_once(word: bytes) -> None:
    """A record that begins like what is sought, again and again: the search must not be square."""
    record = LogRecord(1.0, "err", "kern", word * 400_000, 5)
    assert quickly(lambda: kind_of(record)) is None


def test_records_of_a_log_have_a_length() -> None:
    ring = bytes(8) + b"x" * (1 << 20)
    assert printk_ring._block(ring, 0, 1 << 19, 0, 1 << 19) is None
    assert printk_ring._block(ring, 0, 64, 0, 16) == b"x" * 16


def test_bitmaps_of_parameters_count() -> None:
    """The same bitmap again and again, every other bit of it set."""
    size = 1 << 16
    row = {"handler": 1, "data": 8, "size": size, "mode": 0o444, "name": b"x"}
    kernel = space(read_pointer=lambda _: 8, read=lambda _, length: b"\x55" * length)
    guest = fake(
        kernel=kernel,
        symbols=SimpleNamespace(
            all=lambda name: [1] if name == "proc_do_large_bitmap" else [], __contains__=None
        ),
    )
    budget = Budget(size=1 << 20)
    guest.read_global = lambda *_: {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virtintrospect.guests.linux.sysctlvalues.tick", lambda _: None)
        found = values(guest, [dict(row) for _ in range(40)], budget)
    assert sum(len(value or b"") for value in found) <= 1 << 20
    assert found[0]
    assert found[-1] is None
    assert budget.problem is not None


def test_next_hops_that_many_routes_share() -> None:
    guest = fake()
    hops = [(number, 1) for number in range(8192)]
    rows: list[dict[str, Any]] = [{"hops": hops, "address": number} for number in range(4000)]
    routes._limit_hops(guest, rows)
    assert sum(len(row["hops"]) for row in rows) == routes.LIMIT
    assert rows[0]["hops"] == hops
    assert "next hops" in guest.problems[0]


def test_many_interfaces_of_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [
        SimpleNamespace(interface=b"%d" % n, net_namespace=1, mac=None, address=None)
        for n in range(30_000)
    ]
    monkeypatch.setattr(guestinfo, "interfaces", lambda *_, **__: every)
    tasks = SimpleNamespace(addresses=lambda _: [1])
    guest = fake(columns={"task_struct": {"namespace": 1}}, kernel=None, tasks=tasks)
    source: Any = SimpleNamespace(guest=guest, budget=Budget())
    keys = quickly(lambda: guestinfo._interfaces(source))
    assert keys["if.count"] == 30_000
    assert keys["if.29999.name"] == b"29999"


def test_neighbours_none_of_which_can_be_read() -> None:
    def gather(addresses: list[int], size: int, faults: list[int]) -> bytes:
        faults += range(len(addresses))
        return bytes(len(addresses) * size)

    rows = [{"address": number, "flags": 0} for number in range(60_000)]
    guest = fake(kernel=space(gather=gather))
    assert quickly(lambda: neighbours._keyed(guest, rows, 0, 4)) == []


def test_parts_of_programs_count() -> None:
    kernel = space(read=lambda _, size: bytes(size))
    budget = Budget(entries=1000)
    found = [bpf._pointers(fake(kernel=kernel), 8, 400, 512, budget) for _ in range(5)]
    assert [len(parts) for parts in found] == [400, 400, 0, 0, 0]


def test_symbols_of_modules_count() -> None:
    """Modules that all claim the same large table."""
    reads: list[int] = []

    def read(_: int, size: int) -> bytes:
        reads.append(size)
        return bytes(size)

    reader = object.__new__(text.KernelText)
    reader._guest = fake(kernel=space(read=read), types=SimpleNamespace(pointer_size=8))
    reader._budget, reader._symbols = Budget(entries=100_000), {}
    for start in range(50):
        module = text.ModuleText("m", start, start + 1, (0, 0, 0), 8, 8, 1 << 17)
        assert reader._module_symbols(module) == []
    assert len(reads) == 1


def test_level_of_an_xarray_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """More nodes than can be followed are not even remembered."""
    numbers = iter(range(1 << 40))

    def read(*_: Any) -> tuple[list[Any], list[Any]]:
        return [], [xarray._Node(next(numbers) * 8 + 2, 0, 6, 0) for _ in range(1 << 16)]

    monkeypatch.setattr(xarray, "_read", read)
    monkeypatch.setattr(xarray, "_form", lambda _: None)
    budget = Budget(entries=1 << 14)
    tracemalloc.start()
    assert xarray.walk_spans(fake(), 0x8002, budget) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    assert budget.problem is not None


def test_stacks_that_nobody_had_time_for() -> None:
    """Time was up in the middle: what was not read has not moved."""
    reader = cast(Any, SimpleNamespace(_rows=lambda _: []))
    assert StackReader._moved(reader, [{"address": 5}], {}) == []


def test_modules_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    nodes = list(range(8, 8008, 8))
    monkeypatch.setattr(modsyms, "walk_list", lambda *_, **__: (nodes, None))
    monkeypatch.setattr(modsyms, "_address", lambda *_: looked.append(1))
    module = {"name": b"dummy\0", "symtab": 8, "strtab": 8, "count": 1 << 17}
    types = SimpleNamespace(offsetof=lambda *_: 0, has=lambda *_: True)
    symbols = SimpleNamespace(address=lambda _: 8)
    types.pointer_size = 8
    guest = fake(columns={"module": module}, kernel=None, types=types, symbols=symbols)
    guest.note_all = lambda _: None
    assert modsyms.module_functions(guest, {"dummy": "dummy_get_stats64"}, Budget()) == {}
    assert looked == [1]


def test_paths_of_groups_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many processes in many groups whose paths have many parts."""
    looked: list[bytes] = []
    groups = list(range(1, 3000))
    sets = dict.fromkeys(range(100), groups)
    monkeypatch.setattr(containers, "groups_of_sets", lambda *_: sets)
    monkeypatch.setattr(containers, "identify", looked.append)
    paths = SimpleNamespace(cgroups=lambda nodes: dict.fromkeys(nodes, b"/a/b"))
    monkeypatch.setattr(containers, "PathReader", lambda *_: paths)
    guest = fake(columns={"cgroup": {"node": 8}}, kernel=None)
    found = containers._groups(guest, list(sets), Budget())
    assert looked == [b"/a/b"]
    assert {len(some) for some in found.values()} == {64}


# -- below zero, and too large --------------------------------------------------------------


def test_budget_does_not_grow() -> None:
    budget = Budget(entries=10)
    assert budget.follow(-5) == 0
    assert budget.entries == 10


def test_table_of_files_of_less_than_none() -> None:
    row = {"max": -1, "cloexec": 0, "open": 0, "fd": 8, "pid": 1}
    files._check_size(row, {})
    assert row["max"] == 0


@pytest.mark.parametrize(("utime", "stime"), [(5, -5), (-5, 5), (-1, -1)])
def test_times_below_zero(utime: int, stime: int) -> None:
    assert sum(number or 0 for number in adjust(utime, stime, 100, 0, 0)) == 100


def test_facility_below_zero() -> None:
    maker = object.__new__(printk.Maker)
    maker._booted = None
    assert maker.record(0, -1, -100, b"", 1).facility == "-100"


def test_table_of_neighbours_with_a_fraction_of_a_bucket() -> None:
    guest = fake(columns={"neigh_table": {"array": 8, "shift": -1}}, kernel=None)
    assert neighbours._entries(guest, neighbours._Table("inet", 4, 8), Budget()) == []
    assert "2^-1" in guest.problems[0]


@pytest.mark.parametrize(("pos", "bits"), [(0, -1), (-1, 1), (31, -31)])
def test_tries_of_less_than_no_bits(pos: int, bits: int) -> None:
    """``pos`` and ``bits`` are of a type that the guest chose."""
    kernel = space(gather=lambda *_: (8).to_bytes(8, "little"))
    types = SimpleNamespace(offsetof=lambda *_: 0)
    node = {"key": 0, "pos": pos, "bits": bits, "first": 0}
    guest = fake(columns={"key_vector": node}, kernel=kernel, types=types)
    assert fib4._leaves(guest, [(1, 8)], Budget()) == []
    assert guest.problems == ["broken tree of routes"]


def test_children_of_a_trie_count() -> None:
    kernel = space(read=lambda _, size: b"\1" * size)
    budget = Budget(entries=140_000)
    assert len(fib4._children(fake(kernel=kernel), 8, 20, budget)) == budget.entries + 1


def test_orc_entry_without_a_type() -> None:
    blob = Blob()
    s16, u32 = blob.integer("s16", 2, signed=True), blob.integer("unsigned int", 4)
    members = [("sp_offset", s16, 0, 0), ("bp_offset", s16, 16, 0), ("sp_reg", u32, 32, 4)]
    blob.struct("orc_entry", 6, members)
    with pytest.raises(TypeNotFoundError):
        Format(Btf.parse(blob.build()))


def test_addresses_that_are_none() -> None:
    table = Table("x", (Column("at", Unit.ADDRESS),))
    for value in (-5, 1 << 64):
        assert list(arrays(table, [SimpleNamespace(at=value)])["at"]) == [value]


def test_unreadable_parts_of_a_program() -> None:
    def read(address: int, size: int) -> bytes:
        raise FaultError(address, size)

    guest = fake(kernel=space(read=read))
    assert bpf._pointers(guest, 8, -3, 512, Budget()) == []
    assert bpf._pointers(guest, 8, 3, 512, Budget()) == []
    assert len(guest.problems) == 2
