"""Locks and their owners, registers in notes, taints (synthetic)."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.images import BuiltMemory
from tests.unit.symbols.btf_blob import Blob
from virtintrospect.arch import X86_64_4LEVEL
from virtintrospect.guests.linux import taints
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.stack import TaskStack
from virtintrospect.guests.linux.unwind import Frame, Stack
from virtintrospect.guests.linux.waits import Wait, Waits
from virtintrospect.memory.cpunotes import Note, registers
from virtintrospect.space import AddressSpace
from virtintrospect.symbols.btf import Btf
from virtintrospect.translation import LinearRange

BASE = 0xFFFF_8880_0000_0000
STACK, LOCK, ME, HOLDER = BASE + 0x1000, BASE + 0x4000, BASE + 0x8000, BASE + 0x9000


@pytest.fixture
def memory() -> BuiltMemory:
    return BuiltMemory(1 << 16)


@pytest.fixture
def waits(memory: BuiltMemory) -> Waits:
    """A kernel without ``blocker``: owner at 0 and list at 16 of a lock, as until 7.0."""
    blob = Blob()
    u64 = blob.integer("unsigned long", 8)
    pair = blob.struct("list_head", 16, [("next", u64, 0, 0), ("prev", u64, 64, 0)])
    for lock, waiter in (("mutex", "mutex_waiter"), ("rw_semaphore", "rwsem_waiter")):
        blob.struct(lock, 32, [("owner", u64, 0, 0), ("wait_list", pair, 128, 0)])
        blob.struct(waiter, 24, [("list", pair, 0, 0), ("task", u64, 128, 0)])
    linear = LinearRange(BASE, BASE + (1 << 16), 0)
    guest: Any = SimpleNamespace(
        types=Btf.parse(blob.build()),
        symbols={},
        kernel=AddressSpace(memory, X86_64_4LEVEL, 0, linear=[linear]),
    )
    return Waits(guest, {ME: 0, HOLDER: 0}, Budget())


def waiting(memory: BuiltMemory, owner: int, *, closed: bool = True) -> TaskStack:
    """A task with a waiter on its stack, in the list of the lock."""
    node, head = STACK + 64, LOCK + 16
    memory.write_u64(node - BASE, head, head, ME)
    memory.write_u64(LOCK - BASE, owner, 0, node, node if closed else 0)
    memory.write_u64(head - BASE, node, node if closed else 0)
    copy = Stack(STACK, bytes(memory.data[STACK - BASE : STACK - BASE + 256]))
    return TaskStack(ME, {}, [Frame(1, STACK, "saved", returns=True)], None, "", copy=copy)


MUTEX = ("__schedule", "schedule", "__mutex_lock.constprop.0", "fdget_pos")
READ = ("__schedule", "schedule", "rwsem_down_read_slowpath", "down_read")


def test_a_mutex_and_its_owner(memory: BuiltMemory, waits: Waits) -> None:
    found = waits.find(waiting(memory, HOLDER | 1), MUTEX, 0)
    assert found == Wait("mutex", LOCK, HOLDER)


def test_a_semaphore_that_a_writer_holds(memory: BuiltMemory, waits: Waits) -> None:
    item = waiting(memory, HOLDER | 2)
    assert waits.find(item, READ, 0) == Wait("rw_semaphore", LOCK, HOLDER)


def test_readers_are_no_owners(memory: BuiltMemory, waits: Waits) -> None:
    item = waiting(memory, HOLDER | 1)
    assert waits.find(item, READ, 0) == Wait("rw_semaphore held by readers", LOCK)


@pytest.mark.parametrize(("owner", "closed"), [(0xDEAD_0001, True), (HOLDER | 1, False), (0, True)])
def test_what_is_not_certain_is_not_said(
    memory: BuiltMemory, waits: Waits, owner: int, closed: bool
) -> None:
    """The owner is no task; the list does not lead back; nobody holds it."""
    assert waits.find(waiting(memory, owner, closed=closed), MUTEX, 0) == Wait("mutex")


def test_the_kernels_own_note(memory: BuiltMemory, waits: Waits) -> None:
    item = waiting(memory, HOLDER)
    assert waits.find(item, (), LOCK) == Wait("mutex", LOCK, HOLDER)
    assert waits.find(item, (), LOCK | 1) == Wait("semaphore", LOCK)
    assert waits.find(item, (), LOCK | 3) == Wait("rw_semaphore", LOCK, HOLDER)
    assert waits.find(item, (), 0xDEAD_BEE0) == Wait("mutex", 0xDEAD_BEE0)


def test_nothing_known(memory: BuiltMemory, waits: Waits) -> None:
    assert waits.find(waiting(memory, HOLDER | 1), ("__schedule", "do_wait"), 0) is None


def qemu_note(*, version: int = 1, size: int = 440) -> Note:
    general = struct.pack("<II18Q", version, 440, *range(100, 118))
    segments = b"".join(struct.pack("<IIIIQ", 0x10 + n, 0, 0, 0, 1000 + n) for n in range(10))
    return Note("QEMU", 0, (general + segments + struct.pack("<6Q", *range(200, 206)))[:size])


def test_registers_of_a_note() -> None:
    (found,) = registers([Note("CORE", 1, bytes(336)), qemu_note()])
    assert (found["rax"], found["rsp"], found["rip"], found["rflags"]) == (100, 106, 116, 117)
    assert (found["cs"], found["gs_base"], found["cr3"]) == (0x10, 1004, 203)
    assert found["kernel_gs_base"] == 205


def test_registers_of_older_and_of_damaged_notes() -> None:
    (found,) = registers([qemu_note(size=432)])
    assert "kernel_gs_base" not in found
    assert registers([qemu_note(size=400), qemu_note(version=9), Note("QEMU", 0, b"")]) == []


def test_taints() -> None:
    assert taints.letters(1 << 7 | 1 << 9 | 1 << 12) == "DWO"
    assert taints.sentences(1 << 6 | 1 << 40) == ("U: a user asked for it", "bit 40")
    assert len(taints.sentences((1 << 64) - 1)) == 64
