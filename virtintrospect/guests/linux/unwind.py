"""From frame to frame, on copies.

The stacks are copied first and nothing else is read of them, so that a guest can neither send
the walk elsewhere nor change a frame under it. What no table explains is searched for code
addresses, as unwind_guess.c does; those are guesses, and marked.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from virtintrospect.guests.linux.text import KernelText

#: Frames of one stack: the kernel prints at most 64 (MAX_STACK_TRACE_DEPTH).
_MOST_FRAMES = 256
#: Guesses of one stack.
_MOST_GUESSES = 64
#: How sure a frame is, by how it was found.
CONFIDENCE = {
    "saved": 1.0,
    "registers": 1.0,
    "orc": 1.0,
    "frame record": 1.0,
    "unwinding table": 1.0,
    "frame pointer": 0.9,
    "user": 1.0,
    "searched": 0.5,
    "scan": 0.2,
}


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


class StackWalker(abc.ABC):
    """Walks the stacks of one kernel; how one goes to the caller is the architecture's affair."""

    #: Where a task that sleeps has its state: members of ``struct task_struct``, ``sp`` at least.
    SAVED: Mapping[str, str]
    #: Bytes of a slot of a stack.
    word: int = 8

    def __init__(self, text: KernelText) -> None:
        self._text = text

    @property
    @abc.abstractmethod
    def saved_size(self) -> int:
        """Bytes that are saved on the stack of a task that sleeps, where ``sp`` points to."""

    @abc.abstractmethod
    def saved(self, row: Mapping[str, int], copy: Stack) -> State:
        """The state of a task that sleeps.

        :param row: the members of :attr:`SAVED`.
        :param copy: its stack from ``sp`` on, :attr:`saved_size` bytes at least.
        """

    @abc.abstractmethod
    def _step(self, state: State, stacks: Sequence[Stack]) -> str | None:
        """Go to the caller; how it was found, or ``None`` where there is none."""

    @abc.abstractmethod
    def bases(self, stack: Stack, address: int, slot: int) -> Iterator[int]:
        """Base pointers that a frame may have, of which only a return address is known.

        The right one is that from which the walk leads to the top.

        :param address: a return address, found at ``slot`` of the stack.
        """

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

    def _guesses(self, state: State, stacks: Sequence[Stack]) -> Iterator[Frame]:
        """Every code address above the place where the walk broke off."""
        stack = stack_of(stacks, state.sp)
        if stack is None:
            return
        count = 0
        word = self.word
        for sp in range((state.sp + word - 1) & -word, stack.end - word + 1, word):
            address = number_of(stacks, sp, word)
            if self._text.is_code(address):
                yield Frame(address, sp + word, "scan", returns=True)
                count += 1
                if count == _MOST_GUESSES:
                    return


def stack_of(stacks: Sequence[Stack], address: int) -> Stack | None:
    """The stack that an address is on."""
    return next((stack for stack in stacks if stack.start <= address < stack.end), None)


def u64_of(stacks: Sequence[Stack], address: int) -> int:
    """The 64-bit number at an address of a stack.

    :raises Broken: it is on none of them.
    """
    return number_of(stacks, address, 8)


def number_of(stacks: Sequence[Stack], address: int, size: int) -> int:
    """As :func:`u64_of`, of so many bytes."""
    for stack in stacks:
        at = address - stack.start
        if 0 <= at <= len(stack.data) - size:
            return int.from_bytes(stack.data[at : at + size], "little")
    raise Broken(f"{address:#x} is on no stack")
