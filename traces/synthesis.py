"""Synthetic Milan: activity with the published statistics of the Telecom Italia data set.

A cell's activity is a product of four parts (a model of ours; the targets are published):

    x(t) = m * g(day) * s(hour) * exp(r(t) - v/2)

- m: mean per 10 minutes. Cell totals are lognormal, cut off at the largest published total.
- g: weekend factor, mean 1 over a week.
- s: daily shape, ln s(h) = a + b1 cos(2 pi (h - 16)/24) + b2 cos(4 pi (h - 16)/24): two harmonics in
  the logarithm, so that activity is never negative; top at 16 h, bottom at 4 h, mean 1 over a day.
- r: stationary AR(1) with variance v and correlation ``RESIDUAL_STEP_CORRELATION`` per 10 minutes.

b1 and b2 are solved so that the cell has its published standard deviation and night ratio.
Source of the data: G. Barlacchi et al., "A multi-source dataset of urban life in the city of Milan
and the Province of Trentino", Scientific Data 2 (2015) 150055.
"""

from __future__ import annotations

import argparse
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from traces.model import Trace, TraceError

SLOT_S = 600.0
SLOTS_PER_DAY = 144
FIRST_DAY = date(2013, 11, 1)
PUBLISHED_DAYS = 62
NIGHT_HOURS = (0, 6)
PEAK_HOUR = 16.0

# Two-month totals of the 10,000 cells.
TOTAL_LOG_MEAN = 12.496
TOTAL_LOG_SD = 1.211
TOTAL_MAX = 12_740_060.0

# Chosen so that square 5161 has its published autocorrelation at one step, one day and one week.
RESIDUAL_VARIANCE = 0.032
RESIDUAL_STEP_CORRELATION = 0.82

_ROME_OFFSET_S = 3600  # CET; no clock change falls into the two months


@dataclass(frozen=True)
class CellStatistics:
    """What a cell should look like: mean and standard deviation per 10 minutes, mean of the night
    (00-06 h) over the mean, mean of a weekend day over the mean of a weekday."""

    mean: float
    sd: float
    night_ratio: float
    weekend_ratio: float


LANDMARKS: dict[int, CellStatistics] = {
    5161: CellStatistics(1427.0, 1382.0, 0.130, 1.384),  # Galleria
    5059: CellStatistics(1251.0, 961.0, 0.235, 0.861),  # Duomo
    5259: CellStatistics(1174.0, 1103.0, 0.333, 0.425),  # La Scala
}


