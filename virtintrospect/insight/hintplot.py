"""What hints rest on, over time: memory, pressure, processors, evicted pages."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from virtintrospect.errors import UsageError
from virtintrospect.insight.history import Window, figure

if TYPE_CHECKING:
    from virtintrospect.insight.figures import Sample
    from virtintrospect.insight.hints import Facts
    from virtintrospect.model import Hint

    Line = list[tuple[datetime, float]]

#: Colours that people tell apart who do not see all colours (Okabe and Ito).
_BLUE, _ORANGE, _GREEN, _RED, _SKY, _GREY = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#777777",
)  # fmt: skip
#: Hints that are told below the picture, and characters of each line and of each hint.
_MOST_HINTS, _WIDTH, _LONGEST = 8, 118, 240
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


def require() -> None:
    """Say it where there can be no plots, before anything is measured for one.

    :raises UsageError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise UsageError(
            "plots need matplotlib",
            hint="pip install 'virtintrospect[plot]', or Debian's python3-matplotlib",
        )


def draw(facts: Facts, found: Sequence[Hint], title: str, kind: str) -> bytes:
    """A file with the picture.

    :param facts: the samples, and what is known besides.
    :param found: the hints that came of them; texts without control characters.
    :param title: what stands above it.
    :param kind: ``png`` or ``svg``.
    :raises UsageError: there are no two samples; matplotlib is not installed.
    """
    require()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    window = facts.window
    if len(window) < 2:
        raise UsageError("a plot needs two samples or more", hint="watch with --for 60s")
    # Dollars and backslashes of a guest's strings are no formulas; an SVG's text stays text.
    settings: Any = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "virtintrospect",
    }
    texts = [part for hint in found[:_MOST_HINTS] for part in _told(hint)]
    below = 0.2 * len(texts) + 0.35
    with mpl.rc_context(settings):
        picture: Any = Figure(figsize=(11, 9 + below), layout="constrained")
        axes = picture.subplots(4, 1, sharex=True, height_ratios=(3, 2, 2, 2))
        _memory(axes[0], facts, found)
        _pressure(axes[1], window)
        _processors(axes[2], window, found)
        _evicted(axes[3], window)
        _finish(picture, axes, title)
        share = below / (9 + below)
        picture.get_layout_engine().set(rect=(0, share, 1, 1 - share))
        picture.text(
            0.01, share - 0.15 / (9 + below), "\n".join(texts), va="top", family="monospace",
            fontsize=8,
        )  # fmt: skip
        out = io.BytesIO()
        picture.savefig(out, format=kind, dpi=100, metadata=_NO_DATE[kind])
    return out.getvalue()


#: The same figures give the same file.
_NO_DATE: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}}


def _told(hint: Hint) -> list[str]:
    text = f"{hint.resource}: {hint.action}: {hint.reason}"
    lines = textwrap.wrap(text[:_LONGEST], _WIDTH, subsequent_indent="    ")
    return [f"• {lines[0]}", *(f"  {line}" for line in lines[1:])] if lines else []


def _memory(axis: Any, facts: Facts, found: Sequence[Hint]) -> None:
    samples = facts.window.samples
    total = _line(samples, lambda s: figure(s, "memory", "memory_total"))
    used = _line(samples, lambda s: _less(s, "memory_total", "memory_available"))
    _plot(axis, _mib(total), "MemTotal", _GREY, linestyle="--")
    _plot(axis, _mib(used), "used: MemTotal − MemAvailable", _BLUE, fill=True)
    _plot(axis, _mib(_line(samples, _again)), "used and cache read more than once", _SKY)
    swapped = _line(samples, lambda s: _less(s, "swap_total", "swap_free"))
    if any(value > 0 for _, value in swapped):
        _plot(axis, _mib(swapped), "in swap", _ORANGE)
    if facts.current:
        axis.axhline(facts.current / _MIB, color="black", linewidth=1, label="it has")
    for hint in found:
        if hint.resource == "memory" and hint.action in ("shrink", "grow") and hint.recommended:
            label = f"recommended: {hint.recommended / _MIB:.0f} MiB"
            axis.axhline(hint.recommended / _MIB, color=_RED, linewidth=1.5, label=label)
    axis.set_ylabel("memory, MiB")


