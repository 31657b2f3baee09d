"""History, reports, metadata and metrics, without a guest."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from tests.unit.test_hints import IDLE, XML, figures
from virtintrospect.daemon import access, server, triage
from virtintrospect.daemon.config import History, Socket, Triage
from virtintrospect.daemon.figures import Sampler
from virtintrospect.daemon.guestlog import kind_of
from virtintrospect.daemon.hintmetrics import HintMetrics
from virtintrospect.daemon.metadata import summary
from virtintrospect.daemon.state import Machine, State
from virtintrospect.daemon.triage import Reports
from virtintrospect.daemon.work import Cost
from virtintrospect.domain import Domain
from virtintrospect.errors import NotFoundError, TargetGoneError
from virtintrospect.guests.base import Guest
from virtintrospect.insight.tables import CRASH, DMESG
from virtintrospect.model import Counter, Load, LogRecord


class Figures:
    """A guest that measures little, and has lost its memory figures."""

    def meminfo(self, _names: Any = None) -> Any:
        raise NotFoundError("no memory")

    def cpu(self) -> list[Any]:
        return []

    def load(self) -> Load:
        return Load(0.5, 0.25, 0.1, 1, 0, 90, 1234)

    def pressure(self) -> list[Any]:
        return []

    def take_problems(self) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        if name == "vmstat":
            return lambda: [Counter(b"x", 1)]
        raise NotFoundError(f"no {name}")


GUEST = cast(Guest, Figures())


def domain(number: int = 1, name: str = "web01") -> Domain:
    uuid = f"00000000-0000-0000-0000-{number:012}"
    return Domain(name, uuid, number, "running", "QEMU", "qemu:///system")


def kern(text: bytes, facility: str = "kern") -> LogRecord:
    return LogRecord(1.0, "err", facility, text, 5)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"Kernel panic - not syncing: sysrq triggered crash", "panic"),
        (b"Out of memory: Killed process 150 (memory-user) total-vm:12kB", "oom-kill"),
        (b"Memory cgroup out of memory: Killed process 5 (a) total-vm", "oom-kill"),
        (b"INFO: task keeper:133 blocked for more than 120 seconds.", "hung-task"),
        (b"watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [x:1]", "lockup"),
        (b"rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", "lockup"),
        (b"BUG: unable to handle page fault for address: 0000", "oops"),
        (b"Oops: 0002 [#1] PREEMPT SMP", "oops"),
        (b"reboot: Power down", "shutdown"),
        (b"reboot: Restarting system", "shutdown"),
        (b"Linux version 6.12", None),
        (b"\xff\xfe", None),
    ],
)
def test_lines_that_matter(text: bytes, kind: str | None) -> None:
    found = kind_of(kern(text))
    assert (found[0] if found else None) == kind
    assert kind_of(kern(text, "user")) is None  # anybody in the guest may write that


def test_history_is_a_bounded_ring(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "history", History(interval_seconds=0.0, domain_kib=8))
    for _ in range(200):
        sampler.look(domain(), GUEST)
    new, old = (tmp_path / "history" / f"{domain().uuid}{end}.jsonl" for end in ("", ".1"))
    assert 0 < new.stat().st_size <= 4096
    assert 0 < old.stat().st_size <= 4096
    lines = [json.loads(line) for line in [*old.open(), *new.open()]]
    assert all(line["load"]["load1"] == 0.5 for line in lines)
    assert "memory" not in lines[0]
    assert lines == sorted(lines, key=lambda line: line["time"])
    assert sampler.latest[domain().uuid] == lines[-1]
    sampler.left(domain())
    assert not sampler.latest


def test_all_histories_together_are_bounded(tmp_path: Path) -> None:
    config = History(interval_seconds=0.0, domain_kib=512, total_mib=1)
    sampler = Sampler(tmp_path, config)
    for number in range(4):
        for end in ("", ".1"):
            path = tmp_path / f"{domain(number).uuid}{end}.jsonl"
            path.write_bytes(b"x" * (256 << 10))
    sampler.look(domain(2), GUEST)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1 << 20
    assert (tmp_path / f"{domain(2).uuid}.jsonl").exists()


def test_samples_come_when_they_are_due(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, History(interval_seconds=3600))
    for _ in range(3):
        sampler.look(domain(), GUEST)
    assert len((tmp_path / f"{domain().uuid}.jsonl").read_text().splitlines()) == 1


def test_reports_of_one_guest_leave_room_for_others(tmp_path: Path) -> None:
    reports = Reports(tmp_path / "triage", Triage(reports=8))
    reports.folder.mkdir()
    for second in range(20):
        (reports.folder / f"20260101T0000{second:02}Z-web01.json").write_text("{}")
    for second in range(4):
        (reports.folder / f"20250101T0000{second:02}Z-a-web01.json").write_text("{}")
    path = reports.write(domain(), GUEST, "panic")
    assert path is not None
    report = json.loads(path.read_text())
    assert report["reason"] == "panic"
    assert report["tables"]["load"]["load1"] == 0.5
    assert "no dmesg" in report["errors"]["dmesg"]
    assert path.stat().st_mode & 0o077 == 0
    names = [path.name for path in reports.folder.iterdir()]
    assert sum(name.endswith("Z-web01.json") for name in names) == 5
    assert len(names) == 8
    assert reports.write(domain(), GUEST, "crash") is None  # the same crash, told twice


@pytest.mark.parametrize("shared", [True, False])
def test_vmm_that_ends_while_a_report_is_written(tmp_path: Path, shared: bool) -> None:
    """libvirt may destroy what has crashed; shared RAM is there all the same."""

    class Ending(Figures):
        there = True

        def load(self) -> Load:
            if not self.there:
                raise TargetGoneError("QEMU ended")
            return super().load()

        def info(self) -> Any:
            self.there = False
            raise NotFoundError("no info")

    def outlive() -> bool:
        guest.there = shared
        return shared

    guest = Ending()
    target = cast(Any, SimpleNamespace(outlive=outlive))
    report = Reports(tmp_path, Triage()).report(domain(), cast(Guest, guest), "panic", target)
    assert ("load" in report["tables"]) is shared
    assert ("load" in report["errors"]) is not shared


def test_name_of_a_domain_is_no_path(tmp_path: Path) -> None:
    reports = Reports(tmp_path / "triage", Triage())
    path = reports.write(domain(name="../../\n[*]"), GUEST, "panic")
    assert path is not None
    assert path.parent == reports.folder
    assert path.name.endswith("Z-.._.._____.json")


class Session:
    """What a summary needs of one."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.domain = domain(name='w"<&>\x1b')
        self.cost = Cost()
        self.os, self.kernel = "Linux", b'6.12"<&>\x1b\x00'
        self.state = self.machine.state


