"""A small fleet: three hosts that are reached over SSH, their guests, and what runs playbooks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.guests.lab.domain import Config
from tests.guests.lab.guest import Guest, GuestError
from tests.guests.lab.paths import HERE

from .host import SshHost

#: Seconds within which a guest must have booted, two at a time.
PATIENCE = 240
#: The repository.
ROOT = HERE.parents[2]
#: What is installed beside the interpreter that runs this.
BIN = Path(sys.executable).parent
#: Emulated on a busy machine, the kernel finds its timer too slow at boot, and gives up.
IDLE = "psi=1 no_timer_check lab.oddities=0 lab.sleepers"

Guests = dict[str, dict[str, Config | None]]

#: Host → its guests: name → what they are made of. ``None`` stays in its firmware.
GUESTS: Guests = {
    "hv1": {"web01": Config("6.12", pti=False, cmdline=f"{IDLE}=12"), "boot01": None},
    "hv2": {"app01": Config("6.12", pti=False, cmdline=f"{IDLE}=20")},
    "hv3": {"db01": Config("6.1", pti=False, ram_mib=1024, cmdline=f"{IDLE}=8")},
}

#: Stands in front of ``virt-introspect`` on a host: at the first command that has some words,
#: runs a shell command, and then goes on.
_INTERFERING = """#!/bin/sh
once() {{
    case $1 in
    {pattern})
        if [ ! -e {folder}/interfered ]; then
            : > {folder}/interfered
            {action}
        fi ;;
    esac
}}
if [ "$1" = batch ]; then
    while IFS= read -r line; do
        once "$line"
        printf '%s\\n' "$line"
    done | {program} batch
else
    exec {program} "$@"
fi
"""


class Fleet:
    """The hosts and guests. A context manager: at its end all is gone.

    :param folder: for inventories, reports and what Ansible leaves.
    :param guests: as :data:`GUESTS`.
    """

    def __init__(self, folder: Path, guests: Guests | None = None) -> None:
        self.folder = folder
        (folder / "ansible.cfg").touch()
        self.hosts: dict[str, SshHost] = {}
        #: By short name; libvirt's names are these and a random part.
        self.guests: dict[str, Guest] = {}
        self._stack = ExitStack()
        try:
            wanted = GUESTS if guests is None else guests
            for name in wanted:
                self.hosts[name] = self._stack.enter_context(SshHost(name))
            with ThreadPoolExecutor(max_workers=2) as pool:
                booting = {
                    short: pool.submit(_guest, self.hosts[name], short, config)
                    for name, of_host in wanted.items()
                    for short, config in of_host.items()
                }
            for short, future in booting.items():
                self.guests[short] = self._stack.enter_context(future.result())
        except BaseException:
            self.close()
            raise

    def play(
        self,
        playbook: str,
        *,
        hosts: dict[str, dict[str, Any]] | None = None,
        timeout: float = 280,
        show: bool = False,
        **variables: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a playbook of the collection on all hosts, ``variables`` given with ``-e``.

        :param hosts: more variables of single hosts.
        :param show: let it print, instead of catching what it prints.
        """
        inventory = self.folder / "hosts.json"
        inventory.write_text(json.dumps(self.inventory(hosts or {})))
        command: list[str] = [str(BIN / "ansible-playbook"), "-i", str(inventory)]
        command += [f"virtintrospect.fleet.{playbook}", "-e", json.dumps(variables)]
        return subprocess.run(
            command, env=self.environment(), cwd=self.folder, timeout=timeout,
            capture_output=not show, text=True, check=False,
        )  # fmt: skip

    def inventory(self, more: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The hosts as an inventory of Ansible."""
        common = {
            "ansible_python_interpreter": sys.executable,
            "virtintrospect_executable": str(BIN / "virt-introspect"),
        }
        hosts = {
            name: {**common, **host.variables, **more.get(name, {})}
            for name, host in self.hosts.items()
        }
        return {"all": {"hosts": hosts}}

    def environment(self) -> dict[str, str]:
        """The environment of Ansible, so that nothing of the user's gets in."""
        own = {
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "ansible"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=15s",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
            "LC_ALL": "C.UTF-8",
        }
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        return kept | own

    def interfere(self, host: str, words: Sequence[str], action: str) -> dict[str, Any]:
        """Variables that make a host do something when a command with these words comes to it."""
        folder = self.hosts[host].folder
        (folder / "interfered").unlink(missing_ok=True)
        script = folder / "virt-introspect"
        pattern = "".join(f"*'\"{word}\"'" for word in words) + "*"
        program = BIN / "virt-introspect"
        text = _INTERFERING.format(pattern=pattern, folder=folder, action=action, program=program)
        script.write_text(text)
        script.chmod(0o755)
        return {"virtintrospect_executable": str(script)}

    def close(self) -> None:
        """End all of it."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _guest(host: SshHost, short: str, config: Config | None) -> Guest:
    """A guest; a second one where the first does not come up, as happens on a busy machine.

    What it is to show is the fleet, not how an emulated guest boots.
    """
    try:
        return _booted(host, short, config)
    except GuestError as error:
        print(f"{short}: booted anew, since {error}", file=sys.stderr)
        return _booted(host, short, config)


def _booted(host: SshHost, short: str, config: Config | None) -> Guest:
    # Control groups are the machine's: two fleets must not have guests of one name.
    name = f"{short}-{os.urandom(2).hex()}"
    only = config is None
    return Guest(config, name=name, private=host.private, firmware_only=only, patience=PATIENCE)
