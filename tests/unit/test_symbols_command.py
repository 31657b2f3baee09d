"""``symbols import``, ``imported`` and ``forget``, and that ``symbols TARGET NAME`` goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.symbols.small_vmlinux import BANNER, BUILD_ID, small_vmlinux
from tests.unit.symbols.test_bring import MAP
from virtintrospect.cli.main import run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIRTINTROSPECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def vmlinux(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(small_vmlinux("-g")[0])
    return path


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    assert run(["-o", "json", "symbols", *map(str, arguments)]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    assert run(["symbols", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    return captured.err


def test_what_is_imported_is_shown_and_forgotten(
    vmlinux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = shown(capsys, "import", vmlinux)
    assert {row["holds"] for row in rows} == {"types", "symbols"}
    for row in rows:
        assert row["kernel"] == BUILD_ID.hex()
        assert row["release"] == "6.1.99-small"
        assert row["banner"] == BANNER
        assert (row["format"], row["source"]) == ("ELF with DWARF", "vmlinux")
        assert row["count"] > 10
    by_name = sorted(rows, key=lambda row: row["holds"])
    assert sorted(shown(capsys, "imported"), key=lambda row: row["holds"]) == by_name
    assert len(shown(capsys, "forget", "6.1.99-small")) == 2
    assert shown(capsys, "imported") == []
    assert "nothing was imported" in fails(capsys, 1, "forget", "6.1.99-small")


def test_another_import_takes_the_place_of_the_first(
    vmlinux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = shown(capsys, "import", vmlinux), shown(capsys, "import", vmlinux)
    assert len(first) == len(again) == len(shown(capsys, "imported")) == 2


def test_errors_say_what_to_do(
    tmp_path: Path, vmlinux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "map"
    path.write_bytes(MAP)
    assert "--release" in fails(capsys, 2, "import", path)
    assert "no kernel release" in fails(capsys, 1, "import", path, "--release", "a/../b")
    assert "no build id" in fails(capsys, 2, "import", path, "--build-id", "xyz")
    assert "no build id" in fails(capsys, 2, "import", path, "--build-id", "ab" * 65)
    assert BUILD_ID.hex() in fails(capsys, 2, "import", vmlinux, "--build-id", "00" * 20)
    path.write_bytes(b"MZ" + bytes(600))
    assert "debug package" in fails(capsys, 2, "import", path)
    path.write_bytes(b"\x7fELF" + bytes(60))
    assert "map" in fails(capsys, 1, "import", path)


def test_a_cache_that_cannot_be_written(
    vmlinux: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTINTROSPECT_CACHE", "/proc/none")
    assert "cannot write the cache /proc/none" in fails(capsys, 1, "import", vmlinux)


def test_the_first_word_is_a_target_unless_it_is_a_subcommand(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (("./import", "init_task"), ("-o", "csv", "./import", "init_task", "--no-daemon")):
        assert "path of a memory image" in fails(capsys, 3, *words)
    assert run(["symbols", "import", "init_task"]) == 2  # a FILE that is not there
    assert "does not exist" in capsys.readouterr().err
    assert run(["symbols", "./none"]) == 2
    assert "Missing argument 'NAME'" in capsys.readouterr().err
    assert run(["symbols", "--help"]) == 0
    text = capsys.readouterr().out
    assert "symbols [OPTIONS] TARGET NAME" in text
    assert "imported" in text
