"""The page of a report, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .browser import Browser
from .collection import plugin
from .made import NOW, fleet

fleets, pages = plugin("report.fleet"), plugin("report.page")

#: Texts that would do something in a page that took them for more than text.
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "<img src=x onerror=\"document.title='pwned'\">",
    "</script><script>document.title='pwned'</script>",
    "\"' onmouseover=\"document.title='pwned'\" x='",
    "javascript:document.title='pwned'",
    "{{ lookup('pipe', 'touch /tmp/pwned') }} ${document.title='pwned'} @SCRIPT@",
    '=HYPERLINK("http://192.0.2.1/")',
    "\x1b[2J\u202egnp.exe\u2028\x00\ud800",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """Writes the page of a made-up fleet."""

    def write(parts: Iterable[dict[str, Any]], title: str = "Fleet") -> Path:
        report = fleets.Fleet()
        for part in parts:
            report.add(part)
        report.finish()
        content, notes = pages.page(report, title, NOW)
        assert not notes
        path = tmp_path / "report.html"
        path.write_bytes(content)
        return path

    return write


def rows(browser: Browser, part: str) -> list[list[str]]:
    """The cells that a part shows."""
    script = (
        f"JSON.stringify([...document.querySelectorAll('#view-{part} tbody tr[data-index]')]"
        ".map(row => [...row.cells].map(cell => cell.textContent)))"
    )
    found: list[list[str]] = json.loads(browser.run(script))
    return found


def column(browser: Browser, part: str, name: str) -> list[str]:
    """In one go: a part that has just been shown leaves columns out when it knows its width."""
    script = f"""(() => {{
        const heads = [...document.querySelectorAll('#view-{part} th')];
        const index = heads.findIndex(head => head.dataset.column === '{name}');
        const rows = [...document.querySelectorAll('#view-{part} tbody tr[data-index]')];
        return JSON.stringify(rows.map(row => row.cells[index].textContent));
    }})()"""
    found: list[str] = json.loads(browser.run(script))
    return found


def test_sorting_and_filtering(browser: Browser, made: Any) -> None:
    parts = list(fleet(60, 30))
    findings = [row for part in parts for row in part["findings"]]
    browser.open(made(parts), "findings")
    order = ["critical", "high", "medium", "low", "info"]
    shown = column(browser, "findings", "severity")
    assert shown
    assert shown == sorted(shown, key=order.index)
    button = "document.querySelector('#view-findings th[data-column=rule] button')"
    browser.run(f"{button}.click()")
    assert column(browser, "findings", "rule") == sorted(column(browser, "findings", "rule"))
    browser.run(f"{button}.click()")
    rules = column(browser, "findings", "rule")
    assert rules == sorted(rules, reverse=True)
    assert browser.run(f"{button}.parentElement.getAttribute('aria-sort')") == "descending"

    some = findings[0]["rule"]
    browser.open(made(parts), f"findings?rule={some}")
    assert set(column(browser, "findings", "rule")) == {some}
    said = browser.run("document.querySelector('#view-findings .said').textContent")
    wanted = sum(row["rule"] == some for row in findings)
    assert said == f"{wanted} of {len(findings)} rows"

    guests = [guest for part in parts for guest in part["guests"] if "tables" in guest]
    rows_ = [row for guest in guests for row in guest["tables"]["ps"]]
    sizes = [row for row in rows_ if row["resident_size"] > 100 << 20]
    browser.open(made(parts), "ps?resident_size>100m")
    said = browser.run("document.querySelector('#view-ps .said').textContent")
    assert said.startswith(f"{len(sizes)} of ")
    assert browser.complaints == []


def test_keys(browser: Browser, made: Any) -> None:
    """Without a mouse: to the filter, into the table, a row in full, and back."""
    browser.open(made(fleet(30, 10)), "guests")
    browser.key("/")
    assert browser.run("document.activeElement.type") == "search"
    browser.run("document.querySelector('#view-guests .scroller').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp"):
        browser.key(key)
    index = browser.run("document.querySelector('#view-guests tr.current').dataset.index")
    assert index == "1"
    name = column(browser, "guests", "guest")[1]
    browser.key("Enter")
    assert browser.run("document.querySelector('#detail').hidden") is False
    assert name in browser.run("document.querySelector('#detail').textContent")
    browser.key("Escape")
    assert browser.run("document.querySelector('#detail').hidden") is True
    browser.run("document.querySelector('#tab-guests').focus()")
    browser.key("ArrowRight")
    browser.wait("document.querySelector('#tab-hosts').ariaSelected === 'true'")
    assert browser.complaints == []


def test_hostile_texts(browser: Browser, made: Any) -> None:
    """What guests wrote is shown, and does nothing."""
    (part,) = fleet(1, 0, seed=3)
    (guest,) = part["guests"]
    guest["name"] = HOSTILE[0]
    guest.setdefault("tables", {})["info"] = {"release": HOSTILE[1], "hostname": HOSTILE[2]}
    guest["tables"]["ps"] = [
        {"pid": pid, "name": text, "cmdline": text, "uid": 0, "resident_size": 4096}
        for pid, text in enumerate(HOSTILE)
    ]
    guest["tables"][HOSTILE[1]] = [{HOSTILE[0]: HOSTILE[1]}]
    part["host"], part["message"], part["status"] = HOSTILE[0], HOSTILE[1], "partly"
    part["findings"] = [
        {"domain": text, "severity": text, "rule": text, "subject": text, "detail": text,
         "evidence": text, "remedy": text} for text in HOSTILE
    ]  # fmt: skip
    part["hints"] = [
        {"domain": text, "resource": text, "action": text, "reason": text, "current": text,
         "recommended": -(1 << 70), "virsh": text} for text in HOSTILE
    ]  # fmt: skip
    path = made([part], title=HOSTILE[0])
    for name in ("overview", "findings", "hints", "guests", "hosts", "ps"):
        browser.open(path, name)
        browser.run("document.querySelector('tr[data-index]')?.click()")
        assert browser.run("document.title") == HOSTILE[0]
        assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    shown = column(browser, "ps", "name")
    assert set(HOSTILE[:7]) <= set(shown)
    assert "\\x1b[2J\\u202egnp.exe\\u2028\\x00\\ud800" in shown
    assert browser.complaints == []


def test_nothing_else_can_run(browser: Browser, made: Any) -> None:
    """Not even what is put into the page: its policy names its own script alone."""
    browser.open(made(fleet(1, 5)), "overview")
    script = """(() => {
        const script = document.createElement("script");
        try { script.text = "document.title = 'pwned'"; } catch { return "refused"; }
        document.head.append(script);
        return document.title;
    })()"""
    assert browser.run(script) != "pwned"
    asked = "fetch('http://192.0.2.1/').then(() => 'there', () => 'refused')"
    assert browser.run(asked) == "refused"
    assert browser.complaints  # the browser says what it refused
    browser.complaints.clear()


@pytest.mark.parametrize("guests", [0, 1, 20])
def test_small_fleets(browser: Browser, made: Any, guests: int) -> None:
    """All parts are shown, and none is wider than the window."""
    parts = list(fleet(guests, 40)) if guests else [{"host": "hv1", "status": "silent"}]
    path = made(parts)
    browser.open(path, "overview")
    script = "[...document.querySelectorAll('#tabs button')].map(tab => tab.id.slice(4)).join()"
    names = str(browser.run(script)).split(",")
    for name in names:
        browser.open(path, name)
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not browser.run(wide)
    assert browser.complaints == []


def test_large_fleet(browser: Browser, made: Any) -> None:
    """It weighs what it may, and works: a fifth of 5,000 guests with 200 processes each."""
    path = made(fleet(1000, 200))
    assert path.stat().st_size < 20_000_000 / 5 + 500_000
    browser.open(path, "overview")
    assert "1,000" in browser.run("document.querySelector('#main').textContent")
    browser.open(path, "ps?guest:db resident_size>200m")
    sizes = column(browser, "ps", "resident_size")
    assert sizes
    assert all(size.endswith("MiB") for size in sizes)
    assert len(rows(browser, "ps")) < 200  # those in view, not all
    assert browser.complaints == []
