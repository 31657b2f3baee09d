"""What is to be dumped, and what is known of it besides its bytes: for the notes of an ELF core."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from virtintrospect.driver import Target, registers_of
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.memory.cpunotes import Note, qemu_note, status_note

if TYPE_CHECKING:
    from virtintrospect.guests.base import Guest

#: What the notes' registers go by, where `uname -m` says something else.
_NOTE_MACHINES = {"x86_64": "x86-64"}
#: Longest text that is taken over; the kernel's is a page at most.
_LONGEST_TEXT = 64 << 10


@dataclass(frozen=True)
class Origin:
    """A target, and what a dump of it says besides the memory itself."""

    target: Target
    #: What makes this boot of this guest another than all others: a dump that was interrupted
    #: may go on only with the same.
    identity: str = ""
    #: Architecture as ``uname -m`` names it.
    machine: str = "x86_64"
    #: Those that do not depend on the moment.
    notes: list[Note] = field(default_factory=list)

    def all_notes(self) -> list[Note]:
        """These, and two for each CPU whose registers can be read now, unless these are such."""
        if any(note.name in ("QEMU", "CORE") for note in self.notes):
            return self.notes
        return [*_registers(self.target, self.machine), *self.notes]


def origin_of(target: Target, guest: Guest | None, identity: str, machine: str = "") -> Origin:
    """Put together what a dump of a target is to have.

    :param guest: the kernel that was recognised in it; ``None`` where none was.
    :param identity: what tells this target from others, e.g. the domain's UUID.
    :param machine: the architecture, where no kernel was recognised.
    """
    notes = list(getattr(target.memory, "notes", ()))
    if guest is None:
        return Origin(target, identity, machine or "x86_64", notes)
    if not any(note.name == "VMCOREINFO" for note in notes):
        notes += _vmcoreinfo(guest)
    info = guest.info()
    identity = f"{identity} {info.build_id.hex()} {info.kernel_base:#x}"
    return Origin(target, identity, info.machine.decode("ascii", "replace"), notes)


def _registers(target: Target, machine: str) -> Iterator[Note]:
    """One or two notes a CPU, as QEMU writes them, where the target can read registers."""
    source = registers_of(target)
    if source is None:
        return
    try:
        cpus = [source.registers(vcpu) for vcpu in range(source.vcpus)]
    except VirtIntrospectError:  # a dump without registers is better than none
        return
    machine = _NOTE_MACHINES.get(machine, machine)
    for number, registers in enumerate(cpus, 1):
        note = status_note(number, registers, machine)
        if note is not None:
            yield note
    for registers in cpus:
        if "cr3" in registers and "rip" in registers:
            yield qemu_note(registers)


def _vmcoreinfo(guest: Guest) -> Iterator[Note]:
    """The kernel's own description of itself, from where it keeps it.

    ``vmcoreinfo_data`` and ``vmcoreinfo_size`` of kernel/vmcore_info.c. Without that note other
    tools refuse a kernel with KASLR.
    """
    data, size = guest.symbols.get("vmcoreinfo_data"), guest.symbols.get("vmcoreinfo_size")
    if data is None or size is None:
        return
    try:
        text = guest.kernel.read(
            guest.kernel.read_u64(data), min(guest.kernel.read_u64(size), _LONGEST_TEXT)
        )
    except VirtIntrospectError:  # the kernel has none, or not yet
        return
    if text.startswith(b"OSRELEASE="):
        yield Note("VMCOREINFO", 0, text)
