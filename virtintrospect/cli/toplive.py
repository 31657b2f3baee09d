"""``top`` on a terminal: a screen of its own, which is gone when it ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from virtintrospect.cli.escape import printable
from virtintrospect.cli.output import human_size, human_value
from virtintrospect.cli.topviews import Guests, Processes
from virtintrospect.insight.columns import Unit

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from virtintrospect.cli.topviews import Look, Row

#: Blocks of a curve of the last minute, of a guest and of a process.
_WIDE, _NARROW = 20, 10
#: Seconds after which a signal is heeded at the latest.
_MOST_WAIT = 0.5
#: Lines that are no rows.
_AROUND = 6


def show(view: Guests | Processes, looks: Iterator[Look]) -> None:
    """Refresh until `q` or Ctrl-C; the terminal is then as it was, whatever happens."""
    import gc

    from rich.console import Console
    from rich.live import Live

    gc.enable()  # a command is short, this one may go on for days
    console = Console(highlight=False, markup=False, emoji=False)
    with (
        suppress(KeyboardInterrupt),
        _keys() as typed,
        _ended_by_signals(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        for look in looks:
            live.update(_page(view, look, console), refresh=True)
            if _quits(typed, look.pause):
                return


@contextmanager
def _keys() -> Iterator[int | None]:
    """Keys come one by one and unseen; ``None`` where there is no keyboard."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """What would end it without a word ends it as Ctrl-C does, the terminal given back."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quits(keyboard: int | None, seconds: float) -> bool:
    """Wait so long for a key; whether it was `q`."""
    watched = [] if keyboard is None else [keyboard]
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        # A signal that comes right before select() does not end it: it is seen when that returns.
        if keyboard in select.select(watched, [], [], min(left, _MOST_WAIT))[0]:
            typed = os.read(keyboard, 64)
            if not typed or b"q" in typed.lower():
                return True
    return False


def _page(view: Guests | Processes, look: Look, console: Console) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rows = look.rows[: max(1, console.height - _AROUND)]
    if isinstance(view, Guests):
        heads = [f"{len(look.rows)} guests"]
        table = _table(_GUESTS, [_guest_cells(view, row) for row in rows], console.width)
    else:
        heads = _summary(view, len(look.rows))
        table = _table(_PROCESSES, [_process_cells(view, row) for row in rows], console.width)
    heads[0] = f"{datetime.now(UTC):%H:%M:%SZ}  {heads[0]}"
    hidden = len(look.rows) - len(rows)
    foot = (
        f"{f'{hidden} more; ' if hidden else ''}looking takes {look.cost:.1f} % of a core; q ends"
    )
    texts = [Text(text, "bold", no_wrap=True, overflow="ellipsis") for text in heads]
    return Group(*texts, Text(), table, Text(), Text(foot, "dim", no_wrap=True))


class _Head(NamedTuple):
    """A column on the screen; ``least``: where the terminal has fewer characters, it is not."""

    name: str
    justify: Literal["left", "right"] = "right"
    least: int = 0


_GUESTS = (
    _Head("domain", "left"), _Head("CPU %"), _Head("of"), _Head("last minute", "left", 70),
    _Head("run", least=90), _Head("memory"), _Head("need"), _Head("last minute", "left", 150),
    _Head("avail", least=100), _Head("PSI cpu", least=110), _Head("mem"), _Head("io", least=110),
    _Head("refaults/s", least=130), _Head("state", "left", 120),
)  # fmt: skip
_PROCESSES = (
    _Head("pid"), _Head("name", "left"), _Head("S", "left"), _Head("threads", least=100),
    _Head("CPU %"), _Head("last minute", "left", 70), _Head("resident"), _Head("CPU time"),
    _Head("command", "left", 90),
)  # fmt: skip
#: Widest name of a guest or process.
_NAME = 24


