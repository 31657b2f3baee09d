#!/usr/bin/python
# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which guests the daemon looks into."""

from __future__ import annotations

DOCUMENTATION = r"""
module: session
short_description: Says which guests virt-introspectd looks into
description:
  - Attaches the sessions of C(virt-introspectd) to guests, or takes them off.
  - The daemon must run on the managed host.
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
extends_documentation_fragment:
  - virtintrospect.fleet.fleet
attributes:
  check_mode:
    description: Says what would be changed.
    support: full
  diff_mode:
    description: Shows the state of each session before and after.
    support: full
  platform:
    description: Hosts with libvirt.
    support: full
    platforms: posix
options:
  domains:
    description: The guests, by name, id, UUID, or shell pattern of the name.
    type: list
    elements: str
    required: true
    aliases: [domain]
  state:
    description:
      - V(present), the daemon looks into them.
      - V(absent), it leaves them alone until the next start of the guest or of the daemon.
      - V(never), it leaves them alone until V(present) is asked for, whatever is started anew.
    type: str
    choices: [present, absent, never]
    default: present
"""

EXAMPLES = r"""
- name: Nobody looks into the payroll guests
  virtintrospect.fleet.session:
    domains: ["payroll-*"]
    state: never

- name: Look into this one again
  virtintrospect.fleet.session:
    domain: web01
    state: present
"""

RETURN = r"""
sessions:
  description: The sessions of these guests, as they are now. In check mode, as they were.
  returned: success
  type: list
  elements: dict
  sample:
    - id: 7
      name: web01
      uuid: 4c6b1b3a-1c1e-4a41-9a7d-6f7f7f3f1d11
      state: ready
      since: 1795623795
      driver: kvm
      kernel: 6.12.117+deb12-cloud-amd64
failed_guests:
  description: Guests that were named and that the daemon does not know, or refused, and why.
  returned: always
  type: list
  elements: dict
reason:
  description: Why the task failed, as in P(virtintrospect.fleet.guest_info#module).
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtintrospect.fleet.plugins.module_utils.command import (
    Command,
    CommandError,
    common_arguments,
    failing,
)
from ansible_collections.virtintrospect.fleet.plugins.module_utils.guests import failure, fits

_COMMANDS = {"present": ["attach"], "absent": ["detach"], "never": ["detach", "--forever"]}


def state_of(session):
    """Which of the module's states a session is in."""
    if session["state"] != "detached":
        return "present"
    return "never" if session.get("forever") else "absent"


def right(session, wanted):
    """Whether nothing is to be done: what is left alone for good is left alone."""
    state = state_of(session)
    return state == wanted or (state, wanted) == ("never", "absent")


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=dict(
            common_arguments(),
            domains={"type": "list", "elements": "str", "required": True, "aliases": ["domain"]},
            state={"type": "str", "choices": list(_COMMANDS), "default": "present"},
        ),
        supports_check_mode=True,
    )
    params, wanted = module.params, module.params["state"]
    with failing(module, sessions=[], failed_guests=[]):
        command = Command(module)
        known = [row for row in command.ask(["sessions"]).data if row["state"] != "gone"]
    chosen = [session for session in known if fits(session, params["domains"])]
    text = "virt-introspectd has no session for it"
    failed = [
        {"name": word, "reason": "no_such_target", "msg": text}
        for word in params["domains"]
        if not any(sign in word for sign in "*?[") and not any(fits(s, [word]) for s in known)
    ]
    sessions, before, after = [], {}, {}
    for session in chosen:
        if not right(session, wanted):
            old, session_now = state_of(session), session
            if not module.check_mode:
                try:
                    answer = command.ask([*_COMMANDS[wanted], session["uuid"]])
                    session_now = answer.data[0]
                except CommandError as error:
                    failed.append(failure(session, error))
                    continue
            before[session["name"]], after[session["name"]] = old, wanted
            session = session_now
        sessions.append(session)
    result = {"sessions": sessions, "failed_guests": failed, "changed": bool(after)}
    result["diff"] = {"before": before, "after": after}
    if failed:
        first = failed[0]
        module.fail_json(msg=f"{first['name']}: {first['msg']}", reason=first["reason"], **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
