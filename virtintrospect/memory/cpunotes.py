"""Registers of a guest's CPUs in the notes of an ELF core.

QEMU writes two notes a CPU for x86 (target/i386/arch_dump.c): ``CORE`` with a ``struct
elf_prstatus``, as of a program, and ``QEMU`` with a ``QEMUCPUState``, which has the segments'
bases and the control registers, too. For ARM and RISC-V (target/arm/arch_dump.c,
target/riscv/arch_dump.c) there is only the first; and so in /proc/vmcore, which a kernel that
crashed leaves to the next one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

#: Version, size, 16 general registers, rip, rflags.
_GENERAL = struct.Struct("<II18Q")
_GENERAL_NAMES = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12",
    "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
#: Selector, limit, flags, padding, base.
_SEGMENT = struct.Struct("<IIIIQ")
_SEGMENT_NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt")
_CONTROL = struct.Struct("<5Q")
_GS_BASE = struct.Struct("<Q")
_MASK = (1 << 64) - 1

#: NT_PRSTATUS.
_PRSTATUS = 1
_STATUS_NAMES = {
    # struct user_regs_struct (arch/x86/include/asm/user_64.h).
    "x86-64": (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
        "rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds",
        "es", "fs", "gs",
    ),
    # struct pt_regs (arch/arm/include/uapi/asm/ptrace.h).
    "arm": (*(f"r{number}" for number in range(13)), "sp", "lr", "pc", "cpsr", "orig_r0"),
    "aarch64": (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"),
    "riscv64": (
        "pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
        "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3",
        "t4", "t5", "t6",
    ),
}  # fmt: skip


class _Status(NamedTuple):
    """A struct elf_prstatus (include/linux/elfcore.h): where PID and registers are in it."""

    pid_at: int
    at: int
    registers: struct.Struct
    size: int


class Note(NamedTuple):
    """An ELF note: QEMU's CPU states (``QEMU``), registers (``CORE``), ``VMCOREINFO``."""

    name: str
    type: int
    desc: bytes


def registers(notes: Iterable[Note], machine: str = "x86-64") -> list[dict[str, int]]:
    """The registers of each CPU, in the order of the notes; none where there are no notes.

    QEMU's own notes where there are any, since they have more.

    :param machine: the guest's, as :class:`~virtintrospect.memory.elfcore.ElfCore` names it.
    """
    notes = list(notes)
    found = [_decode(note.desc) for note in notes if note.name == "QEMU" and _plausible(note.desc)]
    names = _STATUS_NAMES.get(machine)
    if found or names is None:
        return found
    status = _status(machine)
    return [
        dict(zip(names, status.registers.unpack_from(note.desc, status.at), strict=True))
        for note in notes
        if (note.name, note.type) == ("CORE", _PRSTATUS)
        and len(note.desc) >= status.at + status.registers.size
    ]


def status_note(number: int, values: Mapping[str, int], machine: str) -> Note | None:
    """The note ``CORE`` of one CPU; ``None`` for a machine that is not known, or no registers.

    :param number: from 1 on, in place of a process's.
    """
    names = _STATUS_NAMES.get(machine, ())
    if not {"rip", "pc"} & values.keys() & set(names):
        return None
    layout = _status(machine)
    status = bytearray(layout.size)
    struct.pack_into("<I", status, layout.pid_at, number)
    mask = (1 << 8 * (layout.registers.size // len(names))) - 1
    layout.registers.pack_into(status, layout.at, *(values.get(name, 0) & mask for name in names))
    return Note("CORE", _PRSTATUS, bytes(status))


def _status(machine: str) -> _Status:
    """That of a machine of :data:`_STATUS_NAMES`, of 32 or of 64 bits."""
    count = len(_STATUS_NAMES[machine])
    if machine == "arm":
        return _Status(24, 72, struct.Struct(f"<{count}I"), 72 + 4 * count + 4)
    return _Status(32, 112, struct.Struct(f"<{count}Q"), 112 + 8 * count + 8)


def qemu_note(values: Mapping[str, int]) -> Note:
    """The note ``QEMU`` of one CPU. Limits and flags of segments, which we do not have, are 0."""
    size = (
        _GENERAL.size + len(_SEGMENT_NAMES) * _SEGMENT.size + _CONTROL.size + _GS_BASE.size
    )  # fmt: skip
    desc = _GENERAL.pack(1, size, *(values.get(name, 0) & _MASK for name in _GENERAL_NAMES))
    for name in _SEGMENT_NAMES:
        selector, base = values.get(name, 0), values.get(f"{name}_base", 0)
        desc += _SEGMENT.pack(selector & 0xFFFF, 0, 0, 0, base & _MASK)
    desc += _CONTROL.pack(*(values.get(f"cr{number}", 0) & _MASK for number in range(5)))
    return Note("QEMU", 0, desc + _GS_BASE.pack(values.get("kernel_gs_base", 0) & _MASK))


def _plausible(desc: bytes) -> bool:
    least = _GENERAL.size + len(_SEGMENT_NAMES) * _SEGMENT.size + _CONTROL.size
    return len(desc) >= least and int.from_bytes(desc[:4], "little") == 1


def _decode(desc: bytes) -> dict[str, int]:
    values = dict(zip(_GENERAL_NAMES, _GENERAL.unpack_from(desc)[2:], strict=True))
    at = _GENERAL.size
    for name in _SEGMENT_NAMES:
        selector, _, _, _, base = _SEGMENT.unpack_from(desc, at)
        values[name], values[f"{name}_base"] = selector, base
        at += _SEGMENT.size
    for number, value in enumerate(_CONTROL.unpack_from(desc, at)):
        values[f"cr{number}"] = value
    at += _CONTROL.size
    if len(desc) >= at + _GS_BASE.size:  # since QEMU 2.12
        (values["kernel_gs_base"],) = _GS_BASE.unpack_from(desc, at)
    return values
