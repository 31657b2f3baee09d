"""From frame to frame: what arch/x86/kernel/unwind_orc.c and unwind_frame.c do, on copies.

The stacks are copied first and nothing else is read of them, so that a guest can neither send
the walk elsewhere nor change a frame under it. What no table explains is searched for code
addresses, as unwind_guess.c does; those are guesses, and marked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.guests.linux.orc import Entry, Orc, Register
from virtintrospect.guests.linux.orc import Frame as Kind

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.guests.linux.text import KernelText

#: Frames of one stack: the kernel prints at most 64 (MAX_STACK_TRACE_DEPTH).
_MOST_FRAMES = 256
#: Guesses of one stack.
_MOST_GUESSES = 64
_MASK = (1 << 64) - 1

#: How sure a frame is, by how it was found.
CONFIDENCE = {
    "saved": 1.0,
    "registers": 1.0,
    "orc": 1.0,
    "frame pointer": 0.9,
    "user": 1.0,
    "searched": 0.5,
    "scan": 0.2,
}

#: Registers that a frame may hang on while code aligns its stack.
_NAMES = {
    Register.R10: "r10", Register.R13: "r13", Register.DI: "di", Register.DX: "dx",
    Register.AX: "ax",
}  # fmt: skip


class Stack(NamedTuple):
    """A copy of a stack, or of its upper part."""

    start: int
    data: bytes

    @property
    def end(self) -> int:
        """The first address above it."""
        return self.start + len(self.data)


@dataclass(slots=True)
class State:
    """Where the walk is."""

    ip: int
    sp: int
    bp: int = 0
    #: Registers of interrupted code, as far as they are known here.
    registers: Mapping[str, int] = field(default_factory=dict)
    #: The address is one at which code was interrupted, not one to which a call returns.
    signal: bool = False


class Frame(NamedTuple):
    """One frame, innermost first."""

    address: int
    #: The stack pointer in it.
    sp: int
    #: How it was found: a key of :data:`CONFIDENCE`.
    found_by: str
    #: A call returns to the address (it was not interrupted there).
    returns: bool


class Broken(Exception):  # noqa: N818  (it is caught in this file, and means no error of ours)
    """The walk cannot go on."""


class Registers:
    """Offsets within ``struct pt_regs``, which BTF tells."""

    NAMES = (
        "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si",
        "di", "ip", "cs", "flags", "sp",
    )  # fmt: skip

    def __init__(self, guest: LinuxGuest) -> None:
        self.offsets = {name: guest.types.offsetof("pt_regs", name) for name in self.NAMES}


class Unwinder:
    """Walks the stacks of one kernel.

    :param orc: its ORC tables; ``None`` for a kernel with frame pointers.
    """

    def __init__(self, guest: LinuxGuest, text: KernelText, orc: Orc | None) -> None:
        self._text = text
        self._orc = orc
        self._regs = Registers(guest).offsets
        # Code that a new task starts in has not been called from anywhere.
        self._starts = {
            guest.symbols.get(name, 0) for name in ("ret_from_fork_asm", "ret_from_fork")
        }

    def frames(
        self, state: State, stacks: Sequence[Stack], first: str = "saved"
    ) -> tuple[list[Frame], str]:
        """All frames from a state on, and why the walk broke off (empty when it did not).

        :param stacks: copies of every stack that the walk may touch.
        :param first: how the first frame was found.
        """
        found = [Frame(state.ip, state.sp, first, returns=not state.signal)]
        try:
            self._walk(state, stacks, found)
        except Broken as broken:
            found += self._guesses(state, stacks)
            return found, str(broken)
        return found, ""

    def from_base_pointer(self, address: int) -> int | None:
        """Where the return address of a frame is, counted from its base pointer.

        ``None``: it is not found by the base pointer.
        """
        entry = None if self._orc is None else self._orc.find(address - 1)
        if entry is None or entry.sp_register is not Register.BP or entry.frame is not Kind.CALL:
            return None
        return entry.sp_offset - 8

    def _walk(self, state: State, stacks: Sequence[Stack], found: list[Frame]) -> None:
        seen = {(state.ip, state.sp)}
        while len(found) < _MOST_FRAMES:
            how = self._step(state, stacks)
            if how is None:
                return
            if (state.ip, state.sp) in seen:
                raise Broken("the stack leads back to itself")
            seen.add((state.ip, state.sp))
            found.append(Frame(state.ip, state.sp, how, returns=not state.signal))
            if how == "user":
                return
        raise Broken(f"more than {_MOST_FRAMES} frames")

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
        here = _stack(stacks, before)
        if here is not None and here is _stack(stacks, state.sp) and state.sp <= before:
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
            return _u64(stacks, state.bp + offset)
        if register == Register.SP_INDIRECT:
            # The offset is that of the pointer until 5.12, and what it is then moved by since
            # (commit aafeb14e9da2): whichever leads to a stack.
            moved = (_u64(stacks, state.sp) + offset) & _MASK
            if _stack(stacks, moved - 8) is not None:
                return moved
            return _u64(stacks, state.sp + offset)
        name = _NAMES.get(register) if register is not None else None
        if name is None or name not in state.registers:
            raise Broken(f"the frame of {state.ip:#x} hangs on a register that is not known")
        return state.registers[name]

    def _return(self, entry: Entry, state: State, sp: int, stacks: Sequence[Stack]) -> str:
        """Set where the caller goes on; how that was found."""
        if entry.frame is Kind.CALL:
            state.ip = _u64(stacks, sp - 8)
            state.sp = sp
            state.registers = {}
            state.signal = entry.signal
            if not self._text.in_image(state.ip) and not self._text.is_code(state.ip):
                raise Broken(f"{state.ip:#x} is no code")
            return "orc"
        offsets = self._regs
        if entry.frame is Kind.REGS:
            state.registers = {name: _u64(stacks, sp + at) for name, at in offsets.items()}
            regs = sp
        else:
            # Only ip, cs, flags, sp (and ss) are there, where they would be in pt_regs.
            regs = sp - offsets["ip"]
        state.ip, state.sp, segment = (_u64(stacks, regs + offsets[n]) for n in ("ip", "sp", "cs"))
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
            state.bp = _u64(stacks, sp + entry.bp_offset)
        elif entry.bp_register == Register.BP:
            state.bp = _u64(stacks, state.bp + entry.bp_offset)
        else:
            raise Broken(f"the ORC entry of {state.ip:#x} makes no sense")

    def _by_frame_pointer(self, state: State, stacks: Sequence[Stack]) -> str | None:
        """The caller by the chain of ``rbp``; entry code marks pt_regs by an odd pointer."""
        offsets = self._regs
        if state.bp & 1:
            regs = state.bp - 1
            state.ip, state.sp, state.bp = (
                _u64(stacks, regs + offsets[n]) for n in ("ip", "sp", "bp")
            )
            state.signal = True
            if _u64(stacks, regs + offsets["cs"]) & 3 == 3:
                return "user"
            return "registers"
        if not state.bp or state.ip in self._starts:
            return None
        before = state.bp
        state.ip, state.bp = _u64(stacks, before + 8), _u64(stacks, before)
        state.sp = before + 16
        state.signal = False
        if not self._text.is_code(state.ip):
            raise Broken(f"{state.ip:#x} is no code")
        same = _stack(stacks, before) is _stack(stacks, state.bp)
        if same and not state.bp & 1 and state.bp <= before:
            raise Broken("the stack goes the wrong way")
        return "frame pointer"

    def _guesses(self, state: State, stacks: Sequence[Stack]) -> Iterator[Frame]:
        """Every code address above the place where the walk broke off."""
        stack = _stack(stacks, state.sp)
        if stack is None:
            return
        count = 0
        for sp in range((state.sp + 7) & ~7, stack.end - 7, 8):
            address = _u64(stacks, sp)
            if self._text.is_code(address):
                yield Frame(address, sp + 8, "scan", returns=True)
                count += 1
                if count == _MOST_GUESSES:
                    return


def _stack(stacks: Sequence[Stack], address: int) -> Stack | None:
    return next((stack for stack in stacks if stack.start <= address < stack.end), None)


def _u64(stacks: Sequence[Stack], address: int) -> int:
    """The number at an address of a stack.

    :raises Broken: it is on none of them.
    """
    for stack in stacks:
        if stack.start <= address <= stack.end - 8:
            (value,) = struct.unpack_from("<Q", stack.data, address - stack.start)
            return int(value)
    raise Broken(f"{address:#x} is on no stack")
