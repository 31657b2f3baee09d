#!/usr/bin/python
# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation; plugins/action/report_host.py does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: report_host
short_description: Keeps what the modules said of a host for a report
description:
  - Writes one file on the controller with what P(virtintrospect.fleet.guest_info#module),
    P(virtintrospect.fleet.guest_audit#module) and P(virtintrospect.fleet.guest_hints#module)
    returned for a host. P(virtintrospect.fleet.report#module) makes a report of the files of all
    hosts.
  - A host that could not be reached, or on which a task failed, gets a file that says so.
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
attributes:
  check_mode:
    description: Writes nothing in check mode.
    support: full
  diff_mode:
    description: Has no difference to show.
    support: none
  platform:
    description: Runs on the controller; nothing is done on the host.
    support: full
    platforms: posix
options:
  dest:
    description: The folder for the hosts' files. It is made, readable by its owner alone.
    type: path
    required: true
  host:
    description: What the report calls the host. Its name in the inventory unless given.
    type: str
  info:
    description: What a task with C(guest_info) registered, also one that failed or was skipped.
    type: raw
  audit:
    description: The same of C(guest_audit).
    type: raw
  hints:
    description: The same of C(guest_hints).
    type: raw
notes:
  - The task is never changed, since the file has the time in it.
seealso:
  - module: virtintrospect.fleet.report
"""

EXAMPLES = r"""
- name: Look into the guests
  virtintrospect.fleet.guest_info:
    tables: [info, memory, pressure, ps]
  register: info
  ignore_errors: true
  ignore_unreachable: true

- name: Keep what was seen
  virtintrospect.fleet.report_host:
    dest: "{{ playbook_dir }}/report/hosts"
    info: "{{ info }}"
"""

RETURN = r"""
path:
  description: The file on the controller.
  returned: success
  type: str
status:
  description: V(ok), V(partly), V(failed) or V(unreachable).
  returned: success
  type: str
message:
  description: Why it is not V(ok).
  returned: when it is not
  type: str
guests:
  description: How many guests the file names.
  returned: success
  type: int
"""
