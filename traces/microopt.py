"""Slice traffic of MicroOpt: truncated normals whose spread comes from a week of one cell.

Source: "MicroOpt: Model-driven Slice Resource Optimization in 5G and Beyond Networks", section VI-A3
(slice traffic model). The paper takes the mean and the largest standard deviation of a week of one
cell and draws traffic of 1 to 5 users/s from truncated normals with either: ten distributions. It
does not say what the deviation is taken over; here it is taken over the days, at each hour of the
day (the shaded band of its Fig. 5), after the week's busiest hour was scaled to 5 users/s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from traces.model import Trace, TraceError

PEAK_USERS = 5.0
CENTRES = (1.0, 2.0, 3.0, 4.0, 5.0)
HOURS_PER_DAY = 24
DAY_S = 86_400.0


@dataclass(frozen=True)
class SliceTraffic:
    """One of the ten distributions: normal(``mean``, ``sigma``) cut off below 0, in users/s."""

    mean: float
    sigma: float


def week_sigmas(week: Trace, *, peak_users: float = PEAK_USERS) -> tuple[float, float]:
    """(sigma_mean, sigma_max) in users/s of a week of one cell.

    The trace must cover seven days with at least one value an hour; TraceError otherwise.
    """
    hours = _hourly(week)
    if hours.shape[0] < 7:
        raise TraceError(f"microopt: needs seven days of one cell, got {hours.shape[0]} whole days")
    hours = hours[:7]
    if hours.max() <= 0:
        raise TraceError("microopt: the cell has no activity in this week")
    deviation = (hours / hours.max() * peak_users).std(axis=0)
    return float(deviation.mean()), float(deviation.max())


def distributions(week: Trace) -> tuple[SliceTraffic, ...]:
    """The ten distributions: centres 1 to 5 users/s with sigma_mean, then with sigma_max."""
    return tuple(SliceTraffic(centre, sigma) for sigma in week_sigmas(week) for centre in CENTRES)


def truncated_normal(
    mean: float, sigma: float, count: int, rng: np.random.Generator, *, low: float = 0.0, high: float = math.inf
) -> NDArray[np.float64]:
    """``count`` draws of normal(mean, sigma) that lie in [low, high], by rejection, shape (count,)."""
    if not (math.isfinite(mean) and math.isfinite(sigma) and sigma >= 0 and low <= mean <= high):
        raise TraceError(
            f"microopt: needs sigma >= 0 and mean in [{low:g}, {high:g}], got mean {mean:g}, sigma {sigma:g}"
        )
    draws = rng.normal(mean, sigma, count)
    while (outside := (draws < low) | (draws > high)).any():
        draws[outside] = rng.normal(mean, sigma, int(outside.sum()))
    return draws


def slice_traffic(
    traffic: SliceTraffic, duration_s: float, rng: np.random.Generator, *, slot_s: float = 1.0, high: float = math.inf
) -> Trace:
    """A new draw every ``slot_s``, unit ``users``."""
    if not (math.isfinite(duration_s) and duration_s > 0 and slot_s > 0):
        raise TraceError(f"microopt: duration_s and slot_s must be positive, got {duration_s:g} and {slot_s:g}")
    count = math.ceil(duration_s / slot_s)
    values = truncated_normal(traffic.mean, traffic.sigma, count, rng, high=high)
    return Trace(np.arange(count, dtype=np.float64) * slot_s, values, "users")


def _hourly(trace: Trace) -> NDArray[np.float64]:
    """Mean of every hour of every whole day, shape (days, 24)."""
    gaps = np.diff(trace.times_s)
    step = float(gaps[0]) if gaps.size else DAY_S
    if gaps.size and not np.allclose(gaps, step):
        raise TraceError("microopt: the week must be sampled at equal steps")
    per_hour = 3600.0 / step
    if per_hour < 1 or per_hour % 1:
        raise TraceError(f"microopt: an hour must hold a whole number of values, got one every {step:g} s")
    per_day = round(per_hour) * HOURS_PER_DAY
    days = trace.values.size // per_day
    hourly: NDArray[np.float64] = trace.values[: days * per_day].reshape(days, HOURS_PER_DAY, -1).mean(axis=2)
    return hourly
