"""Ways into the kernel: the tables of system calls, and of interrupts."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from virtintrospect.errors import FaultError
from virtintrospect.insight.checks.code import Pointer, strangers
from virtintrospect.insight.checks.rule import Hit, Rule

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.insight.checks.context import Context

#: Tables of system calls: the native one, those of other ABIs.
_TABLES = ("sys_call_table", "ia32_sys_call_table", "x32_sys_call_table", "compat_sys_call_table")
#: More system calls than any architecture has.
_MOST_CALLS = 1024
#: IDT_ENTRIES (arch/x86/include/asm/segment.h), and the bit of a gate that is in use.
_GATES, _PRESENT, _TASK_GATE = 256, 0x80, 5


def syscall_targets(guest: LinuxGuest) -> dict[str, list[tuple[int, int]]]:
    """Entries of the tables of system calls: address and target, by the table's name.

    A table ends where the next symbol begins, or before: what follows it there may have no name.
    At its end only what is an address at all counts.
    """
    found = {}
    size = guest.kernel.pointer_size
    for name in _TABLES:
        start = guest.symbols.get(name)
        span = guest.symbols.span(start) if start is not None else None
        if start is None or span is None:
            continue
        count = min(span[2] // size, _MOST_CALLS)
        targets = list(guest.kernel.pointers(start, count))
        while targets and not _is_mapped(guest, targets[-1]):
            targets.pop()
        found[name] = [(start + size * index, target) for index, target in enumerate(targets)]
    return found


def _is_mapped(guest: LinuxGuest, address: int) -> bool:
    try:
        guest.kernel.translate(address)
    except FaultError:
        return False
    return True


def syscalls(context: Context) -> Iterator[Hit]:
    """Entries that lead out of the kernel, or into the middle of a function."""
    tables = syscall_targets(context.guest)
    if "sys_call_table" not in tables:
        context.cannot("syscall-table: this kernel has no symbol of it")
    code = context.code
    for name, entries in tables.items():
        pointers = [
            Pointer(f"{name}[{index}]".encode(), target, address)
            for index, (address, target) in enumerate(entries)
        ]
        outside = list(strangers(code, pointers, modules="critical"))
        yield from outside
        known = {hit.subject for hit in outside}
        for pointer in pointers:
            if pointer.name not in known and not code.is_function(pointer.target):
                yield Hit(
                    pointer.name,
                    b"it leads to " + code.shown(pointer.target) + b", where no function begins",
                    {"target": hex(pointer.target), "address": hex(pointer.address)},
                )


def interrupts(context: Context) -> Iterator[Hit]:
    """Gates of the interrupt descriptor table that lead out of the kernel's image."""
    guest = context.guest
    if "idt_table" not in guest.symbols:
        if guest.machine.name.startswith(("x86", "i386")):
            context.cannot("interrupt-table: this kernel has no symbol of it")
        return
    yield from strangers(context.code, _gates(guest), modules="critical")


def _gates(guest: LinuxGuest) -> Iterator[Pointer]:
    """``struct gate_struct`` (arch/x86/include/asm/desc_defs.h)."""
    table = guest.symbols.address("idt_table")
    long = guest.kernel.pointer_size == 8
    gate = struct.Struct("<HHBBHII" if long else "<HHBBH")
    data = guest.kernel.read(table, gate.size * _GATES)
    for number, (low, _, _, kind, middle, *high) in enumerate(gate.iter_unpack(data)):
        if kind & _PRESENT and kind & 0x1F != _TASK_GATE:
            target = low | middle << 16 | (high[0] << 32 if high else 0)
            yield Pointer(f"interrupt {number:#x}".encode(), target, table + number * gate.size)


RULES = (
    Rule(
        id="syscall-table",
        severity="critical",
        title="A system call leads somewhere else",
        looks_at="Every entry of sys_call_table and of its siblings for other ABIs: it must be "
        "the beginning of a function of the kernel's own image.",
        remedy="Take the guest off the network and dump it. The evidence has the address of the "
        "code: `read`, `symbols`, `check --rule hidden-module`.",
        false_positives="Some security products from outside of the kernel tree still do this.",
        blind="x86 kernels since 6.9, and older ones with the mitigation of branch history "
        "injection, do not call through the table (x64_sys_call): there a changed entry shows an "
        "attempt. A changed function is kernel-text's business.",
        reference="T1014",
        check=syscalls,
    ),
    Rule(
        id="interrupt-table",
        severity="critical",
        title="An interrupt or exception leads somewhere else",
        looks_at="Every gate in use of idt_table: it must lead into the kernel's own image. x86 "
        "only.",
        remedy="Take the guest off the network and dump it.",
        false_positives="None is known.",
        blind="A CPU that was given another table: its register is not read. Other architectures "
        "have vectors in the kernel's text, which kernel-text compares.",
        reference="T1014",
        check=interrupts,
    ),
)
