"""What a target says that it can do, and what is said where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from virtintrospect_kvm.driver import KvmTarget
from virtintrospect_kvm.memory import KvmMemory

from virtintrospect.cli.main import run
from virtintrospect.driver import Access, Capability, Target
from virtintrospect.errors import UnsupportedError
from virtintrospect.imagetarget import CoreTarget, ImageTarget, open_image_target
from virtintrospect.memory import PhysicalMemory
from virtintrospect.memory.avml import AvmlImage
from virtintrospect.memory.file import FileImage
from virtintrospect.memory.kdump import KdumpImage
from virtintrospect.memory.qemustream import StreamImage
from virtintrospect.session import Session


def of(memory: type[PhysicalMemory]) -> Target:
    """An image target of such a memory, without a file."""
    target = ImageTarget.__new__(ImageTarget)
    target._memory = memory.__new__(memory)
    return target


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (FileImage, set()),
        (StreamImage, set()),
        (KdumpImage, {Capability.GATHER}),
        (AvmlImage, {Capability.GATHER}),
    ],
)
def test_of_image_formats(memory: type[PhysicalMemory], expected: set[Capability]) -> None:
    assert of(memory).capabilities() == expected


def test_of_a_raw_file(tmp_path: Path) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(1 << 20))
    with open_image_target(path) as target:
        assert target.capabilities() == set()
        with pytest.raises(UnsupportedError, match="image cannot read registers") as caught:
            target.require(Capability.REGISTERS)
    assert caught.value.exit_code == 2
    assert "virsh dump --memory-only" in caught.value.hint


def test_registers_are_those_of_notes() -> None:
    target = CoreTarget(FileImage.__new__(FileImage), [{"rip": 1}])
    assert target.capabilities() == {Capability.REGISTERS}
    target.require(Capability.REGISTERS)


@pytest.mark.parametrize("windows", [True, False])
def test_of_kvm(*, windows: bool) -> None:
    target = KvmTarget.__new__(KvmTarget)
    target._memory, target._windows = KvmMemory.__new__(KvmMemory), windows
    target.transport = "kvm-mmap" if windows else "kvm-process"
    assert target.capabilities() == {Capability.GATHER} | ({Capability.VIEW} if windows else set())
    for what in (Capability.WRITE, Capability.PAUSE, Capability.SET_REGISTERS, Capability.EVENTS):
        with pytest.raises(UnsupportedError, match=f"{target.transport} cannot"):
            target.require(what)


def test_command_on_what_has_no_registers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(1 << 20))
    assert run(["registers", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cannot read registers" in captured.err
    assert "virsh dump --memory-only" in captured.err


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def opened(name: str, uri: str | None, access: Access) -> Session:  # noqa: ARG001
        values = [{"rip": 1}, {"rip": 2, "cr3": 3}]
        return Session(CoreTarget(FileImage.__new__(FileImage), values))

    monkeypatch.setattr("virtintrospect.session.open_session", opened)
    monkeypatch.setattr(FileImage, "close", lambda _: None)
    assert run(["-o", "json", "registers", "./core"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["vcpu"] for row in rows] == [0, 1, 1]
    assert {row["register"] for row in rows} == {"rip", "cr3"}
    assert run(["-o", "json", "registers", "./core", "--vcpu", "1"]) == 0
    assert [row["vcpu"] for row in json.loads(capsys.readouterr().out)] == [1, 1]
    assert run(["registers", "./core", "--vcpu", "2"]) == 3
    for arguments, word in (
        (["--set", "rax=1"], "--set needs --vcpu"),
        (["--set", "rax", "--vcpu", "0"], "sets no register"),
        (["--set", "=1", "--vcpu", "0"], "sets no register"),
        (["--set", "rax=x", "--vcpu", "0"], "is no value"),
        (["--set", "rax=1", "--vcpu", "0"], "cannot change registers"),
    ):
        capsys.readouterr()
        assert run(["registers", "./core", *arguments]) == 2
        assert word in capsys.readouterr().err
