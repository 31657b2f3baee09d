"""CPU times and load (fs/proc/stat.c, fs/proc/loadavg.c, kernel/time/tick-sched.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.errors import VirtIntrospectError
from virtintrospect.guests.linux import percpu, system
from virtintrospect.guests.linux.counters import number

if TYPE_CHECKING:
    from virtintrospect.guests.linux.guest import LinuxGuest
    from virtintrospect.model import CpuTimes, Load

_MILLISECOND = 1_000_000
#: FSHIFT (include/linux/sched/loadavg.h): bits behind the point.
FIXED_SHIFT = 11
_FIXED_1 = 1 << FIXED_SHIFT
#: Columns of ``load`` that ``cpu`` has, too.
_LOAD = ("load1", "load5", "load15", "running", "blocked")
#: Column → enumerator of ``enum cpu_usage_stat``.
_KINDS = {
    "user": "CPUTIME_USER",
    "nice": "CPUTIME_NICE",
    "system": "CPUTIME_SYSTEM",
    "idle": "CPUTIME_IDLE",
    "iowait": "CPUTIME_IOWAIT",
    "irq": "CPUTIME_IRQ",
    "softirq": "CPUTIME_SOFTIRQ",
    "steal": "CPUTIME_STEAL",
}


def times(guest: LinuxGuest) -> list[CpuTimes]:
    """The rows of ``cpu``: CPUs that are online, in milliseconds since they came up.

    Idle time of a CPU whose tick has stopped goes on until the guest's clock was last brought
    up to date, which an idle guest may do seconds later: it lags, and never runs ahead.
    """
    from virtintrospect.model import CpuTimes

    cpus = percpu.online(guest)
    rows = _statistics(guest, list(cpus.values()))
    whole = _load_columns(guest)
    found = []
    for cpu, row in zip(cpus, rows, strict=True):
        if None in row.values():
            guest.note(f"unreadable times of CPU {cpu}", guest.symbols.address("kernel_cpustat"))
            continue
        spent = {kind: row[kind] // _MILLISECOND for kind in _KINDS}
        found.append(CpuTimes(cpu=cpu, **spent, **whole))
    return found


def _load_columns(guest: LinuxGuest) -> dict[str, Any]:
    """What ``cpu`` repeats of ``load``; unknown where that cannot be read."""
    try:
        record: Load | None = load(guest)
    except VirtIntrospectError as error:
        guest.note(f"no load: {error.message}", getattr(error, "address", 0))
        record = None
    return {name: getattr(record, name, None) for name in _LOAD}


def load(guest: LinuxGuest) -> Load:
    """The record of ``load``, as /proc/loadavg and the last lines of /proc/stat have it."""
    from virtintrospect.model import Load

    queues = _queues(guest, list(percpu.online(guest).values()))
    load1, load5, load15 = averages(guest)
    cursor = guest.read_global("init_pid_ns", {"next": "idr.idr_next"})["next"]
    return Load(
        load1=load1,
        load5=load5,
        load15=load15,
        running=sum(row["running"] or 0 for row in queues),
        blocked=max(0, sum(row["waiting"] or 0 for row in queues)),
        total=number(guest, "nr_threads", 4),
        last_pid=cursor - 1,
    )


def averages(guest: LinuxGuest) -> list[float]:
    """Load of the last one, five and fifteen minutes."""
    values = guest.kernel.pointers(guest.symbols.address("avenrun"), 3)
    return [fixed(value + _FIXED_1 // 200) for value in values]


def fixed(value: int) -> float:
    """A fixed-point number as /proc prints it: cut behind two digits (LOAD_INT, LOAD_FRAC)."""
    return round((value >> FIXED_SHIFT) + ((value & (_FIXED_1 - 1)) * 100 >> FIXED_SHIFT) / 100, 2)


def _queues(guest: LinuxGuest, offsets: list[int]) -> list[dict[str, Any]]:
    """Run queues: tasks that run or want to, and tasks that wait for I/O."""
    layout = guest.layout("rq", {"running": "nr_running", "waiting": "nr_iowait.counter"}, text=())
    return _rows(guest, layout, "runqueues", offsets)


def _statistics(guest: LinuxGuest, offsets: list[int]) -> list[dict[str, Any]]:
    """Nanoseconds of each kind, as get_idle_time() and get_iowait_time() give them."""
    kinds = guest.types.enumerators("cpu_usage_stat")
    members = {name: f"cpustat[{kinds.get(kind, 0)}]" for name, kind in _KINDS.items()}
    dyntick = guest.types.has("kernel_cpustat", "idle_elapse")
    if dyntick:
        members |= {"sleeps": "idle_elapse", "since": "idle_entrytime"}
        members |= {"stolen0": "idle_stealtime[0]", "stolen1": "idle_stealtime[1]"}
    layout = guest.layout("kernel_cpustat", members, text=())
    rows = _rows(guest, layout, "kernel_cpustat", offsets)
    ticks = [{} for _ in rows] if dyntick else _ticks(guest, offsets)
    now = system.monotonic_time(guest)
    for row, tick, queue in zip(rows, ticks, _queues(guest, offsets), strict=True):
        row |= tick
        if now is not None and None not in (*row.values(), queue["waiting"]):
            _add_sleep(row, now, waiting=queue["waiting"] > 0)
    return rows


def _add_sleep(row: dict[str, Any], now: int, *, waiting: bool) -> None:
    """Time that a sleeping CPU has slept so far, less what the host took of it."""
    if row.get("sleeps"):
        slept = max(0, now - row["since"])
        stolen = row.get("stolen1" if waiting else "stolen0", 0)
        row["iowait" if waiting else "idle"] += max(0, slept - stolen)


def _ticks(guest: LinuxGuest, offsets: list[int]) -> list[dict[str, Any]]:
    """Where the tick stops, ``tick_cpu_sched`` counts idle time; since 7.2 cpustat itself does."""
    if "tick_nohz_active" not in guest.symbols or not number(guest, "tick_nohz_active", 4):
        return [{} for _ in offsets]
    active = guest.types.has("tick_sched", "idle_active")
    members = {
        "idle": "idle_sleeptime",
        "iowait": "iowait_sleeptime",
        "since": "idle_entrytime",
        "sleeps": "idle_active" if active else "flags",
    }
    rows = _rows(guest, guest.layout("tick_sched", members, text=()), "tick_cpu_sched", offsets)
    for row in rows:
        if not active and row["sleeps"] is not None:
            row["sleeps"] &= TS_FLAG_IDLE_ACTIVE
    return rows


#: Bit of ``tick_sched.flags`` (kernel/time/tick-sched.h, 6.9).
TS_FLAG_IDLE_ACTIVE = 1 << 2


def _rows(guest: LinuxGuest, layout: Any, symbol: str, offsets: list[int]) -> list[dict[str, Any]]:
    places = percpu.addresses(guest, guest.symbols.address(symbol), offsets)
    columns = layout.lists(guest.kernel, places, [])
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
