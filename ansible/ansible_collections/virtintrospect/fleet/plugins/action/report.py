# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes the report of a fleet, on the controller."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.virtintrospect.fleet.plugins.plugin_utils.report import forms, part
from ansible_collections.virtintrospect.fleet.plugins.plugin_utils.report.fleet import Fleet
from ansible_collections.virtintrospect.fleet.plugins.plugin_utils.report.page import page

_FORMS = ("html", "csv", "json", "sarif", "ocsf")


class ActionModule(ActionBase):
    """See the documentation of the module of this name."""

    _requires_connection = False
    _supports_check_mode = True
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        """Read the hosts' files and write those of the report."""
        super().run(tmp, task_vars)
        _valid, options = self.validate_argument_spec(
            {
                "src": {"type": "path", "required": True},
                "expected": {"type": "list", "elements": "str", "default": []},
                "unasked": {"type": "list", "elements": "str", "default": []},
                "title": {"type": "str", "default": "Fleet report"},
                "megabytes": {"type": "int", "default": 20},
                **{name: {"type": "path"} for name in _FORMS},
            },
            required_one_of=[_FORMS],
        )
        fleet = Fleet(options["expected"], options["unasked"])
        made, warnings = _read(Path(options["src"]), fleet)
        notes: list[str] = []
        written = []
        changed = False
        for path, content in _files(fleet, options, made, notes):
            written.append(str(path))
            try:
                changed |= self._put(path, content)
            except OSError as error:
                raise AnsibleActionFail(f"{path}: {error.strerror}") from error
        return {
            "changed": changed,
            "files": written,
            "counts": fleet.counts(),
            "notes": notes,
            "warnings": warnings,
        }

    def _put(self, path, content):
        if self._task.check_mode:
            return not path.exists() or path.read_bytes() != content
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return part.write(path, content)


def _read(folder, fleet):
    """Put the hosts' parts together: when the newest was made, and what could not be read."""
    if not folder.is_dir():
        raise AnsibleActionFail(f"{folder}: no such folder; report_host writes the hosts' parts")
    made, warnings = 0, []
    for path in part.parts(folder):
        try:
            found = part.read(path)
        except part.PartError as error:
            warnings.append(str(error))
            continue
        fleet.add(found)
        if isinstance(found.get("time"), int):
            made = max(made, found["time"])
    fleet.finish()
    return made, warnings


def _files(fleet, options, made, notes):
    """Each file of the report that is wanted: its path and its content."""
    if options["csv"]:
        for name, table in forms.tables(fleet).items():
            yield Path(options["csv"], f"{name}.csv"), forms.as_csv(table)
    if options["json"]:
        yield Path(options["json"]), forms.as_json(fleet, options["title"], made)
    if options["sarif"]:
        yield Path(options["sarif"]), forms.as_sarif(fleet)
    if options["ocsf"]:
        yield Path(options["ocsf"]), forms.as_ocsf(fleet, made)
    if options["html"]:  # the last, since it may leave something out of the tables
        content, left_out = page(fleet, options["title"], made, options["megabytes"] * 1_000_000)
        notes += left_out
        yield Path(options["html"]), content
