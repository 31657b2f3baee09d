"""What is put into a real guest is found there, by every kind of pattern."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

import virtintrospect
from virtintrospect.cli.main import run
from virtintrospect.errors import NoSuchTargetError

from .lab.guest import Guest


@pytest.fixture(scope="module")
def secret() -> str:
    return "vi-needle-" + os.urandom(8).hex()


@pytest.fixture
def holder(one_guest: Guest, secret: str) -> int:
    """A process of the guest that has the secret in its memory, alone; it waits for another."""
    own = f"x={secret}; : > /tmp/needle; sleep 900; : $x"
    started = one_guest.run(
        f"rm -f /tmp/needle; sh -c '{own}' >/dev/null 2>&1 & echo $!;"
        "until [ -e /tmp/needle ] && grep -q '^State:.S' /proc/$!/status; do usleep 50000; done"
    )
    return int(started.split()[0])


def test_of_one_process(one_guest: Guest, holder: int, secret: str) -> None:
    with virtintrospect.open(one_guest.name) as guest:
        space = guest.process_space(holder)
        found = list(guest.search(secret, pid=holder))
        assert found
        for match in found:
            assert match.vaddr is not None
            assert space.read(match.vaddr, match.size) == secret.encode()
            assert space.translate(match.vaddr) == match.paddr
            assert match.before == space.read(match.vaddr - 16, 16)
        assert list(guest.search(secret, pid=1)) == []
        everywhere = {match.paddr for match in guest.search(secret)}
        assert everywhere >= {match.paddr for match in found}
        with pytest.raises(NoSuchTargetError):
            guest.search(secret, pid=2)


def test_a_window_at_a_time(
    one_guest: Guest,
    holder: int,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Small windows find the same; a process that maps too much is searched as far as that."""
    with virtintrospect.open(one_guest.name) as guest:
        places = [match.vaddr for match in guest.search(secret, pid=holder)]
        monkeypatch.setattr("virtintrospect.arch.leaves._AT_ONCE", 1)
        monkeypatch.setattr("virtintrospect.insight.spans._PIECES_AT_ONCE", 3)
        assert places
        assert places == [match.vaddr for match in guest.search(secret, pid=holder)]
        assert guest.take_problems() == []
    monkeypatch.setattr("virtintrospect.insight.spans._MOST_MAPPED", 0)
    assert run(["search", one_guest.name, secret, "--pid", str(holder), "-o", "json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == []
    assert "warning: the search stopped after 0 MiB of the process" in captured.err


def test_command(
    one_guest: Guest,
    holder: int,
    secret: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules = tmp_path / "rules.yar"
    rules.write_text(f'rule needle {{ strings: $a = "{secret}" condition: $a }}')
    where = [one_guest.name, "--pid", str(holder), "-o", "json"]
    places = []
    for arguments in (
        [secret], [secret.upper(), "-i"], ["--hex", secret.encode().hex(" ")],
        ["--regex", "vi-needle-[0-9a-f]{16}"], ["--yara", str(rules)],
    ):  # fmt: skip
        assert run(["search", *where, *arguments]) == 0
        rows = json.loads(capsys.readouterr().out)
        places.append({row["address"] for row in rows if row["data"] == secret.encode().hex()})
        assert all(secret in row["text"] for row in rows)
    assert places[0]
    assert places == [places[0]] * 5
    assert run(["search", one_guest.name, "--hex", "00 ?? 00", "--limit", "2", "-o", "csv"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert "first 2 matches" in captured.err
    assert run(["search", one_guest.name, "--regex", "("]) == 2


def test_absent_pages_stay_absent(one_guest: Guest, secret: str) -> None:
    with virtintrospect.open(one_guest.name) as guest:
        held = sum(end - start for start, end in guest.memory.resident())
        assert held < guest.memory.size * 3 // 4
        list(guest.search(secret))
        assert sum(end - start for start, end in guest.memory.resident()) - held < 16 << 20


def test_threads_search_one_session(one_guest: Guest, holder: int, secret: str) -> None:
    """Searches of several threads, and tables meanwhile, do not get into each other's way."""
    results: list[list[int]] = []
    with virtintrospect.open(one_guest.name) as guest:

        def look() -> None:
            results.append([match.paddr for match in guest.search(secret, pid=holder)])
            assert any(process.pid == holder for process in guest.processes())
            guest.page_owners()

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 4
    assert results[0]
    assert all(result == results[0] for result in results)
