"""A report out of hosts' parts: what it counts, what it leaves out, and in which forms."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from .collection import plugin
from .fake import recorded
from .made import NOW, fleet

fleets, pages, packs = plugin("report.fleet"), plugin("report.page"), plugin("report.pack")
parts, forms = plugin("report.part"), plugin("report.forms")


def fleet_of(*given: dict[str, Any], expected: tuple[str, ...] = ()) -> Any:
    report = fleets.Fleet(expected)
    for part in given:
        report.add(part)
    report.finish()
    return report


INFO = {
    "guests": [{"name": "web01", "uuid": "u1", "state": "running",
                "tables": {"info": {"os": "Linux", "release": "6.1"}, "ps": []}}],
    "failed_guests": [{"name": "fw01", "uuid": "u2", "table": "info", "reason": "not_recognised",
                       "msg": "no Linux kernel in\n the guest's memory"}],
    "version": "0.1.0",
}  # fmt: skip
AUDIT = {
    "guests": [{"name": "web01", "uuid": "u1", "notes": ["LSM hooks"]}],
    "failed_guests": [{"name": "db01", "uuid": "u3", "reason": "gone", "msg": "it has ended"}],
    "findings": [{"domain": "web01", "uuid": "u1", "rule": "preload", "severity": "medium"}],
}
UNREACHABLE = {"unreachable": True, "msg": "Failed to connect to the host via ssh: no route"}
MISSING = {"failed": True, "reason": "missing", "msg": "virt-introspect is not on this host"}
NO_PYTHON = {"failed": True, "msg": "MODULE FAILURE", "module_stderr": "sh: 1:\npython3: not found"}
SKIPPED = {"skipped": True, "changed": False}


def test_a_host_in_order() -> None:
    found = parts.part("hv1", {"guest_info": INFO, "guest_audit": AUDIT}, NOW)
    assert found["status"] == "ok"
    assert found["version"] == "0.1.0"
    guests = {guest["name"]: guest for guest in found["guests"]}
    assert "message" not in guests["web01"]
    assert guests["web01"]["notes"] == ["LSM hooks"]
    assert guests["fw01"]["message"] == "not_recognised: no Linux kernel in the guest's memory"
    assert guests["db01"]["message"] == "gone: it has ended"
    rows = {row["guest"]: row for row in fleet_of(found).guests.records()}
    assert {name: row["looked_into"] for name, row in rows.items()} == {
        "web01": "yes", "fw01": "no", "db01": "no"}  # fmt: skip
    assert rows["web01"]["findings"] == 1
    assert "findings" not in rows["fw01"], "what is not known is not zero"


@pytest.mark.parametrize(
    ("results", "status", "said"),
    [
        ({"guest_info": UNREACHABLE, "guest_audit": SKIPPED}, "unreachable", "no route"),
        ({"guest_info": MISSING, "guest_audit": SKIPPED}, "failed", "is not on this host"),
        ({"guest_info": INFO, "guest_audit": UNREACHABLE}, "partly", "no route"),
        ({"guest_info": NO_PYTHON}, "failed", "MODULE FAILURE: sh: 1: python3: not found"),
        ({}, "failed", "nothing ran"),
        ({"guest_info": "text", "guest_audit": [1]}, "failed", "nothing ran"),
    ],
)  # fmt: skip
def test_a_host_in_trouble(results: dict[str, Any], status: str, said: str) -> None:
    found = parts.part("hv1", results, NOW)
    assert (found["status"], "findings" in found) == (status, False)
    assert said in found["message"]
    report = fleet_of(found)
    counts = report.counts()
    assert (counts["hosts_failed"], counts["hosts_partly"]) == (
        (0, 1) if status == "partly" else (1, 0))  # fmt: skip
    assert report.audited is ("guest_audit" in results and "ran" not in said)
    if status == "partly":
        web = next(row for row in report.guests.records() if row["guest"] == "web01")
        assert (web["looked_into"], web["message"]) == ("partly", "it was not checked")


def test_findings_do_not_make_a_failure() -> None:
    """An audit that failed its task because of findings has done its work."""
    audit = {**AUDIT, "failed": True, "reason": "findings", "msg": "1 findings"}
    found = parts.part("hv1", {"guest_info": INFO, "guest_audit": audit}, NOW)
    assert (found["status"], len(found["findings"])) == ("ok", 1)


def test_a_guest_without_a_baseline_was_not_compared() -> None:
    rows = [{"name": "web01", "uuid": "u1", "notes": ["LSM hooks"], "baseline": False},
            {"name": "db01", "uuid": "u2", "notes": [], "baseline": True}]  # fmt: skip
    found = parts.part("hv1", {"guest_audit": {**AUDIT, "guests": rows, "failed_guests": []}}, NOW)
    web, db = found["guests"]
    assert web["notes"] == ["LSM hooks", "not compared: it has no baseline"]
    assert "notes" not in db


def test_a_guest_that_was_named_is_missed_once() -> None:
    """By name or id; and only where no host has it."""
    text = "no domain of that name, id or UUID runs on this host"
    missed = [{"name": name, "reason": "no_such_target", "msg": text}
              for name in ("web01", "7", "gone01")]  # fmt: skip
    guest = {"name": "web01", "uuid": "u1", "id": 7, "tables": {"info": {}}}
    given = [parts.part(f"hv{n}", {"guest_info": {"failed_guests": missed}}, NOW) for n in range(3)]
    info = {"guests": [guest], "failed_guests": missed[2:]}
    given.insert(1, parts.part("hv9", {"guest_info": info}, NOW))
    report = fleet_of(*given)
    rows = {row["guest"]: row for row in report.guests.records()}
    assert {name: row["looked_into"] for name, row in rows.items()} == {
        "web01": "yes", "gone01": "no"}  # fmt: skip
    assert rows["gone01"]["message"].endswith("runs on any of 4 hosts")
    assert report.counts()["guests_not_looked_into"] == 1


def test_silent_hosts() -> None:
    report = fleet_of(parts.part("hv1", {"guest_info": INFO}, NOW), expected=("hv1", "hv2"))
    rows = {row["host"]: row["status"] for row in report.hosts.records()}
    assert rows == {"hv1": "ok", "hv2": "silent"}
    assert report.counts()["hosts_failed"] == 1


def test_hosts_that_were_not_asked() -> None:
    """They have not failed, and one that left something all the same was asked."""
    report = fleets.Fleet(("hv1", "hv2", "hv3"), ("hv1", "hv2"))
    report.add(parts.part("hv1", {"guest_info": INFO}, NOW))
    report.finish()
    rows = {row["host"]: row["status"] for row in report.hosts.records()}
    assert rows == {"hv1": "ok", "hv2": "unasked", "hv3": "silent"}
    assert (report.counts()["hosts_failed"], report.counts()["hosts_unasked"]) == (1, 1)
    log = json.loads(forms.as_sarif(report))["runs"][0]
    notes = json.dumps(log["invocations"])
    assert "hv3" in notes
    assert "hv2" not in notes


def test_memory_is_given_back_once() -> None:
    """Two hints about the same memory, and one that asks for more."""
    keys = ("domain", "resource", "action", "current", "recommended")
    given = [
        ("web01", "memory", "shrink", 800, 500),
        ("web01", "memory", "reclaim", 800, 700),
        ("web02", "memory", "grow", 800, 900),
        ("web02", "cpu", "shrink", 8, 2),
        ("web03", "memory", "watch", 800),
    ]
    hints = [dict(zip(keys, values, strict=False)) for values in given]
    guests = [{"name": f"web0{n}", "tables": {"memory": {"memory_total": 1000}}} for n in (1, 2, 3)]
    counts = fleet_of({"host": "hv1", "status": "ok", "guests": guests, "hints": hints}).counts()
    assert counts["memory_to_give_back"] == 300
    assert counts["vcpus_to_give_back"] == 6
    assert (counts["guests_in_trouble"], counts["guests_oversized"]) == (2, 2)


def test_parts_are_kept(tmp_path: Path) -> None:
    found = parts.part("../../etc/passwd", {"guest_info": INFO}, NOW)
    path = tmp_path / parts.file_name(found["host"])
    assert path.parent == tmp_path
    assert parts.write(path, parts.packed(found))
    assert not parts.write(path, parts.packed(found))
    assert path.stat().st_mode & 0o777 == 0o600
    assert parts.read(path) == found
    for content in (b"", b"no gzip", gzip.compress(b"[]"), gzip.compress(b"[" * 100_000)):
        path.write_bytes(content)
        with pytest.raises(parts.PartError, match="no part of a report"):
            parts.read(path)


def unpacked(content: bytes) -> tuple[int, dict[str, list[Any]]]:
    """A packed table, read as the page reads it."""
    content = gzip.decompress(content)
    size = int.from_bytes(content[:4], "little")
    header, body = json.loads(content[4 : 4 + size]), content[4 + size :]
    rows = header["rows"]
    found: dict[str, list[Any]] = {}
    for entry in header["columns"]:
        start, length = entry["at"]
        part = body[start : start + length]
        if entry["kind"] == "float":
            numbers = memoryview(part).cast("d")
            found[entry["name"]] = [None if n != n else n for n in numbers]
            continue
        codes = [
            sum(part[plane * rows + row] << 8 * plane for plane in range(entry["width"]))
            for row in range(rows)
        ]
        if entry["kind"] == "int":
            found[entry["name"]] = [(c - 1) * entry["scale"] if c else None for c in codes]
        else:
            first, length = entry["texts"]
            texts = [None, *json.loads(body[first : first + length])]
            found[entry["name"]] = [texts[c] for c in codes]
    return rows, found


def test_packing() -> None:
    table = packs.Table("t")
    rows = [
        {"small": 1, "large": 1 << 40, "kib": 4096, "float": 0.5, "text": "a", "yes": True},
        {"small": None, "large": 5, "kib": 8192, "float": 3, "text": "b", "list": ["x", "y"]},
        {"small": 70_000, "kib": 0, "text": "a", "mixed": 1, "negative": -5},
        {"mixed": "one", "huge": 1 << 70, "nan": float("nan"), "nested": {"a": 1}},
    ]
    for row in rows:
        table.add(row)
    count, columns = unpacked(table.packed())
    assert count == 4
    assert columns == {
        "small": [1, None, 70_000, None],
        "large": [1 << 40, 5, None, None],
        "kib": [4096, 8192, 0, None],
        "float": [0.5, 3, None, None],
        "text": ["a", "b", "a", None],
        "yes": ["yes", None, None, None],
        "list": [None, "x, y", None, None],
        "mixed": [None, None, "1", "one"],
        "negative": [None, None, -5, None],
        "huge": [None, None, None, str(1 << 70)],
        "nested": [None, None, None, '{"a": 1}'],
    }


@pytest.mark.parametrize("seed", range(20))
def test_odd_parts(seed: int) -> None:
    """Whatever shape a part has: a report comes out."""
    dice = random.Random(seed)
    values: list[Any] = [
        None,
        1,
        -1,
        1.5,
        "x",
        "",
        [],
        {},
        [[]],
        [{}],
        {"a": []},
        True,
        "\ud800",
        1 << 80,
    ]

    def bent(value: Any, depth: int = 0) -> Any:
        if dice.random() < 0.15 and depth:
            return dice.choice(values)
        if isinstance(value, dict):
            return {key: bent(one, depth + 1) for key, one in value.items()}
        if isinstance(value, list):
            return [bent(one, depth + 1) for one in value]
        return value

    given = [part | {"rules": recorded("rules")} for part in fleet(6, 5, hosts=3)]
    report = fleet_of(*(bent(part) for part in given))
    content, _ = pages.page(report, "Odd", NOW)
    assert b"data-findings" in content
    for name, table in forms.tables(report).items():
        assert forms.as_csv(table), name
    for one in (
        forms.as_json(report, "Odd", NOW),
        forms.as_sarif(report),
        forms.as_ocsf(report, NOW),
    ):
        json.loads(one)


def test_tables_that_must_not_be() -> None:
    """A host names its tables: none gets out of the folder, or takes the place of the fleet's."""
    (part,) = fleet(1, 0)
    rows = [{"pid": 1}]
    names = ("../../x", "/tmp/x", "findings", "overview", "Ps", "a" * 42, "", "ps\n", "constructor")
    part["guests"] = [{"name": "web01", "tables": dict.fromkeys((*names, "ps"), rows)}]
    report = fleet_of(part)
    assert list(report.more) == ["ps"]
    assert forms.tables(report)["findings"] is report.findings
    rows = [{"pid": 1, "=cmd()": 1, "a,b": 1, "x\n": 1, "Ä": 1}]
    part["guests"] = [{"name": "web01", "tables": {"files": rows}}]
    assert fleet_of(part).more["files"].columns == ("host", "guest", "pid")
    part["guests"] = [{"name": "web01", "tables": {f"t{n}": rows for n in range(1000)}}]
    assert len(fleet_of(part).more) == 64


