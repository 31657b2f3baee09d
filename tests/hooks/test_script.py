"""The hook run directly: whatever is broken, it ends in time, with status 0 and no word.

Each rule of libvirt's hooks has its test. :meth:`Script.__call__` asserts the status and the
silence of every call here.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from virtintrospect.plugin import source

from .script import SECRET, STARTED, UUID, XML, Script, soon

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="mounts and users need root")
TREE = Path(__file__).parents[2] / "hooks"


@pytest.fixture
def hook(tmp_path: Path) -> Script:
    return Script(tmp_path)


@pytest.fixture
def hurried(tmp_path: Path) -> Script:
    """One that has as little time as in use: to see that it ends, not that it tells."""
    folder = tmp_path / "hurried"
    folder.mkdir()
    return Script(folder, hurried=True)


def _mounted(hook: Script, options: str, then: str = "") -> list[str]:
    """Words that run the hook with a tmpfs of its own for a spool."""
    script = f'mount -t tmpfs -o {options} tmpfs "$0" && {{ {then or ":"}; }} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(hook.places.spool)]


# -- what it tells --------------------------------------------------------------------------


def test_a_listening_daemon_gets_one_datagram(hook: Script) -> None:
    with hook.listen() as receiver:
        before = time.time()
        hook(*STARTED)
        message = json.loads(receiver.recv(65536))
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(65536)
    assert before - 1 < message.pop("time") < time.time() + 1
    assert message == {
        "version": 1, "driver": "qemu", "domain": "web01", "uuid": UUID,
        "operation": "started", "suboperation": "begin", "extra": "-",
    }  # fmt: skip
    assert hook.spooled() == []


def test_without_a_daemon_it_is_a_file(hook: Script) -> None:
    hook(*STARTED)
    (message,) = hook.spooled()
    assert message["domain"] == "web01"
    assert message["uuid"] == UUID
    (path,) = hook.places.spool.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    nanoseconds, pid = path.stem.split("-")
    assert abs(int(nanoseconds) / 1e9 - time.time()) < 60
    assert pid.isdecimal()


def test_xen_is_told_by_the_folder(tmp_path: Path) -> None:
    hook = Script(tmp_path, driver="libxl")
    hook("dom1", "started", "begin", "-")
    assert hook.spooled()[0]["driver"] == "xen"


@pytest.mark.parametrize("operation", ["started", "stopped", "reconnect", "migrate", "restore",
                                       "attach", "something-new"])  # fmt: skip
def test_operations_that_are_told(hook: Script, operation: str) -> None:
    hook("web01", operation, "begin", "migrated")
    (message,) = hook.spooled()
    assert (message["operation"], message["extra"]) == (operation, "migrated")


@pytest.mark.parametrize("operation", ["prepare", "start", "release"])
def test_operations_without_a_guest_cost_no_python(hook: Script, operation: str) -> None:
    hook("web01", operation, "begin", "-", stdin=b"")
    assert hook.spooled() == []


def test_the_stamp_says_when_it_ran(hook: Script) -> None:
    hook(*STARTED)
    assert not hook.places.stamp.exists()
    hook.places.stamp.touch()
    os.utime(hook.places.stamp, (0, 0))
    hook(*STARTED)
    assert time.time() - hook.places.stamp.stat().st_mtime < 60


@pytest.mark.parametrize(
    "name",
    ['we"b\\', "line\nfeed\x1b[31m\x7f\t", "ünï-文字-\U0001f40d", b"\xff\xfe\x80raw", "",
     "x" * 3000, "\x01" * 3000, "\U0001f40d" * 3000],
)  # fmt: skip
def test_any_name_makes_valid_json(hook: Script, name: str | bytes) -> None:
    hook(name, "started", "begin", name)
    (message,) = hook.spooled()
    text = name if isinstance(name, str) else name.decode("utf-8", "replace")
    assert text.startswith(message["domain"])
    assert len(message["domain"]) in (len(text), 256, 64)


@pytest.mark.parametrize(
    "xml",
    [b"", b"\0" * 100, b"<uuid>", b"<uuid>short</uuid>", b"<uuid>" + b"z" * 36 + b"</uuid>",
     b"<uuid>" + b'"' * 36 + b"</uuid>", b" " * 70000 + XML, os.urandom(100_000), b"\xff" * 5],
)  # fmt: skip
def test_xml_that_is_none_costs_the_uuid_only(hook: Script, xml: bytes) -> None:
    hook(*STARTED, stdin=xml)
    (message,) = hook.spooled()
    assert "uuid" not in message
    assert message["domain"] == "web01"


def test_nothing_of_the_xml_but_the_uuid_is_kept(hook: Script) -> None:
    """The XML of a migration has passwords."""
    with hook.listen() as receiver:
        hook("web01", "migrate", "begin", "-")
        sent = receiver.recv(65536)
    hook("web01", "migrate", "begin", "-")
    (path,) = hook.places.spool.iterdir()
    for text in (sent, path.read_bytes()):
        assert UUID.encode() in text
        assert SECRET.encode() not in text
        assert b"graphics" not in text


# -- what may be broken ---------------------------------------------------------------------


def test_full_socket(hook: Script) -> None:
    with hook.listen(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"x", str(hook.places.run / "hook.sock"))
        hook(*STARTED)
    assert len(hook.spooled()) == 1


def test_socket_of_somebody_who_is_gone(hook: Script) -> None:
    hook.listen().close()
    hook(*STARTED)
    assert len(hook.spooled()) == 1


def test_something_else_for_a_socket(hook: Script) -> None:
    (hook.places.run / "hook.sock").write_text("no socket")
    hook(*STARTED)
    assert len(hook.spooled()) == 1
    assert (hook.places.run / "hook.sock").read_text() == "no socket"


def test_full_spool(hook: Script) -> None:
    for number in range(999):
        (hook.places.spool / f"{number}-1.json").write_text("{}")
    hook(*STARTED)
    assert len(hook.spooled()) == 1000
    hook(*STARTED)
    assert len(hook.spooled()) == 1000


def test_no_spool_and_none_is_made(hook: Script) -> None:
    hook.places.spool.rmdir()
    hook(*STARTED)
    assert not hook.places.spool.exists()


def test_spool_that_is_a_link_is_not_followed(hook: Script, tmp_path: Path) -> None:
    hook.places.spool.rmdir()
    (tmp_path / "elsewhere").mkdir()
    hook.places.spool.symlink_to(tmp_path / "elsewhere")
    hook(*STARTED)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_file_size_limit_leaves_no_half_file(hook: Script) -> None:
    hook(*STARTED, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)))
    assert hook.spooled() == []


@needs_root
@pytest.mark.parametrize("options", ["size=4k", "nr_inodes=2"])
def test_full_disk(hook: Script, options: str) -> None:
    """What is in the spool then is looked at by a second command in the same namespace."""
    seen = hook.places.run / "seen"
    fill = 'dd if=/dev/zero of="$0/fill" bs=4k count=1 2>/dev/null'
    keep = f'"$@"; echo $? >{seen}; ls -A "$0" >>{seen}; set -- true'
    hook(*STARTED, through=_mounted(hook, options, f"{fill}; {keep}"))
    assert seen.read_text().split() == ["0", "fill"]


@needs_root
def test_read_only_disk(hook: Script) -> None:
    hook(*STARTED, through=_mounted(hook, "ro"))


@needs_root
def test_hanging_disk(hurried: Script) -> None:
    """A file system that never answers: only the thread that watches ends such a wait."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no FUSE here")

    def call() -> None:
        device = os.open("/dev/fuse", os.O_RDWR)
        mount = (f'mount -i -t fuse -o fd={device},rootmode=40000,user_id=0,group_id=0 hang "$0" '
                 '&& exec "$@"')  # fmt: skip
        through = ["unshare", "--mount", "sh", "-c", mount, str(hurried.places.spool)]
        hurried(*STARTED, through=through, pass_fds=[device])
        os.close(device)

    assert soon(call, 0.4)


