#!/usr/bin/python
# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tables of guests, as facts or as a result."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_info
short_description: Shows what runs inside the guests of a libvirt host
description:
  - Reads tables of C(virt-introspect) (processes, sockets, modules, memory, pressure and more) from
    the memory of running guests.
  - Nothing is asked of the guest. It needs no agent, and is neither paused nor changed.
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
extends_documentation_fragment:
  - virtintrospect.fleet.fleet
  - virtintrospect.fleet.fleet.guests
  - virtintrospect.fleet.fleet.reader
options:
  tables:
    description:
      - The tables to read. Each is the command of C(virt-introspect) of the same name; its fields
        are explained by C(virt-introspect TABLE --help).
      - An empty list reads none, and shows the guests with their kernels only.
    type: list
    elements: str
    default: [info]
    choices:
      - bpf
      - cgroups
      - containers
      - cpu
      - crash
      - dmesg
      - dommemstat
      - files
      - guestinfo
      - hung
      - info
      - interfaces
      - load
      - logins
      - memory
      - modules
      - mounts
      - namespaces
      - neighbours
      - pressure
      - ps
      - routes
      - runqueues
      - slabs
      - sockets
      - sysctl
      - timers
      - users
      - vmstat
  arguments:
    description:
      - Options of single tables. The key is the name of the table, the value is the list
        of options.
    type: dict
    default: {}
  columns:
    description:
      - Columns of single tables, where not all are wanted. The key is the name of the table, the
        value is the list of columns.
    type: dict
    default: {}
  facts:
    description: Set the fact C(virtintrospect), too, which has RV(guests) and RV(failed_guests).
    type: bool
    default: false
seealso:
  - module: virtintrospect.fleet.guest_audit
  - module: virtintrospect.fleet.guest_hints
"""

EXAMPLES = r"""
- name: What listens on the guests
  virtintrospect.fleet.guest_info:
    tables: [sockets]
    arguments:
      sockets: [--listening]
    columns:
      sockets: [pid, protocol, local_address, local_port]
  register: listening

- name: Names of guests with an SSH server
  ansible.builtin.debug:
    msg: "{{ item.name }}"
  loop: "{{ listening.guests }}"
  loop_control:
    label: "{{ item.name }}"
  when: 22 in item.tables.sockets | default([]) | map(attribute='local_port')

- name: Kernels of all guests, as facts
  virtintrospect.fleet.guest_info:
    tables: [info]
    facts: true

- name: Pressure and memory of the databases
  virtintrospect.fleet.guest_info:
    domains: ["db*"]
    exclude: [db-old]
    tables: [memory, pressure]
  register: databases
"""

RETURN = r"""
guests:
  description: The guests that were looked into.
  returned: success
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
      description: State of the domain, such as V(running).
      type: str
    os:
      description: Operating system of the guest. Left out where it is not known.
      type: str
    kernel:
      description: Release of its kernel. Left out where it is not known.
      type: str
    session:
      description: State of the session of C(virt-introspectd). Left out where it does not run.
      type: str
    tables:
      description:
        - The tables that could be read, by name. Each is a list of objects, or one object where
          there is a single record. An unknown field is left out.
      type: dict
    warnings:
      description: What C(virt-introspect) could not make sense of.
      type: list
      elements: str
  sample:
    - name: web01
      uuid: 4c6b1b3a-1c1e-4a41-9a7d-6f7f7f3f1d11
      id: 7
      state: running
      os: Linux
      kernel: 6.12.117+deb12-cloud-amd64
      tables:
        info: {os: Linux, hostname: web01, uptime_seconds: 86400}
      warnings: []
failed_guests:
  description: What could not be read, and why.
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
    table:
      description: The table that could not be read.
      type: str
    reason:
      description:
        - V(no_such_target), no such domain runs.
        - V(gone), it ended while it was looked into.
        - V(memory), its memory cannot be reached.
        - V(not_recognised), no kernel that is known.
        - V(old_version), the host's virtintrospect does not know the table or the option.
        - V(usage), V(timeout), V(output) or V(failed), something else.
      type: str
    msg:
      description: The error in one line, with what to do.
      type: str
    rc:
      description: Exit code of C(virt-introspect), where it ended.
      type: int
reason:
  description: Why the task failed, in the words of RV(failed_guests[].reason), or V(missing).
  returned: failure
  type: str
version:
  description: Version of virtintrospect on the host.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtintrospect.fleet.plugins.module_utils.command import CommandError
from ansible_collections.virtintrospect.fleet.plugins.module_utils.guests import (
    HOPELESS,
    begin,
    busy,
    each,
    failure,
    guest_arguments,
    with_kernel,
)

TABLES = [
    "bpf", "cgroups", "containers", "cpu", "crash", "dmesg", "dommemstat", "files", "guestinfo",
    "hung", "info", "interfaces", "load", "logins", "memory", "modules", "mounts", "namespaces",
    "neighbours", "pressure", "ps", "routes", "runqueues", "slabs", "sockets", "sysctl", "timers",
    "users", "vmstat",
]  # fmt: skip


def words(params, table, uuid):
    """The command line of a table."""
    columns = params["columns"].get(table)
    chosen = ["--columns", ",".join(str(name) for name in columns)] if columns else []
    return [table, *chosen, *(str(word) for word in params["arguments"].get(table, [])), uuid]


def look(command, params, guest):
    """A guest with its tables, and what of it failed."""
    found, failed = dict(guest, tables={}, warnings=[]), []
    try:
        found.update(with_kernel(command, guest))
    except CommandError as error:
        if error.reason in HOPELESS:  # nothing else of it can be read
            tables = params["tables"][:1]
            return found, [failure(guest, error, table=table) for table in tables]
    for table in params["tables"]:
        try:
            answer = command.ask(words(params, table, guest["uuid"]))
        except CommandError as error:
            failed.append(failure(guest, error, table=table))
            if error.reason in HOPELESS:
                break
            continue
        found["tables"][table] = answer.data
        found["warnings"] += answer.said("warning")
    return found, failed


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=dict(
            guest_arguments(),
            tables={"type": "list", "elements": "str", "default": ["info"], "choices": TABLES},
            arguments={"type": "dict", "default": {}},
            columns={"type": "dict", "default": {}},
            facts={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
    )
    params = module.params
    for option in ("arguments", "columns"):
        for table, value in params[option].items():
            if table not in TABLES or not isinstance(value, list):
                module.fail_json(msg=f"{option}: {table}: a list of a table's own is wanted")
    command, version, guests, missed = begin(module, guests=[], failed_guests=[])
    results, lost = each(
        command, guests, lambda guest: look(command, params, guest), busy(params["parallel"])
    )
    failed = missed + lost + [entry for _guest, entries in results for entry in entries]
    # A guest of which nothing could be read is among the failed ones only.
    known = [guest for guest, entries in results if guest["tables"] or not entries]
    result = {"guests": known, "failed_guests": failed, "version": version}
    if params["facts"]:
        result["ansible_facts"] = {"virtintrospect": {"guests": known, "failed_guests": failed}}
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
