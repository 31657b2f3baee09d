"""One file for each architecture says how its kernels are found: :class:`Machine`.

To add one: a subclass in a file of its own, and an entry in :data:`MACHINES`.
"""

from __future__ import annotations

from virtintrospect.driver import Target
from virtintrospect.guests.linux.machine.arm import ARM
from virtintrospect.guests.linux.machine.arm64 import ARM64
from virtintrospect.guests.linux.machine.base import KernelMapping, Machine
from virtintrospect.guests.linux.machine.i386 import I386
from virtintrospect.guests.linux.machine.riscv import RISCV64
from virtintrospect.guests.linux.machine.x86 import X86_64

__all__ = ["MACHINES", "KernelMapping", "Machine", "machines_for"]

#: In the order in which they are tried where a target does not name its architecture.
MACHINES: tuple[Machine, ...] = (X86_64, I386, ARM64, RISCV64, ARM)


def machines_for(target: Target) -> list[Machine]:
    """Those whose kernels may run in a target: of its architecture, or all."""
    named = target.architecture
    return [machine for machine in MACHINES if not named or named in machine.architectures]
