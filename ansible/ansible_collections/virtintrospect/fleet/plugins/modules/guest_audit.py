#!/usr/bin/python
# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Findings in guests."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_audit
short_description: Looks for signs of compromise and drift inside the guests of a libvirt host
description:
  - Runs the rules of C(virt-introspect check) on running guests (hidden processes and modules,
    changed system calls, writable code, listening sockets and more) and returns what they find.
  - Nothing is asked of the guest, which may lie. It is neither paused nor changed.
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
extends_documentation_fragment:
  - virtintrospect.fleet.fleet
  - virtintrospect.fleet.fleet.guests
attributes:
  check_mode:
    description: Looks all the same, and saves no baseline.
    support: full
  diff_mode:
    description: Has no difference to show.
    support: none
  platform:
    description: Hosts with libvirt.
    support: full
    platforms: posix
options:
  rules:
    description:
      - Only these rules, by id. C(virt-introspect check --list) shows them.
      - Without it all.
    type: list
    elements: str
  severity:
    description: The least severity of findings that are returned.
    type: str
    choices: [info, low, medium, high, critical]
    default: info
  fail_on:
    description:
      - Fail the task when a guest has a finding of this severity or a worse one.
      - Without it findings do not fail the task.
    type: str
    choices: [info, low, medium, high, critical]
  accept:
    description:
      - Findings that are known and meant. They are not returned, and do not fail the task;
        RV(accepted) counts them.
      - A finding is accepted when all that an entry names fits.
    type: list
    elements: dict
    default: []
    suboptions:
      rule:
        description: Id of the rule.
        type: str
        required: true
      subject:
        description: Shell pattern of the subject.
        type: str
      domain:
        description: Shell pattern of the name of the domain.
        type: str
  listening_allow:
    description: Sockets that may listen, such as V(tcp:22).
    type: list
    elements: str
    default: []
  newest_kernel:
    description: The newest kernel of the fleet; a guest with an older one is a finding.
    type: str
  kernel_images:
    description: Kernel images on the managed host that the text of the guests' kernels is compared
      with.
    type: list
    elements: path
    default: []
  baseline:
    description:
      - A folder on the managed host that has one file for each guest, C(UUID.json).
      - What differs from it is a finding. A guest without a file is not compared, and
        RV(guests[].baseline) is false.
    type: path
  save_baseline:
    description:
      - Save how the guests are now, as the new baseline, in the folder O(baseline). Files that
        change make the task changed.
    type: bool
    default: false
seealso:
  - module: virtintrospect.fleet.guest_info
  - plugin: virtintrospect.fleet.to_sarif
    plugin_type: filter
  - plugin: virtintrospect.fleet.to_ocsf
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Look for rootkits in all guests
  virtintrospect.fleet.guest_audit:
    severity: medium
  register: audit

- name: Stop the pipeline where something serious is found
  virtintrospect.fleet.guest_audit:
    domains: ["prod-*"]
    listening_allow: ["tcp:22", "tcp:443"]
    fail_on: high
    accept:
      - rule: deleted-executable
        subject: "*agent*"
        domain: "prod-legacy-*"

- name: Remember how the guests are
  virtintrospect.fleet.guest_audit:
    baseline: /var/lib/virtintrospect/baseline
    save_baseline: true

- name: What has changed since
  virtintrospect.fleet.guest_audit:
    baseline: /var/lib/virtintrospect/baseline
  register: drift
"""

RETURN = r"""
findings:
  description: All findings, the worst first.
  returned: always
  type: list
  elements: dict
  contains:
    domain:
      description: Name of the domain.
      type: str
    uuid:
      description: UUID of the domain.
      type: str
    rule:
      description: Id of the rule.
      type: str
    severity:
      description: V(info), V(low), V(medium), V(high) or V(critical).
      type: str
    subject:
      description: What it is about, such as a process or a module.
      type: str
    detail:
      description: What was found.
      type: str
    evidence:
      description: The numbers behind it.
      type: str
    remedy:
      description: What to do.
      type: str
  sample:
    - domain: web01
      uuid: 4c6b1b3a-1c1e-4a41-9a7d-6f7f7f3f1d11
      rule: hidden-module
      severity: critical
      subject: module at 0xffffffffc0812000
      detail: it is not in the list of modules
      evidence: address=0xffffffffc0812000
      remedy: take the guest off the network and keep its memory (virt-introspect dump)
guests:
  description: The guests that were checked.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the domain.
      type: str
    uuid:
      description: UUID of the domain.
      type: str
    id:
      description: Its id on this host.
      type: int
    state:
      description: State of the domain.
      type: str
    os:
      description: Operating system of the guest.
      type: str
    kernel:
      description: Release of its kernel.
      type: str
    summary:
      description: How many findings there are of each severity.
      type: dict
    notes:
      description: What could not be checked. It is not known to be clean.
      type: list
      elements: str
    baseline:
      description: Whether it was compared with a baseline.
      returned: when O(baseline) is given
      type: bool
