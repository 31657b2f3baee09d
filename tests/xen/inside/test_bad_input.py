"""What goes wrong at a real Xen: one line each, its exit code, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from virtintrospect_xen import calls
from virtintrospect_xen.driver import XenDriver
from virtintrospect_xen.target import XenTarget

from tests.daemon.running import COMMAND
from tests.xen.lab.guest import XenConfig, XenGuest, xl
from virtintrospect.cli.main import run
from virtintrospect.errors import (
    MemoryAccessError,
    NoSuchTargetError,
    TargetGoneError,
    VirtIntrospectError,
)

_NOBODY = "65534"
_PATIENCE = 120.0


@pytest.fixture(autouse=True)
def _nothing_stays(guest: XenGuest) -> object:
    before = _foreign()
    yield
    assert _foreign() <= before  # of an earlier test's some may go at any moment
    assert guest.domain.state()[0] == 1


def _foreign() -> int:
    """Mappings of other domains' memory that this process has."""
    return Path("/proc/self/maps").read_text().count("privcmd")


def _one_line(words: list[str], capsys: pytest.CaptureFixture[str], code: int, says: str) -> None:
    """A command in this process: it fails with this code, and one line that says so."""
    assert run([*words, "--no-daemon"]) == code
    out, said = capsys.readouterr()
    assert not out
    assert says in said
    assert said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("xen:4711", 3, "Xen has no domain '4711'"),
        ("xen:nobody", 3, "Xen has no domain 'nobody'"),
        ("xen:-1", 3, "'-1'"),
        ("xen:99999999999", 3, "99999999999"),
        ("xen:", 2, "names no domain"),
        ("xen:0", 2, "domain 0 is the one that looks"),
        ("xen:Domain-0", 2, "domain 0 is the one that looks"),
    ],
)
def test_names(target: str, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    _one_line(["ps", target], capsys, code, says)


def test_no_privilege(guest: XenGuest) -> None:
    """Somebody who is not root."""
    number = f"xen:{guest.domid}"
    for words in (["ps", guest.name], ["ps", number], ["-c", "xen:", "list"]):
        done = subprocess.run(
            ["setpriv", "--reuid", _NOBODY, "--clear-groups", COMMAND, *words],
            capture_output=True, text=True, timeout=200, check=False,
            env={**os.environ, "HOME": "/nonexistent"},
        )  # fmt: skip
        assert done.returncode == 4, done
        assert done.stderr.count("\n") == 1, done.stderr
        assert "root" in done.stderr


def test_an_interface_of_another_version(
    guest: XenGuest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This Xen, asked as one that is newer or older would be: it refuses every number."""
    monkeypatch.setattr(calls, "_VERSIONS", (0x7E, 0x7F))
    _one_line(["ps", guest.name], capsys, 4, "a version of its control interface")


def test_a_library_that_is_missing(
    guest: XenGuest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from virtintrospect_xen import bindings

    monkeypatch.setattr(bindings, "_CALL", "libxencall.so.99")
    monkeypatch.setitem(bindings._PACKAGES, "libxencall.so.99", "libxencall99")
    bindings.hypercalls.cache_clear()
    _one_line(["ps", guest.name], capsys, 4, "libxencall.so.99 cannot be loaded")
    bindings.hypercalls.cache_clear()


def test_frames_beyond_the_end(guest: XenGuest, capsys: pytest.CaptureFixture[str]) -> None:
    for paddr in ("0x10000000000", "0xfffffffffffff000"):
        _one_line(["read", guest.name, paddr, "--physical"], capsys, 4, paddr)


def test_it_dies_between_two_calls(guest: XenGuest) -> None:
    """A domain that runs, and is destroyed while it is looked at, by another way each time."""
    config = XenConfig(guest.config.kind, guest.config.kernel, ram_mib=128)
    with XenGuest(config, wait=False) as short:
        target = _opened(short)
        with target:
            assert len(target.memory.read(0x1000, 64)) == 64
            xl("destroy", str(short.domid))
            time.sleep(0.1)
            for look in (
                lambda: target.memory.read(0x200000, 64),
                lambda: target.memory.gather([0x300000, 0x400000], 8),
                lambda: target.memory.mapped(0x1000),
                lambda: target.registers(0),
                target.check,
                target.pause,
            ):
                with pytest.raises((TargetGoneError, NoSuchTargetError, MemoryAccessError)):
                    look()
        deadline = time.monotonic() + _PATIENCE
        while str(short.domid) in [line.split()[1] for line in xl("list").splitlines()[1:]]:
            assert time.monotonic() < deadline, xl("list")
            time.sleep(0.2)


def _opened(guest: XenGuest) -> XenTarget:
    """The guest, as soon as it has said where its memory is."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return XenDriver().open_url("xen", str(guest.domid))
        except VirtIntrospectError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_who_looks_is_killed(guest: XenGuest) -> None:
    """What it had mapped goes with it: nothing of ours outlives the process."""
    program = (
        "import os, signal; from virtintrospect_xen.driver import XenDriver\n"
        f"target = XenDriver().open_url('xen', '{guest.domid}')\n"
        "target.memory.read(0x100000, 65536); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=240)
    assert done.returncode == -9
