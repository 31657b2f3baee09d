"""Whose code an address is in: the question behind every rule about hooks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.text import KernelText
from virtintrospect.insight.checks.rule import Hit

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: More programs than a guest has.
_MOST_PROGRAMS = 1 << 16
KERNEL = "kernel"
BPF = "bpf"


class Pointer(NamedTuple):
    """A place that the kernel jumps to."""

    #: What it is called in a finding: the place, not where it leads.
    name: bytes
    target: int
    #: Where it is.
    address: int


class Code:
    """The kernel's image, the modules of its list, and what eBPF compiled."""

    def __init__(self, guest: LinuxGuest, budget: Budget) -> None:
        self._guest = guest
        self._budget = budget
        self._text = KernelText(guest, budget)

    def owner(self, address: int) -> str | None:
        """``kernel``, ``bpf``, the name of a module; ``None``: nobody that is known."""
        if self._text.in_image(address):
            return KERNEL
        module = self._text.module(address)
        if module is not None:
            return module.name or "?"
        starts, ends = self._programs
        index = bisect_right(starts, address) - 1
        return BPF if index >= 0 and address < ends[index] else None

    @property
    def programs(self) -> list[tuple[int, int]]:
        """First address of each of eBPF's pieces of code, and the one behind it."""
        starts, ends = self._programs
        return list(zip(starts, ends, strict=True))

    def shown(self, address: int) -> bytes:
        """An address for people: its symbol, as far as there is one."""
        place = self._text.place(address, returns=False)
        return f"{address:#x}".encode() if place is None else str(place).encode()

    def is_function(self, address: int) -> bool:
        """Whether a function of the image begins there."""
        if self._guest.machine.name == "ARM":
            address &= ~1  # Thumb
        found = self._guest.symbols.span(address)
        return self._text.in_image(address) and found is not None and found[1] == 0

    @cached_property
    def _programs(self) -> tuple[list[int], list[int]]:
        """What ``bpf_kallsyms`` lists (kernel/bpf/core.c): programs, trampolines, dispatchers."""
        guest = self._guest
        if "bpf_kallsyms" not in guest.symbols or "bpf_ksym" not in guest.types:
            return [], []
        head = guest.symbols.address("bpf_kallsyms")
        nodes, problem = walk_list(guest.kernel, head, limit=_MOST_PROGRAMS, budget=self._budget)
        guest.note_all([problem])
        try:
            offset = guest.types.offsetof("bpf_ksym", "lnode")
            layout = guest.layout("bpf_ksym", {"start": "start", "end": "end"}, text=())
        except VirtIntrospectError:
            return [], []
        columns = layout.lists(guest.kernel, [n - offset for n in nodes if n >= offset], [])
        spans = sorted(
            (start, end) for start, end in zip(*columns.values(), strict=True) if start and end
        )
        return [start for start, _ in spans], [end for _, end in spans]


def strangers(code: Code, pointers: Iterable[Pointer], *, modules: str = "") -> Iterator[Hit]:
    """Pointers that lead to code which is nobody's.

    :param modules: severity of one that leads into a module of the list, or to eBPF's code;
        without it that is as it should be.
    """
    for pointer in pointers:
        owner = code.owner(pointer.target)
        if owner == KERNEL or (owner is not None and not modules):
            continue
        where = b"outside of the kernel and of all known modules"
        if owner is not None:
            where = b"in eBPF's code" if owner == BPF else b"in module " + owner.encode()
        yield Hit(
            pointer.name,
            b"it leads to " + code.shown(pointer.target) + b", " + where,
            {
                "target": hex(pointer.target),
                "address": hex(pointer.address),
                **({"owner": owner} if owner else {}),
            },
            modules if owner is not None else "",
        )
