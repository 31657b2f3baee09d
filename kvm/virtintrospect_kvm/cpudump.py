"""Registers out of ``info registers`` of QEMU's human monitor, for x86.

QMP has no typed command for registers. The text is that of ``x86_cpu_dump_state`` in
target/i386/cpu-dump.c (QEMU 7.2): general registers by their 64-bit names, or by the 32-bit ones
while the vCPU runs 32-bit code; a line for each segment (selector, base, limit, flags); control
and debug registers; EFER. What is not as expected is an error, not a register less.
"""

from __future__ import annotations

import re

from virtintrospect.errors import MemoryAccessError

#: Most characters of the text that are looked at: with AVX-512 it has some 6 KiB.
_MOST = 1 << 16

_PAIR = re.compile(r"\b([A-Z][A-Z0-9]{1,3}) *=([0-9a-f]{8}(?:[0-9a-f]{8})?)(?![0-9a-f])")
_SEGMENT = re.compile(
    r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=([0-9a-f]{4}) ([0-9a-f]{8,16}) ([0-9a-f]{8}) ", re.MULTILINE
)
_TABLE = re.compile(r"^(GDT|IDT)= +([0-9a-f]{8,16}) ([0-9a-f]{8})\s*$", re.MULTILINE)

_GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
    "r13", "r14", "r15", "rip",
)  # fmt: skip
_LEGACY = ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp", "eip")
_SYSTEM = ("cr0", "cr2", "cr3", "cr4", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "efer")
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr")


def parse(text: str) -> dict[str, int]:
    """The registers of one vCPU, by the names that an ELF core's notes give them, too.

    Names are those of the 32-bit registers (``eax``) while the vCPU runs 32-bit code; flags are
    ``rflags`` or ``eflags``.

    :raises MemoryAccessError: it is no such text, or of another architecture.
    """
    text = text[:_MOST].partition("\nFCW=")[0]
    pairs = {name.lower(): int(value, 16) for name, value in _PAIR.findall(text)}
    wide = "rax" in pairs
    found = _chosen(pairs, _GENERAL if wide else _LEGACY)
    flags = re.search(r"\b(?:RFL|EFL)=([0-9a-f]{8})\b", text)
    if flags is None:
        raise _strange("flags")
    found["rflags" if wide else "eflags"] = int(flags[1], 16)
    segments = {name.lower(): values for name, *values in _SEGMENT.findall(text)}
    for name in _SEGMENTS:
        if name not in segments:
            raise _strange(name)
        selector, base, _ = segments[name]
        found[name], found[f"{name}_base"] = int(selector, 16), int(base, 16)
    tables = {name.lower(): values for name, *values in _TABLE.findall(text)}
    for name in ("gdt", "idt"):
        if name not in tables:
            raise _strange(name)
        found[f"{name}_base"], found[f"{name}_limit"] = (int(v, 16) for v in tables[name])
    return found | _chosen(pairs, _SYSTEM)


def _chosen(pairs: dict[str, int], names: tuple[str, ...]) -> dict[str, int]:
    missing = next((name for name in names if name not in pairs), None)
    if missing is not None:
        raise _strange(missing)
    return {name: pairs[name] for name in names}


def _strange(what: str) -> MemoryAccessError:
    return MemoryAccessError(
        f"QEMU's `info registers` has no {what} where an x86 processor's should be",
        hint="of other architectures: --transport gdbstub --allow-taint",
    )
