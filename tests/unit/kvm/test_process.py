"""Holding a process: real ones, with a real reused PID."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from virtintrospect_kvm.process import QemuProcess

from tests.descriptors import descriptors
from virtintrospect.errors import TargetGoneError

_WAIT = "import sys; print(flush=True); sys.stdin.read()"


def pretender(identity: str) -> subprocess.Popen[bytes]:
    """A process with ``-uuid`` on its command line, as QEMU has it."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAIT, "-uuid", identity],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_uuid_must_match() -> None:
    identity = str(uuid.uuid4())
    process = pretender(identity)
    try:
        with pytest.raises(TargetGoneError, match="-uuid differs"):
            QemuProcess(process.pid, str(uuid.uuid4()), "other")
        held = QemuProcess(process.pid, identity.upper(), "same")
        held.check()
        assert held.start_time > 0
        held.close()
    finally:
        end(process)


def test_reused_pid() -> None:
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    if not os.access(last_pid, os.W_OK):
        pytest.skip("needs the privilege to choose the next PID")
    identity = str(uuid.uuid4())
    first = pretender(identity)
    held = QemuProcess(first.pid, identity, "first")
    end(first)
    for _ in range(20):
        last_pid.write_text(str(first.pid - 1))
        second = pretender(identity)
        if second.pid == first.pid:
            break
        end(second)
    else:
        pytest.skip("the PID was taken by others each time")
    try:
        for ask in (held.check, held.descriptors, lambda: held.open_file("maps")):
            with pytest.raises(TargetGoneError, match="has ended"):
                ask()
        newer = QemuProcess(second.pid, identity, "second")
        assert newer.start_time >= held.start_time
        newer.close()
    finally:
        held.close()
        end(second)


def test_no_process() -> None:
    before = descriptors()
    process = pretender("x")
    end(process)
    with pytest.raises(TargetGoneError):
        QemuProcess(process.pid, "x", "gone")
    assert descriptors() - before == set()
