"""Policies: the thresholds of hints, from ``policies.toml``, where each is explained."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from virtintrospect.errors import UsageError

#: What the operator changed.
OVERRIDES = Path("/etc/virtintrospect/policies.toml")
_DEFAULT, _LIMITS = "default", "limits"
_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy; ``policies.toml`` says what each threshold means."""

    name: str
    stale_seconds: float
    full_samples: int
    full_seconds: float
    reserve_percent: float
    keep_active_cache_percent: float
    cache_horizon_seconds: float
    cache_watched_seconds: float
    dead_band_percent: float
    dead_band_mib: int
    smallest_mib: int
    shrink_most_stalled_percent: float
    shrink_most_refaults: float
    low_available_percent: float
    high_stalled_percent: float
    thrash_pages: float
    held_mib: int
    clean_cache_mib: int
    leak_steps_percent: float
    leak_percent: float
    leak_mib: int
    leak_samples: int
    huge_mib: int
    huge_percent: float
    numa_mib: int
    numa_percent: float
    identical_mib: int
    host_swapped_mib: int
    busy_target_percent: float
    busy_high_percent: float
    cpu_stalled_percent: float
    steal_percent: float
    delay_percent: float
    one_cpu_percent: float
    others_percent: float
    idle_percent: float
    throttled_percent: float
    lock_percent: float
    lock_samples: int
    lock_stopped_ms: float
    wakes_a_second: float
    wakes_busy_percent: float
    io_stalled_percent: float
    dirty_percent: float
    full_percent: float
    unlimited_percent: float
    zombies: int
    threads: int
    runaway_percent: float
    runaway_seconds: float
    step_percent: float
    settle_seconds: float
    host_reserve_mib: int
    #: Of single domains: least and most MiB.
    limited: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def limits(self, domain: str) -> tuple[int, int]:
        """Least and most bytes that a domain may be given."""
        least, most = self.limited.get(domain, (0, 1 << 40))
        return max(least, self.smallest_mib) << 20, most << 20


def load_policy(name: str = "balanced", overrides: Path = OVERRIDES) -> Policy:
    """The policy of that name.

    :raises UsageError: there is none, or the operator's file has a mistake.
    """
    tables = tomllib.loads(_ours().read_text())
    changed = _read(overrides)
    limited = {name: _limits(name, table) for name, table in _table(changed.pop(_LIMITS, {}))}
    names = [known for known in (*tables, *changed) if known != _DEFAULT]
    if name not in names:
        raise UsageError(
            f"no policy {name!r}", hint=f"there are: {', '.join(dict.fromkeys(names))}"
        )
    values: dict[str, Any] = {}
    for table in (_DEFAULT, name):
        values |= tables.get(table, {}) | _checked(changed.get(table, {}), overrides)
    return Policy(name=name, limited=limited, **values)


def _ours() -> Traversable:
    """The file that explains each threshold."""
    return files("virtintrospect.insight").joinpath("policies.toml")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(text) > _LARGEST:
        raise UsageError(f"{path}: it is larger than any policy")
    try:
        return tomllib.loads(text.decode())
    except ValueError as error:  # TOML and UTF-8 alike
        raise UsageError(f"{path}: {error}") from error


def _table(value: object) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise UsageError("[limits] has a table for each domain: [limits.NAME]")
    return list(value.items())


def _limits(name: str, table: object) -> tuple[int, int]:
    """``least_mib`` and ``most_mib`` of a domain."""
    values = {"least_mib": 0, "most_mib": 1 << 40}
    sound = isinstance(table, dict) and all(
        key in values and isinstance(value, int) and value >= 0 for key, value in table.items()
    )
    if not sound or not isinstance(table, dict):
        raise UsageError(f"[limits.{name}] has least_mib and most_mib, whole numbers")
    values |= table
    return values["least_mib"], values["most_mib"]


def _checked(table: object, path: Path) -> dict[str, Any]:
    """The operator's values: known names, numbers that are not below zero."""
    if not isinstance(table, dict):
        raise UsageError(f"{path}: a policy is a table, [name]")
    known = {field.name for field in dataclasses.fields(Policy)} - {"name", "limited"}
    for name, value in table.items():
        if name not in known:
            raise UsageError(f"{path}: no threshold {name!r}", hint=f"{_ours()} explains all")
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
            raise UsageError(f"{path}: {name} is a number from 0 on, not {value!r}")
    return table
