"""The hook with folders of a test, and what it left there."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from virtintrospect.plugin import source
from virtintrospect.plugin.source import NAME, Places

UUID = "0f3a1f6e-8a52-4c3b-9c1d-0123456789ab"
SECRET = "correct-horse-battery-staple"
XML = f"""<domain type='kvm' id='7'>
  <name>web01</name>
  <uuid>{UUID}</uuid>
  <devices><graphics type='vnc' port='-1' passwd='{SECRET}'/></devices>
</domain>
""".encode()
STARTED = ("web01", "started", "begin", "-")
#: Seconds that the hook has, and that it waits for the XML and its rest.
_LIMITS = b"LIMIT, XML_LIMIT, REST_LIMIT = 0.15, 0.06, 0.03\n"
_PATIENT = b"LIMIT, XML_LIMIT, REST_LIMIT = 30.0, 2.0, 0.03\n"


def patient(text: bytes) -> bytes:
    """The hook for tests of what it tells: on a loaded machine its own limits cost a message."""
    assert text.count(_LIMITS) == 1
    return text.replace(_LIMITS, _PATIENT)


class Script:
    """A hook of its own, in a folder of the test.

    :param hurried: with the limits that it is shipped with, else it is :func:`patient`.
    """

    def __init__(self, folder: Path, *, driver: str = "qemu", hurried: bool = False) -> None:
        self.places = Places(folder / "run", folder / "lib" / "spool")
        self.places.run.mkdir()
        self.places.spool.mkdir(parents=True)
        self.places.spool.chmod(0o700)
        self.path = folder / "hooks" / f"{driver}.d" / NAME
        self.path.parent.mkdir(parents=True)
        text = source.shipped() if hurried else patient(source.shipped())
        self.path.write_bytes(source.with_places(text, self.places))
        self.path.chmod(0o755)

    def __call__(
        self,
        *arguments: str | bytes,
        stdin: bytes | int = XML,
        through: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Call it as libvirt does: it must end with status 0, and say nothing.

        It is waited for until nobody has its standard output open any more.

        :param through: a command that runs it.
        """
        options["input" if isinstance(stdin, bytes) else "stdin"] = stdin
        done: subprocess.CompletedProcess[Any] = subprocess.run(
            [*through, str(self.path), *arguments],
            capture_output=True, timeout=60, check=False, **options,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

    def listen(self) -> socket.socket:
        """A daemon's socket."""
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(str(self.places.run / "hook.sock"))
        receiver.settimeout(30)
        return receiver

    def spooled(self) -> list[dict[str, Any]]:
        """The events in the spool, oldest first; nothing else may be there."""
        paths = sorted(self.places.spool.iterdir())
        assert all(path.suffix == ".json" and path.name[0] != "." for path in paths), paths
        assert all(path.stat().st_size <= 4096 for path in paths)
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def soon(action: Callable[[], object], seconds: float = 0.2, tries: int = 40) -> bool:
    """Whether an action can be done in this time; a loaded machine gets many tries."""
    for _ in range(tries):
        started = time.monotonic()
        action()
        if time.monotonic() - started < seconds:
            return True
    return False
