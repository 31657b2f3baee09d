"""RISC-V paging modes of 64-bit kernels.

Source: The RISC-V Instruction Set Manual, volume II, "Sv39", "Sv48", "Sv57" and "Svnapot".
"""

from __future__ import annotations

from virtintrospect.arch.paging import Form, Level, PagingMode

_V, _R, _W, _X = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_N = 1 << 63
_RESERVED = _N | 0x7F << 54
_PPN = (1 << 54) - (1 << 10)


def _forms(shift: int) -> tuple[Form, ...]:
    """A misaligned large page is reserved, as is a page that can be written and not read."""
    low = _PPN & ((1 << (shift - 2)) - 1)
    pages = [
        Form(_RESERVED | low | _V | _R, _V | _R, 0, shift, ((_PPN, 2),)),
        Form(_RESERVED | low | _V | _R | _W | _X, _V | _X, 0, shift, ((_PPN, 2),)),
    ]
    if shift > 12:
        return (Form(_RESERVED | _V | _R | _W | _X, _V, 0, 0, ((_PPN, 2),)), *pages)
    napot = Form(
        _RESERVED | 0xF << 10 | _V | _R, _N | 8 << 10 | _V | _R, 0, 16, ((_PPN & -(1 << 14), 2),)
    )
    return (*pages, napot)


def _mode(bits: int) -> PagingMode:
    shifts = range(bits - 9, 11, -9)
    names: tuple[str, ...] = ("PGD", "P4D", "PUD", "PMD", "PTE")
    names = names[:1] + names[6 - len(shifts) :]
    return PagingMode(
        name=f"sv{bits}",
        levels=tuple(
            Level(name, shift, shift > 12, 9, _forms(shift))
            for name, shift in zip(names, shifts, strict=True)
        ),
        virtual_bits=bits,
        writable=_W,
        user=1 << 4,
        no_execute=_X,
        frame=(1 << 56) - (1 << 12),
        none_bit=0,
        negated=_X,
        hierarchical=False,
    )


SV39, SV48, SV57 = _mode(39), _mode(48), _mode(57)
