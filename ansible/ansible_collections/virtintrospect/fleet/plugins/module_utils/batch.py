# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""``virt-introspect batch``: many commands in one process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time

#: Bytes of one answer.
_LONGEST = 1 << 30


class EndedError(Exception):
    """The process has ended without an answer.

    :ivar known: whether it had answered anything before. One of an older version does not.
    """

    def __init__(self, known):
        super().__init__("virt-introspect batch has ended")
        self.known = known


class Batch:
    """The process. It ends when its standard input does, at the latest when this process does."""

    def __init__(self, path, environment):
        self._process = subprocess.Popen(
            [path, "batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._known = False

    def ask(self, words, timeout):
        """Run a command: its exit code, its output, its errors, and the kind of its error.

        The kind is ``None`` where it ended well, or the host's version does not tell.

        :raises EndedError: it cannot.
        :raises subprocess.TimeoutExpired: it has not, and the process is gone.
        """
        try:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._line(words, time.monotonic() + timeout))
            found = answer["rc"], answer["out"].encode(), answer["err"].encode()
            found += (answer.get("error"),)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            self.end()
            raise EndedError(self._known) from error
        self._known = True
        return found

    def end(self):
        """End the process, at once."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # what was not written is of no use
            self._process.stdin.close()
        self._process.stdout.close()

    def _line(self, words, deadline):
        handle, parts, size = self._process.stdout.fileno(), [], 0
        while not (parts and parts[-1].endswith(b"\n")):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([handle], [], [], left)[0]:
                self.end()
                raise subprocess.TimeoutExpired(words, left)
            part = os.read(handle, 1 << 20)
            size += len(part)
            if not part or size > _LONGEST:
                raise OSError("no answer")
            parts.append(part)
        return b"".join(parts)
