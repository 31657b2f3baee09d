"""Registers of a guest's CPUs in the notes of an ELF core.

QEMU writes two notes a CPU for x86 (target/i386/arch_dump.c): ``CORE`` with a ``struct
elf_prstatus``, as of a program, and ``QEMU`` with a ``QEMUCPUState``, which has the segments'
bases and the control registers, too. For AArch64 and RISC-V (target/arm/arch_dump.c,
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

#: NT_PRSTATUS: struct elf_prstatus of 64-bit kernels (include/linux/elfcore.h), where the PID and
#: the registers are in it, and what is behind these.
_PRSTATUS, _PID_AT, _STATUS_AT, _STATUS_TAIL = 1, 32, 112, 8
_STATUS_NAMES = {
    # struct user_regs_struct (arch/x86/include/asm/user_64.h).
    "x86-64": (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
        "rsi", "rdi", "orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds",
        "es", "fs", "gs",
    ),
    "aarch64": (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"),
    "riscv64": (
        "pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
        "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3",
        "t4", "t5", "t6",
    ),
}  # fmt: skip


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
    layout = struct.Struct(f"<{len(names)}Q")
    return [
        dict(zip(names, layout.unpack_from(note.desc, _STATUS_AT), strict=True))
        for note in notes
        if (note.name, note.type) == ("CORE", _PRSTATUS)
        and len(note.desc) >= _STATUS_AT + layout.size
    ]


def status_note(number: int, values: Mapping[str, int], machine: str) -> Note | None:
    """The note ``CORE`` of one CPU; ``None`` for a machine that is not known, or no registers.

    :param number: from 1 on, in place of a process's.
    """
    names = _STATUS_NAMES.get(machine, ())
    if not {"rip", "pc"} & values.keys() & set(names):
        return None
    status = bytearray(_STATUS_AT + 8 * len(names) + _STATUS_TAIL)
    struct.pack_into("<I", status, _PID_AT, number)
    packed = (values.get(name, 0) & _MASK for name in names)
    struct.pack_into(f"<{len(names)}Q", status, _STATUS_AT, *packed)
    return Note("CORE", _PRSTATUS, bytes(status))


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