@needs_root
def test_unprivileged_user(hook: Script, tmp_path: Path) -> None:
    """libvirt in session mode runs the same hooks."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005 and folder.is_relative_to(tempfile.gettempdir()):
            folder.chmod(0o755)
    hook(*STARTED, user=65534, group=65534, extra_groups=[])
    assert hook.spooled() == []


@pytest.mark.parametrize("arguments", [(), ("web01",), ("web01", "started"), STARTED + STARTED,
                                       ("", "", "", ""), ("-c", "-h", "--help", "-x")])  # fmt: skip
def test_wrong_arguments(hook: Script, arguments: tuple[str, ...]) -> None:
    hook(*arguments)
    assert len(hook.spooled()) == 1


def test_no_environment(hook: Script) -> None:
    hook(*STARTED, env={})
    assert len(hook.spooled()) == 1


def test_environment_does_not_lead_it_astray(hook: Script, tmp_path: Path) -> None:
    (tmp_path / "time.py").write_text("raise SystemExit(3)")
    (tmp_path / "select.py").write_text("raise SystemExit(3)")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(3)")
    hook(*STARTED, cwd=tmp_path, env={
        "PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "/nowhere",
        "PYTHONWARNINGS": "error", "PYTHONVERBOSE": "9", "PATH": "/nowhere", "LC_ALL": "xx",
    })  # fmt: skip
    assert len(hook.spooled()) == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_closed_descriptors(hook: Script, closed: str) -> None:
    hook(*STARTED, through=["sh", "-c", f'"$@" {closed}', "sh"])
    assert len(hook.spooled()) == 1


@pytest.mark.parametrize("how", [signal.SIG_IGN, signal.SIG_DFL])
def test_signals_that_are_ignored_or_blocked(hook: Script, how: signal.Handlers) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGALRM, how)
        signal.signal(signal.SIGPIPE, how)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))

    read, write = os.pipe()
    hook(*STARTED, stdin=read, preexec_fn=prepare)
    os.close(read)
    os.close(write)
    assert len(hook.spooled()) == 1


# -- standard input -------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[int]:
    """A pipe that says nothing and does not end."""
    read, write = os.pipe()
    yield read
    os.close(read)
    os.close(write)


def test_silent_input_is_not_waited_for(hook: Script, hurried: Script, silent: int) -> None:
    assert soon(lambda: hurried(*STARTED, stdin=silent))
    hook(*STARTED, stdin=silent)
    assert "uuid" not in hook.spooled()[0]


def test_endless_input(hook: Script, hurried: Script) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        assert soon(lambda: hurried(*STARTED, stdin=zeros.fileno()))
        hook(*STARTED, stdin=zeros.fileno())
    assert hook.spooled()


def test_input_that_does_not_end_but_has_the_uuid(hook: Script) -> None:
    read, write = os.pipe()
    os.write(write, XML)
    hook(*STARTED, stdin=read)
    os.close(write)
    os.close(read)
    assert hook.spooled()[0]["uuid"] == UUID


def test_huge_input_is_taken(hook: Script) -> None:
    """libvirt need not see a broken pipe."""
    read, write = os.pipe()
    os.write(write, XML)
    process = subprocess.Popen([hook.path, *STARTED], stdin=read)
    os.close(read)
    with contextlib.suppress(BrokenPipeError):  # it has little time on a loaded machine
        for _ in range(64):
            os.write(write, b" " * 65536)
    os.close(write)
    assert process.wait(60) == 0
    assert hook.spooled()[0]["uuid"] == UUID


def test_a_folder_for_input(hook: Script, tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    hook(*STARTED, stdin=descriptor)
    os.close(descriptor)


# -- the process ----------------------------------------------------------------------------


def test_parallel_calls_lose_nothing(hook: Script) -> None:
    """libvirt's ``reconnect`` hooks run at the same time."""
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: hook(f"guest{n}", "reconnect", "begin", "-"), range(36)))
    assert {message["domain"] for message in hook.spooled()} == {f"guest{n}" for n in range(36)}


