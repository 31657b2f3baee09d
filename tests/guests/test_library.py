"""The library as its guide shows it: every example of docs/library.md and docs/examples runs."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import virtintrospect
from virtintrospect.insight.tables import COMMANDS, PS, find

from .lab.guest import Guest

DOCS = Path(__file__).parents[2] / "docs"
DUMP = DOCS / "examples/dump_memory.py"
EXAMPLES = sorted(set((DOCS / "examples").glob("*.py")) - {DUMP})
_BLOCK = re.compile(r"(<!-- live -->\n)?```python\n(.*?)```", re.S)
BLOCKS = [
    pytest.param(bool(live), code, id=str(number))
    for number, (live, code) in enumerate(_BLOCK.findall((DOCS / "library.md").read_text()))
]


@pytest.fixture(scope="module")
def image(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from .lab import matrix

    path = tmp_path_factory.mktemp("library") / "guest.core"
    guest = lab.guest(matrix.DEFAULT)
    guest.run("nc -l -p 8089 </dev/null >/dev/null 2>&1 &")  # for the example of who listens
    guest.domain.coreDumpWithFormat(str(path), 0, 0x10)
    yield path
    path.unlink()


def _run(code: str, target: str) -> None:
    names: dict[str, Any] = {"virtintrospect": virtintrospect}
    exec(compile(code.replace("web01", target), "library.md", "exec"), names)


@pytest.mark.parametrize(("live", "code"), BLOCKS)
def test_guide(
    live: bool,
    code: str,
    one_guest: Guest,
    image: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _run(code, one_guest.name)
    assert capsys.readouterr().out or "take_problems" in code
    if not live:
        _run(code, str(image))


@pytest.fixture(scope="module")
def arguments(image: Path) -> dict[str, list[str]]:
    with virtintrospect.open(str(image)) as guest:
        banner = str(guest.symbols.address("linux_banner"))
        paddr = guest.kernel.translate(int(banner))
    return {
        "walk_page_table.py": [banner, f"{paddr:#x}"],
        "map_address.py": [banner, "4c 69 6e 75 78"],
        "map_symbol.py": ["linux_banner", f"{paddr:#x}"],
        "processes.py": ["", "init"],
        "modules.py": ["", "nf_conntrack"],
        "dmesg_tail.py": ["", "] "],
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(
    path: Path, one_guest: Guest, image: Path, arguments: dict[str, list[str]]
) -> None:
    argument, expected = arguments[path.name]
    for target in (str(image), one_guest.name):
        shown = argument
        if target == one_guest.name and argument.isdecimal():
            with virtintrospect.open(target) as guest:
                shown = str(guest.symbols.address("linux_banner"))
        command = [sys.executable, str(path), target, *([shown] if shown else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


def test_example_that_dumps_memory(one_guest: Guest, image: Path, tmp_path: Path) -> None:
    for target in (str(image), one_guest.name):
        dump = tmp_path / f"{Path(target).name}.raw"
        subprocess.run([sys.executable, str(DUMP), target, str(dump)], timeout=120, check=True)
        with virtintrospect.open(target) as guest, virtintrospect.open(str(dump)) as copy:
            assert copy.info().release.decode() == one_guest.release
            banner = guest.symbols.address("linux_banner")
            assert copy.kernel.string(banner) == guest.kernel.string(banner)
            assert dump.stat().st_size == guest.memory.end
        dump.unlink()


def test_connection_in_front_or_by_name(one_guest: Guest) -> None:
    for session in (
        virtintrospect.open("qemu:///system", one_guest.name),
        virtintrospect.open(one_guest.name, uri="qemu:///system"),
        virtintrospect.open(one_guest.uuid),
    ):
        with session as guest:
            assert guest.info().release.decode() == one_guest.release


def test_every_table_by_name_and_as_columns(image: Path) -> None:
    with virtintrospect.open(str(image)) as guest:
        assert set(guest.tables) == {table.name for table in (PS, *COMMANDS)}
        for name in guest.tables:
            if name == "pressure":
                continue  # Debian has it switched off
            if name == "ps":
                continue  # below
            pid: dict[str, Any] = {"pid": 1} if find(name).argument else {}
            records = guest.table(name, **pid)
            columns = guest.columns(name, **pid)
            assert records or name in ("containers", "neighbours", "routes", "bpf", "logins")
            for column, values in columns.items():
                assert values.tolist() == [getattr(record, column) for record in records], column
        mine = guest.columns("ps", ["pid", "name", "address"])
        assert list(mine) == ["pid", "name", "address"]
        assert mine["pid"].dtype == np.int64
        assert mine["address"].dtype == np.uint64
        threads = guest.columns("ps", ["tid"], threads=True)["tid"]
        assert len(threads) >= len(mine["pid"])


def test_threads_take_turns(one_guest: Guest) -> None:
    """One session, many threads: all get whole tables."""
    wrong: list[str] = []
    with virtintrospect.open(one_guest.name) as guest:
        names = [module.name for module in guest.modules()]

        def look() -> None:
            for _ in range(5):
                if [module.name for module in guest.modules()] != names:
                    wrong.append("modules")
                if 1 not in {process.pid for process in guest.processes()}:
                    wrong.append("processes")
            if guest.take_problems():
                wrong.append("problems")

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
