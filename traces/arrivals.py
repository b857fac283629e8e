"""Users that come and go as random processes: Poisson arrivals and on/off sources, and no change.

Every function takes a numpy Generator and returns a :class:`~traces.model.Trace` of users.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from traces.model import Trace, TraceError, Unit


def constant(value: float, unit: Unit = "users") -> Trace:
    """``value`` for ever."""
    return Trace(np.zeros(1), np.array([value], dtype=np.float64), unit)


def poisson(
    rate_per_s: float, holding_s: float, duration_s: float, rng: np.random.Generator, *, limit: int | None = None
) -> Trace:
    """Users in the system with Poisson arrivals and exponential holding times.

    Starts in the stationary state: Poisson(``rate_per_s * holding_s``) users (the M/G/infinity
    queue; L. Kleinrock, "Queueing Systems" vol. 1, section 3.4). With ``limit``, arrivals that find
    ``limit`` users leave at once (Erlang's loss system); the first users are cut to ``limit`` too.
    """
    _check_positive("poisson", rate_per_s=rate_per_s, holding_s=holding_s, duration_s=duration_s)
    if limit is not None and limit < 1:
        raise TraceError(f"poisson: limit must be at least 1, got {limit}")
    first = int(rng.poisson(rate_per_s * holding_s))
    count = int(rng.poisson(rate_per_s * duration_s))
    arrivals = np.sort(rng.uniform(0, duration_s, count))
    holdings = rng.exponential(holding_s, count)
    departures = list(rng.exponential(holding_s, first if limit is None else min(first, limit)))
    if limit is None:
        return _counted(np.concatenate((np.zeros(first), arrivals)), np.concatenate((departures, arrivals + holdings)),
                        duration_s)  # fmt: skip
    accepted = [0.0] * len(departures)
    present = sorted(departures)
    for arrival, holding in zip(arrivals, holdings, strict=True):
        present = [departure for departure in present if departure > arrival]
        if len(present) < limit:
            accepted.append(float(arrival))
            present.append(float(arrival + holding))
            departures.append(float(arrival + holding))
    return _counted(np.array(accepted), np.array(departures), duration_s)


def on_off(on_s: float, off_s: float, duration_s: float, rng: np.random.Generator, *, sources: int = 1) -> Trace:
    """Number of sources that are on; each alternates exponential on and off times of these means.

    Every source starts in the stationary state, on with probability ``on_s / (on_s + off_s)``.
    """
    _check_positive("on_off", on_s=on_s, off_s=off_s, duration_s=duration_s)
    if sources < 1:
        raise TraceError(f"on_off: sources must be at least 1, got {sources}")
    starts: list[float] = []
    stops: list[float] = []
    for _ in range(sources):
        on = bool(rng.random() < on_s / (on_s + off_s))
        time_s = 0.0
        while time_s < duration_s:
            length = float(rng.exponential(on_s if on else off_s))
            if on:
                starts.append(time_s)
                stops.append(time_s + length)
            time_s += length
            on = not on
    return _counted(np.array(starts), np.array(stops), duration_s)


def _counted(starts: NDArray[np.float64], stops: NDArray[np.float64], duration_s: float) -> Trace:
    """Number of open [start, stop) over time, as steps within [0, duration_s)."""
    times = np.concatenate(([0.0], starts, stops))
    change = np.concatenate(([0.0], np.ones(starts.size), -np.ones(stops.size)))
    inside = times < duration_s
    moments, place = np.unique(times[inside], return_inverse=True)
    values = np.cumsum(np.bincount(place, weights=change[inside], minlength=moments.size))
    return Trace(moments, np.rint(values), "users")


def _check_positive(where: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise TraceError(f"{where}: {name} must be positive and finite, got {value:g}")
