"""A libvirtd of one's own, beside the machine's: to be stopped, killed and given hooks.

Its folders (/etc/libvirt, /run/libvirt, /var/lib/libvirt, …) are in a temporary folder, which
is mounted over the machine's own for it alone, in a mount namespace. Host UUID and host name are
its own too, so that guests can be migrated between two of them. What they share with the
machine's libvirtd: users, network, control groups. So names of domains need a random part.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .domain import start_time
from .libvirtd import private_dev
from .paths import cache

#: Seconds within which a daemon must start or stop, on a loaded machine.
PATIENCE = 90

#: libvirt's folders, and where each is in the private folder.
_PLACES = {
    "/etc/libvirt": "etc",
    "/run/libvirt": "run",
    "/var/lib/libvirt": "lib",
    "/var/log/libvirt": "log",
    "/var/cache/libvirt": "cache",
}

#: $0 is the private folder, $1 its host name; pairs of folders follow up to "--", then the
#: daemon's command.
_MOUNT = """
set -e
hostname "$1"
shift
while [ "$1" != -- ]; do
    mkdir -p "$2"
    mount --bind "$0/$1" "$2"
    shift 2
done
shift
exec "$@"
"""


def sweep() -> None:
    """End what is left of private daemons whose owner was killed."""
    for owner in Path(tempfile.gettempdir()).glob("vi-lab-*/owner"):
        with contextlib.suppress(OSError, ValueError):
            pid, started = map(int, owner.read_text().split())
            if start_time(pid) != started:
                _clear(owner.parent)


def _copy_if_there(source: str, target: str) -> None:
    """Copy a file that its daemon may replace or remove at any time."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _clear(folder: Path) -> None:
    """Kill the processes that have their PID files in a private folder, and remove it."""
    for path in [*folder.glob("*.pid"), *folder.glob("run/qemu/*.pid")]:
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            # Daemons name their folder, QEMUs their guest: a PID may be somebody else's by now.
            if any(name.encode() in command for name in (str(folder), f"guest={path.stem},")):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


