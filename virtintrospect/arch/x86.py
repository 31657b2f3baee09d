"""x86 paging modes.

Sources: Intel SDM volume 3, chapter 4 (32-bit, PAE, 4-level and 5-level paging); Linux
arch/x86/include/asm/pgtable_types.h, pgtable-2level.h, pgtable-3level.h and pgtable-invert.h
(the L1TF inversion).
"""

from __future__ import annotations

from virtintrospect.arch.paging import Form, Level, PagingMode

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

_PRESENT, _LARGE = 1 << 0, 1 << 7
#: Linux's _PAGE_PROTNONE: not present, yet a page that the kernel keeps.
_NONE = 1 << 8


def _legacy() -> PagingMode:
    """Two levels with entries of 4 bytes, which are too small for the L1TF mitigation.

    In a page of 4 MiB, bits 20:13 are address bits 39:32 (PSE-36), and bit 21 is reserved.
    """
    small, large = 0xFFFF_F000, 0xFFC0_0000
    leaf = _PRESENT | _LARGE
    directory = (
        Form(leaf, _PRESENT, small),
        Form(leaf | 1 << 21, leaf, large, 22, ((0x001F_E000, 19),)),
    )
    page = (
        Form(_PRESENT, _PRESENT, small, 12),
        Form(_PRESENT | _NONE, _NONE, small, 12, absent=True),
    )
    return PagingMode(
        name="2-level",
        levels=(Level("PGD", 22, True, 10, directory), Level("PTE", 12, False, 10, page)),
        virtual_bits=33,  # a half above all of them, which does not exist
        no_execute=0,
        frame=small,
        entry_size=4,
        high=False,
    )


def _pae() -> PagingMode:
    """Three levels with entries of 8 bytes; of the topmost there are four, at 32 bytes each.

    These have no rights, and bits 8:5 and 2:1 of them are reserved, as are bits 62:52 of all;
    QEMU's emulator sets bit 5 there, as of any entry that it has used. Linux inverts the 32 bits
    of a page's number (__PHYSICAL_MASK_SHIFT).
    """
    frame, kept, reserved = 0x000F_FFFF_FFFF_F000, 0x0000_0FFF_FFFF_F000, 0x7FF << 52
    leaf, large = _PRESENT | _LARGE, -(1 << 21)
    top = (Form(reserved | 1 << 63 | 0x1C6 | _PRESENT, _PRESENT, frame, bare=True),)
    middle = (
        Form(reserved | leaf, _PRESENT, frame),
        Form(reserved | 0xFF << 13 | leaf, leaf, frame & large, 21),
        Form(leaf | _NONE, _LARGE | _NONE, kept & large, 21, inverted=True),
    )
    last = (
        Form(reserved | _PRESENT, _PRESENT, frame, 12),
        Form(_PRESENT | _NONE, _NONE, kept, 12, inverted=True),
    )
    return PagingMode(
        name="3-level",
        levels=(
            Level("PGD", 30, False, 2, top),
            Level("PMD", 21, True, 9, middle),
            Level("PTE", 12, False, 9, last),
        ),
        virtual_bits=33,  # a half above all of them, which does not exist
        frame=frame,
        high=False,
        root_bits=0xFFFF_FFE0,
    )


#: 32-bit virtual addresses, with and without PAE.
X86_LEGACY, X86_PAE = _legacy(), _pae()
