# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Findings in forms that other programs take."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from ansible_collections.virtintrospect.fleet.plugins.module_utils.severity import rank

NAME = "virtintrospect"
#: Level of a SARIF result, score of GitHub's code scanning, and number and name in OCSF.
_LEVELS = {
    "info": ("note", "0.0", 1, "Informational"),
    "low": ("note", "2.0", 2, "Low"),
    "medium": ("warning", "5.0", 3, "Medium"),
    "high": ("error", "8.0", 4, "High"),
    "critical": ("error", "9.5", 5, "Critical"),
}
_UNKNOWN = ("warning", "5.0", 0, "Unknown")
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
OCSF_VERSION = "1.3.0"


def fingerprint(finding):
    """What stays the same as long as the matter does: guest, rule and subject, hashed."""
    parts = [str(finding.get(key, "")) for key in ("uuid", "rule", "subject")]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


def _text(finding):
    return ": ".join(str(finding[key]) for key in ("subject", "detail") if finding.get(key))


def _where(entry):
    """Host and domain, as a path."""
    names = [str(entry[key]) for key in ("host", "domain", "name") if entry.get(key)]
    return "/".join(quote(name, safe="", errors="replace") for name in names[:2]) or "unknown"


def _level(entry):
    """What stands for the severity of a finding or a rule, whatever that is."""
    severity = entry.get("severity")
    return _LEVELS.get(severity, _UNKNOWN) if isinstance(severity, str) else _UNKNOWN


# -- SARIF 2.1.0 ----------------------------------------------------------------------------


def _plain(text):
    """A text that a viewer takes for nothing but text.

    Braces would be placeholders (§3.11.5 of the standard), and brackets links (§3.11.6): a guest
    could put a link of its own into a report.
    """
    for sign, instead in (("{", "{{"), ("}", "}}"), ("[", "\\["), ("]", "\\]")):
        text = text.replace(sign, instead)
    return text


def sarif(findings, failed_guests, version, rules=()):
    """A SARIF 2.1.0 log with one run.

    :param findings: those of ``guest_audit``, of one host or of many.
    :param failed_guests: guests that were not checked: notifications of the run.
    :param rules: descriptions of the rules; one that is not there is made of its findings.
    """
    known = {str(rule["rule"]): rule for rule in rules if rule.get("rule")}
    for finding in sorted(findings, key=lambda finding: -rank(finding.get("severity"))):
        known.setdefault(str(finding.get("rule", "unknown")), finding)
    places = {rule: place for place, rule in enumerate(known)}
    driver = {"name": NAME, "rules": [_rule(name, rule) for name, rule in known.items()]}
    if version:
        driver["version"] = str(version)
    invocation = {
        "executionSuccessful": not failed_guests,
        "toolExecutionNotifications": [_notification(entry) for entry in failed_guests],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [invocation],
        "results": [_result(finding, places) for finding in findings],
    }
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(name, rule):
    """A rule as SARIF describes one, from its own description or from a finding."""
    level, score, _number, _name = _level(rule)
    tags = ["security", *(str(rule[key]) for key in ("reference",) if rule.get(key))]
    found = {
        "id": name,
        "defaultConfiguration": {"level": level},
        "properties": {"security-severity": score, "tags": tags},
    }
    for key, source in (("shortDescription", "title"), ("fullDescription", "looks_at")):
        if rule.get(source):
            found[key] = {"text": _plain(str(rule[source]))}
    help_ = [str(rule[key]) for key in ("remedy", "false_positives") if rule.get(key)]
    if help_:
        found["help"] = {"text": _plain(" ".join(help_))}
    return found


def _result(finding, places):
    rule = str(finding.get("rule", "unknown"))
    known = {
        key: finding[key] for key in ("severity", "evidence", "uuid", "host") if finding.get(key)
    }
    return {
        "ruleId": rule,
        "ruleIndex": places[rule],
        "level": _level(finding)[0],
        "message": {"text": _plain(_text(finding)) or rule},
        "locations": [_location(finding)],
        "partialFingerprints": {"finding/v1": fingerprint(finding)},
        "properties": known,
    }


def _location(entry):
    where = _where(entry)
    name = str(entry.get("domain") or entry.get("name") or "unknown")
    return {
        # There is no file; viewers that want one get host and domain.
        "physicalLocation": {"artifactLocation": {"uri": where}},
        "logicalLocations": [{"name": name, "fullyQualifiedName": where, "kind": "resource"}],
    }


def _notification(entry):
    text = f"{entry.get('name', 'unknown')} was not checked: {entry.get('msg', '')}"
    found = {"level": "warning", "message": {"text": _plain(text)}, "locations": [_location(entry)]}
    if entry.get("reason"):
        found["descriptor"] = {"id": str(entry["reason"])}
    return found


# -- OCSF -----------------------------------------------------------------------------------


def ocsf(findings, version, seconds):
    """OCSF events of class Detection Finding (2004), one for each finding.

    :param seconds: when the guests were checked, since the epoch.
    """
    return [_event(finding, version, int(seconds * 1000)) for finding in findings]


def _event(finding, version, milliseconds):
    _sarif, _score, number, name = _level(finding)
    rule = str(finding.get("rule", "unknown"))
    product = {"name": NAME, "vendor_name": NAME}
    if version:
        product["version"] = str(version)
    guest = {"type": "Virtual Machine", "name": str(finding.get("domain", "unknown"))}
    if finding.get("uuid"):
        guest["uid"] = str(finding["uuid"])
    if finding.get("host"):
        guest["namespace"] = str(finding["host"])
    text = _text(finding) or rule
    found = {
        "category_uid": 2,
        "category_name": "Findings",
        "class_uid": 2004,
        "class_name": "Detection Finding",
        "activity_id": 1,
        "activity_name": "Create",
        "type_uid": 200401,
        "type_name": "Detection Finding: Create",
        "time": milliseconds,
        "severity_id": number,
        "severity": name,
        "status_id": 1,
        "status": "New",
        "message": text,
        "metadata": {"version": OCSF_VERSION, "product": product},
        "finding_info": {
            "uid": fingerprint(finding),
            "title": rule,
            "desc": text,
            "analytic": {"type_id": 1, "type": "Rule", "uid": rule, "name": rule},
        },
        "resources": [guest],
    }
    if finding.get("evidence"):
        found["evidences"] = [{"data": {"evidence": finding["evidence"]}}]
    if finding.get("remedy"):
        found["remediation"] = {"desc": str(finding["remedy"])}
    return found
