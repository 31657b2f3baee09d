"""The page of the rules, made from the rules themselves.

``make rules`` writes docs/rules.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from virtintrospect.insight.checks import RULES
from virtintrospect.insight.checks.rule import Rule

_HEAD = """# Rules

Made by `make rules` from the rules themselves. `virt-introspect check TARGET` applies them all, \
`--rule ID` some of them, `--severity` leaves out what matters less, and `--list` lists them.

* A finding has the id of its rule, a severity (`info`, `low`, `medium`, `high`, `critical`), a \
subject that stays the same as long as the matter does, a sentence, the evidence as `name=value`, \
and what to do.
* The exit code is 6 with findings, 0 without.
* What a rule could not look at is a line on standard error that begins with `note: not checked`: \
nothing of it is known to be clean.
* A live guest goes on while it is read. What a rule finds there it must find three times, 0.1 s \
and 0.5 s apart, before it is a finding. In an image it is found once: a dump that was taken while \
the guest ran may show a process in the middle of its exit.
* All rules together take 60 seconds at most, and the one that runs then to its end. A guest that \
makes its tables expensive does not make the rules clean: those that are left are not checked. \
Through libvirt alone (`--transport peek`) reading is so slow that some may be left: name the \
rules that matter.
* A rule believes what the kernel's structures say, as all of virtintrospect does. A rootkit that \
keeps every book the same, and leaves no pointer in the lists that are looked at, is not found.

References are techniques of [MITRE ATT&CK](https://attack.mitre.org/).

| rule | severity | a finding means | needs |
|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    rows = (f"| [{r.id}](#{r.id}) | {r.severity} | {r.title} | {_needs(r)} |" for r in RULES)
    return _HEAD + "\n".join(rows) + "\n" + "".join(_section(rule) for rule in RULES)


def _needs(rule: Rule) -> str:
    return f"`{rule.needs}`" if rule.needs else ""


def _section(rule: Rule) -> str:
    return "\n".join(_lines(rule)) + "\n"


def _lines(rule: Rule) -> Iterator[str]:
    yield f"\n## {rule.id}\n"
    yield f"{rule.title}. Severity {rule.severity}, {rule.reference}.\n"
    yield f"* **Looks at**: {rule.looks_at}"
    yield f"* **What to do**: {rule.remedy}"
    yield f"* **When it means nothing**: {rule.false_positives}"
    yield f"* **Cannot see**: {rule.blind}"


def main() -> None:
    """Write the page to the file named on the command line."""
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
