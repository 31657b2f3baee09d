"""The library as its guide shows it: every example of docs/library.md and docs/examples runs."""

from __future__ import annotations

import re
import shlex
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
#: Examples that are given an address, which is another one in each kernel.
BY_ADDRESS = ("walk_page_table.py", "map_address.py")
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
    guest.run(  # for the example of who listens
        "nc -l -p 8089 </dev/null >/dev/null 2>&1 &"
        "until netstat -ltn 2>/dev/null | grep -q :8089; do usleep 100000; done"
    )
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
        "process_pages.py": ["1", "KiB  r-x"],
        "offsets.py": ["", "mm_struct.pgd = 0x"],
        "read_memory.py": ["kernel linux_banner string", "Linux version"],
        "free_but_held.py": ["", "of that held by the host: "],
        "wait_for_domain.py": ["30", "Linux "],
        "find_text.py": ["'Linux version'", "utf-8   pid 0"],
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(
    path: Path, one_guest: Guest, image: Path, arguments: dict[str, list[str]]
) -> None:
    argument, expected = arguments[path.name]
    for target in (str(image), one_guest.name):
        shown = argument
        if target == one_guest.name and path.name in BY_ADDRESS:
            with virtintrospect.open(target) as guest:
                shown = str(guest.symbols.address("linux_banner"))
        command = [sys.executable, str(path), target, *shlex.split(shown)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=140, check=False)
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
            assert records or name in (
                "containers",
                "neighbours",
                "routes",
                "bpf",
                "logins",
                "nested",
            )
            for column, values in columns.items():
                assert values.tolist() == [getattr(record, column) for record in records], column
        mine = guest.columns("ps", ["pid", "name", "address"])
        assert list(mine) == ["pid", "name", "address"]
        assert mine["pid"].dtype == np.int64
        assert mine["address"].dtype == np.uint64
        threads = guest.columns("ps", ["tid"], threads=True)["tid"]
        assert len(threads) >= len(mine["pid"])


def test_page_tables_lead_back_to_processes(one_guest: Guest) -> None:
    with virtintrospect.open(one_guest.name) as guest:
        agent = next(process.pid for process in guest.processes() if process.name == b"agent")
        for pid in (1, agent):
            root = guest.process_space(pid).root
            assert guest.process_at(root) == pid
            assert guest.process_at(root | 0xFFF) == pid  # CR3 has flags, and a PCID
        for root in (guest.kernel.root, 0, 1 << 60):
            with pytest.raises(virtintrospect.NoSuchTargetError):
                guest.process_at(root)


def test_physical_memory_is_an_address_space(one_guest: Guest) -> None:
    with virtintrospect.open(one_guest.name) as guest:
        banner = guest.symbols.address("linux_banner")
        paddr = guest.kernel.translate(banner)
        assert guest.physical.string(paddr) == guest.kernel.string(banner)
        assert guest.physical.integer(paddr, 4) == guest.kernel.integer(banner, 4)
        assert guest.physical.translate(paddr) == paddr
        assert len(guest.physical.pages().vaddr) == 0
        for wrong in (guest.memory.end, 1 << 62, -8):
            with pytest.raises(virtintrospect.VirtIntrospectError):
                guest.physical.integer(wrong)


def test_what_is_known_can_be_dropped(one_guest: Guest) -> None:
    with virtintrospect.open(one_guest.name) as guest:
        assert guest.age is None
        first = guest.guest
        assert guest.age is not None
        assert 0 <= guest.age < 60
        guest.forget()
        assert (guest.age, guest.last) == (None, None)
        assert guest.guest is not first
        assert guest.info().release.decode() == one_guest.release


def test_pages_of_a_process_are_those_of_its_map(one_guest: Guest) -> None:
    with virtintrospect.open(one_guest.name) as guest:
        space, areas = guest.process_space(1), guest.maps(1)
        pages = space.pages(end=1 << 47)
        for vaddr in pages.vaddr.tolist():
            assert any(area.start <= vaddr < area.end for area in areas), hex(vaddr)
        for vaddr, paddr in zip(pages.vaddr.tolist(), pages.paddr.tolist(), strict=True):
            assert space.translate(vaddr) == paddr
        window = space.view(pages.vaddr.tolist()[0], 64)
        assert window is not None
        assert bytes(window) == space.read(pages.vaddr.tolist()[0], 64)


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