def test_a_severity_that_is_not_known_is_the_worst() -> None:
    part = {"host": "hv1", "status": "ok", "findings": [{"domain": "a", "severity": "new"}]}
    assert fleet_of(part).counts()["findings"]["critical"] == 1


def test_a_page_that_would_be_too_heavy() -> None:
    """First the command lines go, then the table; the page says so."""
    said = []
    whole = len(pages.page(fleet_of(*fleet(40, 300)), "Fleet", NOW)[0])
    for part in (2, 1, 0.8, 0.4):
        report, limit = fleet_of(*fleet(40, 300)), int(whole * part)
        content, notes = pages.page(report, "Fleet", NOW, limit)
        assert len(content) < limit
        said.append(notes)
        meta = re.search(rb'id="meta">(.*?)</script>', content)
        assert meta is not None
        assert json.loads(meta[1])["notes"] == notes
    assert said[0] == []
    assert [len(notes) for notes in said] == sorted(len(notes) for notes in said)
    assert "cut to 80" in said[1][0]
    assert "does not have the table Processes" in said[-1][-1]


def test_nothing_of_guests_is_html() -> None:
    """Guests' texts are in the page only as base64."""
    (part,) = fleet(1, 5)
    part["host"] = part["guests"][0]["name"] = "<b>@META@</b>"
    content, _ = pages.page(fleet_of(part), "<i>@DATA@", NOW)
    assert b"<b>" not in content
    assert b"<i>" not in content
    assert b"&lt;i&gt;@DATA@" in content
    blocks = re.findall(rb'id="data-\w+">(.*?)</script>', content)
    assert all(base64.b64decode(block, validate=True) for block in blocks)


