"""The audit rules on a real guest's memory that was bent by hand: each book, each hook, no end.

What a rule compares is taken out of one place after the other (see test_hostile.py).
"""

from __future__ import annotations

import struct

import pytest

from virtintrospect.guests.linux import percpu
from virtintrospect.insight import checks
from virtintrospect.insight.checks import check

from .test_hostile import Liar, liar, quickly, ram, store, whats

__all__ = ["liar", "ram", "store"]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that stands still needs no waiting."""
    monkeypatch.setattr(checks, "_AGAIN", (0.0, 0.0))


def unlink(liar: Liar, node: int) -> None:
    """Take a ``list_head`` off its list, as list_del() does."""
    following, before = struct.unpack("<QQ", liar.guest.kernel.read(node, 16))
    liar.write(before, struct.pack("<Q", following))
    liar.write(following + 8, struct.pack("<Q", before))


def member(liar: Liar, name: str, path: str, address: int) -> int:
    return address + liar.guest.types.offsetof(name, path)


def victim(liar: Liar) -> tuple[int, bytes]:
    """A sleeper of the lab: its address, and how a finding calls it."""
    rows = [row for row in liar.guest.processes() if row.name.startswith(b"sleeper")]
    return rows[2].address, b"process %d (%s)" % (rows[2].pid, rows[2].name)


def found(liar: Liar, rule: str) -> dict[bytes, bytes]:
    """Subjects of a rule's findings, and their evidence."""
    return {one.subject: one.evidence for one in check(liar.guest, [rule])}


def off_the_task_list(liar: Liar, task: int) -> None:
    unlink(liar, member(liar, "task_struct", "tasks", task))


def off_the_numbers(liar: Liar, task: int) -> None:
    pid = liar.guest.kernel.read_pointer(member(liar, "task_struct", "thread_pid", task))
    liar.write(member(liar, "pid", "tasks[0].first", pid), bytes(8))


def off_the_cgroups(liar: Liar, task: int) -> None:
    unlink(liar, member(liar, "task_struct", "cg_list", task))


@pytest.mark.parametrize(
    ("hide", "missing"),
    [(off_the_task_list, "task-list"), (off_the_numbers, "pid-table"),
     (off_the_cgroups, "cgroups")],
)  # fmt: skip
def test_a_task_off_one_book(liar: Liar, hide: object, missing: str) -> None:
    assert found(liar, "hidden-process") == {}
    task, name = victim(liar)
    hide(liar, task)  # type: ignore[operator]
    (evidence,) = found(liar, "hidden-process").items()
    assert evidence[0] == name
    assert f" missing={missing} ".encode() in evidence[1]
    assert missing.encode() not in evidence[1].partition(b"seen=")[2]


def test_a_task_that_only_runs(liar: Liar) -> None:
    """Off all books, and on a CPU."""
    task, name = victim(liar)
    for hide in (off_the_task_list, off_the_numbers, off_the_cgroups):
        hide(liar, task)
    unlink(liar, member(liar, "task_struct", "sibling", task))
    assert found(liar, "hidden-process") == {}
    (queue,) = percpu.addresses(
        liar.guest, liar.guest.symbols.address("runqueues"),
        list(percpu.online(liar.guest).values()),
    )  # fmt: skip
    liar.set("rq", "curr", queue, task)
    (evidence,) = found(liar, "hidden-process").items()
    assert evidence[0] == name
    assert b"missing=task-list seen=run-queues " in evidence[1]


def test_a_thread_off_its_list(liar: Liar) -> None:
    rows = liar.guest.processes(threads=True)
    thread = next(row for row in rows if row.tid != row.pid)
    unlink(liar, member(liar, "task_struct", "thread_node", thread.address))
    (subject,) = found(liar, "hidden-process")
    assert subject == b"thread %d of process %d (%s)" % (thread.tid, thread.pid, thread.name)


def test_modules_off_one_book(liar: Liar) -> None:
    guest = liar.guest
    modules = guest.entries("modules", "module", "list")
    names = {b"module " + module.name for module in guest.modules()}
    first, second = modules[:2]
    unlink(liar, member(liar, "module", "list", first))
    unlink(liar, member(liar, "module", "mkobj.kobj.entry", second))
    hidden = found(liar, "hidden-module")
    assert sorted(evidence.split()[:2] for evidence in hidden.values()) == [
        [b"missing=list", b"seen=address-tree,sysfs"],
        [b"missing=sysfs", b"seen=address-tree,list"],
    ]
    assert hidden.keys() < names
    # What the list lacks is nobody's: its code, too.
    assert len(found(liar, "unknown-code")) == 1
    for half in range(2):
        root = guest.symbols.address("mod_tree")
        root += guest.types.offsetof("mod_tree_root", f"root.tree[{half}]")
        liar.write(root, bytes(8))
    assert found(liar, "hidden-module").keys() == names


def test_hooks(liar: Liar) -> None:
    """One pointer after the other is bent, and found by the one rule that looks there."""
    guest = liar.guest
    for rule in ("syscall-table", "interrupt-table", "lsm-hook", "ftrace-hook", "netfilter-hook"):
        assert found(liar, rule) == {}
    bad = struct.pack("<Q", liar.room)
    liar.write(guest.symbols.address("sys_call_table") + 8 * 59, bad)
    middle = guest.symbols.address("kernel_halt") + 1
    liar.write(guest.symbols.address("sys_call_table") + 8 * 60, struct.pack("<Q", middle))
    assert found(liar, "syscall-table").keys() == {b"sys_call_table[59]", b"sys_call_table[60]"}
    liar.write(guest.symbols.address("idt_table") + 16 * 3 + 6, b"\x34\x12")
    assert found(liar, "interrupt-table").keys() == {b"interrupt 0x3"}
    liar.write(guest.symbols.address("ftrace_trace_function"), bad)
    assert found(liar, "ftrace-hook").keys() == {b"ftrace_trace_function"}


def test_books_without_end(liar: Liar) -> None:
    """Cycles and long lists in each of them cost a bounded time, and are told."""
    guest, long = liar.guest, liar.long_cycle(200_000)
    init = guest.symbols.address("init_task")
    task, _ = victim(liar)
    css_set = guest.kernel.read_pointer(member(liar, "task_struct", "cgroups", task))
    liar.write(member(liar, "css_set", "tasks", css_set), struct.pack("<Q", long))
    liar.write(member(liar, "task_struct", "children", init), struct.pack("<Q", long))
    quickly(lambda: check(guest, ["hidden-process"]), 60)
    assert any(what.startswith("chain ") for what in whats(guest))
    # A tracer whose next one is itself.
    liar.write(liar.room, bytes(4096))
    liar.write(liar.room + guest.types.offsetof("ftrace_ops", "next"), struct.pack("<Q", liar.room))
    liar.write(guest.symbols.address("ftrace_ops_list"), struct.pack("<Q", liar.room))
    quickly(lambda: check(guest, ["ftrace-hook", "unknown-code"]))
    assert "not checked: ftrace-hook: the list of tracers has no end" in whats(guest)
    # Probes whose chain leads to itself, and whose own list is long.
    liar.write(guest.symbols.address("kprobe_table"), struct.pack("<Q", liar.room))
    liar.write(liar.room, struct.pack("<QQQQ", liar.room, 0, long, long))
    quickly(lambda: check(guest, ["kprobe"]))
    head = guest.symbols.address("modules")
    liar.write(head, struct.pack("<Q", long))
    quickly(lambda: check(guest), 120)
