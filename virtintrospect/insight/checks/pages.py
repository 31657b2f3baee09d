"""Memory that the kernel can execute, and whose it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from virtintrospect.arch.leaves import EXECUTABLE, PRESENT, WRITABLE
from virtintrospect.errors import NotFoundError
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.moduleviews import memory_of_modules
from virtintrospect.insight.checks.probes import trampolines
from virtintrospect.insight.checks.rule import Hit, Rule

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.insight.checks.context import Context

Span = tuple[int, int]

#: __START_KERNEL_map and VSYSCALL_ADDR (arch/x86): image and modules are between them.
_FIRST, _LAST = 0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_FF60_0000
_PAGE, _LARGE, _LARGE_SHIFT = 4096, 2 << 20, 21
#: Pages of probes, packs of programs.
_MOST = 1 << 14
#: Runs of pages that are named.
_MOST_RUNS = 64
#: Code, for a person to look at.
_SHOWN = 16


def unknown(context: Context) -> Iterator[Hit]:
    """Executable pages of the kernel that no image, module, program or probe has."""
    guest = context.guest
    if guest.machine.name != "x86-64":
        context.cannot("unknown-code: only kernels for x86-64 are looked at")
        return
    if "pack_list" not in guest.symbols:
        # Before 5.17 each program has pages of its own, and those of classic BPF (seccomp's
        # filters, packet filters) are on no list: bpf_prog_kallsyms_candidate().
        context.cannot("unknown-code: this kernel does not list the code of classic BPF")
        return
    known = _known(context)
    if not known:
        context.cannot("unknown-code: the guest's symbols of its own code make no sense")
        return
    runs = _runs(guest, known)
    for start, end, writable in runs[:_MOST_RUNS]:
        pieces = guest.kernel.read_available(start, _SHOWN)
        what = b"the kernel can execute it, and nobody is known to have put it there"
        yield Hit(
            f"memory at {start:#x}".encode(),
            b"%d KiB: %s%s" % ((end - start) >> 10, what, b"; it is writable" if writable else b""),
            {
                "start": hex(start),
                "end": hex(end),
                "begins": b"".join(piece for _, piece in pieces).hex(),
            },
        )
    if len(runs) > _MOST_RUNS:
        context.cannot(f"unknown-code: {len(runs) - _MOST_RUNS} more runs of pages, left out")


def _runs(guest: LinuxGuest, known: list[Span]) -> list[tuple[int, int, bool]]:
    """Executable pages that lie in no known span, those that follow each other joined."""
    import numpy as np

    found = guest.kernel.pages(_FIRST, _LAST)
    can = (found.rights & (EXECUTABLE | PRESENT)) == (EXECUTABLE | PRESENT)
    if "execmem_cache" in guest.symbols:
        # Large pages of a cache for everybody's code (mm/execmem.c, 6.13), in parts free.
        image = guest.symbols.address("_text"), guest.symbols.address("_end")
        inside = (found.vaddr >= np.uint64(image[0])) & (found.vaddr < np.uint64(image[1]))
        can &= inside | (found.shift < _LARGE_SHIFT)
    starts = found.vaddr[can]
    ends = starts + (np.uint64(1) << found.shift[can].astype(np.uint64))
    writable = (found.rights[can] & WRITABLE) != 0
    whole = _joined(known)
    firsts = np.array([first for first, _ in whole], dtype=np.uint64)
    lasts = np.array([last for _, last in whole], dtype=np.uint64)
    before = np.searchsorted(firsts, starts, side="right") - 1
    mine = (before >= 0) & (ends <= lasts[np.maximum(before, 0)])
    runs: list[tuple[int, int, bool]] = []
    rest = zip(starts[~mine].tolist(), ends[~mine].tolist(), writable[~mine].tolist(), strict=True)
    for start, end, change in rest:
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], end, runs[-1][2] or change
        else:
            runs.append((start, end, change))
    return runs


def _joined(spans: list[Span]) -> list[Span]:
    """Spans in their order, those that touch as one; there is one at least, the kernel's text."""
    joined: list[Span] = []
    for first, last in sorted(set(spans)):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined


def _known(context: Context) -> list[Span]:
    """Where code may be, to whole pages."""
    guest, budget = context.guest, context.budget
    text = guest.symbols.address("_stext"), guest.symbols.address("_etext")
    spans = [(text[0] // _LARGE * _LARGE, -(-text[1] // _LARGE) * _LARGE)]
    spans += memory_of_modules(guest, budget)
    spans += context.code.programs
    spans += trampolines(context)
    spans += _packs(context)
    spans += _slots(context)
    limit = guest.kernel.last
    return [
        (start // _PAGE * _PAGE, min(-(-end // _PAGE) * _PAGE, limit))
        for start, end in spans
        if 0 <= start < end <= limit
    ]


def _packs(context: Context) -> list[Span]:
    """Large pages that eBPF's programs share: ``pack_list`` (kernel/bpf/core.c, 5.17)."""
    guest = context.guest
    if "pack_list" not in guest.symbols or "bpf_prog_pack" not in guest.types:
        return []
    rows = _linked(context, "pack_list", "bpf_prog_pack", "ptr")
    return [(start, start + _LARGE) for start in rows]


def _slots(context: Context) -> list[Span]:
    """Pages of instructions that probes have moved (kernel/kprobes.c)."""
    guest = context.guest
    found: list[Span] = []
    for symbol in ("kprobe_insn_slots", "kprobe_optinsn_slots"):
        if symbol not in guest.symbols or "kprobe_insn_page" not in guest.types:
            continue
        try:
            at = guest.types.offsetof("kprobe_insn_cache", "pages")
            rows = _linked(context, symbol, "kprobe_insn_page", "insns", at)
        except NotFoundError:
            continue
        found += [(start, start + _PAGE) for start in rows]
    return found


def _linked(context: Context, symbol: str, name: str, member: str, at: int = 0) -> list[int]:
    """A pointer of each structure on a list that they are on by ``list``."""
    guest = context.guest
    head = guest.symbols.address(symbol) + at
    nodes, problem = walk_list(guest.kernel, head, limit=_MOST, budget=context.budget)
    guest.note_all([problem])
    offset = guest.types.offsetof(name, "list")
    layout = guest.layout(name, {"it": member}, text=())
    places = [node - offset for node in nodes if node >= offset]
    return [start for start in layout.lists(guest.kernel, places, [])["it"] if start]


RULES = (
    Rule(
        id="unknown-code",
        severity="high",
        title="The kernel has executable memory that is nobody's",
        looks_at="By the page tables, all executable pages where the image and modules lie: each "
        "must be of the kernel's text, of a module on the list, of eBPF, of a trampoline of "
        "ftrace, or of kprobes. x86-64 only.",
        remedy="Dump the guest and disassemble the memory; the evidence has its address. It may "
        "be a module that has left all lists.",
        false_positives="eBPF struct_ops of kernels that do not list their code.",
        blind="Kernels before 5.17, which do not list the code of seccomp's filters. Executable "
        "memory elsewhere (the direct map), and code that was put into somebody "
        "else's pages. Kernels since 6.13 keep the code of modules in large pages that all share: "
        "those are left out.",
        reference="T1014",
        check=unknown,
    ),
)
