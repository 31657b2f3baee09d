"""The results as a page: tables between two marks of docs/hints.md, and a chart beside it."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.hints.advisors import ADVISORS, MIB, POLICY
from benchmarks.hints.scenarios import SCENARIOS
from benchmarks.hints.store import Row, Store

PAGE, CHART = Path("docs/hints.md"), Path("docs/hints-sizes.svg")
_BEGIN, _END = "<!-- benchmarks.hints: begin -->\n", "<!-- benchmarks.hints: end -->\n"
_COLOURS = {"ours": "#d55e00", "no action": "#999999", "dommemstat": "#0072b2", "MoM": "#009e73"}


def main(store: Store) -> None:
    """Write both."""
    text = PAGE.read_text()
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    PAGE.write_text(head + _BEGIN + "\n".join(_lines(store)) + "\n" + _END + tail)
    CHART.write_bytes(_chart(store))


def _lines(store: Store) -> Iterator[str]:
    yield from _sizes(list(store.found(part="sizes")))
    for part, told in _TOLD.items():
        rows = list(store.found(part=part))
        if rows:
            yield from told(rows)


def _sizes(rows: list[Row]) -> Iterator[str]:
    if not rows:
        return
    days = sorted({datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d") for row in rows})
    kernels = sorted({row["kernel"] for row in rows})
    loads = [row["load"] for row in rows]
    names = list(ADVISORS)
    yield (
        f"Guests of 1 GiB, kernels {', '.join(kernels)}, {len(rows)} runs, {', '.join(days)}; "
        f"load of the machine {min(loads):.0f} to {max(loads):.0f} on 2 CPUs. "
        f"MiB, medians, and the error in percent of true need."
    )
    yield ""
    yield "| guest | need | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    for scenario in SCENARIOS:
        mine = [row for row in rows if row["scenario"] == scenario.name]
        if mine:
            need = statistics.median(row["need"] for row in mine)
            said = [statistics.median(row["said"][name] for row in mine) for name in names]
            cells = [f"{one / MIB:.0f} ({100 * (one - need) / need:+.0f})" for one in said]
            yield f"| {scenario.name} | {need / MIB:.0f} | " + " | ".join(cells) + " |"
    false = [
        str(sum(row["said"][name] < min(row["need"], row["current"]) for row in rows))
        for name in names
    ]
    found = [_found(rows, name) for name in names]
    within = [f"{sum(_close(row, name) for row in rows)} of {len(rows)}" for name in names]
    yield "| **told to go below need** | | " + " | ".join(false) + " |"
    yield "| **within 15 % and the dead band** | | " + " | ".join(within) + " |"
    beyond = [_found(rows, name, POLICY.reserve_percent) for name in names]
    yield "| **of what could be given back, found** | | " + " | ".join(found) + " |"
    yield "| **of that beyond a tenth as reserve, found** | | " + " | ".join(beyond) + " |"
    yield ""
    yield from _missing(rows)
    yield from _by_kernel(rows)
    yield f"![recommended and needed]({CHART.name})"
    yield ""


def _missing(rows: list[Row]) -> Iterator[str]:
    """Where the rest is of what could be given back: MiB of the medians, largest first."""
    left, reserve = {}, 0.0
    for scenario in SCENARIOS:
        mine = [row for row in rows if row["scenario"] == scenario.name]
        if not mine:
            continue
        said, need = (
            statistics.median(values) / MIB
            for values in zip(*((row["said"]["ours"], row["need"]) for row in mine), strict=True)
        )
        kept = said - said / (1 + POLICY.reserve_percent / 100)
        reserve += kept
        left[scenario.name] = said - kept - need
    worst = max(left, key=lambda name: left[name])
    yield (
        f"What is not found, in MiB over all {len(left)} guests: {reserve:.0f} are the policy's "
        f"reserve; the rest is what needs were taken for too much: {left[worst]:.0f} of the guest "
        f"*{worst}*, {sum(left.values()) - left[worst]:.0f} of the others."
    )
    yield ""


def _by_kernel(rows: list[Row]) -> Iterator[str]:
    kernels = sorted({row["kernel"] for row in rows}, key=lambda name: [*map(int, name.split("."))])
    if len(kernels) < 2:
        return
    yield "| ours, by kernel | " + " | ".join(kernels) + " |"
    yield "|---|" + "---|" * len(kernels)
    groups = [[row for row in rows if row["kernel"] == kernel] for kernel in kernels]
    cells = {
        "runs": [f"{len(group)}" for group in groups],
        "told to go below need": [
            str(sum(row["said"]["ours"] < min(row["need"], row["current"]) for row in group))
            for group in groups
        ],
        "within 15 % and the dead band": [
            str(sum(_close(row, "ours") for row in group)) for group in groups
        ],
        "found": [_found(group, "ours") for group in groups],
        "found beyond a tenth": [_found(group, "ours", POLICY.reserve_percent) for group in groups],
    }
    for name, values in cells.items():
        yield f"| {name} | " + " | ".join(values) + " |"
    yield ""


def _found(rows: list[Row], name: str, reserve: float = 0.0) -> str:
    """How much of what no guest needs is found: what is taken beyond is not counted.

    :param reserve: percent of need that are to stay with the guest.
    """
    least = [row["need"] * (1 + reserve / 100) for row in rows]
    possible = sum(row["current"] - need for row, need in zip(rows, least, strict=True))
    taken = sum(
        row["current"] - max(row["said"][name], need) for row, need in zip(rows, least, strict=True)
    )
    return f"{100 * taken / possible:.0f} %"


def _close(row: Row, name: str) -> bool:
    band = max(POLICY.dead_band_mib * MIB, row["current"] * POLICY.dead_band_percent / 100)
    difference = row["said"][name] - row["need"]
    return bool(0 <= difference <= 0.15 * row["need"] + band)


def _held(rows: list[Row]) -> Iterator[str]:
    yield "Host memory that the guest has free; the hint's own command was run:"
    yield ""
    yield "| had used | said | QEMU then had less | |"
    yield "|---|---|---|---|"
    for row in rows:
        said, back = row["said"] / MIB, row["given_back"] / MIB
        share = f"{100 * back / said:.0f} % of what was said"
        yield f"| {row['before']} MiB | {said:.0f} MiB | {back:.0f} MiB | {share} |"
    yield ""


def _leaks(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        speed, when = row["mib_a_second"], row["seconds"]
        after = "was not named" if when is None else f"was named after {when:.0f} s"
        told = row.get("told_to_shrink")
        yield (
            f"* A leak of {speed} MiB a second {after}; the guest would have run short after some "
            f"{row['until_short']} s."
            + (f" Meanwhile it was told {told} times to shrink." if told is not None else "")
        )
    yield ""


def _cpus(rows: list[Row]) -> Iterator[str]:
    vcpus = rows[0]["vcpus"]
    yield f"A guest with {vcpus} vCPUs and so many threads that compute:"
    yield ""
    yield "| threads | " + " | ".join(str(row["threads"]) for row in rows) + " |"
    yield "|---|" + "---|" * len(rows)
    yield "| vCPUs recommended | " + " | ".join(str(row["said"]) for row in rows) + " |"
    yield ""


def _squeeze(rows: list[Row]) -> Iterator[str]:
    yield (
        "True need, found the hard way: the balloon was grown by 16 MiB at a time, until tasks "
        "waited for memory, evicted pages came back, or allocations stalled."
    )
    yield ""
    yield "| guest | need by its own word | suffers below |"
    yield "|---|---|---|"
    for row in rows:
        need, below = row["need"] / MIB, row["suffers_below"] / MIB
        yield f"| {row['scenario']} | {need:.0f} MiB | {below:.0f} MiB |"
    yield ""


def _slowdown(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        low, high = row["interval_percent"]
        yield (
            f"* The guest that {row['scenario']}, {row['before_mib']} → {row['after_mib']} MiB "
            f"({row['recommended_mib']} were recommended; {row['outcome']}): a pass of its work "
            f"took {row['change_percent']:+.1f} % CPU time of the host with the smaller size, "
            f"median of {len(row['pairs_ms'])} pairs, with 95 % certainty between {low:+.1f} and "
            f"{high:+.1f} % (load {row['load']:.0f})."
        )
    yield ""


def _cost(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield (
            f"* Sampling {row['guests']} running guests of {row['processes']} processes once a "
            f"second, in {row['sessions']} sessions "
            f"({row['samples_a_second']:.1f} samples a second were reached) took "
            f"{row['percent_of_a_core']:.1f} % of a core, {row['ms_a_sample']:.2f} ms a sample; "
            f"load {row['load']:.0f}."
        )
    yield ""


_TOLD = {
    "held": _held,
    "squeeze": _squeeze,
    "cpus": _cpus,
    "leaks": _leaks,
    "slowdown": _slowdown,
    "cost": _cost,
}


def _chart(store: Store) -> bytes:
    """Need as a bar, and what each advisor said as a point, by scenario."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = list(store.found(part="sizes"))
    names = [one.name for one in SCENARIOS if any(r["scenario"] == one.name for r in rows)]
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "virtintrospect"}
    with mpl.rc_context(settings):
        picture: Any = Figure(figsize=(9, 0.45 * len(names) + 1.2), layout="constrained")
        axis = picture.subplots()
        for place, name in enumerate(reversed(names)):
            mine = [row for row in rows if row["scenario"] == name]
            need = statistics.median(row["need"] for row in mine) / MIB
            axis.barh(place, need, color="#dddddd", label="needed" if not place else None)
            for advisor, colour in _COLOURS.items():
                said = [row["said"][advisor] / MIB for row in mine]
                axis.plot(
                    said, [place] * len(said), "|" if advisor == "no action" else "o",
                    color=colour, markersize=9 if advisor == "ours" else 6,
                    label=advisor if not place else None,
                )  # fmt: skip
        axis.set_yticks(range(len(names)), list(reversed(names)))
        axis.set_xlabel("MiB")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        out = io.BytesIO()
        picture.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
