"""Spans of different length against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from twin.flow.queueing import weighted_percentiles
from twin.flow.spans import percentiles_of_groups, places, starts


def test_places_of_spans() -> None:
    counts = np.array([2, 0, 3])
    assert starts(counts).tolist() == [0, 2, 2]
    assert places(np.array([10, 5, 20]), counts).tolist() == [10, 11, 20, 21, 22]


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_those_of_each_group_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 30, 40)
    groups = rng.integers(0, 6, 40)
    weights = np.where(groups == 4, 0.0, rng.choice([0.0, 0.5, 2.0], 40))
    values = rng.random(int(counts.sum()))
    expected = {}
    for group in range(6):
        mine = [(n, w) for n, w in enumerate(weights) if groups[n] == group and w > 0]
        if mine:
            of = np.concatenate([values[starts(counts)[n] :][: counts[n]] for n, _ in mine])
            expected[group] = weighted_percentiles(
                of, np.repeat([w for _, w in mine], counts[[n for n, _ in mine]]), (5, 95)
            )
    assert percentiles_of_groups(values, counts, weights, groups, (5, 95)) == expected
    assert 4 not in expected


def test_nothing_has_no_percentiles() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert percentiles_of_groups(np.zeros(0), none, np.zeros(0), none, (50,)) == {}
