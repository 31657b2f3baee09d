"""The socket against clients that mean no good, and the client against such daemons."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from virtintrospect.cli.output import human_value, plain_value
from virtintrospect.client import Client, RemoteError, UnavailableError, decode
from virtintrospect.insight.columns import Column, Table, Unit

from .running import PROGRAM, Running, eventually, running

#: A libvirt that is not there: the socket must not care.
NOWHERE = "qemu+unix:///system?socket=/nowhere/libvirt-sock"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon without libvirt, and with little patience."""
    limits = {"connections": 20, "idle_seconds": 3.0, "write_seconds": 1.0}
    with running(tmp_path_factory.mktemp("lonely"), NOWHERE, socket=limits) as daemon:
        yield daemon


def connected(daemon: Running) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(30)
    channel.connect(daemon.socket)
    return channel


def lines(channel: socket.socket) -> list[Any]:
    """All that comes until the daemon hangs up."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while got := channel.recv(65536):
            data += got
    return [json.loads(line) for line in data.splitlines()]


def test_answers_without_libvirt(lonely: Running) -> None:
    answer = lonely.ask("sessions")
    assert answer["rows"] == []
    assert answer["libvirt"] is False
    assert "the daemon waits for libvirt" in lonely.command("sessions").stderr


@pytest.mark.parametrize(
    "data",
    [
        b"x\n", b"\0\xff\xfe\n", b"[]\n", b"null\n", b"{}\n", b"[" * 60_000 + b"\n",
        b'{"id":{},"method":"sessions"}\n', b'{"id":1,"method":[]}\n',
        b'{"id":1,"method":"sessions","params":[]}\n', b'{"id":1,"method":"nothing"}\n',
        b'{"id":1,"method":"table"}\n', b'{"id":1,"method":"table","params":{"domain":5}}\n',
        b'{"id":1,"method":"table","params":{"domain":"x","table":"ps","arguments":{"a":1}}}\n',
        b'{"id":1,"method":"table","params":{"domain":"x","table":"ps","arguments":[]}}\n',
        b'{"id":1,"method":"table","params":{"domain":"x","table":"\\ud800"}}\n',
        b'{"id":"\\ud800","method":"detach","params":{"domain":"\\u0000"}}\n',
        b'{"id":1,"method":"detach","params":{"domain":"' + b"x" * 9000 + b'"}}\n',
        b'{"id":1e999,"method":"sessions"}\n', b'{"id":' + b"9" * 10_000 + b"}\n",
    ],
)  # fmt: skip
def test_nonsense_is_answered_with_an_error(lonely: Running, data: bytes) -> None:
    with connected(lonely) as channel:
        channel.sendall(data)
        channel.shutdown(socket.SHUT_WR)
        greeting, *answers = lines(channel)
    assert greeting["protocol"] == 1
    assert all(answer["error"]["kind"] for answer in answers)
    assert len(answers) == 1
    assert "Traceback" not in lonely.text()


def test_endless_line_is_cut_short(lonely: Running) -> None:
    with connected(lonely) as channel:
        with contextlib.suppress(OSError):
            for _ in range(64):
                channel.sendall(b"a" * 65536)
        assert all("error" in line or "protocol" in line for line in lines(channel))


def test_half_a_line_is_not_waited_for(lonely: Running) -> None:
    with connected(lonely) as channel:
        channel.sendall(b'{"id":1,')
        assert len(lines(channel)) == 1  # the greeting; then it hangs up


def test_many_connections(lonely: Running) -> None:
    """Those above the limit are told; afterwards all is as before."""
    before = len(list(Path(f"/proc/{lonely.pid}/fd").iterdir()))
    began, channels = time.monotonic(), []
    for _ in range(300):
        with contextlib.suppress(BlockingIOError, TimeoutError):
            channels.append(connected(lonely))
    refused = 0
    for channel in channels:
        refused += any(line.get("error", {}).get("kind") == "busy" for line in lines(channel))
        channel.close()
    assert len(channels) > 100
    # 20 at a time, each of which is idle for too long after three seconds.
    taken = 20 * (2 + int((time.monotonic() - began) / 3))
    assert refused >= len(channels) - taken
    assert eventually(lambda: lonely.ask("sessions"))["rows"] == []
    eventually(lambda: len(list(Path(f"/proc/{lonely.pid}/fd").iterdir())) <= before)


def test_slow_reader_is_dropped(lonely: Running) -> None:
    """It asks for more and more and never reads."""
    with connected(lonely) as channel:
        channel.settimeout(0.5)
        question = b'{"id":1,"method":"%s"}\n' % (b"x" * 30_000)

        def dropped() -> bool:
            try:
                channel.send(question)
            except TimeoutError:
                return False
            except OSError:
                return True
            return False

        eventually(dropped)
    assert lonely.ask("sessions")["rows"] == []


def test_client_without_rights(lonely: Running) -> None:
    program = f"""
import os
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from virtintrospect.client import Client, UnavailableError
try:
    Client({lonely.socket!r})
