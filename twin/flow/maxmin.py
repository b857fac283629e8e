"""Max-min fair rates with demand limits, by progressive filling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
UNLIMITED = -1
_TOLERANCE = 1e-12
_CLEAR = 1e-9  # relative room that is no rounding


def max_min(usage: Array, capacity: Array, demand: Array) -> tuple[Array, NDArray[np.int64]]:
    """The max-min fair rates x, and what limits each flow.

    maximise lexicographically sort(x)  subject to  usage @ x <= capacity,  0 <= x <= demand

    ``usage``: shape (resources, flows), not negative: what one unit of a flow's rate takes of a
    resource. ``capacity``: shape (resources,). ``demand``: shape (flows,), finite. Returns rates of
    shape (flows,) and the index of the resource that limits each flow, ``UNLIMITED`` when it has its
    demand. Progressive filling: all rates grow together; a flow stops at its demand or when one of
    its resources is full (D. Bertsekas and R. Gallager, "Data Networks", section 6.5.2).
    """
    limit = np.full(demand.shape, UNLIMITED, dtype=np.int64)
    # Differences of large numbers leave residues: what counts as full depends on the capacity.
    slack = _TOLERANCE * np.maximum(capacity, 1.0)
    # What all demands together leave room at cannot become full on the way to them.
    wanted = usage @ demand
    may_fill = (wanted > 0) & (wanted * (1 + _CLEAR) + 2 * slack >= capacity)
    if not may_fill.any():
        return np.maximum(demand, 0.0), limit
    tight = np.flatnonzero(may_fill)
    return _filled(usage[tight], capacity[tight], slack[tight], demand, tight, limit)


def _filled(
    usage: Array, capacity: Array, slack: Array, demand: Array, rows: NDArray[np.int64], limit: NDArray[np.int64]
) -> tuple[Array, NDArray[np.int64]]:
    """Progressive filling over the resources that may become full; ``rows`` are their numbers."""
    rates = np.zeros(demand.shape)
    left = capacity.astype(np.float64)
    growing = demand > 0
    near = _TOLERANCE * np.maximum(demand, 1.0)
    crossing = usage > 0

    def stop(resources: NDArray[np.bool_]) -> None:
        for resource in np.flatnonzero(resources).tolist():
            stuck = growing & crossing[resource]
            limit[stuck] = rows[resource]
            growing[stuck] = False

    stop(left <= slack)
    while growing.any():
        # A running sum: what sum() rounds depends on how many rows there are.
        speed = usage[:, growing].cumsum(axis=1)[:, -1]
        until_full = np.full(left.shape, np.inf)
        np.divide(left, speed, out=until_full, where=speed > 0)
        step = min(float(until_full.min()), float((demand - rates)[growing].min()))
        rates[growing] += step
        left -= speed * step
        met = growing & (demand - rates <= near)
        rates[met] = demand[met]
        growing &= ~met
        full = (speed > 0) & ((left <= slack) | (until_full <= step))
        if full.any():
            stop(full)
    return rates, limit
