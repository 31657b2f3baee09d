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
from virtintrospect.guests.linux.unwind import Frame, Stack, State, stack_of
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
        elif item.broken:
            found.append(_continued(reader, item))
        else:
            found.append(item)
    return found


def _continued(reader: StackReader, item: TaskStack) -> TaskStack:
    """A stack that broke off though it begins with registers, of a CPU in one of :data:`_ENDS`.

    A 32-bit CPU that was stopped has other use for its base pointer: its caller's frame is
    searched for from the stack pointer on.
    """
    first, word = item.frames[0], reader.unwinder.word
    stacks = _stacks(reader, item)
    own = stack_of(stacks, first.sp)
    if own is None or reader.late() or not _is_end(reader, first.address, returns=False):
        return item
    for base in reader.unwinder.bases(own, first.address, first.sp - word):
        state = State(first.address, first.sp, base, signal=True)
        frames, broken = reader.unwinder.frames(state, stacks, first.found_by)
        if not broken:
            return item._replace(frames=[frames[0], *_searched(frames[1:])], broken="")
    return item


def _is_end(reader: StackReader, address: int, *, returns: bool) -> bool:
    place = reader.text.place(address, returns=returns)
    return place is not None and place.function in _ENDS


def _searched(frames: list[Frame]) -> list[Frame]:
    """Frames that follow from a guess; in a program it has shown to be right."""
    return [f if f.found_by == "user" else f._replace(found_by="searched") for f in frames]


def _stacks(reader: StackReader, item: TaskStack) -> list[Stack]:
    """The stacks of a CPU. One that was interrupted stands on that for it; its task's is older."""
    bottom = item.row["stack"]
    own = [(bottom, bottom + reader.size)] if bottom else []
    return [reader.copy(start, end) for start, end in (*reader.cpus.stacks(item.cpu or 0), *own)]


def _search(reader: StackReader, item: TaskStack) -> list[Frame]:
    """Frames of a CPU that stands in one of :data:`_ENDS`; none where there is no such chain."""
    if reader.late():
        return []
    stacks = _stacks(reader, item)
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
    if not _is_end(reader, address, returns=True):
        return []
    for base in reader.unwinder.bases(stack, address, slot):
        state = State(address, slot + word, base)
        frames, broken = reader.unwinder.frames(state, stacks, "searched")
        if not broken:
            return _searched(frames)
    return []
