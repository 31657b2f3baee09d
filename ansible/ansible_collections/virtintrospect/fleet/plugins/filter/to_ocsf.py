# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Findings as OCSF events."""

from __future__ import annotations

DOCUMENTATION = r"""
name: to_ocsf
short_description: Findings as OCSF events
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
description:
  - Turns findings of P(virtintrospect.fleet.guest_audit#module) into events of the Open
    Cybersecurity Schema Framework, class Detection Finding (2004), version 1.3.0.
  - C(finding_info.uid) is the same as long as guest, rule and subject are.
positional: _input
options:
  _input:
    description: The findings. One that has C(host) is told as one of this host.
    type: list
    elements: dict
    required: true
  time:
    description: When the guests were checked, in seconds since the epoch. Without it now.
    type: float
  version:
    description: Version of virtintrospect.
    type: str
"""

EXAMPLES = r"""
- name: Send what was found to a collector
  ansible.builtin.uri:
    url: https://collector.example.com/ocsf
    method: POST
    body_format: json
    body: "{{ audit.findings | virtintrospect.fleet.to_ocsf(version=audit.version) }}"
  delegate_to: localhost
"""

RETURN = r"""
_value:
  description: One event for each finding.
  type: list
  elements: dict
"""

import time as clock

from ansible.errors import AnsibleFilterError
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.virtintrospect.fleet.plugins.module_utils.findings import ocsf


def to_ocsf(findings, time=None, version=None):
    """The filter."""
    if not isinstance(findings, (list, tuple)) or not all(isinstance(f, dict) for f in findings):
        raise AnsibleFilterError("to_ocsf: the input is no list of objects")
    return wrap_var(ocsf(findings, version, clock.time() if time is None else float(time)))


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        """Filters by name."""
        return {"to_ocsf": to_ocsf}
