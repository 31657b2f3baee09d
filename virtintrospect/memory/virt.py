"""Where QEMU's machines for other architectures put RAM.

``virt`` of ARM has it from 1 GiB on, in one piece (hw/arm/virt.c, ``VIRT_MEM``); ``virt`` of
RISC-V from 2 GiB on (hw/riscv/virt.c, ``VIRT_DRAM``). QEMU 7.2 and later.
"""

from __future__ import annotations

import re

_VIRT = re.compile(r"virt(-\d+\.\d+)?")
_STARTS = {"aarch64": 1 << 30, "arm": 1 << 30, "riscv64": 2 << 30, "riscv32": 2 << 30}


def ram_start(architecture: str, machine: str) -> int | None:
    """First guest-physical address of RAM; ``None`` for a machine that is not known.

    :param architecture: as QEMU names it.
    :param machine: QEMU's machine type, e.g. ``virt-7.2``.
    """
    return _STARTS.get(architecture) if _VIRT.fullmatch(machine) else None
