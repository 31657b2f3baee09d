#!/usr/bin/python
# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""What guests really need."""

from __future__ import annotations

DOCUMENTATION = r"""
module: guest_hints
short_description: Says what guests really need of memory and CPU, and follows it
description:
  - Runs C(virt-introspect hints), which judges by what the guests' own kernels know, and returns
    each hint with its numbers and the command of C(virsh) that follows it.
  - With O(apply=true) it follows those that can be followed while a guest runs, as C(virsh setmem)
    and C(virsh setvcpus) do with C(--live). Memory is taken in steps, and the last one is undone
    where the guest suffers.
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
extends_documentation_fragment:
  - virtintrospect.fleet.fleet
  - virtintrospect.fleet.fleet.guests
attributes:
  check_mode:
    description: Says what would be changed, limits and the host's reserve included.
    support: full
  diff_mode:
    description: Shows memory (bytes) and vCPUs before and after.
    support: full
  platform:
    description: Hosts with libvirt.
    support: full
    platforms: posix
options:
  policy:
    description:
      - How far a hint goes. V(conservative), V(balanced), V(dense), or one of C(policies.toml) on
        the managed host.
    type: str
    default: balanced
  watch:
    description:
      - Watch the guests for so long, such as V(60s) or V(5m), instead of reading the history of
        C(virt-introspectd).
      - Where there is no history they are watched for ten seconds.
    type: str
  last:
    description: How much of the history is looked at, such as V(15m), V(24h), V(7d). One day by
      default.
    type: str
  apply:
    description: Follow the hints that can be followed while a guest runs.
    type: bool
    default: false
  undo:
    description: Bring the guests back to what they had before the first change that is not undone.
    type: bool
    default: false
notes:
  - A second run of O(apply=true) changes nothing more where the guest's need has not changed. What
    is within the policy's dead band is no hint.
seealso:
  - module: virtintrospect.fleet.guest_info
"""

EXAMPLES = r"""
- name: What could be given back
  virtintrospect.fleet.guest_hints:
    policy: dense
    last: 7d
  register: advice

- name: Bytes of memory that could be given back on this host
  ansible.builtin.debug:
    msg: >-
      {{ (shrink | map(attribute='current') | sum)
      - (shrink | map(attribute='recommended') | sum) }}
  vars:
    shrink: >-
      {{ advice.hints | selectattr('resource', 'eq', 'memory')
      | selectattr('action', 'eq', 'shrink') }}

- name: Follow what is advised for the test machines
  virtintrospect.fleet.guest_hints:
    domains: ["test-*"]
    watch: 2m
    apply: true

- name: And back
  virtintrospect.fleet.guest_hints:
    domains: ["test-*"]
    undo: true
"""

RETURN = r"""
hints:
  description: The hints of all guests. With O(undo=true) what was brought back.
  returned: success
  type: list
  elements: dict
  contains:
    domain:
      description: Name of the domain.
      type: str
    uuid:
      description: UUID of the domain.
      type: str
    resource:
      description: V(memory), V(cpu), V(io) or V(tasks).
      type: str
    action:
      description: V(grow), V(shrink), V(reclaim), V(host), V(watch); V(undo) with O(undo=true).
      type: str
    current:
      description: What there is, bytes of memory or vCPUs.
      type: int
    recommended:
      description: What there should be.
      type: int
    virsh:
      description: The command that does it. Left out where none can.
      type: str
    reason:
      description: One sentence.
      type: str
    evidence:
      description: The numbers that it comes from.
      type: list
      elements: str
    confidence:
      description: From 0 to 1.
      type: float
    refuted_by:
      description: What would show that it is wrong.
      type: str
    after:
      description: What there is after the change, or would be.
      returned: when it was followed
      type: int
    outcome:
      description: What became of it, such as V(done), V(would be done), or why it stopped.
      returned: when it was tried
      type: str
  sample:
    - domain: web01
      uuid: 4c6b1b3a-1c1e-4a41-9a7d-6f7f7f3f1d11
      resource: memory
      action: shrink
      current: 4294967296
      recommended: 1610612736
      virsh: virsh setmem web01 1572864 --live
      reason: the guest never needed more than 1.2 GiB
      evidence: [need=1288490188, samples=1440, seconds=86400]
      confidence: 0.93
      refuted_by: a need of more than 1.5 GiB
guests:
  description: The guests that were judged.
  returned: success
  type: list
  elements: dict
failed_guests:
  description: Guests that could not be judged or changed, and why, as in
    P(virtintrospect.fleet.guest_info#module).
  returned: always
  type: list
  elements: dict
reason:
  description: Why the task failed, as in P(virtintrospect.fleet.guest_info#module).
  returned: failure
  type: str
version:
  description: Version of virtintrospect on the host.
  returned: success
  type: str
"""

