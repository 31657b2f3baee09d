"""Who traces the kernel: ftrace and kprobes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux.chains import heads, walk_chains
from virtintrospect.guests.linux.lists import walk_list
from virtintrospect.guests.linux.patchsites import FTRACE_CALLS
from virtintrospect.insight.checks.code import Pointer, strangers
from virtintrospect.insight.checks.rule import Hit, Rule

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.insight.checks.context import Context

#: More tracers than a kernel has at once.
_MOST_OPS = 4096
#: A trampoline is ftrace_regs_caller and a few bytes more.
_LARGEST_TRAMPOLINE = 1 << 16
#: KPROBE_TABLE_SIZE (kernel/kprobes.c), and more probes of one place than there are.
_BUCKETS, _MOST_PROBES = 64, 1 << 14
#: Opcode of a CALL with an offset of 32 bits.
_CALL = 0xE8
_KPROBE = {
    "addr": "addr",
    "symbol": "symbol_name",
    "offset": "offset",
    "pre": "pre_handler",
    "post": "post_handler",
}


class Ranges:
    """Many ranges of addresses, of which one may lie in another.

    :param ranges: first address and the one behind it.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._starts: list[int] = []
        #: The highest end of all ranges that begin there or before.
        self._ends: list[int] = []
        for start, end in sorted(ranges):
            self._starts.append(start)
            self._ends.append(max(end, self._ends[-1]) if self._ends else end)

    def __contains__(self, address: int) -> bool:
        index = bisect_right(self._starts, address) - 1
        return index >= 0 and address < self._ends[index]


def ftrace(context: Context) -> Iterator[Hit]:
    """Functions that ``ftrace_ops_list`` calls (kernel/trace/ftrace.c)."""
    guest = context.guest
    if "ftrace_ops_list" not in guest.symbols:
        context.cannot("ftrace-hook: this kernel has no ftrace, or no symbols of its data")
        return
    pointers: list[Pointer] = []
    layout = guest.layout(
        "ftrace_ops",
        {"next": "next", "func": "func", "saved": "saved_func?", "direct": "direct_call?"},
        text=(),
    )
    for ops in _operations(context, layout):
        name = f"ftrace_ops {_ops_name(guest, ops['address'])}".encode()
        targets = (ops["func"], ops["saved"], ops["direct"])
        pointers += [Pointer(name, target, ops["address"]) for target in targets if target]
    pointers += [
        Pointer(symbol.encode(), target, guest.symbols.address(symbol))
        for symbol in ("ftrace_trace_function", "ftrace_graph_return", "ftrace_graph_entry")
        if symbol in guest.symbols and (target := guest.pointer(symbol))
    ]
    pointers += _calls(guest)
    yield from strangers(context.code, pointers, modules="low")


def trampolines(context: Context) -> list[tuple[int, int]]:
    """Code that ftrace made for those who trace: first address and the one behind it."""
    guest = context.guest
    if "ftrace_ops_list" not in guest.symbols:
        return []
    members = {"next": "next", "start": "trampoline?", "size": "trampoline_size?"}
    layout = guest.layout("ftrace_ops", members, text=())
    return [
        (ops["start"], ops["start"] + min(ops["size"], _LARGEST_TRAMPOLINE))
        for ops in _operations(context, layout)
        if ops["start"] and ops["size"]
    ]


def _calls(guest: LinuxGuest) -> Iterator[Pointer]:
    """Where the calls in ftrace's own code lead: x86, CALL with an offset of 32 bits."""
    if guest.machine.name != "x86-64":
        return
    for name in FTRACE_CALLS:
        place = guest.symbols.get(name)
        if place is None:
            continue
        code = guest.kernel.read(place, 5)
        if code[0] == _CALL:
            offset = int.from_bytes(code[1:], "little", signed=True)
            yield Pointer(name.encode(), (place + 5 + offset) & guest.kernel.last, place)


def _operations(context: Context, layout: Any) -> Iterator[dict[str, Any]]:
    guest = context.guest
    end = guest.symbols.address("ftrace_list_end")
    current = guest.pointer("ftrace_ops_list")
    seen: set[int] = set()
    while current and current != end:
        if current in seen or len(seen) >= _MOST_OPS:
            context.cannot("ftrace-hook: the list of tracers has no end")
            return
        seen.add(current)
        row = layout.read(guest.kernel, current)
        yield row | {"address": current}
        current = row["next"]


def _ops_name(guest: LinuxGuest, address: int) -> str:
    found = guest.symbols.lookup(address)
    return found[0] if found else f"{address:#x}"