failed_guests:
  description: Guests that could not be checked, and why.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the domain, or what the task had named.
      type: str
    uuid:
      description: UUID of the domain, where it is known.
      type: str
    reason:
      description: As in P(virtintrospect.fleet.guest_info#module).
      type: str
    msg:
      description: The error in one line, with what to do.
      type: str
    rc:
      description: Exit code of C(virt-introspect), where it ended.
      type: int
summary:
  description: How many findings there are of each severity, in all guests.
  returned: always
  type: dict
  sample: {info: 0, low: 2, medium: 0, high: 0, critical: 1}
accepted:
  description: How many findings O(accept) has taken out.
  returned: success
  type: int
rules:
  description: The rules, as C(virt-introspect check --list) has them.
  returned: success
  type: list
  elements: dict
  sample:
    - rule: hidden-module
      severity: critical
      title: A kernel module is hidden from one of the kernel's books
reason:
  description: Why the task failed; V(findings) where it did because of O(fail_on).
  returned: failure
  type: str
version:
  description: Version of virtintrospect on the host.
  returned: success
  type: str
"""

import contextlib
from fnmatch import fnmatchcase
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtintrospect.fleet.plugins.module_utils.command import (
    CommandError,
    fail,
    failing,
)
from ansible_collections.virtintrospect.fleet.plugins.module_utils.guests import (
    begin,
    busy,
    each,
    guest_arguments,
    with_kernel,
)
from ansible_collections.virtintrospect.fleet.plugins.module_utils.severity import (
    SEVERITIES,
    count,
    rank,
)


def words(params, baseline):
    """The command line of the check, without the guest."""
    found = ["check", "--severity", params["severity"]]
    for option, values in (
        ("--rule", params["rules"] or []),
        ("--listening-allow", params["listening_allow"]),
        ("--kernel-image", params["kernel_images"]),
    ):
        for value in values:
            found += [option, value]
    if params["newest_kernel"]:
        found += ["--newest-kernel", params["newest_kernel"]]
    if baseline:
        found += ["--baseline", str(baseline)]
    return found


def accepted(finding, entries):
    """Whether a finding is one that is meant."""
    return any(
        entry["rule"] == finding.get("rule")
        and all(
            entry[key] is None or fnmatchcase(str(finding.get(key, "")), entry[key])
            for key in ("subject", "domain")
        )
        for entry in entries
    )


def contents(path):
    """What is in a file; ``None`` where there is none."""
    try:
        return path.read_bytes()
    except OSError:
        return None


class Audit:
    """Checks guests, one by one."""

    def __init__(self, module, command):
        self._params = module.params
        self._check_mode = module.check_mode
        self._command = command

    def look(self, guest):
        """A guest, its findings, how many were accepted, and whether its baseline changed."""
        file = self._file(guest)
        old = contents(file) if file else None
        # A new baseline is not compared with the one that it replaces.
        saves = self._params["save_baseline"]
        compared = old is not None and not saves
        line = words(self._params, file if compared else None)
        if saves and not self._check_mode:
            line += ["--save-baseline", str(file)]
        answer = self._command.ask([*line, guest["uuid"]])
        with contextlib.suppress(CommandError):  # it may have ended by now
            guest = with_kernel(self._command, guest)
        about = {"domain": guest["name"], "uuid": guest["uuid"]}
        findings = [dict(about, **row) for row in answer.data]
        kept = [row for row in findings if not accepted(row, self._params["accept"])]
        notes = answer.said("note") + answer.said("warning")
        known = dict(guest, summary=count(kept), notes=notes)
        if file:
            known["baseline"] = compared
        changed = saves and (old is None if self._check_mode else contents(file) != old)
        return known, kept, len(findings) - len(kept), changed

    def _file(self, guest):
        folder = self._params["baseline"]
        return Path(folder, guest["uuid"] + ".json") if folder else None


def main():
    """Entry point."""
    accept = {"rule": {"type": "str", "required": True}}
    accept.update(subject={"type": "str"}, domain={"type": "str"})
    module = AnsibleModule(
        argument_spec=dict(
            guest_arguments(),
            rules={"type": "list", "elements": "str"},
            severity={"type": "str", "choices": SEVERITIES, "default": "info"},
            fail_on={"type": "str", "choices": SEVERITIES},
            accept={"type": "list", "elements": "dict", "default": [], "options": accept},
            listening_allow={"type": "list", "elements": "str", "default": []},
            newest_kernel={"type": "str"},
            kernel_images={"type": "list", "elements": "path", "default": []},
            baseline={"type": "path"},
            save_baseline={"type": "bool", "default": False},
        ),
        required_if=[("save_baseline", True, ["baseline"])],
        supports_check_mode=True,
    )
    params = module.params
    nothing = {"findings": [], "guests": [], "failed_guests": [], "summary": count([])}
    command, version, guests, missed = begin(module, **nothing)
    with failing(module, **nothing):
        rules = command.ask(["check", "--list"]).data
    if params["save_baseline"] and not module.check_mode:
        try:
            Path(params["baseline"]).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            text = f"{params['baseline']}: {error.strerror}"
            fail(module, CommandError("failed", text), **nothing)
    audit = Audit(module, command)
    results, lost = each(command, guests, audit.look, busy(params["parallel"]))
    old = [entry for entry in lost if entry["reason"] == "old_version"]
    if old and len(old) == len(lost) and not results:
        fail(module, CommandError("old_version", old[0]["msg"], old[0].get("rc")), **nothing)
    findings = [finding for _guest, found, _n, _changed in results for finding in found]
    findings.sort(key=lambda finding: -rank(finding.get("severity")))
    result = {
        "findings": findings,
        "guests": [guest for guest, _found, _n, _changed in results],
        "failed_guests": missed + lost,
        "summary": count(findings),
        "accepted": sum(number for _guest, _found, number, _changed in results),
        "version": version,
        "rules": rules,
        "changed": any(changed for _guest, _found, _n, changed in results),
    }
    limit = params["fail_on"]
    bad = [f for f in findings if limit and rank(f.get("severity")) >= rank(limit)]
    if bad:
        text = f"{len(bad)} findings of severity {limit} or worse"
        module.fail_json(msg=text, reason="findings", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
