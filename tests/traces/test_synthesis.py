"""The synthesiser has the statistics that were published for the real data set."""

from __future__ import annotations

import gzip
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from traces.model import TraceError
from traces.synthesis import (
    FIRST_DAY,
    LANDMARKS,
    PUBLISHED_DAYS,
    CellStatistics,
    cell_statistics,
    cell_totals,
    daily_shape,
    synthesise,
)
from traces.telecom_italia import read_cells

DATA = Path(__file__).parents[2] / "traces" / "data" / "sms-call-internet-mi-2013-11-04.txt.gz"
SEEDS = (0, 1, 2)
WEEKEND = np.array([(FIRST_DAY + timedelta(days=day)).weekday() >= 5 for day in range(PUBLISHED_DAYS)])


def autocorrelation(values: NDArray[np.float64], lag: int) -> float:
    centred = values - values.mean()
    return float((centred[:-lag] * centred[lag:]).sum() / (centred**2).sum())


def days_of(square: int, seed: int) -> NDArray[np.float64]:
    return synthesise((square,), np.random.default_rng(seed))[square].values.reshape(PUBLISHED_DAYS, 144)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("square", LANDMARKS)
def test_landmarks(square: int, seed: int) -> None:
    published, days = LANDMARKS[square], days_of(square, seed)
    assert days.mean() == pytest.approx(published.mean, rel=0.03)
    assert days.std() == pytest.approx(published.sd, rel=0.04)
    assert days[:, :36].mean() / days.mean() == pytest.approx(published.night_ratio, rel=0.05)
    assert days[WEEKEND].mean() / days[~WEEKEND].mean() == pytest.approx(published.weekend_ratio, rel=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_galleria_in_time(seed: int) -> None:
    days = days_of(5161, seed)
    assert autocorrelation(days.ravel(), 1) == pytest.approx(0.987, abs=0.004)
    assert autocorrelation(days.ravel(), 144) == pytest.approx(0.878, abs=0.03)
    assert autocorrelation(days.ravel(), 1008) == pytest.approx(0.838, abs=0.03)
    hours = days.mean(axis=0).reshape(24, 6).mean(axis=1)
    assert 15 <= hours.argmax() <= 17
    assert 3 <= hours.argmin() <= 5


@pytest.mark.parametrize("seed", SEEDS)
def test_totals_of_the_city(seed: int) -> None:
    totals = np.sort(cell_totals(10_000, np.random.default_rng(seed)))[::-1]
    assert np.log(totals).mean() == pytest.approx(12.496, abs=0.04)
    assert np.log(totals).std() == pytest.approx(1.211, abs=0.03)
    assert totals.max() <= 12_740_060
    ranks = np.arange(1, totals.size + 1)
    gini = float((2 * ranks - totals.size - 1) @ totals[::-1] / (totals.size * totals.sum()))
    assert gini == pytest.approx(0.608, abs=0.02)
    assert totals[:100].sum() / totals.sum() == pytest.approx(0.110, abs=0.012)
    assert totals[:1000].sum() / totals.sum() == pytest.approx(0.484, abs=0.035)
    assert totals.mean() == pytest.approx(555_289, rel=0.06)
    assert np.median(totals) == pytest.approx(277_871, rel=0.08)


def test_any_square_can_be_made() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        shape = daily_shape(cell_statistics(1, rng))
        assert shape.mean() == pytest.approx(1)
        assert shape.min() > 0


def test_impossible_statistics_are_refused() -> None:
    with pytest.raises(TraceError, match="no daily shape has these statistics"):
        daily_shape(CellStatistics(mean=100, sd=10, night_ratio=0.3, weekend_ratio=0.4))
    with pytest.raises(TraceError, match="no daily shape has these statistics"):
        daily_shape(CellStatistics(mean=100, sd=5, night_ratio=0.01, weekend_ratio=1))
    with pytest.raises(TraceError, match="days must be at least 1, got 0"):
        synthesise((1,), np.random.default_rng(0), days=0)


def test_seeds_count() -> None:
    one, again, other = (days_of(5161, seed) for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes()
    assert one.tobytes() != other.tobytes()


def test_shipped_file_can_be_made_again(tmp_path: Path) -> None:
    command = "--first-day 2013-11-04 --squares 4259 4456 5059 5161 5259 --seed 1"
    assert command in (DATA.parent / "README.md").read_text()
    subprocess.run(
        [sys.executable, "-m", "traces.synthesis", str(tmp_path), *command.split()],
        check=True, capture_output=True, cwd=DATA.parents[2], timeout=60,
    )  # fmt: skip
    # the text, not the gzip bytes: these depend on the zlib version
    assert gzip.decompress((tmp_path / DATA.name).read_bytes()) == gzip.decompress(DATA.read_bytes())
    cells = read_cells(DATA, (4259, 4456, 5059, 5161, 5259))
    assert all(trace.values.size == 144 for trace in cells.values())
