"""Arrays of spans: runs of different length, one behind the other in a flat array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from twin.flow.maxmin import Array
from twin.flow.queueing import weighted_percentiles

Numbers = NDArray[np.int64]


def sums(numbers: Numbers, values: Array, count: int) -> Array:
    """Sum of the values of each number below ``count``, in their order."""
    return cast(Array, np.bincount(numbers, values, count))


def starts(counts: Numbers) -> Numbers:
    """Where each span begins."""
    found: Numbers = np.cumsum(counts) - counts
    return found


def places(first: Numbers, counts: Numbers) -> Numbers:
    """The places of spans that begin at ``first``, span by span."""
    found: Numbers = np.repeat(first - starts(counts), counts) + np.arange(int(counts.sum()))
    return found


def percentiles_of_groups(
    values: Array, counts: Numbers, weights: Array, groups: Numbers, ranks: tuple[int, ...]
) -> dict[int, tuple[float, ...]]:
    """Weighted percentiles of each group of spans; groups without weight are absent.

    ``values`` is flat; ``counts``, ``weights`` (of each value of a span) and ``groups`` are per span.
    """
    return dict(_groups(values, counts, weights, groups, ranks))


def _groups(
    values: Array, counts: Numbers, weights: Array, groups: Numbers, ranks: tuple[int, ...]
) -> Iterator[tuple[int, tuple[float, ...]]]:
    used = np.flatnonzero(weights > 0)
    order = used[np.argsort(groups[used], kind="stable")]
    if not order.size:
        return
    sorted_values = values[places(starts(counts)[order], counts[order])]
    sorted_weights = np.repeat(weights[order], counts[order])
    firsts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    edges = [*starts(counts[order])[firsts].tolist(), sorted_values.size]
    for number, group in enumerate(groups[order][firsts].tolist()):
        part = slice(edges[number], edges[number + 1])
        yield group, weighted_percentiles(sorted_values[part], sorted_weights[part], ranks)
