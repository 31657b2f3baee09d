#!/usr/bin/python
# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation; plugins/action/report.py does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Makes the report of a fleet
description:
  - Makes one report of the files that P(virtintrospect.fleet.report_host#module) has written, as
    an HTML page, CSV, JSON, SARIF and OCSF.
  - The page needs nothing but a browser of 2023 or later. Its tables sort and filter; it has
    charts, and loads nothing.
  - What guests wrote is text in every form. It cannot run in the page, nor be a formula in a
    spreadsheet.
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
attributes:
  check_mode:
    description: Writes nothing, and tells whether it would.
    support: full
  diff_mode:
    description: Has no difference to show.
    support: none
  platform:
    description: Runs on the controller.
    support: full
    platforms: posix
options:
  src:
    description: The folder with the hosts' files.
    type: path
    required: true
  expected:
    description: Hosts that should have a file. One that has none is counted and named.
    type: list
    elements: str
    default: []
  unasked:
    description: Those of O(expected) that were left out of this run, by C(--limit). One that has no
      file is named as that, and counted apart.
    type: list
    elements: str
    default: []
  title:
    description: The title of the report.
    type: str
    default: Fleet report
  html:
    description: Write the page to this file.
    type: path
  megabytes:
    description:
      - What the page may weigh. Where it would weigh more, command lines of processes are cut or
        left out, then whole tables; the page and RV(notes) say so.
    type: int
    default: 20
  csv:
    description: Write one file for each table into this folder.
    type: path
  json:
    description: Write hosts, guests, findings and hints as one JSON object to this file.
    type: path
  sarif:
    description: Write the findings as a SARIF 2.1.0 log to this file.
    type: path
  ocsf:
    description: Write the findings as a list of OCSF events to this file.
    type: path
seealso:
  - module: virtintrospect.fleet.report_host
"""

EXAMPLES = r"""
- name: Make the report
  virtintrospect.fleet.report:
    src: "{{ playbook_dir }}/report/hosts"
    expected: "{{ groups['hypervisors'] }}"
    title: Audit of the hypervisors
    html: "{{ playbook_dir }}/report/report.html"
    sarif: "{{ playbook_dir }}/report/report.sarif"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
files:
  description: The files of the report.
  returned: success
  type: list
  elements: str
counts:
  description: The report in numbers.
  returned: success
  type: dict
  sample:
    hosts: 3
    hosts_failed: 1
    hosts_partly: 0
    hosts_unasked: 0
    guests: 40
    guests_not_looked_into: 2
    guests_partly_looked_into: 0
    findings: {critical: 1, high: 0, medium: 2, low: 0, info: 4}
    guests_in_trouble: 1
    guests_oversized: 5
    memory_to_give_back: 8589934592
    vcpus_to_give_back: 3
    rows: {ps: 5203}
notes:
  description: What was left out of the page because it would have been too heavy.
  returned: success
  type: list
  elements: str
"""
