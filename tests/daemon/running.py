"""A daemon of one's own, started and stopped by a test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from virtintrospect.client import Client, RemoteError

_T = TypeVar("_T")
PATIENCE = 90.0
PROGRAM = [sys.executable, "-m", "virtintrospect.daemon.main"]
COMMAND = str(Path(sys.executable).with_name("virt-introspect"))


def eventually(question: Callable[[], _T | None], what: str = "", patience: float = PATIENCE) -> _T:
    """The first true answer; a session that is not there yet, or a daemon, is no answer."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(RemoteError):
            if answer := question():
                return answer
        assert time.monotonic() < deadline, what or question
        time.sleep(0.05)


class Running:
    """``virt-introspectd`` with folders of its own.

    :param uri: the libvirt that it looks after.
    :param sections: more of its configuration.
    """

    def __init__(self, folder: Path, uri: str, **sections: dict[str, Any]) -> None:
        self.run, self.state = folder / "run", folder / "state"
        self.config = folder / "config.toml"
        self.log = folder / "log"
        self.uri = uri
        tree: dict[str, dict[str, Any]] = {
            "daemon": {
                "run_dir": str(self.run), "state_dir": str(self.state), "log_level": "debug"
            },
            "libvirt": {"uri": uri, "reconcile_seconds": 1.0},
            "sessions": {"poll_seconds": 0.2},
        }  # fmt: skip
        for name, values in sections.items():
            tree.setdefault(name, {}).update(values)
        lines = []
        for name, values in tree.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self.config.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def socket(self) -> str:
        return str(self.run / "daemon.sock")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, "--config", str(self.config)], stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=os.environ | {"JOURNAL_STREAM": "1:1"},
            )  # fmt: skip
        self.wait_up()

    def wait_up(self) -> None:
        eventually(lambda: bool(self.ask("sessions")), f"no daemon: {self.text()[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        return process.wait(PATIENCE)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        with Client(self.socket) as client:
            return client.ask(method, **params)

    def session(self, name: str) -> dict[str, Any]:
        """The row of a domain; empty where there is none."""
        rows = [row for row in self.ask("sessions")["rows"] if row["name"] == name]
        return next((row for row in rows if row["state"] != "gone"), rows[0] if rows else {})

    def wait(self, name: str, state: str = "ready") -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            row = self.session(name)
            return row if row.get("state", "gone") == state else None

        try:
            return eventually(there, f"{name} is not {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.session(name)}\n{self.text()[-3000:]}") from None

    def command(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """``virt-introspect`` that knows of this daemon."""
        done = subprocess.run(
            [COMMAND, "-c", self.uri, *arguments], capture_output=True, text=True, timeout=120,
            env=os.environ | {"VIRTINTROSPECT_SOCKET": self.socket}, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done


@contextlib.contextmanager
def running(folder: Path, uri: str, **sections: dict[str, Any]) -> Iterator[Running]:
    folder.mkdir(parents=True, exist_ok=True)
    daemon = Running(folder, uri, **sections)
    try:
        yield daemon
    finally:
        daemon.stop(signal.SIGKILL)
