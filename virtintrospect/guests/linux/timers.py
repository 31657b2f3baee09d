"""Pending timers: each CPU's timer wheels (kernel/time/timer.c) and hrtimers (hrtimer.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError
from virtintrospect.guests.linux import percpu, timerowners
from virtintrospect.guests.linux.budget import Budget
from virtintrospect.guests.linux.chains import walk_chains
from virtintrospect.guests.linux.counters import number
from virtintrospect.guests.linux.rbtree import walk_rbtree
from virtintrospect.guests.linux.system import monotonic_time, tick
from virtintrospect.model import Timer

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

_NANOSECONDS = 1_000_000_000
#: NR_BASES: local, global and deferrable timers since 6.9, else two kinds.
_BASES = 3
#: More buckets than a wheel has (9 levels of 64), more clocks than a CPU has.
_MAX_BUCKETS, _MAX_CLOCKS = 1024, 32
#: A wheel's clock is never so many ticks away from the time.
_FAR = 1 << 32
#: How often a reading is repeated that the guest has changed meanwhile.
_ATTEMPTS = 3
#: Bits of ``timer_list.flags``.
_FLAGS = ((0x80000, "deferrable"), (0x100000, "pinned"), (0x200000, "irqsafe"))
#: And those that say where it is: the CPU (TIMER_CPUMASK) and the bucket of its wheel
#: (TIMER_ARRAYMASK). What else lies there by now, as on a stack that went on, does not fit.
_BUCKET_SHIFT = 22
_PLACE = 0xFFC3_FFFF
#: CLOCK_* (include/uapi/linux/time.h).
_CLOCKS = {0: "realtime", 1: "monotonic", 7: "boottime", 11: "tai"}

_WHEEL = {"expires": "expires", "function": "function", "flags": "flags"}
_HRTIMER = {
    "expires": "node.expires",
    "function": "function",
    "soft": "is_soft",
    "hard": "is_hard",
    "relative": "is_rel",
}


def timers(guest: LinuxGuest) -> list[Timer]:
    """The rows of ``timers``: by CPU and kind, then by time."""
    budget = Budget()
    cpus = percpu.online(guest)
    rows = [
        row
        for read in (_wheels, _hrtimers)
        for cpu, offset in cpus.items()
        for row in _steady(guest, read, cpu, offset, budget)
    ]
    now, length = monotonic_time(guest), tick(guest)
    for row in rows:
        row["due"] = row["due"] if row["kind"] == "hrtimer" else _due(row, now, length)
    owners = timerowners.Owners(guest, rows, budget)
    guest.note_all([budget.problem])
    kinds = {"wheel": 0, "hrtimer": 1}
    rows.sort(key=lambda row: (row["cpu"], kinds[row["kind"]], row["due"] or 0, row["address"]))
    return [_record(guest, row, owners, now) for row in rows]


def _steady(guest: LinuxGuest, read: Any, cpu: int, offset: int, budget: Budget) -> list[Row]:
    """What a reader finds; where the guest changed it meanwhile, it is read again."""
    rows: list[Row] = []
    known = guest.problems
    for attempt in range(_ATTEMPTS if guest.live else 1):
        if attempt:
            guest.memory.expire()
        guest.problems = known[:]
        rows = read(guest, cpu, offset, budget)
        if len(guest.problems) == len(known):
            break
    return rows


def _wheels(guest: LinuxGuest, cpu: int, offset: int, budget: Budget) -> list[Row]:
    """Timers of a CPU's wheels; a bucket of one is a list."""
    size, vectors = guest.types.sizeof("timer_base"), guest.types.resolve("timer_base", "vectors")
    buckets = vectors[-1].count
    if not 0 < buckets <= _MAX_BUCKETS:
        guest.note(f"timer wheel with {buckets} buckets", 0)
        return []
    first = percpu.addresses(guest, guest.symbols.address("timer_bases"), [offset])[0]
    bases = [first + index * size for index in range(_BASES)]
    layout = guest.layout("timer_base", {"cpu": "cpu", "clock": "clk"}, text=())
    columns = layout.lists(guest.kernel, bases, [])
    jiffies = number(guest, "jiffies_64", 8)
    firsts: list[int] = []
    for base, owner, clock in zip(bases, columns["cpu"], columns["clock"], strict=True):
        # Until 6.9 there were two: what lies behind them is something else.
        if owner == cpu and abs(clock - (jiffies & guest.kernel.last)) < _FAR:
            try:
                firsts += guest.kernel.pointers(base + vectors[-1].offset, buckets)
            except FaultError as error:
                guest.note("unreadable timer wheel", error.address)
    node_at = guest.types.offsetof("timer_list", "entry")
    links = walk_chains(guest, firsts, budget)
    places = {
        link.node - node_at: cpu | link.chain % buckets << _BUCKET_SHIFT
        for link in links
        if link.node >= node_at
    }
    rows = []
    for row in _rows(guest, "timer_list", _WHEEL, list(places)):
        if row["flags"] & _PLACE != places[row["address"]]:
            guest.note("timer that is not of its wheel", row["address"])
            continue
        row |= {"kind": "wheel", "cpu": cpu, "clock": None, "jiffies": jiffies, "due": None}
        row["longest"] = guest.kernel.last
        row["flags"] = tuple(name for bit, name in _FLAGS if row["flags"] & bit)
        rows.append(row)
    return rows


