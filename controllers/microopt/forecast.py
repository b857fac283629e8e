"""Forecasts of the slice traffic of the next interval, as a distribution.

MicroOpt takes a predicted distribution as given (section II-B1 asks for more than single points). Here it is linear
quantile regression on the recent past: for each level tau the coefficients that minimise the pinball loss::

    sum_t  max(tau e_t, (tau - 1) e_t),   e_t = y_{t+1} - b_tau . z_t

z_t: 1, the value, its last two changes and, where ``period`` is given, what the next step added a period ago. Solved
as a linear program, so that there is nothing to tune and the same data give the same answer.

What was fitted to a short past, or to another cell, is too sure of itself. :class:`Tracker` therefore shifts every
quantile by what came of it, so that a part tau of what comes stays below the one of level tau.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

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


class Tracker:
    """Shifts quantiles online until each is exceeded as often as its level says.

    Source: "Conformal PID Control for Time Series Prediction" (Angelopoulos, Candes and Tibshirani, 2023), quantile
    tracking: after an observation y the shift of level tau moves by ``rate`` times the mean size of recent errors
    times tau - 1{y <= q + shift}. The sum of these steps is the shift itself, which stays within the errors that
    occur: whatever the traffic does, the share below each quantile tends to its level.
    """

    def __init__(self, levels: Sequence[float] = LEVELS, rate: float = 0.1, window: int = 50) -> None:
        self._levels = np.asarray(levels, float)
        self._rate = rate
        self._shift = np.zeros(self._levels.size)
        self._errors: deque[float] = deque(maxlen=window)

    def corrected(self, quantiles: Array) -> Array:
        """Sorted, not negative; ``quantiles`` (levels,) as they were forecast."""
        values: Array = np.sort(np.maximum(quantiles + self._shift, 0.0))
        return values

    def observe(self, quantiles: Array, actual: float, weight: float = 1.0) -> None:
        """What came of the uncorrected ``quantiles``; ``weight`` of this observation among those of one forecast."""
        self._errors.append(abs(actual - float(np.median(quantiles))))
        hit = actual <= quantiles + self._shift
        self._shift = self._shift + weight * self._rate * float(np.mean(self._errors)) * (self._levels - hit)


class QuantileForecaster:
    """Quantile regression, fitted to the past of the run and again every ``refit`` observations, then tracked.

    Until :data:`LEAST_HISTORY` observations it is :class:`Recent`. ``horizon``: the forecast is for any of the next
    ``horizon`` observations, those of one decision interval.
    """

    def __init__(
        self,
        *,
        horizon: int = 1,
        period: int | None = None,
        refit: int = 20,
        keep: int = 400,
        rate: float = 0.2,
    ) -> None:
        if horizon < 1 or (period is not None and period < horizon):
            raise TrafficError(f"forecast: needs 1 <= horizon <= period, got {horizon} and {period}")
        self._horizon, self._period, self._refit = horizon, period, refit
        self._seen: deque[float] = deque(maxlen=keep + (period or 0))
        self._recent = Recent()
        self._since = 0
        self._coefficients: Array | None = None
        self._tracker = Tracker(rate=rate)
        self._issued: Array | None = None
        self._due = 0

    def observe(self, users: float) -> None:
        if self._issued is not None and self._due > 0:
            self._tracker.observe(self._issued, users, 1 / self._horizon)
            self._due -= 1
        self._seen.append(users)
        self._recent.observe(users)
        self._since += 1

    def forecast(self) -> Traffic | None:
        values = self.quantiles()
        if values is None or not (values > 0).any():
            return self._recent.forecast()
        return samples(values, "forecast")

    def quantiles(self) -> Array | None:
        """Quantiles of the next observations at :data:`LEVELS`, (levels,); None while the past is too short."""
        history = np.array(self._seen)
        if history.size < LEAST_HISTORY + (self._period or 0) + self._horizon:
            return None
        if self._coefficients is None or self._since >= self._refit:
            self._coefficients = fit(history, horizon=self._horizon, period=self._period, rows=ROWS)
            self._since = 0
        self._issued = predict(self._coefficients, history, period=self._period, horizon=self._horizon)
        self._due = self._horizon
        values = self._tracker.corrected(self._issued)
        # Where users were always counted, nothing lies between two counts: a quantile on a count would be shifted to
        # and fro around it.
        return np.round(values) if (history == np.round(history)).all() else values


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
    # The dual program: as many bounded variables as rows, but only as many equations as features. The
    # coefficients are the multipliers of these.
    found = []
    for level in levels:
        solved = linprog(-y, A_eq=z.T, b_eq=(1 - level) * z.sum(0), bounds=(0, 1), method="highs")
        if solved.status != 0:
            raise TrafficError(f"forecast: the linear program was not solved: {solved.message}")
        found.append(-solved.eqlin.marginals)
    return np.array(found)


def pinball_loss(quantiles: Array, actual: Array, levels: Sequence[float] = LEVELS) -> float:
    """Mean pinball loss of forecasts (T, levels) against what came, (T,)."""
    error = actual[:, None] - quantiles
    tau = np.asarray(levels)
    return float(np.maximum(tau * error, (tau - 1) * error).mean())
