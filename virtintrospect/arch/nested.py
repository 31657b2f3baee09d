"""Nested tables: from a guest's physical addresses to the physical addresses of its host.

AMD's (NPT) have the format of the host's own tables. Intel's (EPT) have rights in place of the
present bit. Sources: AMD64 Architecture Programmer's Manual volume 2, 15.25; Intel SDM volume 3,
29.3 "The extended page table mechanism".
"""

from __future__ import annotations

from virtintrospect.arch.paging import Form, Level, PagingMode

_FRAME = 0x000F_FFFF_FFFF_F000
_LARGE = 1 << 7
_SHIFTS = {12: "PTE", 21: "PMD", 30: "PUD", 39: "P4D", 48: "PGD"}
#: Entries that are there, as (mask, value). EPT: readable, or executable only; what can be
#: written and not read is a mistake, by which KVM marks devices.
_NPT = ((1, 1),)
_EPT = ((1, 1), (7, 4))


def _level(shift: int, present: tuple[tuple[int, int], ...]) -> Level:
    large = shift in (21, 30)
    forms = []
    for mask, value in present:
        page = Form(mask | _LARGE, value | _LARGE, _FRAME & -(1 << shift), shift)
        if shift == 12:
            forms.append(Form(mask, value, _FRAME, 12))
        elif large:
            forms += [Form(mask | _LARGE, value, _FRAME), page]
        else:
            forms.append(Form(mask, value, _FRAME))
    return Level(_SHIFTS[shift], shift, large, 9, tuple(forms))


def by_name(name: str) -> PagingMode | None:
    """The mode of that name; ``None`` where there is none."""
    return next((m for make in (npt, ept) for m in map(make, (4, 5)) if m.name == name), None)


def npt(levels: int) -> PagingMode:
    """AMD's nested tables of 4 or 5 levels."""
    shifts = range(12 + 9 * (levels - 1), 11, -9)
    return PagingMode(
        name=f"npt-{levels}-level",
        levels=tuple(_level(shift, _NPT) for shift in shifts),
        # Addresses of a guest are not extended by a sign: there is no upper half.
        virtual_bits=13 + 9 * levels,
        high=False,
        none_bit=0,
    )


def ept(levels: int) -> PagingMode:
    """Intel's nested tables of 4 or 5 levels; a page has no owner, so all are a program's."""
    shifts = range(12 + 9 * (levels - 1), 11, -9)
    return PagingMode(
        name=f"ept-{levels}-level",
        levels=tuple(_level(shift, _EPT) for shift in shifts),
        virtual_bits=13 + 9 * levels,
        high=False,
        none_bit=0,
        user=0,
        negated=1 << 2,
        no_execute=1 << 2,
    )
