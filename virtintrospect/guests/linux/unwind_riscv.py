"""RISC-V: what walk_stackframe() of arch/riscv/kernel/stacktrace.c does.

Kernels are built with frame pointers: ``s0`` points behind a frame's record, the caller's ``s0``
and where to return to. Code that was interrupted, and the program that made a system call, are in
the ``struct pt_regs`` behind the frame that returns to the entry code.
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

#: SR_SPP of ``status``: it was the kernel that was interrupted.
_FROM_KERNEL = 1 << 8


class FrameChain(StackWalker):
    """Walks by frame pointers."""

    SAVED: Mapping[str, str] = {"sp": "thread.sp", "fp": "thread.s[0]", "pc": "thread.ra"}
    #: Nothing is saved on the stack itself.
    saved_size = 0

    def __init__(self, guest: LinuxGuest, text: KernelText) -> None:
        super().__init__(text)
        symbols, types = guest.symbols, guest.types
        self._regs = {
            name: types.offsetof("pt_regs", name) for name in ("epc", "sp", "s0", "status")
        }
        names = ("ret_from_fork", "ret_from_fork_kernel_asm", "ret_from_fork_user_asm")
        self._starts = {symbols.get(name, 0) for name in names}
        entry = symbols.get("handle_exception", 0)
        end = symbols.get("ret_from_exception_end")
        self._entry = (entry, _end_of(guest, entry) if end is None else end)

    def saved(self, row: Mapping[str, int], copy: Stack) -> State:  # noqa: ARG002
        """By ``thread``, where ``__switch_to`` left it."""
        return State(row["pc"], row["sp"], row["fp"], signal=row["pc"] in self._starts)

    def bases(self, stack: Stack, address: int, slot: int) -> Iterator[int]:  # noqa: ARG002
        """The other half of the record."""
        if slot - 8 >= stack.start:
            yield u64_of([stack], slot - 8)

    def _step(self, state: State, stacks: Sequence[Stack]) -> str | None:
        if self._entry[0] <= state.ip < self._entry[1]:
            return self._interrupted(state, stacks)
        if state.signal and state.ip in self._starts:
            return None
        before = state.bp
        if stack_of(stacks, before - 16) is None:
            return None  # the first function of a kernel thread was called from nowhere
        following, address = u64_of(stacks, before - 16), u64_of(stacks, before - 8)
        state.ip, state.sp, state.bp, state.signal = address, before, following, False
        if not self._text.in_image(address) and not self._text.is_code(address):
            raise Broken(f"{address:#x} is no code")
        if stack_of(stacks, before - 16) is stack_of(stacks, following) and following <= before:
            raise Broken("the stack goes the wrong way")
        return "frame record"

    def _interrupted(self, state: State, stacks: Sequence[Stack]) -> str | None:
        """Go on with the registers that entry code has saved."""
        regs = state.sp
        ip, sp, bp, status = (
            u64_of(stacks, regs + self._regs[name]) for name in ("epc", "sp", "s0", "status")
        )
        state.ip, state.sp, state.bp, state.signal = ip, sp, bp, True
        if not status & _FROM_KERNEL:
            return "user"
        if not self._text.in_image(ip) and not self._text.is_code(ip):
            raise Broken(f"{ip:#x} is no code")
        return "registers"


def _end_of(guest: LinuxGuest, address: int) -> int:
    found = guest.symbols.span(address)
    return address + found[2] if found else address
