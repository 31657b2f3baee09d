# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Findings as SARIF."""

from __future__ import annotations

DOCUMENTATION = r"""
name: to_sarif
short_description: Findings as a SARIF 2.1.0 log
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
description:
  - Turns findings of P(virtintrospect.fleet.guest_audit#module) into one log of SARIF 2.1.0, which
    code scanning and many security dashboards take.
  - A finding that has C(host) is told as one of this host; that is how findings of many hosts go
    into one log.
  - What a guest wrote stays text; links and placeholders in it are taken apart.
positional: _input
options:
  _input:
    description: The findings.
    type: list
    elements: dict
    required: true
  failed_guests:
    description: Guests that could not be checked. They become notifications of the run, and
      C(executionSuccessful) is false then.
    type: list
    elements: dict
    default: []
  rules:
    description: Descriptions of the rules, as the module returns them. Without them a rule has
      what its findings tell.
    type: list
    elements: dict
    default: []
  version:
    description: Version of virtintrospect.
    type: str
"""

EXAMPLES = r"""
- name: Write what was found for the security dashboard
  ansible.builtin.copy:
    content: >-
      {{ audit.findings | virtintrospect.fleet.to_sarif(failed_guests=audit.failed_guests,
      rules=audit.rules, version=audit.version) | to_nice_json }}
    dest: "{{ playbook_dir }}/audit.sarif"
    mode: "0600"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: The log. C(to_json) makes the file of it.
  type: dict
"""

from ansible.errors import AnsibleFilterError
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.virtintrospect.fleet.plugins.module_utils.findings import sarif


def to_sarif(findings, failed_guests=(), rules=(), version=None):
    """The filter."""
    given = {"the input": findings, "failed_guests": failed_guests, "rules": rules}
    for name, value in given.items():
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, dict) for v in value):
            raise AnsibleFilterError(f"to_sarif: {name} is no list of objects")
    return wrap_var(sarif(findings, failed_guests, version, rules))


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        """Filters by name."""
        return {"to_sarif": to_sarif}
