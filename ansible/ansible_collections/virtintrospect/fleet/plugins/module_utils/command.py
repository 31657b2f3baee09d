# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs ``virt-introspect`` on the managed host, and reads what it prints."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import threading

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

#: How an error of exit code 4 says that the guest is not there any more, where nothing else does.
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
        #: Those of them that a thread keeps for itself.
        self._own = threading.local()
        atexit.register(self._end)

    def version(self):
        """The version of the package on this host."""
        _code, out, _err, _kind = self._run(["--version"], self._timeout)
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
        code, out, err, kind = self._run(options + words, timeout or self._timeout)
        lines = err.decode("utf-8", "replace").splitlines()
        if code not in DONE:
            raise _error(code, lines, _decoded(out), kind)
        data = _decoded(out)
        if data is None:
            raise CommandError("output", f"{words[0]}: its output is not JSON", code)
        return Answer(data, lines, code)

    @contextlib.contextmanager
    def one_guest(self):
        """What this thread asks for in the block is about one guest.

        One process answers it all, which recognises the guest once.
        """
        self._own.waiting = []
        try:
            yield
        finally:
            own, self._own.waiting = self._own.waiting, None
            self._give_back(own)

    def _run(self, words, timeout):
        """Exit code, output, errors and kind of error of a command.

        From a process that serves many, or alone.
        """
        try:
            while self._waiting is not None:
                batch = self._next()
                try:
                    answer = batch.ask(words, timeout)
                except EndedError as error:
                    if error.known:
                        break  # what it could not survive may say more when it runs alone
                    self._waiting = None
                else:
                    self._give_back([batch])
                    return answer
            return self._alone(words, timeout)
        except subprocess.TimeoutExpired as error:
            what = " ".join(words)
            raise CommandError("timeout", f"{what}: not done after {timeout} s") from error
        except OSError as error:
            raise CommandError("missing", f"{self._path}: {error.strerror}") from error

    def _next(self):
        """A process that waits, this thread's own before others; else a new one."""
        waiting = getattr(self._own, "waiting", None) or self._waiting or []
        with contextlib.suppress(IndexError):  # another thread may have been faster
            return waiting.pop()
        return Batch(self._path, self._environment)

    def _give_back(self, batches):
        own, shared = getattr(self._own, "waiting", None), self._waiting
        if own is not None:
            own.extend(batches)
        elif shared is not None:
            shared.extend(batches)

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
        return done.returncode, done.stdout, done.stderr, None


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


def _error(code, lines, data, kind):
    said = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    for start in ("virt-introspect: ", "Error: "):
        if said.startswith(start):
            said = said[len(start) :]
    reason = REASONS.get(code, "failed")
    if said.startswith(("No such command", "No such option")):
        reason = "old_version"
    if kind == "TargetGoneError" or (
        kind is None and reason == "memory" and any(words in said for words in _GONE)
    ):
        reason = "gone"
    return CommandError(reason, said, code, data)


def fail(module, error, **more):
    """End the task with an error that says which kind it is."""
    module.fail_json(**dict(more, **error.as_dict()))


@contextlib.contextmanager
def failing(module, **nothing):
    """End the task, with ``nothing`` as its result, where a command does not do it."""
    try:
        yield
    except CommandError as error:
        fail(module, error, **nothing)
