"""Lists of functions that the kernel calls: security modules, and netfilter."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from virtintrospect.errors import CorruptDataError, NotFoundError
from virtintrospect.guests.linux.chains import walk_chains
from virtintrospect.guests.linux.interfaces import devices
from virtintrospect.guests.linux.netns import namespaces
from virtintrospect.insight.checks.code import Pointer, strangers
from virtintrospect.insight.checks.rule import Hit, Rule

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.insight.checks.context import Context

#: Hooks of the kernel altogether, and modules that can be stacked, with room.
_MOST_LISTS, _MOST_CALLS, _LARGEST_CALL = 1024, 1 << 15, 4096
#: MAX_HOOK_COUNT (net/netfilter/core.c).
_MOST_HOOKS = 1024
#: Hooks of ``netns_nf``, and how many of each there may be.
_FAMILIES = ("hooks_ipv4", "hooks_ipv6", "hooks_arp", "hooks_bridge", "hooks_decnet")
_MOST_PLACES = 8


def security(context: Context) -> Iterator[Hit]:
    """Hooks of security modules (security/security.c)."""
    guest = context.guest
    if "static_calls_table" in guest.symbols and "lsm_static_call" in guest.types:
        pointers = list(_static_calls(context))
    elif "security_hook_heads" in guest.symbols:
        pointers = list(_hook_lists(context))
    else:
        context.cannot("lsm-hook: this kernel has no security modules, or no symbols of its data")
        return
    yield from strangers(context.code, pointers, modules="high")


def _hook_lists(context: Context) -> Iterator[Pointer]:
    """Until 6.11: a list for each hook in ``security_hook_heads``."""
    guest = context.guest
    size = guest.kernel.pointer_size
    start = guest.symbols.address("security_hook_heads")
    count = min(guest.types.sizeof("security_hook_heads") // size, _MOST_LISTS)
    firsts = guest.kernel.pointers(start, count)
    offset = guest.types.offsetof("security_hook_list", "list")
    links = walk_chains(guest, firsts, context.budget)
    at = guest.types.offsetof("security_hook_list", "hook")
    places = [link.node - offset + at for link in links]
    targets = guest.kernel.gather_pointers(places, [])
    names = _hook_names(guest, "security_hook_heads", size)
    for link, place, target in zip(links, places, targets, strict=True):
        yield Pointer(b"LSM hook " + names.get(link.chain, b"%d" % link.chain), target, place)


def _static_calls(context: Context) -> Iterator[Pointer]:
    """Since 6.12 (commit 417c5643cd67): a static call for each hook of each module."""
    guest = context.guest
    types = guest.types
    size = types.sizeof("lsm_static_call")
    if not 0 < size <= _LARGEST_CALL:
        raise CorruptDataError(f"an lsm_static_call of {size} bytes", 0)
    start = guest.symbols.address("static_calls_table")
    whole = types.sizeof("lsm_static_calls_table") if "lsm_static_calls_table" in types else 0
    if not whole:
        span = guest.symbols.span(start)
        whole = span[2] if span else 0
    calls = [start + size * number for number in range(min(whole // size, _MOST_CALLS))]
    layout = guest.layout("lsm_static_call", {"hl": "hl", "func": "key.func"}, text=())
    columns = layout.lists(guest.kernel, calls, [])
    used = [
        (index, hl, func)
        for index, (hl, func) in enumerate(zip(columns["hl"], columns["func"], strict=True))
        if hl
    ]
    at = types.offsetof("security_hook_list", "hook")
    faults: list[int] = []
    hooks = guest.kernel.gather_pointers([hl + at for _, hl, _ in used], faults)
    names = _hook_names(guest, "lsm_static_calls_table", size)
    order = sorted(names)
    for (index, hl, func), hook in zip(used, hooks, strict=True):
        before = bisect_right(order, index)
        name = b"LSM hook " + (names[order[before - 1]] if before else b"%d" % index)
        yield Pointer(name, hook, hl)
        if func and func != hook:
            yield Pointer(name + b" (static call)", func, calls[index])


def _hook_names(guest: LinuxGuest, structure: str, size: int) -> dict[int, bytes]:
    """Names of the members of a structure, by their place in units of ``size``."""
    if structure not in guest.types:
        return {}
    described = guest.types.describe(structure)
    return {
        member.offset // size: member.name.encode() for member in described.members[:_MOST_LISTS]
    }


def netfilter(context: Context) -> Iterator[Hit]:
    """Hooks of netfilter in all network namespaces, those of devices included."""
    guest = context.guest
    if not guest.types.has("net", "nf") or "nf_hook_entries" not in guest.types:
        context.cannot("netfilter-hook: this kernel was built without netfilter")
        return
    yield from strangers(context.code, list(_entries(context)))


def _entries(context: Context) -> Iterator[Pointer]:
    guest, types = context.guest, context.guest.types
    nets = namespaces(guest, context.budget)
    places: dict[str, str] = {}
    for family in _FAMILIES:
        for number in range(_MOST_PLACES):
            path = f"nf.{family}[{number}]"
            if not types.has("net", path):
                break
            places[f"{family.removeprefix('hooks_')} {number}"] = path
    columns = guest.layout("net", places, text=()).lists(guest.kernel, list(nets), [])
    tables = [
        (f"netfilter {name} of namespace {inode}", table)
        for name, column in columns.items()
        for table, inode in zip(column, nets.values(), strict=True)
        if table
    ]
    tables += _of_devices(context)
    yield from _hooks(context, tables)


def _of_devices(context: Context) -> list[tuple[str, int]]:
    """``nf_hooks_ingress`` and ``nf_hooks_egress`` of network devices."""
    guest = context.guest
    members = {"ingress": "nf_hooks_ingress?", "egress": "nf_hooks_egress?", "index": "ifindex"}
    try:
        found = list(devices(guest, context.budget))
        layout = guest.layout("net_device", members, text=())
    except NotFoundError as error:
        context.cannot(f"netfilter-hook: network devices: {error.message}")
        return []
    columns = layout.lists(guest.kernel, found, [])
    return [
        (f"netfilter {name} of device {index}", table)
        for name in ("ingress", "egress")
        for table, index in zip(columns[name], columns["index"], strict=True)
        if table
    ]


def _hooks(context: Context, tables: list[tuple[str, int]]) -> Iterator[Pointer]:
    """The functions of ``struct nf_hook_entries``."""
    guest, types = context.guest, context.guest.types
    layout = guest.layout("nf_hook_entries", {"count": "num_hook_entries"}, text=())
    counts = layout.lists(guest.kernel, [table for _, table in tables], [])["count"]
    first, size = types.offsetof("nf_hook_entries", "hooks"), types.sizeof("nf_hook_entry")
    inner = types.offsetof("nf_hook_entry", "hook")
    for (name, table), count in zip(tables, counts, strict=True):
        if not count or not 0 < count <= _MOST_HOOKS:
            if count is None or count:
                context.cannot(f"netfilter-hook: {name} has an impossible number of hooks")
            continue
        if context.budget.late() or context.budget.follow(count) < count:
            break
        places = [table + first + size * number + inner for number in range(count)]
        faults: list[int] = []
        targets = guest.kernel.gather_pointers(places, faults)
        for number, (place, target) in enumerate(zip(places, targets, strict=True)):
            if number not in faults:
                yield Pointer(f"{name}, hook {number}".encode(), target, place)


RULES = (
    Rule(
        id="lsm-hook",
        severity="critical",
        title="A hook of the security modules leads somewhere else",
        looks_at="Every hook of every security module (security_hook_heads; since 6.12 the static "
        "calls): it must lead into the kernel's image. One in a known module is high: security "
        "modules are built in.",
        remedy="Take the guest off the network and dump it.",
        false_positives="Security products from outside of the kernel tree may hook in: high.",
        blind="A hook that was taken off the list, so that nothing is asked any more; the code of "
        "static calls, which kernel-text compares.",
        reference="T1562.001",
        check=security,
    ),
    Rule(
        id="netfilter-hook",
        severity="critical",
        title="Packets are given to code that is nobody's",
        looks_at="Every hook of netfilter in all network namespaces (IPv4, IPv6, ARP, bridges) and "
        "of all network devices (ingress, egress): it must lead into the kernel's image, a known "
        "module or eBPF's code.",
        remedy="Take the guest off the network and dump it; the evidence has the code's address.",
        false_positives="None is known.",
        blind="A hook of a module that hides nothing is not told from a firewall's. Packet "
        "sockets, protocol handlers and traffic control are not looked at.",
        reference="T1205",
        check=netfilter,
    ),
)