def test_no_child_is_left(hook: Script, silent: int) -> None:
    """Nobody keeps a descriptor open after it has ended."""
    read, write = os.pipe()
    for stdin in (b"", silent):
        hook(*STARTED, stdin=stdin, pass_fds=[write])
    os.close(write)
    os.set_blocking(read, False)
    assert os.read(read, 1) == b""
    os.close(read)


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false", "/bin/sh", "/etc/passwd"])
def test_python_is_missing_or_broken(hook: Script, python: str) -> None:
    text = hook.path.read_text().replace("/usr/bin/python3", python)
    hook.path.write_text(text)
    hook(*STARTED)
    assert hook.spooled() == []


def test_python_that_dies_of_a_signal(hook: Script, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(0o755)
    hook.path.write_text(hook.path.read_text().replace("/usr/bin/python3", str(python)))
    done = subprocess.run([hook.path, *STARTED], input=XML, check=False, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")


def test_no_memory(hook: Script) -> None:
    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 20, 8 << 20))

    done = subprocess.run([hook.path, *STARTED], input=XML, check=False, capture_output=True,
                          preexec_fn=starve)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"")


# -- the file -------------------------------------------------------------------------------


def test_it_can_end_within_its_time(hurried: Script) -> None:
    assert soon(lambda: hurried(*STARTED))


def test_both_drivers_have_the_same_executable() -> None:
    paths = [TREE / f"{driver}.d" / source.NAME for driver in ("qemu", "libxl")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o755 == 0o755 for path in paths)


def test_it_is_python_of_old_releases_too() -> None:
    text = (TREE / "qemu.d" / source.NAME).read_text()
    tree = ast.parse(text, feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                for alias in node.names}  # fmt: skip
    assert imported == {"os", "select", "sys", "time", "_signal", "_socket", "_thread"}
    assert all(not isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
    assert sys.version_info >= (3, 11)


@pytest.mark.parametrize("python", ["3.9", "3.10", "3.12", "3.13", "3.14"])
def test_it_runs_under_other_pythons(hook: Script, python: str) -> None:
    found = sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python3"))
    if not found:
        pytest.skip(f"no Python {python} here")
    hook.path.write_text(hook.path.read_text().replace("/usr/bin/python3", str(found[-1])))
    hook(*STARTED)
    assert hook.spooled()[0]["uuid"] == UUID
