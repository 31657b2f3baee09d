"""Resident pages of a process (``mm_struct.rss_stat``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import FaultError, NotFoundError
from virtintrospect.symbols.types import Types

if TYPE_CHECKING:
    from virtintrospect.guests.linux.budget import Budget
    from virtintrospect.guests.linux.guest import LinuxGuest

#: MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES (include/linux/mm_types_task.h); 2 is swap.
_RESIDENT = (0, 1, 3)


def rss_members(types: Types) -> dict[str, str]:
    """Where the counters are: since 6.2 one percpu_counter each (commit f1a7941243c1)."""
    if types.has("mm_struct", "rss_stat[0].counters"):
        return {
            f"rss{kind}{part}": f"mm.rss_stat[{kind}].{member}"
            for kind in _RESIDENT
            for part, member in (("", "count"), ("_percpu", "counters"))
        }
    return {f"rss{kind}": f"mm.rss_stat.count[{kind}].counter" for kind in _RESIDENT}


def resident_pages(
    guest: LinuxGuest, rows: Sequence[dict[str, Any]], budget: Budget
) -> list[int | None]:
    """Pages that are resident, of each row; ``None`` where that cannot be read.

    The shared part of a percpu_counter lags behind by up to a batch per CPU, so the CPUs'
    own parts are added: kernels themselves do so since 6.16.
    """
    totals = [_shared(row) for row in rows]
    places = [
        (index, counters)
        for index, row in enumerate(rows)
        for kind in _RESIDENT
        if (counters := row.get(f"rss{kind}_percpu")) and totals[index] is not None
    ]
    for offset in _cpu_offsets(guest) if places else ():
        if budget.late():
            break
        addresses = [(counters + offset) & guest.kernel.last for _, counters in places]
        faults: list[int] = []
        data = memoryview(guest.kernel.gather(addresses, 4, faults)).cast("i")
        for (index, _), value in zip(places, data, strict=True):
            total = totals[index]
            assert total is not None
            totals[index] = total + value
    return [None if total is None else max(0, total) for total in totals]


def _cpu_offsets(guest: LinuxGuest) -> list[int]:
    try:
        return guest.cpu_offsets
    except (FaultError, NotFoundError) as error:
        guest.note(f"no per-CPU counters, resident sizes are not exact: {error}", 0)
        return []


def _shared(row: dict[str, Any]) -> int | None:
    parts = [row[f"rss{kind}"] for kind in _RESIDENT]
    return None if None in parts else sum(parts)
