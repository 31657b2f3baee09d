"""Registers of a guest's CPUs in the notes of an ELF core.

QEMU writes two notes a CPU for x86 (target/i386/arch_dump.c): ``CORE`` with a ``struct
elf_prstatus``, as of a program, and ``QEMU`` with a ``QEMUCPUState``, which has the segments'
bases and the control registers, too. For AArch64 and RISC-V (target/arm/arch_dump.c,
target/riscv/arch_dump.c) there is only the first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtintrospect.memory.elfcore import Note

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


#: NT_PRSTATUS, and where the registers are in it.
_PRSTATUS, _STATUS_AT = 1, 112
_STATUS_NAMES = {
    "aarch64": (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate"),
    "riscv64": (
        "pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4",
        "a5", "a6", "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3",
        "t4", "t5", "t6",
    ),
}  # fmt: skip


def registers(notes: Iterable[Note], machine: str = "x86-64") -> list[dict[str, int]]:
    """The registers of each virtual CPU, in QEMU's order; none where QEMU noted none.

    :param machine: the guest's, as :class:`~virtintrospect.memory.elfcore.ElfCore` names it.
    """
    if names := _STATUS_NAMES.get(machine):
        layout = struct.Struct(f"<{len(names)}Q")
        return [
            dict(zip(names, layout.unpack_from(note.desc, _STATUS_AT), strict=True))
            for note in notes
            if (note.name, note.type) == ("CORE", _PRSTATUS)
            and len(note.desc) >= _STATUS_AT + layout.size
        ]
    return [_decode(note.desc) for note in notes if note.name == "QEMU" and _plausible(note.desc)]


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
