"""The registers of a vCPU, out of what Xen gives.

PV: struct vcpu_guest_context (xen/include/public/arch-x86/xen.h). HVM and PVH: struct hvm_hw_cpu
(arch-x86/hvm/save.h). Names as of an ELF core's notes (virtintrospect/memory/cpunotes.py).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from virtintrospect.errors import UsageError

CONTEXT_SIZE, HVM_SIZE = 5168, 1032

_FLAGS_AT, _USER_AT, _CONTROL_AT, _BASES_AT = 512, 520, 4984, 5144
#: VGCF_in_kernel.
_IN_KERNEL = 1 << 2
_GENERAL = ("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx",
            "rdx", "rsi", "rdi")  # fmt: skip
#: The rest of struct cpu_user_regs, with where it is.
_USER = {"rip": (128, "<Q"), "cs": (136, "<H"), "rflags": (144, "<Q"), "rsp": (152, "<Q"),
         "ss": (160, "<H"), "es": (168, "<H"), "ds": (176, "<H"), "fs": (184, "<H"),
         "gs": (192, "<H")}  # fmt: skip

_HVM_NUMBERS = ("rax", "rbx", "rcx", "rdx", "rbp", "rsi", "rdi", "rsp", "r8", "r9", "r10", "r11",
                "r12", "r13", "r14", "r15", "rip", "rflags", "cr0", "cr2", "cr3", "cr4",
                "dr0", "dr1", "dr2", "dr3", "dr6", "dr7")  # fmt: skip
_HVM_SELECTORS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_HVM_BASES = (*_HVM_SELECTORS, "idt", "gdt")
_HVM_NUMBERS_AT, _HVM_SELECTORS_AT, _HVM_BASES_AT = 512, 736, 808
_HVM_OTHERS = {"kernel_gs_base": 944, "lstar": 960, "star": 968, "cstar": 976, "efer": 992}
#: What :func:`changed` can change.
SETTABLE = (*_GENERAL, "rip", "rflags", "rsp")


def of_pv(context: bytes) -> dict[str, int]:
    """Registers of a PV guest's vCPU; its CR3 holds a machine address."""
    found = dict(zip(_GENERAL, struct.unpack_from("<15Q", context, _USER_AT), strict=True))
    for name, (offset, form) in _USER.items():
        (found[name],) = struct.unpack_from(form, context, _USER_AT + offset)
    control = struct.unpack_from("<8Q", context, _CONTROL_AT)
    # CR1 does not exist: Xen keeps the user's page table there.
    found |= {f"cr{number}": control[number] for number in (0, 2, 3, 4)}
    fs_base, kernel_gs, user_gs = struct.unpack_from("<3Q", context, _BASES_AT)
    in_kernel = struct.unpack_from("<Q", context, _FLAGS_AT)[0] & _IN_KERNEL
    active, other = (kernel_gs, user_gs) if in_kernel else (user_gs, kernel_gs)
    return found | {"fs_base": fs_base, "gs_base": active, "kernel_gs_base": other}


def of_hvm(state: bytes) -> dict[str, int]:
    """Registers of an HVM or PVH guest's vCPU."""
    count = len(_HVM_NUMBERS)
    values = struct.unpack_from(f"<{count}Q", state, _HVM_NUMBERS_AT)
    found = dict(zip(_HVM_NUMBERS, values, strict=True))
    found |= zip(_HVM_SELECTORS, struct.unpack_from("<8I", state, _HVM_SELECTORS_AT), strict=True)
    bases = struct.unpack_from("<10Q", state, _HVM_BASES_AT)
    found |= {f"{name}_base": base for name, base in zip(_HVM_BASES, bases, strict=True)}
    for name, offset in _HVM_OTHERS.items():
        (found[name],) = struct.unpack_from("<Q", state, offset)
    return found


def check(values: Mapping[str, int]) -> None:
    """Make sure that :func:`changed` can do it.

    :raises UsageError: Xen lets no other register be set, or a value has more than 64 bits.
    """
    for name, value in values.items():
        if name not in SETTABLE:
            raise UsageError(
                f"Xen does not let {name!r} be set", hint=f"it can set {', '.join(SETTABLE)}"
            )
        if not 0 <= value < 1 << 64:
            raise UsageError(f"{name}: {value:#x} is no number of 64 bits")


def changed(context: bytes, values: Mapping[str, int]) -> bytes:
    """A context with other general registers, which :func:`check` has let pass."""
    out = bytearray(context)
    for name, value in values.items():
        at = 8 * _GENERAL.index(name) if name in _GENERAL else _USER[name][0]
        struct.pack_into("<Q", out, _USER_AT + at, value)
    return bytes(out)
