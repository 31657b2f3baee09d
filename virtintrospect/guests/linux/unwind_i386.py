"""32-bit x86: what arch/x86/kernel/unwind_frame.c does there. These kernels have no ORC.

A frame is the caller's ``ebp`` and the return address. Entry code from the kernel, and a task's
first frame, leave the address of ``struct pt_regs`` in place of ``ebp``, its highest bit taken
away (ENCODE_FRAME_POINTER). A system call leaves the program's own: that frame is known by its
place, right below the pt_regs at the top of the stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from virtintrospect.guests.linux.unwind import (
    Broken,
    Stack,
    StackWalker,
    State,
    number_of,
    stack_of,
)

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.guests.linux.text import KernelText

_TOP_BIT = 1 << 31
#: What may lie above pt_regs: TOP_OF_KERNEL_STACK_PADDING with CONFIG_VM86, and without.
_PADDINGS = (16, 8)
#: A function that aligns its stack has its frame up to three words lower (GCC_REALIGN_WORDS).
_REALIGNED = 12
_LARGEST_FRAME = 1024


class BasePointers(StackWalker):
    """Walks by the chain of ``ebp``."""

    SAVED: Mapping[str, str] = {"sp": "thread.sp"}
    word = 4

    def __init__(self, guest: LinuxGuest, text: KernelText) -> None:
        super().__init__(text)
        types = guest.types
        self._regs = {name: types.offsetof("pt_regs", name) for name in ("ip", "sp", "bp", "cs")}
        self._regs_size = types.sizeof("pt_regs")
        self._inactive = {
            name: types.offsetof("inactive_task_frame", name) for name in ("bp", "ret_addr")
        }
        self._inactive_size = types.sizeof("inactive_task_frame")
        # Code that a new task starts in has not been called from anywhere.
        self._start = guest.symbols.get("ret_from_fork", 0)

    @property
    def saved_size(self) -> int:
        """Bytes of a ``struct inactive_task_frame``."""
        return self._inactive_size

    def saved(self, row: Mapping[str, int], copy: Stack) -> State:
        """By the ``struct inactive_task_frame`` on the stack."""
        ip, bp = (
            number_of([copy], copy.start + self._inactive[name], 4) for name in ("ret_addr", "bp")
        )
        return State(ip, row["sp"] + self._inactive_size, bp, signal=ip == self._start)

    def bases(self, stack: Stack, address: int, slot: int) -> Iterator[int]:  # noqa: ARG002
        """Each place that would lead on to a return address, nearest first."""
        for base in range(slot + 4, min(slot + _LARGEST_FRAME, stack.end - 8), 4):
            if self._text.is_code(number_of([stack], base + 4, 4)):
                yield base

    def _step(self, state: State, stacks: Sequence[Stack]) -> str | None:
        if state.bp and not state.bp & _TOP_BIT:
            return self._by_registers(state, stacks, state.bp | _TOP_BIT)
        if state.ip == self._start:
            return None
        if not state.bp:
            self._outermost(state, stacks)
            return None
        frame = state.bp
        state.ip, state.bp = (number_of(stacks, at, 4) for at in (frame + 4, frame))
        state.sp, state.signal = frame + 8, False
        self._check(state.ip)
        own = stack_of(stacks, frame)
        above = None if own is None else self._entry(own, frame, state.bp)
        if above is not None:
            state.bp = above & ~_TOP_BIT
        elif own is not None and not frame < state.bp < own.end and any(self._tops(own, state.sp)):
            state.bp = 0  # the boot CPU's first frame has what the boot code left in ebp
        elif own is stack_of(stacks, state.bp) and state.bp <= frame:
            raise Broken("the stack goes the wrong way")
        return "frame record"

    def _by_registers(self, state: State, stacks: Sequence[Stack], regs: int) -> str | None:
        """Where registers were saved: of a program, of interrupted code, or of nothing at all."""
        state.ip, state.sp, state.bp, segment = (
            number_of(stacks, regs + self._regs[name], 4) for name in ("ip", "sp", "bp", "cs")
        )
        state.signal = True
        if segment & 3 == 3:
            return "user"
        if not state.ip:  # a kernel thread's own
            return None
        self._check(state.ip)
        return "registers"

    def _outermost(self, state: State, stacks: Sequence[Stack]) -> None:
        """Only an idle task's first frame has no caller: it lies right below the place of pt_regs.

        A zero elsewhere is left over from something else, where the stack was searched for.
        """
        own = stack_of(stacks, state.sp)
        if own is None or not any(self._tops(own, state.sp)):
            raise Broken("the stack ends in the middle")

    def _tops(self, own: Stack, above: int) -> Iterator[int]:
        """Where pt_regs at the top of a stack may be, if ``above`` is right below or there."""
        for padding in _PADDINGS:
            regs = own.end - padding - self._regs_size
            if above <= regs <= above + _REALIGNED:
                yield regs

    def _check(self, address: int) -> None:
        """The first task was called by code of the boot, which is gone by now."""
        if not self._text.in_image(address) and not self._text.is_code(address):
            raise Broken(f"{address:#x} is no code")

    def _entry(self, own: Stack, frame: int, following: int) -> int | None:
        """Address of the pt_regs right above a frame, where it is the outermost of a task.

        :param following: the base pointer that is saved there.
        """
        if frame < following < own.end:
            return None
        for regs in self._tops(own, frame + 8):
            if number_of([own], regs + self._regs["cs"], 4) & 3 == 3:
                return regs
        return None
