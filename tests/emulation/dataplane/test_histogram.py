"""Histograms: percentiles within a bin, merging is adding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.emulation.dataplane.histogram import BIN_RATIO, Histogram, mean, merge, percentile

delays = st.lists(st.floats(1.5, 1e8), min_size=1, max_size=200)


def _of(values: list[float]) -> dict[str, object]:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram.take()


@given(values=delays, rank=st.floats(0, 100))
def test_percentile_is_within_a_bin_of_the_exact_one(values: list[float], rank: float) -> None:
    exact = sorted(values)[max(1, -(-len(values) * rank // 100).__int__()) - 1]
    found = percentile(_of(values), rank)
    assert found is not None
    assert exact / BIN_RATIO**1.01 <= found <= exact * BIN_RATIO**1.01


@given(a=delays, b=delays)
def test_merging_equals_counting_together(a: list[float], b: list[float]) -> None:
    merged, together = merge([_of(a), _of(b)]), _of(a + b)
    assert merged["bins"] == together["bins"] and merged["count"] == together["count"]
    assert merged["sum_us"] == pytest.approx(together["sum_us"], abs=0.3)


def test_taking_starts_again_and_nothing_has_no_percentile() -> None:
    histogram = Histogram()
    histogram.add(100)
    assert histogram.take()["count"] == 1
    empty = histogram.take()
    assert empty == {"count": 0, "sum_us": 0.0, "bins": {}}
    assert percentile(empty, 50) is None and mean(empty) is None


def test_zero_and_negative_delays_fall_into_the_first_bin() -> None:
    assert _of([0.0, -5.0, 0.5])["bins"] == {"0": 3}


def test_rank_outside_0_to_100_is_refused() -> None:
    with pytest.raises(ValueError, match="got 101"):
        percentile(_of([1.0]), 101)
