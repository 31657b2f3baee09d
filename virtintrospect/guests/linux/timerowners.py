"""Whom a timer belongs to: its function tells the structure that it is a part of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtintrospect.guests.linux.sockfiles import opened

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

Row = dict[str, Any]

_MAX_PID = 4 << 20
#: PIDTYPE_TGID (include/linux/pid_types.h).
_TGID = 1
#: Function → structure, its member that is the timer, and the way from there to a process.
_OWNERS = {
    "hrtimer_wakeup": ("hrtimer_sleeper", "timer", "task.tgid"),
    "process_timeout": ("process_timer", "timer", "task.tgid"),
    "it_real_fn": ("signal_struct", "real_timer", "itself"),
    "posix_timer_fn": ("k_itimer", "it.real.timer", "it_signal"),
}
_TIMERFD = ("timerfd_tmrproc", "timerfd_ctx", "t.tmr")


def name(guest: LinuxGuest, function: int) -> str | None:
    """Name of a function; none of one in a module."""
    found = guest.symbols.lookup(function)
    if found is None:
        return None
    symbol, offset = found
    return symbol if not offset else f"{symbol}+{offset:#x}"


class Owners:
    """Of each timer the processes that wait for it, or the work that it starts.

    :param rows: timers: ``address`` and ``function``.
    """

    def __init__(self, guest: LinuxGuest, rows: list[Row], budget: Budget) -> None:
        self._guest = guest
        #: Address of a timer: processes.
        self.pids: dict[int, tuple[int, ...]] = {}
        #: Address of a timer: the function of its ``delayed_work``.
        self.works: dict[int, str | None] = {}
        by_function: dict[int, list[int]] = {}
        for row in rows:
            by_function.setdefault(row["function"], []).append(row["address"])
        for symbol, (structure, member, path) in _OWNERS.items():
            timers = by_function.get(guest.symbols.get(symbol, 0), [])
            if timers and guest.types.has(structure, member):
                self._processes(timers, structure, member, path)
        if timers := by_function.get(guest.symbols.get(_TIMERFD[0], 0), []):
            self._descriptors(timers, budget)
        if timers := by_function.get(guest.symbols.get("delayed_work_timer_fn", 0), []):
            self._works(timers)

    def _processes(self, timers: list[int], structure: str, member: str, path: str) -> None:
        at = self._guest.types.offsetof(structure, member)
        there = [timer for timer in timers if timer >= at]
        if path == "task.tgid":
            layout = self._guest.layout(structure, {"pid": path}, text=())
            pids = layout.lists(self._guest.kernel, [timer - at for timer in there], [])["pid"]
        else:
            signals: list[int | None] = [timer - at for timer in there]
            if path == "it_signal":
                layout = self._guest.layout(structure, {"it": path}, text=())
                columns = layout.lists(self._guest.kernel, [timer - at for timer in there], [])
                signals = [(it or 0) & ~1 for it in columns["it"]]
            pids = self._of_signals(signals)
        for timer, pid in zip(there, pids, strict=True):
            if pid is not None and 0 < pid <= _MAX_PID:
                self.pids[timer] = (pid,)

    def _of_signals(self, signals: list[int | None]) -> list[int | None]:
        r"""Process ids of ``signal_struct``\ s (``pids[PIDTYPE_TGID]``)."""
        types, kernel = self._guest.types, self._guest.kernel
        at = types.offsetof("signal_struct", "pids") + types.pointer_size * _TGID
        faults: list[int] = []
        pointers = kernel.gather_pointers([(signal or 0) + at for signal in signals], faults)
        at = types.offsetof("pid", "numbers") + types.offsetof("upid", "nr")
        data = kernel.gather([pointer + at for pointer in pointers], 4, faults)
        bad = set(faults)
        numbers = memoryview(data).cast("i")
        return [None if i in bad else number for i, number in enumerate(numbers)]

    def _descriptors(self, timers: list[int], budget: Budget) -> None:
        """Who has a timerfd open."""
        at = self._guest.types.offsetof(*_TIMERFD[1:])
        holders = opened(self._guest, budget, None, ("timerfd_fops",))
        for timer in timers:
            pids = {holder.pid for holder in holders.get(timer - at, ())}
            self.pids[timer] = tuple(sorted(pids))

    def _works(self, timers: list[int]) -> None:
        at = self._guest.types.offsetof("delayed_work", "timer")
        layout = self._guest.layout("delayed_work", {"function": "work.func"}, text=())
        there = [timer for timer in timers if timer >= at]
        functions = layout.lists(self._guest.kernel, [timer - at for timer in there], [])
        for timer, function in zip(there, functions["function"], strict=True):
            if function:
                self.works[timer] = name(self._guest, function)
