"""How a target is to be opened: the options of every TARGET, and who refuses what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import virtintrospect
from virtintrospect import driver as model
from virtintrospect.cli.main import cli, run
from virtintrospect.domain import Domain
from virtintrospect.driver import READ_ONLY, Access, Driver, Target, driver_for_url
from virtintrospect.errors import UsageError
from virtintrospect.memory import PhysicalMemory, Region
from virtintrospect.session import open_domain, open_session

DOMAIN = Domain("web01", "6e3d1f8a-0000-4000-8000-000000000001", 7, "running", "Paper", "paper:///")


class Paper(PhysicalMemory):
    regions = (Region(0, 0xA0000), Region(0x100000, 0x200000))

    def _read_within(self, index: int, paddr: int, size: int) -> bytes:  # noqa: ARG002
        return bytes(size)


class PaperTarget(Target):
    transport = "pencil"

    @property
    def memory(self) -> PhysicalMemory:
        return Paper()

    def close(self) -> None:
        pass


class PaperDriver(Driver):
    """Opens nothing but notes how it was asked."""

    name = "paper"
    transports = ("pencil", "ink")
    schemes = ("paper",)

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def serves(self, domain: Domain) -> bool:
        return domain.hypervisor == "Paper"

    def open(self, domain: Domain, access: Access = READ_ONLY) -> Target:
        self.asked.append((domain.name, access))
        return PaperTarget()

    def open_url(self, scheme: str, rest: str, access: Access = READ_ONLY) -> Target:
        self.asked.append((scheme, rest, access))
        return PaperTarget()


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> PaperDriver:
    found = PaperDriver()

    def drivers() -> Iterator[Driver]:
        yield found

    monkeypatch.setattr(model, "installed_drivers", drivers)
    return found


def commands_with_target() -> list[click.Command]:
    return [c for c in cli.commands.values() if any(p.name == "target" for p in c.params)]


def test_every_command_with_a_target_has_the_options() -> None:
    found = commands_with_target()
    assert len(found) > 30
    for command in found:
        names = {name for parameter in command.params for name in parameter.opts}
        assert {"--transport", "--allow-taint", "--allow-write", "--in-place"} <= names, (
            command.name
        )


def test_options_reach_the_driver(paper: PaperDriver, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["info", "--target", "paper:a:b", "--transport", "ink", "--allow-taint",
                 "--allow-write", "-o", "json"]  # fmt: skip
    assert run(arguments) == 0
    assert paper.asked == [("paper", "a:b", Access("ink", write=True, taint=True))]
    assert json.loads(capsys.readouterr().out) == {
        "transport": "pencil", "live": True, "gather": False, "view": False, "write": False,
        "registers": False, "set_registers": False, "pause": False, "events": False,
        "size": 0x1A0000, "regions": ["0x0-0xa0000", "0x100000-0x200000"],
    }  # fmt: skip


def test_default_is_read_only(paper: PaperDriver) -> None:
    open_session("paper:x").close()
    open_domain(DOMAIN).close()
    virtintrospect.open(DOMAIN, access=Access("ink")).close()
    virtintrospect.open("paper:x", access=Access(write=True)).close()
    assert paper.asked == [
        ("paper", "x", READ_ONLY), ("web01", READ_ONLY), ("web01", Access("ink")),
        ("paper", "x", Access(write=True)),
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["paper:x", DOMAIN])
def test_unknown_transport_lists_those_that_are_there(
    paper: PaperDriver, target: str | Domain
) -> None:
    with pytest.raises(UsageError, match="driver paper has no transport 'chalk'") as caught:
        virtintrospect.open(target, access=Access("chalk"))
    assert caught.value.hint == "it has: pencil, ink"
    with pytest.raises(UsageError, match="--in-place is for memory images"):
        virtintrospect.open(target, access=Access(in_place=True))
    assert paper.asked == []


def test_of_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "image.raw"
    path.write_bytes(bytes(1 << 20))
    assert run(["info", "--target", str(path), "--transport", "peek"]) == 2
    assert "a memory image has no transport 'peek'; it has: image" in capsys.readouterr().err
    assert run(["info", "--target", str(path), "--transport", "image"]) == 0
    out = capsys.readouterr().out
    assert "transport:" in out
    assert "0x0-0x100000" in out
    assert "1.0 MiB" in out


@pytest.mark.usefixtures("paper")
@pytest.mark.parametrize("target", ["web01", "./paper:x", "/paper:x", "pape:x", "paper", ":x"])
def test_what_no_driver_claims(target: str) -> None:
    assert driver_for_url(target) is None


def test_daemon_is_not_asked_for_what_the_user_wants_otherwise(
    paper: PaperDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client(*_: object) -> None:
        raise AssertionError("the daemon opens targets in its own way")

    monkeypatch.setattr("virtintrospect.cli.options.Settings.client", client)
    monkeypatch.setattr("virtintrospect.host.Host.__init__", lambda *_: None)
    monkeypatch.setattr("virtintrospect.host.Host.close", lambda _: None)
    monkeypatch.setattr("virtintrospect.host.Host.domain", lambda *_: DOMAIN)
    for options in (["--transport", "ink"], ["--allow-taint"], ["--allow-write"]):
        assert run(["modules", "web01", *options]) == 5
    assert run(["modules", "paper:web01"]) == 5
    assert len(paper.asked) == 4
