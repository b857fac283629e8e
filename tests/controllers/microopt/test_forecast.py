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
