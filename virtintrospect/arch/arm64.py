"""AArch64 paging modes (stage 1, EL1).

Sources: Arm ARM (DDI 0487) D8.3, translation table descriptor formats; Linux
arch/arm64/include/asm/pgtable-hwdef.h.
"""

from __future__ import annotations

from virtintrospect.arch.paging import Form, Level, PagingMode

_NAMES = ("PGD", "P4D", "PUD", "PMD", "PTE")


def aarch64(page_shift: int, virtual_bits: int) -> PagingMode:
    """The mode of a granule and a size of virtual addresses.

    One half of the addresses has its table in TTBR0, the other in TTBR1. 52 bits with 4 KiB and
    16 KiB pages are LPA2 descriptors (TCR_EL1.DS).

    :param page_shift: 12, 14 or 16.
    :param virtual_bits: of one half: 64 - T1SZ.
    """
    width = page_shift - 3
    low = (1 << 48) - (1 << page_shift)
    scattered: tuple[tuple[int, int], ...] = ()
    if page_shift == 16:
        scattered = ((0xF000, 36),)  # bits 15:12 are address bits 51:48
    elif virtual_bits > 48:
        low, scattered = (1 << 50) - (1 << page_shift), ((0x300, 42),)  # 9:8 are 51:50
    blocks = {12: (21, 30), 14: (25,), 16: (29,)}[page_shift]
    if virtual_bits > 48:
        blocks = {12: (21, 30, 39), 14: (25, 36), 16: (29, 42)}[page_shift]
    shifts = [*range(page_shift, virtual_bits, width)][::-1]
    levels = []
    for shift, name in zip(shifts, _NAMES[:1] + _NAMES[6 - len(shifts) :], strict=True):
        frame = low & -(1 << shift)
        page = Form(3, 3 if shift == page_shift else 1, frame, shift, scattered)
        forms: tuple[Form, ...] = (page,)
        if shift != page_shift:
            table = Form(3, 3, low, 0, scattered)
            forms = (table, page) if shift in blocks else (table,)
        bits = min(width, virtual_bits - shift)
        levels.append(Level(name, shift, shift in blocks, bits, forms))
    return PagingMode(
        name=f"aarch64-{1 << page_shift - 10}k-{virtual_bits}",
        levels=tuple(levels),
        virtual_bits=virtual_bits + 1,
        writable=1 << 7,
        user=1 << 6,
        no_execute=1 << 53,
        user_no_execute=1 << 54,
        frame=low,
        none_bit=0,
        negated=1 << 7,
        hierarchical=False,
        # A top table that is not a whole page is aligned to its size only, 64 bytes at least.
        root_bits=(1 << 48) - max(64, 8 << levels[0].bits),
    )
