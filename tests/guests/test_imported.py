"""A real guest whose kernel explains nothing: its own BTF and kallsyms are not looked at.

What takes their place is brought: its types as DWARF, ISF or raw BTF, its symbols as an ISF profile
or a System.map. All are made here from what the kernel itself says, for its debug package has
283 MB: bpftool writes the kernel's types as C, and gcc makes DWARF of them. The guest stands still
meanwhile, so every table must be the same to the last field.
"""

from __future__ import annotations

import json
import lzma
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.unit.symbols.isf_profile import profile
from virtintrospect.cli.main import cli
from virtintrospect.errors import (
    GuestNotRecognisedError,
    MissingSymbolsError,
    MissingTypesError,
    VirtIntrospectError,
)
from virtintrospect.guests.linux import identify
from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.insight.columns import record
from virtintrospect.insight.tables import COMMANDS, PS
from virtintrospect.session import Session, open_session
from virtintrospect.symbols import kallsyms
from virtintrospect.symbols.btf import Btf
from virtintrospect.symbols.types import Kind

from .lab import matrix
from .lab.guest import Guest

#: The address that x86-64 kernels are linked for.
LINKED = 0xFFFF_FFFF_8100_0000


class Truth:
    """What the kernel itself says, and what all tables show by it."""

    def __init__(self, guest: Guest) -> None:
        self.name = guest.name
        with open_session(guest.name) as session:
            linux = linux_of(session)
            assert isinstance(linux.types, Btf)
            self.types = linux.types
            self.blob = bytes(linux.types.sections.raw)
            self.symbols = list(linux.symbols.slid(LINKED))
            self.build_id = linux.build_id
            self.banner = linux.banner.rstrip(b"\n")
            self.release = guest.release
            self.tables = tables(session)


def linux_of(session: Session) -> LinuxGuest:
    assert isinstance(session.guest, LinuxGuest)
    return session.guest


def tables(session: Session) -> dict[str, Any]:
    """Every table, or the error that it gives."""
    found: dict[str, Any] = {}
    for table in (PS, *COMMANDS):
        arguments = {table.argument: 1} if table.argument else {}
        try:
            rows = getattr(session.guest, table.source)(**arguments)
        except VirtIntrospectError as error:
            found[table.name] = str(error)
            continue
        found[table.name] = [record(table, row) for row in ([rows] if table.single else rows)]
    return found


@pytest.fixture(scope="module")
def truth(lab: Any) -> Iterator[Truth]:
    guest = lab.guest(matrix.DEFAULT)
    guest.domain.suspend()
    try:
        yield Truth(guest)
    finally:
        guest.domain.resume()


@pytest.fixture
def without_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify._Identification, "_btf", lambda *_: None)