class Private:
    """A private libvirtd, running. A context manager: at its end all its guests are gone.

    :param daemon: ``libvirtd``, or the modular ``virtqemud`` where it is installed.
    """

    def __init__(self, daemon: str = "libvirtd") -> None:
        #: Its name is its host name, too.
        self.folder = Path(tempfile.gettempdir(), f"vi-lab-{os.urandom(4).hex()}")
        self.folder.mkdir(mode=0o755)  # QEMU runs as a user of its own
        self.daemon = daemon
        prefix = "libvirt" if daemon == "libvirtd" else daemon
        self.socket = self.folder / "run" / f"{prefix}-sock"
        self.uri = f"qemu+unix:///system?socket={self.socket}"
        #: What is /etc/libvirt/hooks to the daemon.
        self.hooks = self.folder / "etc/hooks"
        #: What the daemon has to complain about.
        self.log = self.folder / "log" / f"{daemon}.log"
        self.pid_file = self.folder / f"{daemon}.pid"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        sweep()
        (self.folder / "owner").write_text(f"{os.getpid()} {start_time(os.getpid())}")
        self._prepare()
        atexit.register(self.close)
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """PID of the daemon."""
        return self._running[self.daemon].pid

    def outside(self, path: str | Path) -> Path:
        """Where a file that the daemon or its QEMUs name is to be found by everybody else."""
        for inside, place in _PLACES.items():
            if Path(path).is_relative_to(inside):
                return self.folder / place / Path(path).relative_to(inside)
        return Path(path)

    def connect(self) -> Any:
        """A read-write connection; the caller closes it."""
        import libvirt

        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        return libvirt.open(self.uri)

    def start(self) -> None:
        """Start what does not run, and wait until it answers."""
        if not self._runs("virtlogd"):
            self._spawn("virtlogd", self.folder / "run/virtlogd-sock")
        if not self._runs(self.daemon):
            self._spawn(self.daemon, self.socket)
            self._wait(self._answers, f"{self.daemon} does not answer")

    def stop(self) -> None:
        """End the daemon in an orderly way; its guests go on."""
        self._end(self.daemon, signal.SIGTERM)

    def kill(self) -> None:
        """End the daemon with SIGKILL; its guests go on."""
        self._end(self.daemon, signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start: running guests get ``reconnect`` hooks."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """SIGHUP: the daemon looks for hooks anew. It does so within a moment."""
        os.kill(self.pid, signal.SIGHUP)

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program that sees the daemon's folders instead of the machine's."""
        return subprocess.run([*self.enter(), *map(str, command)], **options)

    def close(self) -> None:
        """End guests and daemons, and remove the folder; doing so twice is harmless."""
        atexit.unregister(self.close)
        if not self.folder.exists():
            return
        with contextlib.suppress(Exception):
            self._destroy_guests()
        for daemon in (self.daemon, "virtlogd"):
            self._end(daemon, signal.SIGTERM)
        _clear(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _prepare(self) -> None:
        for place in _PLACES.values():
            (self.folder / place).mkdir(mode=0o755)
        etc = self.folder / "etc"
        for path in Path("/etc/libvirt").glob("*.conf"):
            shutil.copy(path, etc)
        self.hooks.mkdir()
        daemon = etc / f"{self.daemon}.conf"
        settings = {
            "host_uuid": uuid.uuid4(),
            "log_outputs": f"3:file:/var/log/libvirt/{self.daemon}.log",
            "auth_unix_ro": "none",
            "auth_unix_rw": "none",
        }
        with daemon.open("a") as file:
            file.writelines(f'{name} = "{value}"\n' for name, value in settings.items())
        with (etc / "qemu.conf").open("a") as file:
            # Kernels and initramfs are shared with the machine's libvirtd, which gives them to
            # its guests' user, and refuses to start another when their owner is a third. So
            # nobody's owner is changed here; they can be read by all.
            file.write("dynamic_ownership = 0\nremember_owner = 0\n")
        # Without it the first look at QEMU's capabilities takes a minute.
        known = Path("/var/cache/libvirt")
        if (known / "qemu/capabilities").is_dir():
            ours = self.folder / "cache"
            shutil.copytree(known, ours, dirs_exist_ok=True, copy_function=_copy_if_there)

    def enter(self) -> list[str]:
        """The words in front of a command that is to see the private folders."""
        pairs = [word for inside, place in _PLACES.items() for word in (place, inside)]
        host = f"{self.folder.name}.example"  # with a dot, so that nobody asks DNS
        mounts = ["sh", "-c", _MOUNT, str(self.folder), host, *pairs, "--"]
        return ["unshare", "--uts", *private_dev()[1:], *mounts]

    def _spawn(self, daemon: str, socket: Path) -> None:
        socket.unlink(missing_ok=True)
        pid_file = self.folder / f"{daemon}.pid"
        pid_file.unlink(missing_ok=True)
        with (self.folder / f"{daemon}.out").open("ab") as out:
            self._running[daemon] = subprocess.Popen(
                [*self.enter(), daemon, "--pid-file", str(pid_file)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._wait(lambda: self._alive(daemon) and socket.exists(), f"{daemon} does not start")

    def _alive(self, daemon: str) -> bool:
        if self._runs(daemon):
            return True
        raise RuntimeError(f"{daemon} ended: {self._said(daemon)}")

    def _runs(self, daemon: str) -> bool:
        return daemon in self._running and self._running[daemon].poll() is None

    def _said(self, daemon: str) -> str:
        files = (self.folder / f"{daemon}.out", self.folder / "log" / f"{daemon}.log")
        return " ".join(p.read_text(errors="replace")[-500:] for p in files if p.exists())

    def _answers(self) -> bool:
        self._alive(self.daemon)
        import libvirt

        try:
            self.connect().close()
        except libvirt.libvirtError:
            return False
        return True

    def _end(self, daemon: str, how: signal.Signals) -> None:
        process = self._running.pop(daemon, None)
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _destroy_guests(self) -> None:
        import libvirt

        if not self._runs(self.daemon):
            self.start()
        connection = self.connect()
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
            shutil.rmtree(cache() / "run" / domain.name(), ignore_errors=True)
        connection.close()

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{complaint}: {self._said(self.daemon)}")
            time.sleep(0.02)
