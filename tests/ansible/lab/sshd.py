"""An OpenSSH server for one host of the lab, without a service that would start by itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.guests.lab import apt
from tests.guests.lab.paths import cache, locked

_CONFIG = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile {folder}/sshd.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PrintMotd no
UseDNS no
MaxStartups 50
MaxSessions 50
LogLevel ERROR
Subsystem sftp internal-sftp
"""

#: Runs in a mount namespace of the host's own: gives it what Debian's package would have made on
#: the machine. $0 is the host's folder, the rest the command.
_PREPARE = """
set -e
mkdir -p /run/sshd 2>/dev/null || true
mount -t tmpfs -o mode=755 sshd /run/sshd
if ! grep -q ^sshd: /etc/passwd; then
    { cat /etc/passwd; echo sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin; } > "$0/passwd"
    mount --bind "$0/passwd" /etc/passwd
fi
exec "$@"
"""


def keys(folder: Path) -> None:
    """Keys of a host, and of who logs in to it."""
    for name in ("host_key", "client_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, timeout=60)


def command(folder: Path, address: str) -> list[str]:
    """The server's command line, for a mount namespace of its own; it stays in the foreground."""
    config = folder / "sshd_config"
    config.write_text(_CONFIG.format(folder=folder, address=address))
    environment, program = _program()
    server = ["env", *environment, program, "-D", "-e", "-f", str(config)]
    return ["sh", "-c", _PREPARE, str(folder), *server]


def _program() -> tuple[list[str], str]:
    """The machine's own server, else Debian's, unpacked but not installed."""
    found = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if found:
        return [], found
    root = cache() / "sshd"
    with locked("sshd"):
        if not (root / "usr/sbin/sshd").exists():
            for package in apt.download("bookworm", ["openssh-server", "libwrap0"]):
                subprocess.run(["dpkg-deb", "-x", package, root], check=True, timeout=60)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return [f"LD_LIBRARY_PATH={libraries}"], str(root / "usr/sbin/sshd")
