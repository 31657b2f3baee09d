"""Where QEMU's PC machines put RAM: what drivers and images of such guests both need.

The rules are those of ``pc_q35_init`` in hw/i386/pc_q35.c and ``pc_init1`` in
hw/i386/pc_piix.c (QEMU 7.2).
"""

from __future__ import annotations

import re

FOUR_GIB = 4 << 30

#: VGA's window, where RAM lies hidden: no memory for the guest, except SMRAM in SMM.
VGA_START, VGA_END = 0xA0000, 0xC0000
#: From VGA's window to 1 MiB: option ROMs and the firmware's copy of itself, which it makes
#: read-only for the guest (PAM registers; make_bios_readonly in SeaBIOS's src/fw/shadow.c).
SHADOW_END = 0x100000


def low_memory(machine: str, ram_size: int, limit: int = 0) -> int | None:
    """How much RAM is below 4 GiB, in bytes; ``None`` for a machine that is not known.

    :param machine: QEMU's machine type, e.g. ``pc-q35-7.2``.
    :param ram_size: bytes of RAM at boot.
    :param limit: ``max-ram-below-4g`` of the machine, 0 where it has none.
    """
    if "q35" in machine:
        low = 0x80000000 if ram_size >= 0xB0000000 else 0xB0000000
        low = min(low, limit or FOUR_GIB)
    elif "i440fx" in machine or machine == "pc" or machine.startswith("pc-"):
        low = limit or 0xE0000000
        aligned = re.fullmatch(r"pc(-i440fx)?-[01]\.[0-7](\..*)?", machine) is None
        if ram_size >= low and aligned:
            low = min(low, 0xC0000000)
    else:
        return None
    return min(low, ram_size)


def ranges(ram_size: int, low: int, high_start: int = FOUR_GIB) -> list[tuple[int, int, int]]:
    """Start and end of each guest-physical range of RAM, and its offset in all of RAM."""
    found = (
        (0, min(VGA_START, low), 0),
        (VGA_END, low, VGA_END),
        (high_start, high_start + ram_size - low, low),
    )
    return [part for part in found if part[1] > part[0]]