_MIB = 1 << 20


def _pressure(axis: Any, window: Window) -> None:
    for name, colour in (("memory", _RED), ("cpu", _BLUE), ("io", _GREEN)):
        totals = _line(
            window.samples, lambda s, name=name: figure(s, "pressure", f"{name}_some", "total")
        )
        percent = [(at, value / 10_000) for at, value in _rates(totals)]
        _plot(axis, percent, f"{name}, some", colour)
    axis.set_ylabel("time that tasks\nwaited (PSI), %")


def _processors(axis: Any, window: Window, found: Sequence[Hint]) -> None:
    count = _line(window.samples, lambda s: figure(s, "cpu", "cpus"))
    busy = _rates(_line(window.samples, _busy))
    _plot(axis, count, "vCPUs", _GREY, linestyle="--")
    _plot(axis, [(at, value / 1000) for at, value in busy], "busy", _BLUE, fill=True)
    running = _line(window.samples, lambda s: figure(s, "load", "running"))
    _plot(axis, running, "tasks that run or want to", _ORANGE)
    for hint in found:
        if hint.resource == "cpu" and hint.recommended:
            label = f"recommended: {hint.recommended}"
            axis.axhline(hint.recommended, color=_RED, linewidth=1.5, label=label)
    axis.set_ylabel("processors")


def _evicted(axis: Any, window: Window) -> None:
    for name, text, colour in (
        ("refault", "evicted pages that come back", _RED),
        ("swap_out", "swapped out", _ORANGE),
        ("swap_in", "swapped in", _SKY),
    ):
        rates = _rates(_line(window.samples, lambda s, name=name: figure(s, "events", name)))
        _plot(axis, rates, text, colour)
    axis.set_ylabel("pages a second")


def _finish(picture: Any, axes: Sequence[Any], title: str) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    picture.suptitle(title, fontsize=13)
    for axis in axes:
        axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    locator = AutoDateLocator(tz=UTC)
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
    axes[-1].set_xlabel("UTC")


def _plot(
    axis: Any, line: Line, label: str, colour: str, *, fill: bool = False, **style: Any
) -> None:
    """One line; what is not known at all has none."""
    if not line:
        return
    when, values = [at for at, _ in line], [value for _, value in line]
    axis.plot(when, values, label=label, color=colour, linewidth=1.5, **style)
    if fill:
        axis.fill_between(when, values, color=colour, alpha=0.15)


def _line(samples: Sequence[Sample], value: Any) -> Line:
    pairs = ((_at(taken), value(taken)) for taken in samples)
    return [(at, float(found)) for at, found in pairs if found is not None]


def _rates(line: Line) -> Line:
    """Growth a second of a counter, from each sample to the next."""
    steps = ((b[0], b[1] - a[1], (b[0] - a[0]).total_seconds()) for a, b in pairwise(line))
    return [(at, max(0.0, grown) / seconds) for at, grown, seconds in steps if seconds > 0]


def _mib(line: Line) -> Line:
    return [(at, value / _MIB) for at, value in line]


def _at(taken: Sample) -> datetime:
    return datetime.fromtimestamp(float(taken["time"]), UTC)


def _less(taken: Sample, whole: str, part: str) -> float | None:
    a, b = figure(taken, "memory", whole), figure(taken, "memory", part)
    return None if a is None or b is None else a - b


def _again(taken: Sample) -> float | None:
    used, cache = (
        _less(taken, "memory_total", "memory_available"),
        figure(taken, "cache", "used_again"),
    )
    return None if used is None or cache is None else used + cache


def _busy(taken: Sample) -> float | None:
    times = [figure(taken, "cpu", name) for name in _BUSY]
    known = [time for time in times if time is not None]
    return sum(known) if known else None
