#!/usr/bin/python
# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""virtintrospect's hooks in libvirt."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hooks
short_description: Installs or removes the hooks that tell virt-introspectd of libvirt's guests
description:
  - Runs C(virt-introspect hooks install) or C(remove). Hooks of others stay as they are.
  - libvirt's daemon is told to look for hooks (SIGHUP) where it has not yet; it is never restarted.
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
extends_documentation_fragment:
  - virtintrospect.fleet.fleet
attributes:
  check_mode:
    description: Says what would be done.
    support: full
  diff_mode:
    description: RV(actions) has each step; there is no other difference to show.
    support: none
  platform:
    description: Hosts with libvirt.
    support: full
    platforms: posix
options:
  state:
    description: Whether the hooks are to be there. V(present) brings old ones up to date, too.
    type: str
    choices: [present, absent]
    default: present
  root:
    description: Root folder of the host, for images and packages.
    type: path
    default: /
  xen:
    description: Xen's hook too, though libvirt has no Xen here.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Hooks of libvirt
  virtintrospect.fleet.hooks:
    state: present

- name: And away with them
  virtintrospect.fleet.hooks:
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: Such as V(created), V(updated), V(removed), V(reloaded), or V(would create).
      type: str
    subject:
      description: The file, the folder or the daemon.
      type: str
    detail:
      description: More, where there is more.
      type: str
  sample:
    - action: created
      subject: /etc/libvirt/hooks/qemu.d/50-virtintrospect
reason:
  description: Why the task failed, as in P(virtintrospect.fleet.guest_info#module).
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtintrospect.fleet.plugins.module_utils.command import (
    Command,
    common_arguments,
    failing,
)


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=dict(
            common_arguments(),
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            root={"type": "path", "default": "/"},
            xen={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
    )
    params = module.params
    line = ["hooks", "install" if params["state"] == "present" else "remove"]
    line += ["--root", params["root"]]
    if params["xen"]:
        line.append("--xen")
    if module.check_mode:
        line.append("--dry-run")
    with failing(module, actions=[]):
        rows = Command(module).ask(line).data
    actions = [row for row in rows if row["action"] not in ("warning", "unchanged")]
    for row in rows:
        if row["action"] == "warning":
            module.warn(f"{row['subject']}: {row.get('detail', '')}")
    module.exit_json(changed=bool(actions), actions=actions)


if __name__ == "__main__":
    main()