def test_other_forms() -> None:
    (part,) = fleet(1, 0)
    part["guests"] = [{"name": "web01", "uuid": "u1", "tables": {"info": {}}, "checked": True},
                      {"name": "fw01", "message": "not_recognised: nothing"}]  # fmt: skip
    part["findings"] = [{"domain": "web01", "severity": "high", "rule": "preload",
                         "subject": "=cmd()", "detail": "LD_PRELOAD"}]  # fmt: skip
    report = fleet_of(part, expected=("hv9",))
    lines = list(csv.DictReader(io.StringIO(forms.as_csv(report.findings).decode())))
    assert lines[0]["subject"] == "'=cmd()"
    run = json.loads(forms.as_sarif(report))["runs"][0]
    assert [result["ruleId"] for result in run["results"]] == ["preload"]
    assert run["invocations"][0]["executionSuccessful"] is False
    assert len(run["invocations"][0]["toolExecutionNotifications"]) == 2
    (event,) = json.loads(forms.as_ocsf(report, NOW))
    assert (event["class_uid"], event["severity"]) == (2004, "High")
    found = json.loads(forms.as_json(report, "Fleet", NOW))
    assert found["counts"]["findings"]["high"] == 1
    assert {row["guest"] for row in found["guests"]} == {"web01", "fw01"}
