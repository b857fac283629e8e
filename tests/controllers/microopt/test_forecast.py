"""Quantile regression against persistence, and what is known before there is a past."""

from __future__ import annotations

import numpy as np
import pytest

from controllers.microopt import forecast
from controllers.microopt.traffic import SQUARE, TRACE, TrafficError
from traces import synthesis
from traces.telecom_italia import read_cell


def test_better_than_persistence_on_a_square_it_has_not_seen() -> None:
    first = synthesis.FIRST_DAY.replace(day=4)
    week = synthesis.synthesise([4259], np.random.default_rng(3), first_day=first, days=4)[4259].values
    past, day = week / week.mean(), read_cell(TRACE, SQUARE).values
    day = day / day.mean()
    learned = forecast.fit(past)
    found = np.array([forecast.predict(learned, day[: at + 1]) for at in range(10, day.size - 1)])
    actual = day[11:]
    naive = np.maximum(day[10:-1][:, None] + np.quantile(np.diff(past), forecast.LEVELS), 0)
    assert forecast.pinball_loss(found, actual) < 0.97 * forecast.pinball_loss(naive, actual)
    inside = np.mean((actual >= found[:, 0]) & (actual <= found[:, -1]))
    assert inside == pytest.approx(0.9, abs=0.08)


@pytest.mark.parametrize("square", [5059, 4456])
def test_tracking_makes_up_for_a_fit_that_is_too_sure(square: int) -> None:
    """Fitted to less noise than comes: the intervals are far too narrow, and become as wide as they say."""
    first = synthesis.FIRST_DAY.replace(day=4)
    day = synthesis.synthesise([square], np.random.default_rng(3), first_day=first, days=3)[square].values
    day = day / day.mean()
    learned = forecast.fit(day)
    raw = np.array([forecast.predict(learned, day[: at + 1]) for at in range(10, day.size - 1)])
    actual = day[11:]
    narrow = np.median(raw, axis=1)[:, None] + 0.4 * (raw - np.median(raw, axis=1)[:, None])
    tracker = forecast.Tracker()
    tracked = np.empty_like(raw)
    for place, (quantiles, came) in enumerate(zip(narrow, actual, strict=True)):
        tracked[place] = tracker.corrected(quantiles)
        tracker.observe(quantiles, float(came))

    def covered(found: np.ndarray) -> float:
        # After the first day.
        return float(np.mean(((actual >= found[:, 0]) & (actual <= found[:, -1]))[144:]))

    assert covered(narrow) < 0.7
    assert covered(tracked) == pytest.approx(0.9, abs=0.03)
    assert forecast.pinball_loss(tracked, actual) < forecast.pinball_loss(narrow, actual)
    # Where the fit is right, nothing is lost.
    kept = forecast.Tracker()
    again = []
    for quantiles, came in zip(raw, actual, strict=True):
        again.append(kept.corrected(quantiles))
        kept.observe(quantiles, float(came))
    assert covered(np.array(again)) == pytest.approx(0.9, abs=0.03)
    assert forecast.pinball_loss(np.array(again), actual) < 1.02 * forecast.pinball_loss(raw, actual)


def test_counts_stay_counts() -> None:
    seen = forecast.QuantileForecaster(horizon=5)
    rng = np.random.default_rng(1)
    inside = []
    for slot, value in enumerate(np.repeat(np.clip(rng.normal(3, 1, 120).round(), 0, 5), 2), 1):
        seen.observe(float(value))
        if slot % 5 == 0 and (found := seen.quantiles()) is not None:
            assert (found == found.round()).all()
            inside.append((found[0], found[-1]))
    assert {high for _, high in inside} <= {4.0, 5.0} and {low for low, _ in inside} <= {0.0, 1.0, 2.0}


def test_a_ramp_is_followed_and_its_spread_known() -> None:
    seen = forecast.QuantileForecaster()
    assert seen.forecast() is None
    for value in np.arange(60) * 0.1 + 1:
        seen.observe(float(value))
    found = seen.forecast()
    assert found is not None
    assert found.mean == pytest.approx(7.0, abs=0.01)
    assert found.values.max() - found.values.min() < 0.01


def test_noise_makes_a_distribution() -> None:
    rng = np.random.default_rng(0)
    seen = forecast.QuantileForecaster(horizon=5)
    for value in rng.normal(3, 0.5, 300):
        seen.observe(float(value))
    found = seen.forecast()
    assert found is not None
    assert found.mean == pytest.approx(3, abs=0.25)
    assert found.values.std() == pytest.approx(0.47, abs=0.2)


def test_a_short_past_is_repeated() -> None:
    seen = forecast.QuantileForecaster()
    for users in (0.0, 2.0, 4.0):
        seen.observe(users)
    found = seen.forecast()
    assert found is not None
    assert sorted(found.values) == [2.0, 4.0]


def test_nobody_ever() -> None:
    seen = forecast.QuantileForecaster()
    for _ in range(50):
        seen.observe(0.0)
    assert seen.forecast() is None


def test_bad_horizon() -> None:
    with pytest.raises(TrafficError, match="horizon"):
        forecast.QuantileForecaster(horizon=0)
