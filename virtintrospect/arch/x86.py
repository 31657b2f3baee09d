"""x86-64 paging modes.

Sources: Intel SDM volume 3, chapter 4 (4-level and 5-level paging); Linux
arch/x86/include/asm/pgtable_types.h and pgtable-invert.h (the L1TF inversion).
"""

from __future__ import annotations

from virtintrospect.arch.paging import Level, PagingMode

_PT = Level("PTE", shift=12, large=False)
_PD = Level("PMD", shift=21, large=True)
_PDPT = Level("PUD", shift=30, large=True)
_PML4 = Level("P4D", shift=39, large=False)
_PML5 = Level("PGD", shift=48, large=False)

#: 48-bit virtual addresses. Linux calls the top table of either mode PGD.
X86_64_4LEVEL = PagingMode(
    name="4-level",
    levels=(Level("PGD", shift=39, large=False), _PDPT, _PD, _PT),
    virtual_bits=48,
)

#: 57-bit virtual addresses (LA57).
X86_64_5LEVEL = PagingMode(
    name="5-level",
    levels=(_PML5, _PML4, _PDPT, _PD, _PT),
    virtual_bits=57,
)
