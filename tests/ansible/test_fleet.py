"""The playbooks on three hosts that are reached over SSH, with real guests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guests.lab import apt

from .browser import Browser
from .lab.fleet import BIN, Fleet

#: Several guests are booted, and playbooks run, on a machine that may be busy.
pytestmark = pytest.mark.timeout(1200)

#: Says that it does not know what a version before it did not have.
_OLD = """#!/bin/sh
case "$*" in
*--version*) echo virt-introspect, version 0.0.9; exit ;;
batch* | *check* | *hints*) echo "Error: No such command." >&2; exit 2 ;;
esac
exec {program} "$@"
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if os.geteuid() != 0:
        pytest.skip("hosts in network namespaces need root")
    try:
        with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
            yield fleet
    except apt.NoSuchPackageError as error:
        pytest.skip(str(error))


def done(run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, int]]:
    """What a playbook that ended well says of each host at its end."""
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    recap = run.stdout.partition("PLAY RECAP")[2]
    return {
        line.split()[0]: {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", line)}
        for line in recap.splitlines()
        if "=" in line
    }


def report(folder: Path) -> dict[str, Any]:
    """The report that a playbook has left, and its hosts and guests by name."""
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    found["hosts"] = {row["host"]: row for row in found["hosts"]}
    found["guests"] = {row["guest"].rpartition("-")[0]: row for row in found["guests"]}
    return found


def test_rightsizing_with_a_host_without_the_package(fleet: Fleet, tmp_path: Path) -> None:
    """hv2 has no virt-introspect; the guest with far too much memory is found all the same."""
    gone = {"virtintrospect_executable": "/nonexistent/virt-introspect"}
    run = fleet.play("rightsizing", hosts={"hv2": gone},
                     virtintrospect_report=str(tmp_path), virtintrospect_watch="2s")  # fmt: skip
    done(run)
    found = report(tmp_path)
    assert {name: row["status"] for name, row in found["hosts"].items()} == {
        "hv1": "ok", "hv2": "failed", "hv3": "ok"}  # fmt: skip
    assert "/nonexistent/virt-introspect is not on this host" in found["hosts"]["hv2"]["message"]
    assert "guests" not in found["hosts"]["hv2"], "what is not known is not zero"
    assert found["counts"]["hosts_failed"] == 1
    assert found["guests"]["boot01"]["looked_into"] == "no"
    assert "not_recognised" in found["guests"]["boot01"]["message"]
    hint = next(row for row in found["hints"]
                if row["guest"].startswith("db01") and row["resource"] == "memory")  # fmt: skip
    assert (hint["action"], hint["current"]) == ("shrink", 1 << 30)
    assert found["counts"]["memory_to_give_back"] >= hint["gives_back"] > 256 << 20
    assert found["findings"] == []


def test_inventory_with_an_old_host(fleet: Fleet, tmp_path: Path) -> None:
    """An older version answers what it knows."""
    old = fleet.hosts["hv2"].folder / "old-virt-introspect"
    old.write_text(_OLD.format(program=BIN / "virt-introspect"))
    old.chmod(0o755)
    run = fleet.play("inventory", hosts={"hv2": {"virtintrospect_executable": str(old)}},
                     virtintrospect_report=str(tmp_path))  # fmt: skip
    recap = done(run)
    assert all(host["failed"] == host["unreachable"] == 0 for host in recap.values())
    found = report(tmp_path)
    assert found["hosts"]["hv2"]["version"] == "0.0.9"
    for name in ("web01", "app01", "db01"):
        assert found["guests"][name]["release"] == fleet.guests[name].release
    assert {path.name for path in (tmp_path / "csv").iterdir()} >= {
        "guests.csv", "interfaces.csv", "mounts.csv", "modules.csv"}  # fmt: skip
    # The same parts give the same report.
    again = done(fleet.play("finish", virtintrospect_report=str(tmp_path)))
    assert again["localhost"]["changed"] == 0


def baselines(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """A folder of its own for each host, since they share their files."""
    return {
        name: {"virtintrospect_baseline": str(host.folder / "baseline")}
        for name, host in fleet.hosts.items()
    }


def test_baseline_twice(fleet: Fleet) -> None:
    """The second run has nothing to change. A guest without a kernel has no baseline."""
    first = fleet.play("baseline", hosts=baselines(fleet))
    recap = done(first)
    assert [recap[name]["changed"] for name in fleet.hosts] == [1, 1, 1]
    assert "not_recognised" not in first.stdout.partition("Name the guests")[0]
    assert fleet.guests["boot01"].name in first.stdout
    recap = done(fleet.play("baseline", hosts=baselines(fleet)))
    assert [recap[name]["changed"] for name in fleet.hosts] == [0, 0, 0]


def test_audit_while_things_break(fleet: Fleet, tmp_path: Path) -> None:
    """A guest is stopped and a host goes silent while they are audited; the rest is found."""
    web = fleet.guests["web01"]
    web.run("cp /bin/busybox /tmp/sleep; /tmp/sleep 100000 >/dev/null 2>&1 &"
            " until [ \"$(readlink /proc/$!/exe)\" = /tmp/sleep ]; do usleep 50000; done;"
            " rm /tmp/sleep; nc -ll -p 4444 -e cat >/dev/null 2>&1 &"
            " until grep -q :115C /proc/net/tcp /proc/net/tcp6; do usleep 50000; done")  # fmt: skip
    app = fleet.guests["app01"]
    stops = f"virsh -c qemu:///system destroy {app.name} >/dev/null"
    silent = fleet.hosts["hv3"]
    hosts = baselines(fleet)
    hosts["hv2"] |= fleet.interfere("hv2", ["check", app.uuid], stops)
    hosts["hv3"] |= fleet.interfere("hv3", ["check"], "sleep 1000")
    pulled = threading.Thread(target=cut, args=(fleet, "hv3"), daemon=True)
    pulled.start()
    try:
        run = fleet.play("audit", hosts=hosts, virtintrospect_report=str(tmp_path),
                         virtintrospect_watch="2s", virtintrospect_title="Audit")  # fmt: skip
    finally:
        silent.mend()
    done(run)
    found = report(tmp_path)
    assert {name: row["status"] for name, row in found["hosts"].items()} == {
        "hv1": "ok", "hv2": "ok", "hv3": "partly"}  # fmt: skip
    assert "connect" in found["hosts"]["hv3"]["message"]
    looked = {name: row["looked_into"] for name, row in found["guests"].items()}
    assert looked == {"web01": "yes", "boot01": "no", "app01": "partly", "db01": "partly"}
    assert re.match("gone|no_such_target", found["guests"]["app01"]["message"])
    assert found["guests"]["db01"]["message"] == "it was not checked"
    counts = found["counts"]
    assert (counts["hosts_partly"], counts["hosts_failed"]) == (1, 0)
    assert (counts["guests_not_looked_into"], counts["guests_partly_looked_into"]) == (1, 2)
    assert {row["host"] for row in found["findings"]} == {"hv1"}
    findings = {row["rule"]: row["subject"] + row["detail"] for row in found["findings"]}
    assert findings.keys() == {"deleted-executable", "drift"}
    assert "/tmp/sleep" in findings["deleted-executable"]
    assert any("4444" in row["subject"] for row in found["findings"])
    sarif = json.loads((tmp_path / "report.sarif").read_text())["runs"][0]
    assert len(sarif["results"]) == len(found["findings"])
    assert not sarif["invocations"][0]["executionSuccessful"]
    events = json.loads((tmp_path / "report.ocsf.json").read_text())
    assert len(events) == len(found["findings"])
    with Browser() as browser:
        browser.open(tmp_path / "report.html", "findings")
        shown = browser.run("document.querySelector('#view-findings tbody').textContent")
        assert web.name in shown
        browser.open(tmp_path / "report.html", "overview")
        assert browser.complaints == []


def cut(fleet: Fleet, name: str) -> None:
    """Pull the cable of a host as soon as it has begun what it will not end."""
    host = fleet.hosts[name]
    while host.folder.exists():
        if (host.folder / "interfered").exists():
            host.cut()
            return
        time.sleep(0.1)