except UnavailableError as error:
    print(error.exit_code, error.message)
"""
    lonely.run.parent.chmod(0o755)
    for folder in (lonely.run.parent, *lonely.run.parent.parents):
        if folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    # The modules are imported before the rights are given away: see test_life.py.
    program = "import virtintrospect.client, virtintrospect.errors\n" + program
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("4 virt-introspectd does not answer user 65534")
    assert "refused pid=" in lonely.text()


def test_user_who_is_allowed(tmp_path: Path) -> None:
    with running(tmp_path, NOWHERE, socket={"users": ["65534", "no-such-user"]}) as daemon:
        for folder in (tmp_path, *tmp_path.parents):
            if folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o011)
        program = (
            "import os, virtintrospect.client, virtintrospect.errors\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            f"with virtintrospect.client.Client({daemon.socket!r}) as client:\n"
            "    print(client.ask('sessions')['rows'])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"
        assert "no user 'no-such-user'" in daemon.text()


def test_second_daemon_is_refused(lonely: Running) -> None:
    done = subprocess.run(
        [*PROGRAM, "--config", str(lonely.config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"another virt-introspectd runs (PID {lonely.pid})" in done.stderr
    assert lonely.ask("sessions")["rows"] == []


def test_sigkill_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    with running(tmp_path, NOWHERE) as daemon:
        for _ in range(3):
            daemon.stop(signal.SIGKILL)
            assert Path(daemon.socket).exists()
            daemon.start()
        assert daemon.stop() == 0
        assert [path.name for path in daemon.run.iterdir()] == ["daemon.lock"]
    assert re.search(r"^<6>started version=", daemon.text(), re.MULTILINE)


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        with running(tmp_path / "daemon", NOWHERE) as daemon:
            assert systemd.recv(4096) == b"READY=1"
            for _ in range(3):
                said = systemd.recv(4096)
                assert b"WATCHDOG=1\nSTATUS=no sessions; waiting for libvirt" in said
            daemon.stop()
            while systemd.recv(4096) != b"STOPPING=1":
                pass


# -- daemons that are none ------------------------------------------------------------------


@contextlib.contextmanager
def impostor(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                channel, _ = listener.accept()
                with channel:
                    serve(channel)

        threading.Thread(target=accept, daemon=True).start()
        yield str(path)


GREETING = b'{"protocol":1}\n'


@pytest.mark.parametrize(
    "said",
    [
        b"", b"\n", b"[]\n", b"nonsense\n", b'{"protocol":2}\n', b"[" * 100_000 + b"\n",
        GREETING, GREETING + b'{"id":1,"rows":[', GREETING + b'{"error":5}\n',
        GREETING + b'{"error":{"kind":"not-ready","message":"m","because":7}}\n',
        GREETING + b'{"rows":[{"pid":1}]}\n',
    ],
)  # fmt: skip
def test_client_gives_up_on_nonsense(tmp_path: Path, said: bytes) -> None:
    with (
        impostor(tmp_path / "s", lambda channel: channel.sendall(said)) as path,
        pytest.raises(UnavailableError),
        Client(path) as client,
    ):
        client.ask("sessions")


def test_client_does_not_wait_for_a_daemon_that_hangs(tmp_path: Path) -> None:
    done = threading.Event()

    def hang(_: socket.socket) -> None:
        done.wait(60)

    with impostor(tmp_path / "s", hang) as path:
        start = time.monotonic()
        with pytest.raises(UnavailableError, match=r"no answer in time|timed out"):
            Client(path)
        assert time.monotonic() - start < 30
        done.set()


def test_errors_of_the_guest_come_as_they_are(tmp_path: Path) -> None:
    error = {"kind": "guest", "message": "m", "hint": "h", "exit_code": 3, "because": ["a", "b"]}

    def serve(channel: socket.socket) -> None:
        channel.sendall(GREETING)
        channel.recv(4096)
        channel.sendall(json.dumps({"id": 1, "error": error}).encode() + b"\n")

    with (
        impostor(tmp_path / "s", serve) as path,
        Client(path) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.ask("table")
    assert not isinstance(caught.value, UnavailableError)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("m", "h", 3)
    cause = caught.value.__cause__
    assert cause is not None
    assert (str(cause), str(cause.__cause__)) == ("a", "b")


@pytest.mark.parametrize("unit", Unit)
def test_every_kind_of_value_comes_through(unit: Unit) -> None:
    value = {
        Unit.TEXT: b"a\x1b\xff", Unit.HEX: b"\1\2", Unit.LIST: (b"a", "b", 3), Unit.FLAG: True,
        Unit.REAL: 0.1, Unit.SECONDS: 1.5,
    }.get(unit, 1 << 63)  # fmt: skip
    table = Table("t", (Column("c", unit),))
    told = json.loads(json.dumps({"c": plain_value(unit, value)}))
    found = decode(table, told)["c"]
    assert plain_value(unit, found) == plain_value(unit, value)
    assert human_value(unit, found) == human_value(unit, value)