def test_summary_is_xml_whatever_the_guest_calls_itself() -> None:
    sample = {"load": {"load1": 0.5, "load5": 1, "load15": 2}, "memory": {"memory_total": 1}}
    root = ElementTree.fromstring(summary(cast(Any, Session()), sample))
    assert root.get("state") == "seen"
    assert root.get("kernel") == '6.12"<&>\\x1b\\x00'
    memory, load = root
    assert memory.attrib == {"memory_total": "1"}
    assert load.get("load1") == "0.5"


def test_metrics(tmp_path: Path) -> None:
    prometheus = pytest.importorskip("prometheus_client", reason="the extra 'metrics'")
    from virtintrospect.daemon.metrics import Collector

    uuid = domain().uuid
    latest = {
        uuid: {
            "time": 5.0, "memory": {"memory_total": 7}, "cpu": {"user": 1500, "cpus": 1},
            "load": {"load1": 0.5}, "pressure": {"cpu_some": {"avg10": 1.0, "total": 2_000_000}},
        }
    }  # fmt: skip
    registry = prometheus.CollectorRegistry()
    session = Session()
    session.state = State.READY
    session.domain = dataclasses.replace(session.domain, xml=XML)
    kept = [figures(100, each_cpu=IDLE[0]), figures(0, each_cpu=IDLE[1])]
    (tmp_path / f"{uuid}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    advice = HintMetrics(tmp_path)
    registry.register(Collector(cast(Any, {uuid: session}), latest, advice))
    text = prometheus.generate_latest(registry).decode()
    labels = 'domain="w\\"<&>\\\\x1b",'
    assert f'libvirt_domain_guest_memory_bytes{{{labels}kind="memory_total"' in text
    assert 'mode="user"' in text
    assert "libvirt_domain_guest_cpu_seconds_total{" in text
    assert 'resource="cpu"' in text
    assert 'state="ready",uuid=' in text
    what = f'{{action="shrink",{labels}resource='
    wanted = f'libvirt_domain_hint_recommended_bytes{what}"memory",uuid="{uuid}"}} '
    assert float(text.partition(wanted)[2].split()[0]) == 1408 << 20
    assert f'libvirt_domain_hint_recommended_vcpus{what}"cpu",uuid="{uuid}"}} 1.0' in text
    assert "virtintrospectd_resident_bytes" in text
    dashboard = Path("docs/grafana-virtintrospect.json").read_text()
    used = set(re.findall(r"(?:libvirt_domain|virtintrospectd)_\w+", dashboard))
    assert len(used) > 5
    assert used <= set(re.findall(r"^(\w+)[{ ]", text, re.MULTILINE))


class Crowd(Figures):
    """A guest that shows more than a report has room for."""

    def dmesg(self) -> list[LogRecord]:
        return [LogRecord(1.0, "err", "kern", b"\x1b" * 1000, number) for number in range(9000)]

    def crash(self) -> Any:
        members: dict[str, Any] = {column.name: None for column in CRASH.columns}
        return SimpleNamespace(**(members | {"log": (b"\x1b" * (2 << 20),)}))


def test_reports_have_a_size(tmp_path: Path) -> None:
    path = Reports(tmp_path / "triage", Triage()).write(domain(), cast(Guest, Crowd()), "panic")
    assert path is not None
    assert path.stat().st_size < 16 << 20
    report = json.loads(path.read_text())
    rows = report["tables"]["dmesg"]
    assert 0 < len(rows) < 9000
    assert "9000 rows" in report["errors"]["dmesg"]
    assert "1 rows, of which 0" in report["errors"]["crash"]


def test_newest_lines_are_kept() -> None:
    records = [LogRecord(float(n), "err", "kern", b"x", n) for n in range(6000)]
    rows = triage._rows(DMESG, records, newest=True)
    assert [rows[0]["time"], rows[-1]["time"]] == [1000.0, 5999.0]


def test_strangers_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may connect: that must cost no question to a directory of users, and few lines."""
    monkeypatch.setattr(access, "_groups_of", lambda _: pytest.fail("looked up"))
    assert not access.Access((), ()).allows(65_533, 65_533)
    told: list[int] = []
    monkeypatch.setattr(server, "event", lambda *_, **values: told.append(values["uid"]))
    listening = server.Server(Path("x"), Socket(), cast(Any, None))
    for pid in range(50):
        listening._refused(pid, 65_533, 65_533)
    listening._refused(50, 65_532, 65_532)
    assert told == [65_533, 65_532]
