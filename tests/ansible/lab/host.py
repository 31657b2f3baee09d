"""A "host" of a fleet: a network namespace with a libvirtd and an SSH server of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.guests.lab.domain import start_time
from tests.guests.lab.private import PATIENCE, Private

from . import sshd

_PREFIX = "vi-lab-"


class SshHost:
    """A host that is reached over SSH alone. A context manager: at its end all of it is gone.

    :param name: what it is called in inventories.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        sweep()
        #: Its libvirtd; guests are started with ``Guest(…, private=host.private)``.
        self.private = Private()
        #: A folder of the host's own.
        self.folder = self.private.folder
        self._space = f"{_PREFIX}{os.getpid()}-{start_time(os.getpid())}-{os.urandom(2).hex()}"
        self._link = f"vi{os.urandom(4).hex()}"
        self.address = ""
        self._server: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        try:
            self._network()
            sshd.keys(self.folder)
            self._serve()
        except BaseException:
            self.close()
            raise

    @property
    def variables(self) -> dict[str, str]:
        """What an inventory says of it."""
        options = [
            "-o StrictHostKeyChecking=no", f"-o UserKnownHostsFile={self.folder}/known_hosts",
            "-o ConnectTimeout=20", "-o ServerAliveInterval=3", "-o ServerAliveCountMax=5",
            "-o LogLevel=ERROR", "-F none",
        ]  # fmt: skip
        return {
            "ansible_host": self.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "client_key"),
            "ansible_ssh_common_args": " ".join(options),
            "ansible_remote_tmp": str(self.folder / "ansible"),
        }

    @property
    def server_pid(self) -> int:
        """PID of its SSH server."""
        assert self._server is not None
        return self._server.pid

    def cut(self) -> None:
        """Pull its cable: whoever talks to it hears nothing more."""
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        """And plug it in again."""
        _ip("link", "set", self._link, "up")

    def close(self) -> None:
        """End its server, its sessions, its guests and its daemons; twice is harmless."""
        atexit.unregister(self.close)
        try:
            _remove(self._space)
            if self._server is not None:
                self._server.wait(PATIENCE)
                self._server = None
        finally:
            self.private.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _network(self) -> None:
        _ip("netns", "add", self._space)
        inside = ("-n", self._space)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._space)
        # RFC 2544 keeps 198.18.0.0/15 for tests; each host has 4 addresses of it.
        for _ in range(20):
            base = random.randrange(1 << 15) * 4
            ours, its = (
                f"198.{18 + (base >> 16)}.{base >> 8 & 255}.{(base & 255) + n}" for n in (1, 2)
            )
            if ours.rsplit(".", 1)[0] + "." not in _ip("-4", "-o", "address", "show"):
                break
        _ip("address", "add", f"{ours}/30", "dev", self._link)
        _ip("link", "set", self._link, "up")
        _ip(*inside, "address", "add", f"{its}/30", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip(*inside, "link", "set", device, "up")
        self.address = its

    def _serve(self) -> None:
        enter = ["ip", "netns", "exec", self._space, *self.private.enter()]
        with (self.folder / "sshd.out").open("wb") as out:
            self._server = subprocess.Popen(
                [*enter, *sshd.command(self.folder, self.address)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            said = (self.folder / "sshd.out").read_text(errors="replace")
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"sshd of {self.name} does not answer: {said[-500:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.address, 22), timeout=5) as connection:
                connection.settimeout(5)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


def sweep() -> None:
    """Remove the network namespaces of hosts whose owner was killed."""
    for path in Path("/run/netns").glob(f"{_PREFIX}*"):
        pid, started = path.name.removeprefix(_PREFIX).split("-")[:2]
        if start_time(int(pid)) != int(started):
            with contextlib.suppress(RuntimeError):  # another run was faster
                _remove(path.name)


def _remove(space: str) -> None:
    """End a network namespace and all that runs in it; its link goes with it."""
    if not Path("/run/netns", space).exists():
        return
    for _ in range(50):
        pids = _ip("netns", "pids", space).split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.1)
    _ip("netns", "delete", space)


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
