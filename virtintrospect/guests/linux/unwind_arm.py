"""32-bit ARM: what arch/arm/kernel/unwind.c does, by the tables of :mod:`exidx`.

Entry code ends the walk. A task that came from a program has the program's ``struct pt_regs`` at
the top of its stack (``task_pt_regs()``, arch/arm/include/asm/processor.h).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from virtintrospect.guests.linux.exidx import LR, PC, SP, UnwindTables, execute
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

_FP, _LINK = 11, f"r{LR}"
_KNOWN = (*(f"r{number}" for number in range(4, _FP)), _LINK)
#: What ``__switch_to`` keeps besides sp and pc: r4 to r9, r10 (sl), r11 (fp).
_KEPT = {f"r{number}": number for number in range(4, 10)} | {"sl": 10, "fp": _FP}
#: THREAD_START_SP is so much below the end of the stack.
_ABOVE_REGISTERS = 8
#: Members of ``struct pt_regs``, which is an array of 18 words.
_REGISTERS_SIZE, _CPSR = 72, 16
#: MODE_MASK and USR_MODE (arch/arm/include/uapi/asm/ptrace.h).
_MODE_MASK, _USER = 0x1F, 0x10


class UnwindTableWalker(StackWalker):
    """Walks by unwinding tables."""

    SAVED: Mapping[str, str] = {
        name: f"thread_info.cpu_context.{name}" for name in ("sp", "pc", *_KEPT)
    }
    word = 4
    #: Nothing is saved on the stack itself.
    saved_size = 0

    def __init__(self, guest: LinuxGuest, text: KernelText) -> None:
        super().__init__(text)
        self._tables = UnwindTables(guest)
        start, end = (guest.symbols.get(f"__entry_text_{end}", 0) for end in ("start", "end"))
        self._entry = range(start, end)

    def saved(self, row: Mapping[str, int], copy: Stack) -> State:  # noqa: ARG002
        """By ``thread_info.cpu_context``, where ``__switch_to`` left it."""
        registers = {f"r{number}": row[name] for name, number in _KEPT.items()}
        entry = row["pc"] in self._entry
        return State(row["pc"], row["sp"], row["fp"], registers, signal=entry)

    def bases(self, stack: Stack, address: int, slot: int) -> Iterator[int]:  # noqa: ARG002
        """None is known; hardly any function needs it."""
        yield 0

    def _step(self, state: State, stacks: Sequence[Stack]) -> str | None:
        instructions = self._tables.instructions(state.ip - (not state.signal))
        if instructions is None:
            link = state.registers.get(_LINK, 0)
            if link and state.ip not in self._entry:
                return self._leaf(state, link)
            return self._program(state, stacks)
        # A function keeps r4 to r11 for its caller; what it has in others tells nothing.
        known = {int(name[1:]): n for name, n in state.registers.items() if name in _KNOWN}
        if state.bp:
            known[_FP] = state.bp
        known[SP] = state.sp
        found = execute(instructions, known, lambda at: number_of(stacks, at, 4))
        if found[PC] & ~1 == state.ip & ~1 and found[SP] == state.sp:
            raise Broken("the stack leads back to itself")
        if not found[PC]:
            return None  # the first task: nothing has called it
        # Entry from the kernel saves all registers: that code was interrupted.
        interrupted = 0 in found
        state.ip, state.sp, state.bp = found[PC], found[SP], found.get(_FP, 0)
        state.registers = {f"r{n}": found[n] for n in range(4, _FP) if n in found}
        if interrupted:
            state.registers |= {_LINK: found[LR]}
        # Entry code has functions return to places that follow no call.
        state.signal = interrupted or state.ip in self._entry
        self._check(state.ip)
        return "registers" if interrupted else "unwinding table"

    def _leaf(self, state: State, link: int) -> str:
        """Assembler without a table, interrupted: what calls nothing has its caller in lr."""
        state.ip, state.signal = link, link in self._entry
        state.registers = {name: n for name, n in state.registers.items() if name != _LINK}
        self._check(state.ip)
        return "registers"

    def _check(self, address: int) -> None:
        if not self._text.is_code(address) and not self._text.in_image(address):
            raise Broken(f"{address:#x} is no code")

    def _program(self, state: State, stacks: Sequence[Stack]) -> str | None:
        """Entry code was reached: behind it is a program, or for a kernel thread nothing."""
        own = stack_of(stacks, state.sp)
        if own is None:
            return None
        registers = own.end - _ABOVE_REGISTERS - _REGISTERS_SIZE
        cpsr = number_of([own], registers + 4 * _CPSR, 4)
        if cpsr & _MODE_MASK != _USER:
            return None
        state.ip, state.sp = (number_of([own], registers + 4 * n, 4) for n in (PC, SP))
        state.signal = True
        return "user"
