"""A trace: demand over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["users", "bps", "requests_per_s", "cdr"]


class TraceError(ValueError):
    """A trace that cannot be used; the message says what, got, allowed, and file:line."""


@dataclass(frozen=True)
class Trace:
    """A step function: ``values[i]`` holds from ``times_s[i]`` until the next time.

    ``times_s`` and ``values`` are float64 arrays of shape (n,), n >= 1; times start at or after 0 and
    strictly increase; values are finite and not negative. ``unit`` says what is counted: ``cdr`` is
    Telecom Italia's activity, proportional to call detail records (not bytes).
    """

    times_s: NDArray[np.float64]
    values: NDArray[np.float64]
    unit: Unit

    def __post_init__(self) -> None:
        times = np.asarray(self.times_s, dtype=np.float64)
        values = np.asarray(self.values, dtype=np.float64)
        if times.ndim != 1 or times.shape != values.shape or times.size == 0:
            raise TraceError(f"trace: times and values must be of one shape (n,), got {times.shape} and {values.shape}")
        if not (np.isfinite(times).all() and np.isfinite(values).all()):
            raise TraceError("trace: times and values must be finite")
        if times[0] < 0 or (np.diff(times) <= 0).any():
            raise TraceError("trace: times_s must start at 0 or later and strictly increase")
        if (values < 0).any():
            raise TraceError(f"trace: values must not be negative, got {values.min():g}")
        times.flags.writeable = False
        values.flags.writeable = False
        object.__setattr__(self, "times_s", times)
        object.__setattr__(self, "values", values)

    def at(self, time_s: float) -> float:
        """The value in force at ``time_s``; 0 before the first time."""
        index = int(np.searchsorted(self.times_s, time_s, side="right")) - 1
        return float(self.values[index]) if index >= 0 else 0.0

    def compressed(self, factor: float) -> Trace:
        """The same trace played ``factor`` times faster (1440 plays a day in a minute)."""
        return Trace(self.times_s / factor, self.values, self.unit)

    def scaled(self, factor: float, unit: Unit) -> Trace:
        """Values multiplied by ``factor`` and counted in ``unit``."""
        return Trace(self.times_s, self.values * factor, unit)
