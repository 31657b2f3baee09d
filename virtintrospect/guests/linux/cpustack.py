"""Stacks of the tasks that the CPUs are running.

Where a target has the CPUs' registers, the stacks begin with them. Where it has none, a running
guest's stacks cannot be told, but those of a kernel that has panicked can be found: its CPUs
stay in known functions. Where a stack holds an address in one of them, and the tables lead from
there to the very top, that is the stack. What lies below may be left over from calls that have
returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.stack import StackReader, TaskStack
from virtintrospect.guests.linux.unwind import Frame, Stack, State
from virtintrospect.model import StackFrame

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

#: Where CPUs of a kernel that has panicked stay, outermost first: kernel/panic.c,
#: arch/x86/kernel/smp.c, arch/arm64/kernel/smp.c.
_ENDS = (
    "panic", "vpanic", "nmi_panic_self_stop", "panic_smp_self_stop", "sysvec_reboot",
    "__sysvec_reboot", "stop_this_cpu", "smp_stop_nmi_callback", "crash_nmi_callback",
    "do_handle_IPI", "ipi_handler", "local_cpu_stop", "ipi_cpu_crash_stop", "ipi_cpu_stop",
)  # fmt: skip


def cpu_stacks(guest: LinuxGuest) -> list[StackFrame]:
    """The rows of ``crash --stacks``: CPU by CPU, innermost frame first."""
    budget = Budget()
    reader = StackReader(guest, budget)
    rows = []
    for item in running_stacks(reader):
        reader.note(item)
        rows += reader.rows(item)
    guest.note_all([budget.problem])
    return rows


def running_stacks(reader: StackReader) -> list[TaskStack]:
    """The current task of each CPU that is online, with its stack where that can be told."""
    order = reader.cpus.running(fresh=True)
    found = []
    for item in reader.stacks(list(order)):
        if not item.frames and item.cpu is not None:
            found.append(item._replace(frames=_search(reader, item), cpu=item.cpu))
        else:
            found.append(item)
    return found


def _search(reader: StackReader, item: TaskStack) -> list[Frame]:
    """Frames of a CPU that stands in one of :data:`_ENDS`; none where there is no such chain."""
    if reader.late():
        return []
    bottom = item.row["stack"]
    own = [(bottom, bottom + reader.size)] if bottom else []
    # A CPU that was interrupted stands on the stack for that; its task's is older.
    stacks = [reader.copy(start, end) for start, end in (*reader.cpus.stacks(item.cpu or 0), *own)]
    word = reader.unwinder.word
    for stack in stacks:
        for at in range(0, len(stack.data) - word + 1, word):
            frames = _from_slot(reader, stack, stack.start + at, stacks)
            if frames:
                return frames
    return []


def _from_slot(reader: StackReader, stack: Stack, slot: int, stacks: list[Stack]) -> list[Frame]:
    """The frames from a return address on, if it is in an end and they lead to the top."""
    word = reader.unwinder.word
    at = slot - stack.start
    address = int.from_bytes(stack.data[at : at + word], "little")
    if not reader.text.in_image(address) or reader.late():
        return []
    place = reader.text.place(address, returns=True)
    if place is None or place.function not in _ENDS:
        return []
    for base in reader.unwinder.bases(stack, address, slot):
        state = State(address, slot + word, base)
        frames, broken = reader.unwinder.frames(state, stacks, "searched")
        if not broken:
            return [
                frame if frame.found_by == "user" else frame._replace(found_by="searched")
                for frame in frames
            ]
    return []