def cell_totals(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Two-month totals of ``count`` cells, shape (count,): lognormal, at most ``TOTAL_MAX``."""
    totals = rng.lognormal(TOTAL_LOG_MEAN, TOTAL_LOG_SD, count)
    while (over := totals > TOTAL_MAX).any():
        totals[over] = rng.lognormal(TOTAL_LOG_MEAN, TOTAL_LOG_SD, int(over.sum()))
    return totals


def cell_statistics(square_id: int, rng: np.random.Generator) -> CellStatistics:
    """The published figures of a landmark, or drawn ones between those of the landmarks."""
    if square_id in LANDMARKS:
        return LANDMARKS[square_id]
    mean = float(cell_totals(1, rng)[0]) / (PUBLISHED_DAYS * SLOTS_PER_DAY)
    sd = mean * rng.uniform(0.76, 0.96)
    return CellStatistics(mean, sd, float(rng.uniform(0.14, 0.30)), float(rng.uniform(0.55, 1.35)))


def synthesise(
    square_ids: Sequence[int], rng: np.random.Generator, *, first_day: date = FIRST_DAY, days: int = PUBLISHED_DAYS
) -> dict[int, Trace]:
    """Internet activity per 10 minutes of each square (unit ``cdr``), from midnight of ``first_day``.

    Every square draws from a stream of its own, spawned from ``rng`` in the order given.
    """
    if days < 1:
        raise TraceError(f"synthesis: days must be at least 1, got {days}")
    children = rng.spawn(len(square_ids))
    return {
        square: synthesise_cell(cell_statistics(square, child), child, first_day=first_day, days=days)
        for square, child in zip(square_ids, children, strict=True)
    }


def synthesise_cell(
    statistics: CellStatistics, rng: np.random.Generator, *, first_day: date = FIRST_DAY, days: int = PUBLISHED_DAYS
) -> Trace:
    """One cell's activity, shape (days * 144,), unit ``cdr``."""
    shape = daily_shape(statistics)
    weekend, weekday = weekend_factors(statistics.weekend_ratio)
    factors = [weekend if (first_day + timedelta(days=offset)).weekday() >= 5 else weekday for offset in range(days)]
    residual = np.exp(_ar1(days * SLOTS_PER_DAY, rng) - RESIDUAL_VARIANCE / 2)
    values = statistics.mean * np.outer(factors, shape).ravel() * residual
    return Trace(np.arange(values.size, dtype=np.float64) * SLOT_S, values, "cdr")


def weekend_factors(weekend_ratio: float) -> tuple[float, float]:
    """(weekend, weekday) factors of this ratio whose mean over a week is 1."""
    weekday = 7.0 / (5.0 + 2.0 * weekend_ratio)
    return weekend_ratio * weekday, weekday


def daily_shape(statistics: CellStatistics) -> NDArray[np.float64]:
    """s(h) at the 144 slots of a day, mean 1.

    With E[g^2], E[s^2] and E[exp(r - v/2)^2] = exp(v) independent, the coefficient of variation c of
    the product gives E[s^2] = (1 + c^2) / (E[g^2] exp(v)). Newton's method on (b1, b2) meets this and
    the night ratio. Raises TraceError when no such shape exists.
    """
    weekend, weekday = weekend_factors(statistics.weekend_ratio)
    weekly_square = (2 * weekend**2 + 5 * weekday**2) / 7
    variation = statistics.sd / statistics.mean
    square = (1 + variation**2) / (weekly_square * math.exp(RESIDUAL_VARIANCE))
    impossible = TraceError(f"synthesis: no daily shape has these statistics: {statistics}")
    if square < 1:  # the week and the residual alone vary more than asked for
        raise impossible
    target = np.array([math.sqrt(square), statistics.night_ratio])
    point = np.array([1.0, 0.0])
    for _ in range(100):
        error = _shape_figures(point) - target
        if np.abs(error).max() < 1e-9:
            return _shape(point)
        step = 1e-6
        jacobian = np.column_stack(
            [
                (_shape_figures(point + step * axis) - _shape_figures(point - step * axis)) / (2 * step)
                for axis in np.eye(2)
            ]
        )
        move = np.linalg.solve(jacobian, -error)
        point = point + move * min(1.0, 0.5 / float(np.abs(move).max()))
    raise impossible


def _shape(point: NDArray[np.float64]) -> NDArray[np.float64]:
    hours = (np.arange(SLOTS_PER_DAY) + 0.5) * SLOT_S / 3600
    phase = 2 * math.pi * (hours - PEAK_HOUR) / 24
    raw = np.exp(point[0] * np.cos(phase) + point[1] * np.cos(2 * phase))
    shape: NDArray[np.float64] = raw / raw.mean()
    return shape


def _shape_figures(point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square and night mean of the shape."""
    shape = _shape(point)
    low, high = (hour * 6 for hour in NIGHT_HOURS)
    return np.array([math.sqrt(float((shape**2).mean())), float(shape[low:high].mean())])


def _ar1(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A stationary AR(1) series of ``RESIDUAL_VARIANCE``, shape (count,)."""
    rho = RESIDUAL_STEP_CORRELATION
    noise = rng.normal(0.0, math.sqrt(RESIDUAL_VARIANCE), count)
    series = np.empty(count)
    level = noise[0]
    scale = math.sqrt(1 - rho**2)
    series[0] = level
    for index in range(1, count):
        level = rho * level + scale * noise[index]
        series[index] = level
    return series


# Activity by country code: most of a cell's records are Italian, some carry the unknown code 0.
_COUNTRY_SHARES = ((0, 0.02), (33, 0.01), (39, 0.97))
# Other activity per unit of Internet activity, chosen so that columns are not all filled.
_OTHER_SHARES = (0.11, 0.10, 0.09, 0.10)


def write_day(
    stream: BinaryIO | gzip.GzipFile, traces: Mapping[int, Trace], day: int, first_day: date, rng: np.random.Generator
) -> None:
    """Write day ``day`` (0 = ``first_day``) of synthetic traces in Telecom Italia's exact TSV layout.

    The rows of one square and interval differ in the country and add up to the trace's value.
    SMS and call columns are drawn in proportion; a share of them is left empty, as in the data set.
    """
    midnight = datetime.combine(first_day + timedelta(days=day), datetime.min.time(), UTC).timestamp()
    for square in sorted(traces):
        values = traces[square].values[day * SLOTS_PER_DAY : (day + 1) * SLOTS_PER_DAY]
        for slot, value in enumerate(values):
            stamp = round((midnight - _ROME_OFFSET_S + slot * SLOT_S) * 1000)
            left = float(value)
            for country, share in _COUNTRY_SHARES:
                internet = left if country == 39 else float(value) * share
                left -= internet
                others = [
                    f"{internet * part * rng.exponential():.15g}" if rng.random() < 0.8 else ""
                    for part in _OTHER_SHARES
                ]
                line = "\t".join((str(square), str(stamp), str(country), *others, f"{internet:.15g}"))
                stream.write(line.encode("ascii") + b"\n")


def write_files(
    directory: Path, square_ids: Sequence[int], rng: np.random.Generator, *, first_day: date, days: int
) -> list[Path]:
    """Synthesise squares and write one gzip-compressed TSV a day; the files, in order of time."""
    traces = synthesise(square_ids, rng, first_day=first_day, days=days)
    paths = []
    for day in range(days):
        path = directory / f"sms-call-internet-mi-{first_day + timedelta(days=day)}.txt.gz"
        # mtime 0 and no name in the header: the same seed gives the same bytes
        with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
            write_day(packed, traces, day, first_day, rng)
        paths.append(path)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m traces.synthesis``: write synthetic activity files."""
    parser = argparse.ArgumentParser(prog="python -m traces.synthesis", description=(main.__doc__ or "").strip())
    parser.add_argument("directory", type=Path)
    parser.add_argument("--first-day", type=date.fromisoformat, default=FIRST_DAY)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--squares", type=int, nargs="+", default=sorted(LANDMARKS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    for path in write_files(options.directory, options.squares, rng, first_day=options.first_day, days=options.days):
        print(path)


if __name__ == "__main__":
    main()
