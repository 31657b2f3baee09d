"""x86-64: what arch/x86/kernel/unwind_orc.c and unwind_frame.c do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from virtintrospect.guests.linux.orc import Entry, Orc, Register
from virtintrospect.guests.linux.orc import Frame as Kind
from virtintrospect.guests.linux.unwind import (
    Broken,
    Stack,
    StackWalker,
    State,
    stack_of,
    u64_of,
)

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.guests.linux.text import KernelText

_MASK = (1 << 64) - 1
#: Bytes of a function's frame.
_LARGEST_FRAME = 1024

#: Registers that a frame may hang on while code aligns its stack.
_NAMES = {
    Register.R10: "r10", Register.R13: "r13", Register.DI: "di", Register.DX: "dx",
    Register.AX: "ax",
}  # fmt: skip


class Registers:
    """Offsets within ``struct pt_regs``, which BTF tells."""

    NAMES = (
        "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si",
        "di", "ip", "cs", "flags", "sp",
    )  # fmt: skip

    def __init__(self, guest: LinuxGuest) -> None:
        self.offsets = {name: guest.types.offsetof("pt_regs", name) for name in self.NAMES}


class Unwinder(StackWalker):
    """Walks by ORC, or by frame pointers.

    ``thread.sp`` points to a ``struct inactive_task_frame`` (arch/x86/include/asm/switch_to.h),
    where ``__switch_to_asm`` left it.

    :param orc: the kernel's ORC tables; ``None`` for a kernel with frame pointers.
    """

    SAVED: Mapping[str, str] = {"sp": "thread.sp"}

    def __init__(self, guest: LinuxGuest, text: KernelText, orc: Orc | None) -> None:
        super().__init__(text)
        self._orc = orc
        self._types = guest.types
        self._regs = Registers(guest).offsets
        # Code that a new task starts in has not been called from anywhere.
        self._starts = {
            guest.symbols.get(name, 0) for name in ("ret_from_fork_asm", "ret_from_fork")
        }

    @property
    def saved_size(self) -> int:
        """Bytes of a ``struct inactive_task_frame``."""
        return self._types.sizeof("inactive_task_frame")

    def saved(self, row: Mapping[str, int], copy: Stack) -> State:
        """By the ``struct inactive_task_frame`` on the stack."""
        ip, bp = (
            int.from_bytes(
                copy.data[self._types.offsetof("inactive_task_frame", name) :][:8], "little"
            )
            for name in ("ret_addr", "bp")
        )
        return State(ip, row["sp"] + self.saved_size, bp, signal=ip in self._starts)

    def bases(self, stack: Stack, address: int, slot: int) -> Iterator[int]:
        """None is needed, or the tables say how far above the base pointer the return address is.

        Nothing saved that base pointer: every place is tried that would have a return address.
        """
        yield 0
        above = self.from_base_pointer(address)
        if above is None:
            return
        for base in range(slot + 8, min(slot + _LARGEST_FRAME, stack.end - 8), 8):
            inside = stack.start <= base + above <= stack.end - 8
            if inside and self._text.is_code(u64_of([stack], base + above)):
                yield base

    def from_base_pointer(self, address: int) -> int | None:
        """Where the return address of a frame is, counted from its base pointer.

        ``None``: it is not found by the base pointer.
        """
        entry = None if self._orc is None else self._orc.find(address - 1)
        if entry is None or entry.sp_register is not Register.BP or entry.frame is not Kind.CALL:
            return None
        return entry.sp_offset - 8

    def _step(self, state: State, stacks: Sequence[Stack]) -> str | None:
        """Go to the caller; how it was found, or ``None`` where there is none."""
        if self._orc is None:
            return self._by_frame_pointer(state, stacks)
        entry = self._orc.find(state.ip if state.signal else state.ip - 1)
        if entry is None or entry.frame is Kind.UNDEFINED:
            raise Broken(f"no ORC entry for {state.ip:#x}")
        if entry.frame is Kind.END:
            return None
        before = state.sp
        sp = self._caller_sp(entry, state, stacks)
        how = self._return(entry, state, sp, stacks)
        if how == "user":
            return how
        self._base_pointer(entry, state, sp, stacks)
        here = stack_of(stacks, before)
        if here is not None and here is stack_of(stacks, state.sp) and state.sp <= before:
            raise Broken("the stack goes the wrong way")
        return how

    def _caller_sp(self, entry: Entry, state: State, stacks: Sequence[Stack]) -> int:
        """The canonical frame address: the stack pointer before the call."""
        register, offset = entry.sp_register, entry.sp_offset
        if register == Register.SP:
            return (state.sp + offset) & _MASK
        if register == Register.BP:
            return (state.bp + offset) & _MASK
        if register == Register.BP_INDIRECT:
            return u64_of(stacks, state.bp + offset)
        if register == Register.SP_INDIRECT:
            # The offset is that of the pointer until 5.12, and what it is then moved by since
            # (commit aafeb14e9da2): whichever leads to a stack.
            moved = (u64_of(stacks, state.sp) + offset) & _MASK
            if stack_of(stacks, moved - 8) is not None:
                return moved
            return u64_of(stacks, state.sp + offset)
        name = _NAMES.get(register) if register is not None else None
        if name is None or name not in state.registers:
            raise Broken(f"the frame of {state.ip:#x} hangs on a register that is not known")
        return state.registers[name]

    def _return(self, entry: Entry, state: State, sp: int, stacks: Sequence[Stack]) -> str:
        """Set where the caller goes on; how that was found."""
        if entry.frame is Kind.CALL:
            state.ip = u64_of(stacks, sp - 8)
            state.sp = sp
            state.registers = {}
            state.signal = entry.signal
            if not self._text.in_image(state.ip) and not self._text.is_code(state.ip):
                raise Broken(f"{state.ip:#x} is no code")
            return "orc"
        offsets = self._regs
        if entry.frame is Kind.REGS:
            state.registers = {name: u64_of(stacks, sp + at) for name, at in offsets.items()}
            regs = sp
        else:
            # Only ip, cs, flags, sp (and ss) are there, where they would be in pt_regs.
            regs = sp - offsets["ip"]
        state.ip, state.sp, segment = (
            u64_of(stacks, regs + offsets[n]) for n in ("ip", "sp", "cs")
        )
        state.signal = entry.signal
        if segment & 3 == 3:
            return "user"
        if not self._text.in_image(state.ip) and not self._text.is_code(state.ip):
            raise Broken(f"{state.ip:#x} is no code")
        return "registers"

    def _base_pointer(self, entry: Entry, state: State, sp: int, stacks: Sequence[Stack]) -> None:
        if entry.bp_register == Register.UNDEFINED:
            state.bp = state.registers.get("bp", state.bp)
        elif entry.bp_register == Register.PREV_SP:
            state.bp = u64_of(stacks, sp + entry.bp_offset)
        elif entry.bp_register == Register.BP:
            state.bp = u64_of(stacks, state.bp + entry.bp_offset)
        else:
            raise Broken(f"the ORC entry of {state.ip:#x} makes no sense")

    def _by_frame_pointer(self, state: State, stacks: Sequence[Stack]) -> str | None:
        """The caller by the chain of ``rbp``; entry code marks pt_regs by an odd pointer."""
        offsets = self._regs
        if state.bp & 1:
            regs = state.bp - 1
            state.ip, state.sp, state.bp = (
                u64_of(stacks, regs + offsets[n]) for n in ("ip", "sp", "bp")
            )
            state.signal = True
            if u64_of(stacks, regs + offsets["cs"]) & 3 == 3:
                return "user"
            return "registers"
        if not state.bp or state.ip in self._starts:
            return None
        before = state.bp
        state.ip, state.bp = u64_of(stacks, before + 8), u64_of(stacks, before)
        state.sp = before + 16
        state.signal = False
        if not self._text.is_code(state.ip):
            raise Broken(f"{state.ip:#x} is no code")
        same = stack_of(stacks, before) is stack_of(stacks, state.bp)
        if same and not state.bp & 1 and state.bp <= before:
            raise Broken("the stack goes the wrong way")
        return "frame pointer"
