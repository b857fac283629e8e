"""Histograms of delays with logarithmic bins, 2 % wide, that merge over UEs by adding counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

BIN_RATIO = 1.02
_LOG_RATIO = math.log(BIN_RATIO)


class Histogram:
    """Counts of delays in microseconds; bin ``i`` holds [1.02^i, 1.02^(i+1)) µs, bin 0 also what is below 1 µs."""

    __slots__ = ("bins", "count", "sum_us")

    def __init__(self) -> None:
        self.count = 0
        self.sum_us = 0.0
        self.bins: dict[int, int] = {}

    def add(self, delay_us: float) -> None:
        """Count one delay; negative ones (clock jitter below a microsecond) fall into bin 0."""
        self.count += 1
        self.sum_us += delay_us
        index = int(math.log(delay_us) / _LOG_RATIO) if delay_us > 1 else 0
        self.bins[index] = self.bins.get(index, 0) + 1

    def take(self) -> dict[str, Any]:
        """The JSON form, and start again from nothing."""
        form = {"count": self.count, "sum_us": round(self.sum_us, 1), "bins": {str(i): n for i, n in self.bins.items()}}
        self.count = 0
        self.sum_us = 0.0
        self.bins = {}
        return form


def merge(histograms: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One histogram (JSON form) with the counts of all."""
    count = 0
    sum_us = 0.0
    bins: dict[str, int] = {}
    for histogram in histograms:
        count += histogram["count"]
        sum_us += histogram["sum_us"]
        for index, number in histogram["bins"].items():
            bins[index] = bins.get(index, 0) + number
    return {"count": count, "sum_us": sum_us, "bins": bins}


def percentile(histogram: Mapping[str, Any], rank: float) -> float | None:
    """The ``rank``-th percentile (0–100) in µs, within 1 %; None when the histogram is empty.

    Nearest-rank definition; the value is the geometric middle of the bin.
    """
    if not 0 <= rank <= 100:
        raise ValueError(f"rank must be in [0, 100], got {rank:g}")
    total = histogram["count"]
    if not total:
        return None
    wanted = max(1, math.ceil(rank / 100 * total))
    seen = 0
    middle = 0.0
    for index in sorted(int(key) for key in histogram["bins"]):
        seen += histogram["bins"][str(index)]
        middle = BIN_RATIO ** (index + 0.5)
        if seen >= wanted:
            break
    return middle


def mean(histogram: Mapping[str, Any]) -> float | None:
    """The mean in µs; None when the histogram is empty."""
    return histogram["sum_us"] / histogram["count"] if histogram["count"] else None