def kprobes(context: Context) -> Iterator[Hit]:
    """Probes of ``kprobe_table``, and where their handlers are (kernel/kprobes.c)."""
    guest = context.guest
    if "kprobe_table" not in guest.symbols:
        context.cannot("kprobe: this kernel has no kprobes, or no symbols of its data")
        return
    code, forbidden = context.code, Ranges(_blacklist(context))
    for probe in _probes(context):
        where = code.shown(probe["addr"])
        name = b"probe of " + where
        pointers = [
            Pointer(name, target, probe["address"])
            for target in (probe["pre"], probe["post"], *probe["returns"])
            if target
        ]
        outside = next(strangers(code, pointers), None)
        if outside is not None:
            yield outside
            continue
        bad = probe["addr"] in forbidden
        handlers = [code.shown(pointer.target) for pointer in pointers]
        owners = sorted({code.owner(pointer.target) or "?" for pointer in pointers} - {"kernel"})
        text = b"the kernel runs code there for somebody: " + (b", ".join(handlers) or b"nothing")
        yield Hit(
            name,
            b"no probe may be there: the kernel forbids it" if bad else text,
            {
                "addr": hex(probe["addr"]),
                "address": hex(probe["address"]),
                **({"owner": ",".join(owners)} if owners else {}),
            },
            "high" if bad else "low" if owners else "info",
        )


def probed_places(context: Context) -> list[int]:
    """Addresses of code that registered probes have rewritten."""
    if "kprobe_table" not in context.guest.symbols:
        return []
    return [probe["addr"] for probe in _probes(context)]


def _probes(context: Context) -> Iterator[dict[str, Any]]:
    guest, budget = context.guest, context.budget
    table = guest.symbols.address("kprobe_table")
    chains = walk_chains(guest, heads(guest, table, _BUCKETS, budget), budget)
    inner = guest.types.offsetof("kprobe", "hlist")
    listed = guest.types.offsetof("kprobe", "list")
    places = [link.node - inner for link in chains if link.node >= inner]
    several = guest.symbols.get("aggr_pre_handler")
    layout = guest.layout("kprobe", _KPROBE, text=())
    rows = _read(guest, layout, places)
    for row in list(rows):
        if row["pre"] == several:  # one place with several probes: they hang on this one
            head = row["address"] + listed
            nodes, problem = walk_list(guest.kernel, head, limit=_MOST_PROBES, budget=budget)
            guest.note_all([problem])
            rows += _read(guest, layout, [node - listed for node in nodes if node >= listed])
    returning = guest.symbols.get("pre_handler_kretprobe")
    members = {"handler": "handler?", "entry": "entry_handler?"}
    for row in rows[: budget.follow(len(rows))]:
        row["returns"] = ()
        if returning and row["pre"] == returning:
            inside = guest.layout("kretprobe", members, text=())
            found = inside.lists(guest.kernel, [row["address"]], [])
            row["returns"] = (found["handler"][0], found["entry"][0])
        yield row


def _read(guest: LinuxGuest, layout: Any, places: list[int]) -> list[dict[str, Any]]:
    columns = layout.lists(guest.kernel, places, [])
    rows = [
        dict(zip(columns, values, strict=True)) | {"address": place}
        for place, values in zip(places, zip(*columns.values(), strict=True), strict=True)
    ]
    return [row for row in rows if row["addr"]]


def _blacklist(context: Context) -> list[tuple[int, int]]:
    """Where no probe may be: ``kprobe_blacklist``."""
    guest = context.guest
    if "kprobe_blacklist" not in guest.symbols or "kprobe_blacklist_entry" not in guest.types:
        return []
    head = guest.symbols.address("kprobe_blacklist")
    nodes, problem = walk_list(guest.kernel, head, limit=_MOST_PROBES, budget=context.budget)
    guest.note_all([problem])
    offset = guest.types.offsetof("kprobe_blacklist_entry", "list")
    layout = guest.layout(
        "kprobe_blacklist_entry", {"start": "start_addr", "end": "end_addr"}, text=()
    )
    columns = layout.lists(guest.kernel, [n - offset for n in nodes if n >= offset], [])
    return [
        (start, end) for start, end in zip(columns["start"], columns["end"], strict=True) if start
    ]


RULES = (
    Rule(
        id="ftrace-hook",
        severity="critical",
        title="ftrace calls code that is nobody's",
        looks_at="Every user of ftrace (ftrace_ops_list) and the functions that it calls, "
        "direct calls included, and the tracer of the moment. Code of a module is low.",
        remedy="Take the guest off the network and dump it; `modules` and `bpf` show who may "
        "trace, `check --rule hidden-module` who hides.",
        false_positives="Live patches and tracing modules are low: know them.",
        blind="Trampolines are not compared byte by byte; a function that was patched by hand is "
        "kernel-text's business.",
        reference="T1014",
        check=ftrace,
    ),
    Rule(
        id="kprobe",
        severity="critical",
        title="The kernel's code is probed",
        looks_at="Every registered kprobe and kretprobe, and its handlers. One whose handler is "
        "outside of the kernel, all known modules and eBPF is critical, one in a place where the "
        "kernel forbids it is high, one of a module is low, any other is info.",
        remedy="Find out who registered it: `bpf`, `modules`, tracing tools in `ps`.",
        false_positives="Tracing and monitoring tools (bcc, bpftrace, perf, Falco, SystemTap) use "
        "them; theirs are info or low.",
        blind="uprobes, which are in programs, and tracepoints.",
        reference="T1014",
        check=kprobes,
    ),
)
