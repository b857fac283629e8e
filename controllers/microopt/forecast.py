"""Forecasts of the slice traffic of the next interval, as a distribution.

MicroOpt takes a predicted distribution as given (section II-B1 asks for more than single points). Here it is linear
quantile regression on the recent past: for each level tau the coefficients that minimise the pinball loss::

    sum_t  max(tau e_t, (tau - 1) e_t),   e_t = y_{t+1} - b_tau . z_t

z_t: 1, the value, its last two changes and, where ``period`` is given, what the next step added a period ago. Solved
as a linear program, so that there is nothing to tune and the same data give the same answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from controllers.microopt.traffic import Traffic, TrafficError, samples

Array = NDArray[np.float64]
LEVELS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
"""Middles of ten equal parts of probability: their forecasts are equally likely values of a :class:`Traffic`."""
LEAST_HISTORY = 30
ROWS = 240
"""Most pairs of past and next value in one fit of a run: a decision has to be ready within a second."""


class Forecaster(Protocol):
    """Sees one number of users per observation; gives the traffic of the next one, None when nothing is known."""

    def observe(self, users: float) -> None: ...

    def forecast(self) -> Traffic | None: ...


class Recent:
    """What was seen lately will be seen again: the last ``window`` observations, equally likely."""

    def __init__(self, window: int = 20) -> None:
        self._seen: deque[float] = deque(maxlen=window)

    def observe(self, users: float) -> None:
        self._seen.append(users)

    def forecast(self) -> Traffic | None:
        return samples(list(self._seen), "recent") if any(self._seen) else None


class QuantileForecaster:
    """Quantile regression, fitted to the past of the run and again every ``refit`` observations.

    Until :data:`LEAST_HISTORY` observations it is :class:`Recent`. ``horizon``: the forecast is for any of the next
    ``horizon`` observations, those of one decision interval.
    """

    def __init__(self, *, horizon: int = 1, period: int | None = None, refit: int = 20, keep: int = 400) -> None:
        if horizon < 1 or (period is not None and period < horizon):
            raise TrafficError(f"forecast: needs 1 <= horizon <= period, got {horizon} and {period}")
        self._horizon, self._period, self._refit = horizon, period, refit
        self._seen: deque[float] = deque(maxlen=keep + (period or 0))
        self._recent = Recent()
        self._since = 0
        self._coefficients: Array | None = None

    def observe(self, users: float) -> None:
        self._seen.append(users)
        self._recent.observe(users)
        self._since += 1

    def forecast(self) -> Traffic | None:
        history = np.array(self._seen)
        if history.size < LEAST_HISTORY + (self._period or 0) + self._horizon:
            return self._recent.forecast()
        if self._coefficients is None or self._since >= self._refit:
            self._coefficients = fit(history, horizon=self._horizon, period=self._period, rows=ROWS)
            self._since = 0
        values = predict(self._coefficients, history, period=self._period, horizon=self._horizon)
        return samples(values, "forecast") if (values > 0).any() else self._recent.forecast()


def features(history: Array, horizon: int, period: int | None) -> Array:
    """z_t for every t that has a whole past, shape (T, F); the last row is that of the newest value."""
    first = max(2, 0 if period is None else period)
    now = history[first:]
    columns = [np.ones(now.size), now, now - history[first - 1 : -1], history[first - 1 : -1] - history[first - 2 : -2]]
    if period is not None:
        start = first - period
        columns.append(history[start + horizon : start + horizon + now.size] - history[start : start + now.size])
    return np.column_stack(columns)


def fit(
    history: Sequence[float] | Array,
    *,
    horizon: int = 1,
    period: int | None = None,
    levels: Sequence[float] = LEVELS,
    rows: int | None = None,
) -> Array:
    """Coefficients (levels, F) for y_{t+h}, h = 1 ... horizon pooled, by one linear program per level.

    ``rows``: at most so many, at equal steps over the whole past.
    """
    values = np.asarray(history, float)
    inputs, targets = [], []
    for step in range(1, horizon + 1):
        z = features(values, step, period)[:-step]
        inputs.append(z)
        targets.append(values[values.size - z.shape[0] :])
    z, y = np.vstack(inputs), np.concatenate(targets)
    if rows is not None and y.size > rows:
        kept = np.linspace(0, y.size - 1, rows).round().astype(int)
        z, y = z[kept], y[kept]
    return _pinball(z, y, levels)


def predict(coefficients: Array, history: Array, *, period: int | None = None, horizon: int = 1) -> Array:
    """Sorted, not negative quantiles of the next values, (levels,); the middle step stands for a horizon."""
    step = (horizon + 1) // 2
    values: Array = np.sort(np.maximum(coefficients @ features(history, step, period)[-1], 0.0))
    return values


def _pinball(z: Array, y: Array, levels: Sequence[float]) -> Array:
    from scipy.optimize import linprog
    from scipy.sparse import eye, hstack

    # A constant column twice, as with traffic that never changed, leaves the program without a unique answer only.
    count, width = z.shape
    equal = hstack([z, eye(count), -eye(count)], format="csr")
    bounds = [(None, None)] * width + [(0, None)] * (2 * count)
    found = []
    for level in levels:
        price = np.concatenate((np.zeros(width), np.full(count, level), np.full(count, 1 - level)))
        solved = linprog(price, A_eq=equal, b_eq=y, bounds=bounds, method="highs")
        if solved.status != 0:
            raise TrafficError(f"forecast: the linear program was not solved: {solved.message}")
        found.append(solved.x[:width])
    return np.array(found)


def pinball_loss(quantiles: Array, actual: Array, levels: Sequence[float] = LEVELS) -> float:
    """Mean pinball loss of forecasts (T, levels) against what came, (T,)."""
    error = actual[:, None] - quantiles
    tau = np.asarray(levels)
    return float(np.maximum(tau * error, (tau - 1) * error).mean())
