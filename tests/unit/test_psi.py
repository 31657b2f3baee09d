"""The fixed-point arithmetic of kernel/sched/psi.c and include/linux/sched/loadavg.h."""

from __future__ import annotations

import pytest

from virtintrospect.guests.linux.cpu import fixed
from virtintrospect.guests.linux.psi import _averages, _Clock, _decay, _Group, _power, _since

PERIOD = 2_004_000_000


@pytest.mark.parametrize(
    ("value", "shown"), [(0, 0.0), (2048, 1.0), (2047, 0.99), (204800, 100.0), (21, 0.01)]
)
def test_two_digits_cut_not_rounded(value: int, shown: float) -> None:
    assert fixed(value) == shown


def test_powers_come_near_those_of_real_numbers() -> None:
    assert _power(1677, 0) == 2048
    assert _power(1677, 1) == 1677
    assert _power(1677, 5) / 2048 == pytest.approx((1677 / 2048) ** 5, abs=0.002)
    assert _power(1677, 1 << 63) == 0  # as long a pause as a guest can claim


def test_a_full_load_is_reached_and_forgotten() -> None:
    value = 0
    for _ in range(300):
        value = _decay(value, 1677, 100 * 2048)
    assert fixed(value) == 100.0
    for _ in range(300):
        value = _decay(value, 1677, 0)
    assert fixed(value) == 0.0


def group(next_update: int, total: int) -> _Group:
    average = (50 * 2048,) * 3
    return _Group(next_update - PERIOD, next_update, 0, [total], [0], [average])


def test_averages_rest_until_a_period_is_over() -> None:
    before = group(10 * PERIOD, 0)
    clock = _Clock(0, 10 * PERIOD - 1, PERIOD, 4_000_000)
    assert _averages(before, [0], clock) == before.averages


def test_averages_fall_by_all_the_periods_that_were_missed() -> None:
    once = _averages(group(10 * PERIOD, 0), [0], _Clock(0, 10 * PERIOD, PERIOD, 4_000_000))
    late = _averages(group(10 * PERIOD, 0), [0], _Clock(0, 40 * PERIOD, PERIOD, 4_000_000))
    assert 50 * 2048 > once[0][0] > late[0][0] == pytest.approx(0, abs=2048)
    assert late[0][2] > late[0][1] > late[0][0]


def test_a_clock_that_runs_backwards_moves_nothing() -> None:
    torn = group(10 * PERIOD, 0)._replace(last_update=1 << 63)
    assert _averages(torn, [0], _Clock(0, 11 * PERIOD, PERIOD, 4_000_000)) == torn.averages


@pytest.mark.parametrize(
    ("now", "then", "gained"),
    [
        (5_000_000, 1_000_000, 4_000_000),
        (1000, (1 << 32) - 1000, 2000),  # it went around
        (1_000_000, 5_000_000, 0),  # the guest itself counted 4 ms after the moment we take
        (500, (1 << 32) + 500, 0),
        (3_000_000_000, 0, 3_000_000_000),
    ],
)
def test_a_counter_does_not_gain_what_was_counted_before_our_now(
    now: int, then: int, gained: int
) -> None:
    """Such a CPU was once shown with 2**32 ns, 4.3 seconds, too much."""
    assert _since(now, then) == gained
