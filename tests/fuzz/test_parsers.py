"""The short run: some hundred bent inputs for each parser, the same at each run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.parsers.all import TARGETS
from tests.fuzz.parsers.bend import EDITS, bent
from tests.fuzz.parsers.watch import watched


@pytest.mark.parametrize("name", TARGETS)
def test_bad_input(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    for seed in seeds:
        watched(target, seed)

    @settings(
        max_examples=target.examples, deadline=None, derandomize=True, database=None,
        phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, len(seeds) - 1), EDITS)
    def bend(number: int, edits: list) -> None:  # type: ignore[type-arg]
        watched(target, bent(seeds[number], seeds, edits))

    bend()