def _guest_cells(view: Guests, row: Row) -> tuple[list[str], str]:
    """The cells of a line, and its style."""
    past = view.top_of(row)
    total, cpus = row.get("memory_total"), row.get("cpus") or 1
    cells = [
        printable(row["domain"])[:_NAME], _number(row, "cpu_percent"), _number(row, "cpus", ".0f"),
        past.cpu.spark(100 * cpus, _WIDE) if past else "", _number(row, "running", ".0f"),
        _size(row, "memory_total"), _size(row, "memory_need"),
        past.memory.spark(total, _WIDE) if past and total else "",
        _size(row, "memory_available"), _number(row, "pressure_cpu"),
        _number(row, "pressure_memory"), _number(row, "pressure_io"), _number(row, "refaults"),
        printable(row.get("error") or row["state"]),
    ]  # fmt: skip
    return cells, _colour(row)


def _process_cells(view: Processes, row: Row) -> tuple[list[str], str]:
    past = view.processes.past(row["pid"])
    cells = [
        str(row["pid"]), printable(row.get("name", b""))[:_NAME], printable(row.get("state", "")),
        _number(row, "threads", ".0f"), _number(row, "cpu_percent"),
        past.spark(100, _NARROW) if past else "", _size(row, "resident_size"),
        human_value(Unit.MILLISECONDS, row["cpu_time"]), printable(row.get("cmdline", b"")),
    ]  # fmt: skip
    return cells, ""


def _summary(view: Processes, count: int) -> list[str]:
    """The guest itself, in two lines."""
    row, cpus = view.guest, view.guest.get("cpus") or 1
    parts = [printable(view.target or "")[:_NAME], f"{count} processes"]
    if "cpu_percent" in row:
        curve = view.top.cpu.spark(100 * cpus, _WIDE)
        parts.append(f"CPU {row['cpu_percent']:.0f} % of {cpus:.0f} {curve}")
    parts.append(f"{_number(row, 'running', '.0f') or '?'} want to run")
    lines, parts = ["  ".join(parts)], []
    if "memory_need" in row:
        need, total = _size(row, "memory_need"), _size(row, "memory_total")
        parts.append(f"needs {need} of {total} {view.top.memory.spark(row['memory_total'], _WIDE)}")
    waits = [
        f"{name} {row[f'pressure_{name}']:.0f}"
        for name in ("cpu", "memory", "io")
        if f"pressure_{name}" in row
    ]
    if waits:
        parts.append(f"PSI % {' '.join(waits)}")
    return [*lines, "  ".join(parts)]


def _table(heads: Sequence[_Head], lines: list[tuple[list[str], str]], width: int) -> Table:
    """The columns that fit; the last one takes what is left."""
    from rich.table import Table
    from rich.text import Text

    shown = [index for index, head in enumerate(heads) if width >= head.least]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), expand=True)
    for index in shown:
        name, justify, _ = heads[index]
        longest = max((len(cells[index]) for cells, _ in lines), default=0)
        # Only the last one gives way: it takes what is left, and is cut there.
        last = index == shown[-1]
        wanted = None if last else max(len(name), longest)
        table.add_column(
            name, justify=justify, no_wrap=True, overflow="ellipsis", width=wanted,
            min_width=wanted, ratio=1 if last else None,
        )  # fmt: skip
    for cells, style in lines:
        # Text, not str: guest strings must not be read as rich's own markup.
        table.add_row(*(Text(cells[index]) for index in shown), style=style)
    return table


def _colour(row: Row) -> str:
    """Guests in trouble are red: tasks wait for memory, or little is left."""
    total, available = row.get("memory_total"), row.get("memory_available")
    short = total and available is not None and available < 0.08 * total
    return "red" if short or row.get("pressure_memory", 0) > 2 else ""


def _number(row: Row, name: str, form: str = ".1f") -> str:
    return format(row[name], form) if name in row else ""


def _size(row: Row, name: str) -> str:
    return human_size(int(row[name])) if name in row else ""
