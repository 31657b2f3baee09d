"""ARM paging modes of 32-bit kernels: short descriptors, and LPAE.

Sources: ARM Architecture Reference Manual ARMv7-A (DDI 0406), B3.5 and B3.6; Linux
arch/arm/include/asm/pgtable-2level-hwdef.h and pgtable-3level-hwdef.h. Linux uses one table for
both halves of the addresses, or (LPAE) one that says the same as the two together.
"""

from __future__ import annotations

from virtintrospect.arch.paging import Form, Level, PagingMode, Rights


def _short() -> PagingMode:
    """Two levels of entries of 4 bytes: sections of 1 and 16 MiB, pages of 4 and 64 KiB.

    ``AP[2]`` says read-only and ``AP[1]`` that programs may; where they are differs from kind to
    kind, and so does the bit of what cannot be executed.
    """
    section = Rights(writable=1 << 15, user=1 << 11, no_execute=1 << 4, negated=1 << 15)
    small = Rights(writable=1 << 9, user=1 << 5, no_execute=1 << 0, negated=1 << 9)
    large = small._replace(no_execute=1 << 15)
    first = (
        Form(0b11, 0b01, 0xFFFF_FC00),
        Form(1 << 18 | 0b10, 0b10, 0xFFF0_0000, 20, rights=section),
        # Address bits 35:32 and 39:36 of the largest are where others have theirs and a domain.
        Form(
            1 << 18 | 0b10,
            1 << 18 | 0b10,
            0xFF00_0000,
            24,
            ((0xF << 20, 12), (0xF << 5, 31)),
            rights=section,
        ),
    )
    second = (
        Form(0b11, 0b01, 0xFFFF_0000, 16, rights=large),
        Form(0b10, 0b10, 0xFFFF_F000, 12, rights=small),
    )
    return PagingMode(
        name="arm-short",
        levels=(Level("PGD", 20, True, 12, first), Level("PTE", 12, False, 8, second)),
        virtual_bits=33,  # a half above all of them, which does not exist
        frame=0xFFFF_FC00,
        entry_size=4,
        hierarchical=False,
        high=False,
        root_bits=0xFFFF_C000,
    )


def _linux(hardware: PagingMode) -> PagingMode:
    """What Linux keeps beside short descriptors: all pages of a program, those at rest, too.

    The hardware's entry of a page that was not used lately is zero: that is how use is noticed.
    Linux's own tables lie 2048 bytes before the hardware's, four of them in a page
    (arch/arm/include/asm/pgtable-2level.h).
    """
    directory, table = hardware.levels
    rights = Rights(writable=1 << 7, user=1 << 8, no_execute=1 << 9, negated=1 << 7)
    page = Form(1 | 1 << 11, 1, 0xFFFF_F000, 12, rights=rights)
    # L_PTE_NONE: nobody may touch it.
    nobody = page._replace(value=page.mask, absent=True)
    first = (directory.forms[0]._replace(frame=0xFFFF_F400), *directory.forms[1:])
    return hardware._replace(
        name="arm-short-linux",
        levels=(directory._replace(forms=first), table._replace(forms=(page, nobody))),
    )


def _long() -> PagingMode:
    """Three levels of entries of 8 bytes, of the topmost four; 40 bits of physical address."""
    frame = (1 << 40) - (1 << 12)
    table = Form(0b11, 0b11, frame)
    levels = (
        Level("PGD", 30, True, 2, (table, Form(0b11, 0b01, frame & -(1 << 30), 30))),
        Level("PMD", 21, True, 9, (table, Form(0b11, 0b01, frame & -(1 << 21), 21))),
        Level("PTE", 12, False, 9, (Form(0b11, 0b11, frame, 12),)),
    )
    return PagingMode(
        name="arm-lpae",
        levels=levels,
        virtual_bits=33,  # a half above all of them, which does not exist
        writable=1 << 7,
        user=1 << 6,
        no_execute=3 << 53,  # PXN is the kernel's, XN everybody's
        user_no_execute=1 << 54,
        frame=frame,
        none_bit=0,
        negated=1 << 7,
        hierarchical=False,
        high=False,
        root_bits=(1 << 40) - (1 << 5),
    )


ARM_SHORT, ARM_LPAE = _short(), _long()
ARM_SHORT_LINUX = _linux(ARM_SHORT)
