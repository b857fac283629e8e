"""Slice traffic of one interval: how many users, with what probability.

A constant, a distribution or a predicted series all become weighted values, so that the optimisers know one
kind of traffic. Distributions become values at equal steps of probability: no random numbers, and an error of
the expectation that falls with the number of values instead of its square root.

Spellings (:func:`parse_traffic`)::

    constant:3               3 users all the time
    normal:3:0.5             a normal cut off to the traffic that the model has seen
    poisson:3                Poisson-distributed counts, cut off likewise ("MicroOpt", section VI-F: delay as the QoS)
    telecom-italia[:HOUR]    a day (or one hour, 0 to 23) of activity of the file that TwinBed brings,
                             its largest value scaled to the most users that the model has seen
    file:PATH                numbers of users, one per line, or the column n_users of a CSV; equally likely
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, ndtri

from controllers.microopt.slice_data import SliceModelError
from traces.microopt import SliceTraffic
from traces.profiles import DATA
from traces.telecom_italia import read_cell

Array = NDArray[np.float64]
SPELLINGS = "constant:N, normal:MEAN:STD, poisson:MEAN, telecom-italia[:HOUR], file:PATH"
TRACE = DATA / "sms-call-internet-mi-2013-11-04.txt.gz"
SQUARE = 5161


class TrafficError(SliceModelError):
    """Traffic that cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Traffic:
    """``values`` (X,) in users, positive, and their ``weights`` (X,), which add up to 1."""

    values: Array
    weights: Array
    name: str = "traffic"

    def __post_init__(self) -> None:
        values, weights = np.asarray(self.values, float), np.asarray(self.weights, float)
        if values.ndim != 1 or values.shape != weights.shape or not values.size:
            raise TrafficError(f"{self.name}: needs values and weights of one shape (n,), n >= 1")
        if not (np.isfinite(values).all() and (values >= 0).all() and values.max() > 0):
            raise TrafficError(f"{self.name}: users must be finite, not negative and not all 0")
        if not (weights >= 0).all() or abs(float(weights.sum()) - 1) > 1e-6:
            raise TrafficError(f"{self.name}: weights must be at least 0 and add up to 1")

    @property
    def mean(self) -> float:
        return float(self.values @ self.weights)

    @property
    def peak(self) -> float:
        """The largest number of users that can occur."""
        return float(self.values[self.weights > 0].max())

    def at_peak(self) -> Traffic:
        """The peak all the time: what a method that knows only constant traffic must assume."""
        return constant(self.peak)

    def thinned(self, count: int) -> Traffic:
        """At most ``count`` values: means of neighbouring values with equal weight; the mean is kept."""
        if self.values.size <= count:
            return self
        order = np.argsort(self.values, kind="stable")
        values, weights = self.values[order], self.weights[order]
        level = np.concatenate(([0.0], np.cumsum(weights)))
        level /= level[-1]
        users = np.concatenate(([0.0], np.cumsum(values * weights)))
        bounds = np.linspace(0, 1, count + 1)
        return Traffic(np.diff(np.interp(bounds, level, users)) * count, np.full(count, 1 / count), self.name)


def constant(users: float) -> Traffic:
    """``users`` all the time."""
    if not (math.isfinite(users) and users > 0):
        raise TrafficError(f"constant traffic must be a positive number of users, got {users:g}")
    return Traffic(np.array([users]), np.ones(1), f"constant:{users:g}")


def normal(mean: float, sigma: float, *, low: float, high: float, count: int = 1024) -> Traffic:
    """Normal(mean, sigma) cut off to [low, high]: ``count`` values at equal steps of probability."""
    if not (math.isfinite(mean) and math.isfinite(sigma) and sigma >= 0 and low <= mean <= high):
        raise TrafficError(
            f"normal traffic needs a mean in [{low:g}, {high:g}] users and a std of at least 0, "
            f"got mean {mean:g}, std {sigma:g}"
        )
    if sigma == 0:
        return constant(mean)
    first, last = ndtr((low - mean) / sigma), ndtr((high - mean) / sigma)
    steps = first + (np.arange(count) + 0.5) / count * (last - first)
    values = np.clip(mean + sigma * ndtri(steps), low, high)
    return Traffic(values, np.full(count, 1 / count), f"normal:{mean:g}:{sigma:.4g}")


