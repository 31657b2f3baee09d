# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keeps what the modules said of one host, on the controller."""

from __future__ import annotations

import time
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.virtintrospect.fleet.plugins.plugin_utils.report import part as parts

_MODULES = {"info": "guest_info", "audit": "guest_audit", "hints": "guest_hints"}


class ActionModule(ActionBase):
    """See the documentation of the module of this name."""

    _requires_connection = False
    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        """Write the host's file."""
        super().run(tmp, task_vars)
        _valid, options = self.validate_argument_spec(
            {
                "dest": {"type": "path", "required": True},
                "host": {"type": "str"},
                **{name: {"type": "raw"} for name in _MODULES},
            }
        )
        host = options["host"] or (task_vars or {}).get("inventory_hostname") or "unknown"
        given = {module: options[name] for name, module in _MODULES.items()}
        results = {module: result for module, result in given.items() if result is not None}
        found = parts.part(str(host), results, time.time())
        path = Path(options["dest"], parts.file_name(str(host)))
        if not self._task.check_mode:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                parts.write(path, parts.packed(found))
            except OSError as error:
                raise AnsibleActionFail(f"{path}: {error.strerror}") from error
        known = {"path": str(path), "status": found["status"], "guests": len(found["guests"])}
        if "message" in found:
            known["message"] = found["message"]
        return {"changed": False, **known}