def _hrtimers(guest: LinuxGuest, cpu: int, offset: int, budget: Budget) -> list[Row]:
    """Timers of a CPU's clocks; each has a red-black tree."""
    types = guest.types
    base = percpu.addresses(guest, guest.symbols.address("hrtimer_bases"), [offset])[0]
    clocks = types.resolve("hrtimer_cpu_base", "clock_base")[-1]
    if not 0 < clocks.count <= _MAX_CLOCKS:
        guest.note(f"a CPU with {clocks.count} clocks", base)
        return []
    members = {"root": "active.rb_root.rb_root.rb_node", "clock": "clockid", "offset": "offset"}
    layout = guest.layout("hrtimer_clock_base", members, text=())
    addresses = [base + clocks.offset + n * clocks.element_size for n in range(clocks.count)]
    columns = layout.lists(guest.kernel, addresses, [])
    node_at = types.offsetof("hrtimer", "node")
    found = []
    for root, clock, shift in zip(
        columns["root"], columns["clock"], columns["offset"], strict=True
    ):
        nodes, problem = walk_rbtree(guest, root or 0, budget)
        guest.note_all([problem])
        timers = [node - node_at for node in nodes if node >= node_at]
        for row in _rows(guest, "hrtimer", _HRTIMER, timers):
            row |= {"kind": "hrtimer", "cpu": cpu, "clock": _CLOCKS.get(clock, str(clock))}
            words = ("soft", "hard", "relative")
            row["flags"] = tuple(word for word in words if row[word])
            row["due"] = row["expires"] - shift
            found.append(row)
    return found


def _rows(guest: LinuxGuest, name: str, members: dict[str, str], addresses: list[int]) -> list[Row]:
    columns = guest.layout(name, members, text=()).lists(guest.kernel, addresses, [])
    rows = []
    for address, values in zip(addresses, zip(*columns.values(), strict=True), strict=True):
        row: Row = dict(zip(columns, values, strict=True)) | {"address": address}
        if row["function"] is None or row["function"] < guest.machine.lowest_code:
            guest.note("unreadable timer", address)
        else:
            rows.append(row)
    return rows


def _due(row: Row, now: int | None, length: int | None) -> int | None:
    """When a timer of a wheel is due, in nanoseconds of CLOCK_MONOTONIC."""
    if now is None or length is None:
        return None
    half = row["longest"] // 2 + 1
    left = ((row["expires"] - row["jiffies"] + half) & row["longest"]) - half
    return int(now + left * length)


def _record(guest: LinuxGuest, row: Row, owners: timerowners.Owners, now: int | None) -> Timer:
    due = row["due"]
    return Timer(
        kind=row["kind"],
        cpu=row["cpu"],
        clock=row["clock"],
        function=timerowners.name(guest, row["function"]),
        work=owners.works.get(row["address"]),
        pids=owners.pids.get(row["address"], ()),
        expires=None if due is None else due / _NANOSECONDS,
        expires_in=None if due is None or now is None else (due - now) / _NANOSECONDS,
        flags=row["flags"],
        address=row["address"],
    )
