"""Poisson and on/off users against what queueing theory says about them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from traces.arrivals import constant, on_off, poisson
from traces.model import Trace, TraceError


def time_average(trace: Trace, duration_s: float) -> float:
    lengths = np.diff(np.append(trace.times_s, duration_s))
    return float((trace.values * lengths).sum() / duration_s)


def share_of_time_at(trace: Trace, value: float, duration_s: float) -> float:
    lengths = np.diff(np.append(trace.times_s, duration_s))
    return float(lengths[trace.values == value].sum() / duration_s)


def test_poisson_has_the_stationary_distribution() -> None:
    trace = poisson(0.5, 10.0, 100_000, np.random.default_rng(1))
    assert time_average(trace, 100_000) == pytest.approx(5.0, rel=0.03)
    assert share_of_time_at(trace, 0, 100_000) == pytest.approx(math.exp(-5), rel=0.25)
    assert trace.times_s[0] == 0
    assert trace.times_s[-1] < 100_000


def test_limited_poisson_is_erlangs_loss_system() -> None:
    trace = poisson(1.0, 4.0, 50_000, np.random.default_rng(2), limit=5)
    assert trace.values.max() == 5
    weights = [4.0**n / math.factorial(n) for n in range(6)]
    assert share_of_time_at(trace, 5, 50_000) == pytest.approx(weights[5] / sum(weights), rel=0.06)


def test_on_off() -> None:
    trace = on_off(2.0, 6.0, 50_000, np.random.default_rng(3), sources=4)
    assert time_average(trace, 50_000) == pytest.approx(1.0, rel=0.05)
    assert set(trace.values) == {0, 1, 2, 3, 4}


def test_same_seed_same_trace() -> None:
    first, again, other = (on_off(1, 1, 100, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.times_s.tobytes() == again.times_s.tobytes() != other.times_s.tobytes()


def test_constant() -> None:
    assert constant(3).at(1e9) == 3


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_parameters(bad: float) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(TraceError, match="poisson: rate_per_s must be positive and finite"):
        poisson(bad, 1, 1, rng)
    with pytest.raises(TraceError, match="on_off: off_s must be positive and finite"):
        on_off(1, bad, 1, rng)
    with pytest.raises(TraceError, match="sources must be at least 1, got 0"):
        on_off(1, 1, 1, rng, sources=0)
    with pytest.raises(TraceError, match="limit must be at least 1, got 0"):
        poisson(1, 1, 1, rng, limit=0)
