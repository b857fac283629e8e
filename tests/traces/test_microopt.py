"""MicroOpt's slice traffic: ten distributions out of a week of one cell."""

from __future__ import annotations

import math
from datetime import date

import numpy as np
import pytest

from traces.microopt import SliceTraffic, distributions, slice_traffic, truncated_normal, week_sigmas
from traces.model import Trace, TraceError
from traces.synthesis import synthesise

WEEK = synthesise((5161,), np.random.default_rng(0), first_day=date(2013, 11, 4), days=7)[5161]


def test_ten_distributions_from_a_week() -> None:
    made = distributions(WEEK)
    assert [traffic.mean for traffic in made] == [1, 2, 3, 4, 5] * 2
    assert len({traffic.sigma for traffic in made}) == 2
    assert 0 < made[0].sigma < made[-1].sigma < 5


def test_sigmas_of_a_week_that_can_be_calculated_by_hand() -> None:
    # hour 0 alternates 0 and 10 over the days, all other hours are 10: deviation only at hour 0
    hours = np.full((7, 24), 10.0)
    hours[1::2, 0] = 0
    week = Trace(np.arange(168.0) * 3600.0, hours.ravel(), "cdr")
    share = 4 / 7
    expected = 5 * math.sqrt(share * (1 - share))
    assert week_sigmas(week) == pytest.approx((expected / 24, expected))


def test_truncated_normal_has_the_moments_of_theory() -> None:
    draws = truncated_normal(1.0, 1.0, 200_000, np.random.default_rng(1))
    assert draws.min() >= 0
    density = math.exp(-0.5) / math.sqrt(2 * math.pi)
    mass = 0.5 * math.erfc(-1 / math.sqrt(2))
    assert draws.mean() == pytest.approx(1 + density / mass, rel=0.01)
    assert truncated_normal(3, 1, 1000, np.random.default_rng(1), high=4).max() <= 4


def test_slice_traffic_is_a_trace_of_users() -> None:
    trace = slice_traffic(SliceTraffic(3, 0.5), 10, np.random.default_rng(1), slot_s=2)
    assert trace.unit == "users"
    assert trace.times_s.tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (Trace(np.arange(144.0) * 600.0, np.ones(144), "cdr"), "needs seven days of one cell, got 1 whole days"),
        (Trace(np.arange(1008.0) * 600.0, np.zeros(1008), "cdr"), "no activity in this week"),
        (Trace(np.array([0.0, 1, 5]), np.ones(3), "cdr"), "sampled at equal steps"),
        (Trace(np.arange(10.0) * 7000.0, np.ones(10), "cdr"), "an hour must hold a whole number of values"),
    ],
)
def test_weeks_that_cannot_be_used(trace: Trace, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        week_sigmas(trace)


def test_bad_parameters() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TraceError, match="needs sigma >= 0 and mean in"):
        truncated_normal(-1, 1, 10, rng)
    with pytest.raises(TraceError, match="must be positive, got 0 and 1"):
        slice_traffic(SliceTraffic(1, 1), 0, rng)
