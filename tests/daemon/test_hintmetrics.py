"""Hints as metrics: series are few, whatever the guests are called and do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.test_hints import XML, figures
from virtintrospect.daemon import hintmetrics
from virtintrospect.daemon.hintmetrics import HintMetrics
from virtintrospect.daemon.state import State
from virtintrospect.domain import Domain

pytest.importorskip("prometheus_client", reason="the extra 'metrics'")


def session(number: int = 1, state: State = State.READY) -> Any:
    domain = Domain(f"d{number}", str(number), number, "running", "QEMU", "qemu:///system", xml=XML)
    return SimpleNamespace(domain=domain, state=state)


def keep(folder: Path, uuid: str, samples: list[dict[str, Any]]) -> None:
    (folder / f"{uuid}.jsonl").write_text("\n".join(map(json.dumps, samples)))


def series(metrics: HintMetrics, *sessions: Any) -> list[dict[str, str]]:
    families = metrics.collect(cast(Any, list(sessions)))
    return [sample.labels for family in families for sample in family.samples]


def test_names_of_processes_are_no_labels(tmp_path: Path) -> None:
    """A hundred processes that leak: one kind of hint."""
    samples = []
    for step in range(9):
        leaks = [[pid, f"evil{pid}\x1b", pid << 20 | step << 26] for pid in range(100)]
        samples.append(figures(80 - 10 * step, tasks={"largest": leaks}))
    keep(tmp_path, "1", samples)
    found = series(HintMetrics(tmp_path), session())
    assert {"memory watch"} <= {f"{one['resource']} {one['action']}" for one in found}
    assert len(found) < 12
    assert "evil" not in str(found)


def test_only_guests_that_are_ready_have_hints(tmp_path: Path) -> None:
    keep(tmp_path, "1", [figures(60), figures(0)])
    metrics = HintMetrics(tmp_path)
    assert series(metrics, session())
    assert series(metrics, session(state=State.LOST)) == []
    assert series(metrics, session(2)) == []  # without history


def test_a_scrape_has_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hintmetrics, "_BUDGET", 0.0)
    sessions = [session(number) for number in range(3)]
    for one in sessions:
        keep(tmp_path, one.domain.uuid, [figures(60), figures(0)])
    metrics = HintMetrics(tmp_path)
    seen = [{one["domain"] for one in series(metrics, *sessions)} for _ in range(3)]
    assert [len(names) for names in seen] == [1, 2, 3]


def test_a_policy_with_a_mistake_gives_none(tmp_path: Path) -> None:
    keep(tmp_path, "1", [figures(60), figures(0)])
    assert series(HintMetrics(tmp_path, "no such policy"), session()) == []
