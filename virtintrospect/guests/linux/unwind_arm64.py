"""AArch64: what arch/arm64/kernel/stacktrace.c does.

Every function keeps a frame record: the caller's ``x29``, and where to return to. The chain ends
at the record that entry code puts into ``struct pt_regs`` (member ``stackframe``), which is all
zeros. Since 6.13 that record says of what kind it is, and entry from the kernel makes one, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

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

#: PSR_MODE_MASK and PSR_MODE_EL0t (arch/arm64/include/uapi/asm/ptrace.h).
_MODE_MASK, _USER = 0xF, 0
#: FRAME_META_TYPE_PT_REGS (arch/arm64/include/asm/stacktrace/frame.h, 6.13).
_INTERRUPTED = 2


class FrameRecords(StackWalker):
    """Walks by frame records."""

    SAVED: Mapping[str, str] = {
        "sp": "thread.cpu_context.sp",
        "fp": "thread.cpu_context.fp",
        "pc": "thread.cpu_context.pc",
    }
    #: Nothing is saved on the stack itself.
    saved_size = 0

    def __init__(self, guest: LinuxGuest, text: KernelText) -> None:
        super().__init__(text)
        types = guest.types
        names = ("pc", "sp", "pstate", "stackframe")
        self._regs = {name: types.offsetof("pt_regs", name) for name in names}
        self._regs["fp"] = types.offsetof("pt_regs", "regs") + 29 * 8
        self._starts = {guest.symbols.get("ret_from_fork", 0)}
        self._typed = types.has("pt_regs", "stackframe.type")
        # Above the bits that are translated a kernel address has ones; pointer authentication
        # puts its code there (bit 55 tells the half of the addresses).
        self._signature = (1 << 64) - (1 << (guest.mapping.mode.virtual_bits - 1))

    def saved(self, row: Mapping[str, int], copy: Stack) -> State:  # noqa: ARG002
        """By ``thread.cpu_context``, where ``cpu_switch_to`` left it."""
        pc = self._stripped(row["pc"])
        return State(pc, row["sp"], row["fp"], signal=pc in self._starts)

    def bases(self, stack: Stack, address: int, slot: int) -> Iterator[int]:  # noqa: ARG002
        """The other half of the frame record."""
        if slot - 8 >= stack.start:
            yield u64_of([stack], slot - 8)

    def _step(self, state: State, stacks: Sequence[Stack]) -> str | None:
        before = state.bp
        stack = stack_of(stacks, before)
        if stack is None:
            raise Broken(f"the frame record at {before:#x} is on no stack")
        following, address = u64_of(stacks, before), u64_of(stacks, before + 8)
        if not following and not address:
            return self._registers(state, stacks, before)
        state.ip, state.bp, state.sp = self._stripped(address), following, before + 16
        state.signal = False
        if not self._text.in_image(state.ip) and not self._text.is_code(state.ip):
            raise Broken(f"{state.ip:#x} is no code")
        if stack is stack_of(stacks, following) and following <= before:
            raise Broken("the stack goes the wrong way")
        return "frame record"

    def _registers(self, state: State, stacks: Sequence[Stack], record: int) -> str | None:
        """Go on behind a record in ``struct pt_regs``: to a program, to code, or nowhere."""
        regs = record - self._regs["stackframe"]
        if self._typed and u64_of(stacks, record + 16) == _INTERRUPTED:
            names = ("pc", "sp", "fp")
            state.ip, state.sp, state.bp = (u64_of(stacks, regs + self._regs[n]) for n in names)
            state.signal = True
            if not self._text.in_image(state.ip) and not self._text.is_code(state.ip):
                raise Broken(f"{state.ip:#x} is no code")
            return "registers"
        pc, sp, pstate = (u64_of(stacks, regs + self._regs[n]) for n in ("pc", "sp", "pstate"))
        if pstate & _MODE_MASK != _USER or not pc:  # all zeros: a CPU's first task
            return None
        state.ip, state.sp = pc, sp
        state.signal = True
        return "user"

    def _stripped(self, address: int) -> int:
        """A return address without the code that pointer authentication put into it."""
        return address | self._signature if address >> 55 & 1 else address
