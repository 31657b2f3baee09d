# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs ``virt-introspect`` on the managed host, and reads what it prints."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
from contextlib import contextmanager

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.virtintrospect.fleet.plugins.module_utils.batch import Batch, EndedError

#: What the exit codes of ``virt-introspect`` mean.
REASONS = {
    1: "failed",
    2: "usage",
    3: "no_such_target",
    4: "memory",
    5: "not_recognised",
}
#: Exit codes of a command that has done what it was asked for: 6 is "done, with findings".
DONE = (0, 6)

#: How an error of exit code 4 says that the guest is not there any more.
_GONE = ("does not run", "has ended", "is gone", "ends just now", "shut off")

#: Where it is looked for besides PATH, which is short where Ansible logs in.
_PLACES = ["/usr/local/bin", "/opt/virtintrospect/bin"]


def common_arguments():
    """Options of every module."""
    return {
        "executable": {"type": "path", "default": "virt-introspect"},
        "uri": {"type": "str"},
        "timeout": {"type": "int", "default": 120},
    }


class CommandError(Exception):
    """A command did not do what it was asked for.

    :param reason: one of :data:`REASONS`, or ``missing``, ``old_version``, ``gone``,
        ``timeout``, ``output``.
    :param msg: what it said, one line.
    :param rc: its exit code, where it ended.
    :ivar data: what it printed all the same.
    """

    def __init__(self, reason, msg, rc=None, data=None):
        super().__init__(msg)
        self.reason = reason
        self.msg = msg
        self.rc = rc
        self.data = data

    def as_dict(self):
        """For results."""
        known = {"reason": self.reason, "msg": self.msg}
        if self.rc is not None:
            known["rc"] = self.rc
        return known


class Answer:
    """What a command printed.

    :ivar data: its standard output, decoded.
    :ivar lines: its standard error.
    :ivar rc: its exit code, one of :data:`DONE`.
    """

    def __init__(self, data, lines, rc):
        self.data = data
        self.lines = lines
        self.rc = rc

    def said(self, kind):
        """Lines of standard error that begin with ``warning:`` or ``note:``, without that."""
        start = kind + ": "
        return [line[len(start) :] for line in self.lines if line.startswith(start)]


class Command:
    """``virt-introspect`` with the options that all modules share.

    :raises CommandError: it is not on this host.
    """

    def __init__(self, module: AnsibleModule):
        self._uri = module.params["uri"]
        self._timeout = module.params["timeout"]
        self._path = _find(module)
        self._environment = dict(os.environ, LC_ALL="C.UTF-8")
        #: Processes that wait for a command; ``None`` where the host's version has none.
        self._waiting = []
        atexit.register(self._end)

    def version(self):
        """The version of the package on this host."""
        _code, out, _err = self._run(["--version"], self._timeout)
        return out.decode("utf-8", "replace").strip().rpartition(" ")[2]

    def ask(self, words, timeout=None):
        """Run a command.

        :param words: the command and its options.
        :param timeout: seconds, instead of those of the module's option.
        :raises CommandError: it did not do it.
        """
        options = ["-o", "json"]
        if self._uri:
            options += ["-c", self._uri]
        code, out, err = self._run(options + words, timeout or self._timeout)
        lines = err.decode("utf-8", "replace").splitlines()
        if code not in DONE:
            raise _error(code, lines, _decoded(out))
        data = _decoded(out)
        if data is None:
            raise CommandError("output", f"{words[0]}: its output is not JSON", code)
        return Answer(data, lines, code)

    def _run(self, words, timeout):
        """Exit code, output and errors of a command: from a process that serves many, or alone."""
        waiting = self._waiting
        try:
            while waiting is not None:
                try:
                    batch = waiting.pop()
                except IndexError:
                    batch = Batch(self._path, self._environment)
                try:
                    answer = batch.ask(words, timeout)
                except EndedError as error:
                    if error.known:
                        break  # what it could not survive may say more when it runs alone
                    self._waiting = waiting = None
                else:
                    waiting.append(batch)
                    return answer
            return self._alone(words, timeout)
        except subprocess.TimeoutExpired as error:
            what = " ".join(words)
            raise CommandError("timeout", f"{what}: not done after {timeout} s") from error
        except OSError as error:
            raise CommandError("missing", f"{self._path}: {error.strerror}") from error

    def _end(self):
        """Leave nothing behind that still runs."""
        for batch in self._waiting or []:
            batch.end()

    def _alone(self, words, timeout):
        done = subprocess.run(
            [self._path, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self._environment,
            timeout=timeout,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


def _find(module):
    """The path of the executable.

    :raises CommandError: there is none.
    """
    wanted = module.params["executable"]
    if "/" in wanted:
        found = wanted if os.access(wanted, os.X_OK) else None
    else:
        found = module.get_bin_path(wanted, opt_dirs=_PLACES)
    if found is None:
        text = f"{wanted} is not on this host; the role virtintrospect.fleet.host installs it"
        raise CommandError("missing", text)
    return found


def _decoded(out):
    """The JSON that a command printed; ``None`` where that is none."""
    try:
        return json.loads(out.decode("utf-8"))
    except ValueError:
        return None


def _error(code, lines, data):
    said = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    for start in ("virt-introspect: ", "Error: "):
        if said.startswith(start):
            said = said[len(start) :]
    reason = REASONS.get(code, "failed")
    if said.startswith(("No such command", "No such option")):
        reason = "old_version"
    if reason == "memory" and any(words in said for words in _GONE):
        reason = "gone"
    return CommandError(reason, said, code, data)


def fail(module, error, **more):
    """End the task with an error that says which kind it is."""
    module.fail_json(**dict(more, **error.as_dict()))


@contextmanager
def failing(module, **nothing):
    """End the task, with ``nothing`` as its result, where a command does not do it."""
    try:
        yield
    except CommandError as error:
        fail(module, error, **nothing)