import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtintrospect.fleet.plugins.module_utils.command import (
    CommandError,
    failing,
)
from ansible_collections.virtintrospect.fleet.plugins.module_utils.guests import (
    begin,
    each,
    failure,
    guest_arguments,
)

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
#: Seconds that guests are watched for unless the task says so.
_LOOK = 10
#: Seconds that following one hint takes at most: steps, with a look after each.
_FOLLOW = 900


class Adviser:
    """Asks for hints, follows them, goes back."""

    def __init__(self, module, command):
        self._params = module.params
        self._check_mode = module.check_mode
        self._command = command
        self._timeout = module.params["timeout"] + seconds(module.params["watch"] or str(_LOOK))

    def of_all(self, guests):
        """Hints of all guests of the host in one go, and failures."""
        names = {guest["name"]: guest for guest in guests}
        answer = self._command.ask(["hints", "--all", *self._options()], self._timeout)
        hints = [
            dict(row, uuid=names[row["domain"]]["uuid"])
            for row in answer.data
            if row["domain"] in names
        ]
        failed = []
        for line in answer.said("warning"):
            # A name may have a colon of its own.
            fits = [name for name in names if line.startswith(f"{name}: ")]
            if fits:
                name = max(fits, key=len)
                text = line[len(name) + 2 :]
                failed.append(failure(names[name], CommandError("failed", text)))
        return hints, failed

    def of_one(self, guest):
        """Hints of a guest, followed where that is wanted, and failures."""
        line = ["hints", *self._options(), guest["uuid"]]
        timeout = self._timeout
        if self._params["apply"]:
            line += ["--apply", "--dry-run"] if self._check_mode else ["--apply", "--yes"]
            timeout += _FOLLOW
        return self._asked(line, timeout, guest)

    def back(self, guest):
        """What was brought back of a guest."""
        line = ["hints", "--undo", guest["uuid"]]
        hints, failed = self._asked([*line, "--dry-run"], self._timeout, guest)
        if hints and not failed and not self._check_mode:
            hints, failed = self._asked(line, self._timeout, guest)
        return hints, failed

    def _options(self):
        params = self._params
        found = ["--policy", params["policy"]]
        for option, value in (("--for", params["watch"]), ("--last", params["last"])):
            if value:
                found += [option, value]
        return found

    def _asked(self, line, timeout, guest):
        """Hints, and failures, of which those that were followed in part are both."""
        failed = []
        try:
            rows = self._command.ask(line, timeout).data
        except CommandError as error:
            if not error.data:
                raise
            rows, failed = error.data, [failure(guest, error)]
        return [dict(row, uuid=guest["uuid"]) for row in rows], failed


def seconds(text):
    """Seconds of a length of time; what is none is left to the command to complain of."""
    match = re.match(r"([0-9]{1,9})([smhd]?)$", text)
    return int(match.group(1)) * _UNITS[match.group(2)] if match else 0


def difference(changes):
    """What Ansible shows with ``--diff``."""
    before, after = {}, {}
    for hint in changes:
        before.setdefault(hint["domain"], {})[hint["resource"]] = hint.get("current")
        after.setdefault(hint["domain"], {})[hint["resource"]] = hint["after"]
    return {"before": before, "after": after}


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=dict(
            guest_arguments(),
            policy={"type": "str", "default": "balanced"},
            watch={"type": "str"},
            last={"type": "str"},
            apply={"type": "bool", "default": False},
            undo={"type": "bool", "default": False},
        ),
        mutually_exclusive=[("watch", "last"), ("apply", "undo")],
        supports_check_mode=True,
    )
    params = module.params
    nothing = {"hints": [], "guests": [], "failed_guests": []}
    command, version, guests, missed = begin(module, **nothing)
    adviser = Adviser(module, command)
    with failing(module, **nothing):
        if (
            params["domains"] is None
            and not params["exclude"]
            and guests
            and not (params["apply"] or params["undo"])
        ):
            hints, failed = adviser.of_all(guests)
        else:
            ask = adviser.back if params["undo"] else adviser.of_one
            results, failed = each(command, guests, ask, params["parallel"])
            hints = [hint for found, _failed in results for hint in found]
            failed += [entry for _found, entries in results for entry in entries]
    failed = missed + failed
    bad = {entry.get("uuid") for entry in failed}
    changes = [hint for hint in hints if hint.get("after") not in (None, hint.get("current"))]
    module.exit_json(
        changed=bool(changes),
        hints=hints,
        guests=[guest for guest in guests if guest["uuid"] not in bad],
        failed_guests=failed,
        version=version,
        diff=difference(changes),
    )


if __name__ == "__main__":
    main()
