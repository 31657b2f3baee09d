"""The tables on a true ``type='kvm'`` guest: its memory is KVM's, its QEMU a stock one.

Without libvirt in the outer machine, so the Domain record is made here; all that the driver
does (process, map, memory) and all above it is what runs on a host.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from virtintrospect_kvm.driver import KvmDriver

from virtintrospect.cli.main import run
from virtintrospect.domain import Domain
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.guests.linux.kvm import virtual_machines
from virtintrospect.nested import NestedTarget
from virtintrospect.session import Session

from . import compare
from .lab.nested import INNER_NAME, INNER_PID_FILE, INNER_RAM_MIB, INNER_UUID, Nested

#: Runs beside the inner guest's QEMU; prints each table as JSON.
_PROGRAM = f"""
import dataclasses, json, os, sys
sys.path[:0] = ["kvm"]
from virtintrospect.domain import Domain
from virtintrospect_kvm.driver import KvmDriver
from virtintrospect.session import Session
os.makedirs("/run/libvirt/qemu", exist_ok=True)
os.symlink("{INNER_PID_FILE}", "/run/libvirt/qemu/{INNER_NAME}.pid")
xml = "<domain type='kvm'><memory unit='MiB'>{INNER_RAM_MIB}</memory></domain>"
domain = Domain("{INNER_NAME}", "{INNER_UUID}", 1, "running", "QEMU", "qemu:///system", xml)
def plain(value):
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
with Session(KvmDriver().open(domain), domain) as session:
    guest = session.guest
    tables = dict(
        transport=session.target.transport, info=dataclasses.asdict(guest.info()),
        processes=[dataclasses.asdict(p) for p in guest.processes()],
        modules=[dataclasses.asdict(m) for m in guest.modules()],
        log=[dataclasses.asdict(r) for r in guest.dmesg()],
        problems=[p.what for p in guest.take_problems()],
    )
json.dump(tables, sys.stdout, default=plain)
"""


def test_tables_of_a_true_kvm_guest(nested: Nested) -> None:
    from virtintrospect.model import LogRecord, Module, Process

    before = nested.inner.snapshot()
    answer = nested.run_nested(f"exec {sys.executable} -c '{_quoted(_PROGRAM)}'", 200)
    after = nested.inner.snapshot()
    assert answer.status == 0, answer.stderr.decode()
    tables = json.loads(answer.stdout)
    assert tables["transport"] == "kvm-mmap"
    assert tables["problems"] == []
    release = before.file("/proc/sys/kernel/osrelease").decode().strip()
    assert tables["info"]["release"] == release
    processes = [Process(**_bytes(row)) for row in tables["processes"]]
    assert compare.processes(processes, before, after) == []
    assert compare.modules([Module(**_bytes(row)) for row in tables["modules"]], before) == []
    assert compare.log([LogRecord(**_bytes(row)) for row in tables["log"]], before) == []


def test_the_inner_guest_is_read_through_the_outer_one(nested: Nested) -> None:
    """From here, outside of both: by the tables of the outer machine's KVM."""
    xml = "<domain type='qemu'><memory unit='MiB'>2048</memory></domain>"
    domain = Domain("outer", nested.uuid, 1, "running", "QEMU", "qemu:///system", xml)
    with Session(KvmDriver().open(domain), domain) as outer:
        assert isinstance(outer.guest, LinuxGuest)
        (machine,) = virtual_machines(outer.guest)
        names = {process.pid: process.name for process in outer.guest.processes()}
        assert (names[machine.pid] or b"").startswith(b"qemu-system-x86")
        assert machine.mode.name == "npt-5-level"  # as many as the outer kernel has
        before = nested.inner.snapshot()
        with Session(NestedTarget(outer.target, machine.mode, machine.root)) as inner:
            processes, modules, log = inner.processes(), inner.modules(), inner.dmesg()
            release = inner.info().release
            problems = inner.guest.take_problems()
        after = nested.inner.snapshot()
    assert release == before.file("/proc/sys/kernel/osrelease").strip()
    assert compare.processes(processes, before, after) == []
    assert compare.modules(modules, before) == []
    assert compare.log(log, before) == []
    assert problems == []


def test_commands(nested: Nested, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``nested`` names the inner guest; ``--nested`` makes each command one on it."""
    target = f"qmp:{nested.monitor}"

    def rows(*words: str) -> Any:
        code = run(["-o", "json", *words])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads(told.out)

    (machine,) = rows("nested", target)
    assert (machine["name"], machine["uuid"], machine["vcpus"]) == (INNER_NAME, INNER_UUID, 1)
    assert machine["page_mode"] == "npt-5-level"
    assert machine["program"].startswith("qemu-system-x86")
    release = nested.inner.get("/proc/sys/kernel/osrelease").decode().strip()
    pid = str(machine["pid"])
    for wanted in (INNER_NAME, pid):
        assert rows("info", target, "--nested", wanted)["release"] == release
    outer = {row["name"] for row in rows("ps", target)}
    inner = {row["name"] for row in rows("ps", target, "--nested", INNER_NAME)}
    assert "kvm" in outer or machine["program"] in outer
    assert "workload" in str(inner) or "keeper" in inner
    assert machine["program"] not in inner
    assert rows("nested", target, "--nested", pid) == []
    core = tmp_path / "inner.core"
    rows("dump", target, str(core), "--nested", pid)
    assert rows("info", str(core))["release"] == release
    assert run(["ps", target, "--nested", "nobody"]) == 3
    assert f"it runs: {pid} ({INNER_NAME})" in capsys.readouterr().err
    assert run(["ps", target, "--nested", pid, "--nested", "1"]) == 3


def _quoted(program: str) -> str:
    return program.replace("'", "'\\''")


#: Fields that are text in the records, not bytes.
_TEXT = {"state", "status", "taints", "level", "facility"}


def _bytes(row: dict[str, Any]) -> dict[str, Any]:
    """Undo what JSON did to a record: names are bytes again, lists tuples."""
    fields: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, str) and name not in _TEXT:
            fields[name] = value.encode("latin-1")
        elif isinstance(value, list):
            fields[name] = tuple(item.encode("latin-1") for item in value)
        else:
            fields[name] = value
    return fields