def poisson(mean: float, *, low: float, high: float) -> Traffic:
    """Poisson-distributed counts of users, cut off to [low, high]."""
    if not (math.isfinite(mean) and mean > 0):
        raise TrafficError(f"poisson traffic needs a positive mean number of users, got {mean:g}")
    # Measured users are means over an interval: 4.9999 of them are 5.
    counts = np.arange(max(1, math.ceil(low - 0.01)), math.floor(high + 0.01) + 1)
    chance = np.exp(counts * math.log(mean) - mean - gammaln(counts + 1))
    if not counts.size or not chance.sum() > 0:
        raise TrafficError(f"poisson traffic: no count of users in [{low:g}, {high:g}] with a mean of {mean:g}")
    return Traffic(np.clip(counts, low, high), chance / chance.sum(), f"poisson:{mean:g}")


def from_slice_traffic(traffic: SliceTraffic, *, low: float, high: float) -> Traffic:
    """One of the paper's ten distributions (section VI-A3)."""
    return normal(traffic.mean, traffic.sigma, low=low, high=high)


def samples(values: Sequence[float] | Array, name: str = "samples") -> Traffic:
    """Equally likely values: a predicted series, or what was measured. Slots without users count for nothing in
    equation 1 and are left out; TrafficError when nothing is left."""
    users = np.asarray(values, float)
    if users.ndim != 1 or not np.isfinite(users).all() or (users < 0).any():
        raise TrafficError(f"{name}: users must be finite and not negative")
    users = users[users > 0]
    if not users.size:
        raise TrafficError(f"{name}: no users at all")
    return Traffic(users, np.full(users.size, 1 / users.size), name)


def parse_traffic(text: str, *, low: float, high: float) -> Traffic:
    """Traffic of a spelling; ``low`` and ``high`` are the fewest and most users that the model has seen."""
    kind, _, rest = text.partition(":")
    parts = rest.split(":") if rest else []
    if kind == "constant" and len(parts) == 1:
        return constant(_number(text, parts[0]))
    if kind == "normal" and len(parts) == 2:
        return normal(_number(text, parts[0]), _number(text, parts[1]), low=low, high=high)
    if kind == "poisson" and len(parts) == 1:
        return poisson(_number(text, parts[0]), low=low, high=high)
    if kind == "telecom-italia" and len(parts) <= 1:
        return telecom_italia(int(_number(text, parts[0])) if parts else None, peak_users=high)
    if kind == "file" and rest:
        return _from_file(Path(rest))
    raise TrafficError(f"traffic must be one of {SPELLINGS}, got {text!r}")


def telecom_italia(hour: int | None, *, peak_users: float, square: int = SQUARE) -> Traffic:
    """Users of one square in ``hour`` of the (synthetic) Monday that TwinBed brings, or of the whole day."""
    if hour is not None and not 0 <= hour <= 23:
        raise TrafficError(f"telecom-italia: hour must be in [0, 23], got {hour}")
    day = read_cell(TRACE, square).values
    users = day / day.max() * peak_users
    if hour is not None:
        users = users[hour * 6 : hour * 6 + 6]
    return samples(users, "telecom-italia" if hour is None else f"telecom-italia:{hour}")


def _number(text: str, part: str) -> float:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TrafficError(f"traffic {text!r}: {part!r} is no number; spellings: {SPELLINGS}")
    return value


def _from_file(path: Path) -> Traffic:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise TrafficError(f"traffic file {path}: cannot be read: {reason}") from None
    if not lines:
        raise TrafficError(f"traffic file {path}: empty")
    column, first = 0, 0
    head = [name.strip() for name in lines[0].split(",")]
    if "n_users" in head:
        column, first = head.index("n_users"), 1
    elif len(head) > 1:
        raise TrafficError(f"traffic file {path}: no column n_users; got columns {', '.join(head[:12])}")
    values = []
    for number, line in enumerate(lines[first:], first + 1):
        try:
            value = float(line.split(",")[column])
        except (ValueError, IndexError):
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise TrafficError(f"traffic file {path}:{number}: users must be a number of at least 0, got {line[:40]!r}")
        values.append(value)
    return samples(values, f"file:{path}")