@pytest.fixture
def without_symbols(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise GuestNotRecognisedError("kallsyms: hidden by the test")

    monkeypatch.setattr(kallsyms, "find_tables", nothing)


@pytest.fixture
def bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Runs ``symbols import``; all sessions use the cache that it writes."""
    monkeypatch.setenv("VIRTINTROSPECT_CACHE", str(tmp_path / "cache"))

    def run(file: Path, *options: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(cli, ["-o", "json", "symbols", "import", str(file), *options])
        assert done.exit_code == 0, done.output
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    return run


def vmlinux(truth: Truth, folder: Path) -> Path:
    """The kernel's types as gcc writes them into an ELF file, with the kernel's build id."""
    raw, header, source = folder / "kernel.btf", folder / "vmlinux.h", folder / "all.c"
    raw.write_bytes(truth.blob)
    dump = ["/usr/sbin/bpftool", "btf", "dump", "file", str(raw), "format", "c"]
    text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
    for node in map(truth.types.node, range(1, truth.types.end_id)):
        if node.kind is Kind.ENUM and node.name and node.size < 4:  # which bpftool does not say
            text = text.replace(
                f"\nenum {node.name} {{", f"\nenum __attribute__((packed)) {node.name} {{"
            )
    header.write_text(text)
    source.write_text('#include "vmlinux.h"\n')
    built = folder / "vmlinux"
    subprocess.run(
        [
            "gcc", "-g", "-w", "-fno-eliminate-unused-debug-types", "-nostdlib", "-static",
            "-Wl,-e0", f"-Wl,--build-id=0x{truth.build_id.hex()}", "-o", str(built), str(source),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return built


def system_map(truth: Truth, folder: Path) -> Path:
    path = folder / f"System.map-{truth.release}"
    lines = (f"{symbol.address:016x} {symbol.type} {symbol.name}\n" for symbol in truth.symbols)
    path.write_text("".join(lines))
    return path


def same(truth: Truth) -> None:
    """Twice: the second session uses what the first has left in the cache."""
    for _ in range(2):
        with open_session(truth.name) as session:
            found = tables(session)
        wrong = {name: rows for name, rows in found.items() if rows != truth.tables[name]}
        assert wrong == {}


@pytest.mark.usefixtures("without_types")
def test_raw_btf(truth: Truth, bring: Callable[..., Any], tmp_path: Path) -> None:
    with open_session(truth.name) as session, pytest.raises(MissingTypesError) as caught:
        session.recognise()
    assert truth.build_id.hex() in caught.value.hint
    path = tmp_path / "kernel.btf"
    path.write_bytes(truth.blob)
    (row,) = bring(path, "--build-id", truth.build_id.hex())
    assert (row["holds"], row["format"]) == ("types", "BTF")
    with open_session(truth.name) as session:
        assert linux_of(session).types is not truth.types
    same(truth)


@pytest.mark.usefixtures("without_types")
def test_dwarf(truth: Truth, bring: Callable[..., Any], tmp_path: Path) -> None:
    (row,) = bring(vmlinux(truth, tmp_path))
    assert (row["format"], row["kernel"]) == ("ELF with DWARF", truth.build_id.hex())
    same(truth)


@pytest.mark.usefixtures("without_types", "without_symbols")
def test_a_profile_serves_a_kernel_that_explains_nothing(
    truth: Truth,
    bring: Callable[..., Any],
    tmp_path: Path,
) -> None:
    with open_session(truth.name) as session, pytest.raises(MissingSymbolsError) as caught:
        session.recognise()
    assert truth.release in caught.value.message
    path = tmp_path / "profile.json.xz"
    document = profile(truth.types, truth.symbols, truth.banner)
    path.write_bytes(lzma.compress(json.dumps(document).encode(), preset=0))
    rows = bring(path)
    assert {row["holds"] for row in rows} == {"types", "symbols"}
    assert {row["release"] for row in rows} == {truth.release}
    same(truth)


@pytest.mark.usefixtures("without_symbols")
def test_system_map(truth: Truth, bring: Callable[..., Any], tmp_path: Path) -> None:
    (row,) = bring(system_map(truth, tmp_path))
    assert (row["release"], row["count"]) == (truth.release, len(truth.symbols))
    same(truth)
    # What was cached by its help goes with it.
    assert list((tmp_path / "cache").glob("*.profile"))
    done = CliRunner().invoke(cli, ["symbols", "forget", truth.release])
    assert done.exit_code == 0, done.output
    with open_session(truth.name) as session, pytest.raises(MissingSymbolsError):
        session.recognise()


@pytest.mark.usefixtures("without_symbols")
def test_the_map_of_another_build_is_not_believed(
    truth: Truth, bring: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "System.map-6.12.0-other"
    path.write_bytes(system_map(truth, tmp_path).read_bytes())
    bring(path)
    moved = tmp_path / "moved" / f"System.map-{truth.release}"
    moved.parent.mkdir()
    banner = next(s for s in truth.symbols if s.name == "linux_banner")
    text = system_map(truth, tmp_path).read_text()
    moved.write_text(text.replace(f"{banner.address:016x}", f"{banner.address + 64:016x}"))
    bring(moved)
    with open_session(truth.name) as session, pytest.raises(MissingSymbolsError):
        session.recognise()
