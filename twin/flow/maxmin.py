"""Max-min fair rates with demand limits, by progressive filling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
UNLIMITED = -1
_TOLERANCE = 1e-12


def max_min(usage: Array, capacity: Array, demand: Array) -> tuple[Array, NDArray[np.int64]]:
    """The max-min fair rates x, and what limits each flow.

    maximise lexicographically sort(x)  subject to  usage @ x <= capacity,  0 <= x <= demand

    ``usage``: shape (resources, flows), not negative: what one unit of a flow's rate takes of a
    resource. ``capacity``: shape (resources,). ``demand``: shape (flows,), finite. Returns rates of
    shape (flows,) and the index of the resource that limits each flow, ``UNLIMITED`` when it has its
    demand. Progressive filling: all rates grow together; a flow stops at its demand or when one of
    its resources is full (D. Bertsekas and R. Gallager, "Data Networks", section 6.5.2).
    """
    rates = np.zeros(demand.shape)
    limit = np.full(demand.shape, UNLIMITED, dtype=np.int64)
    left = capacity.astype(np.float64).copy()
    growing = demand > 0
    # Differences of large numbers leave residues: what counts as full depends on the capacity.
    slack = _TOLERANCE * np.maximum(capacity, 1.0)
    for resource in np.flatnonzero(left <= slack):
        stuck = growing & (usage[resource] > 0)
        limit[stuck] = resource
        growing &= ~stuck
    while growing.any():
        speed = usage[:, growing].sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            until_full = np.where(speed > 0, left / speed, np.inf)
        until_met = demand[growing] - rates[growing]
        step = min(float(until_full.min(initial=np.inf)), float(until_met.min()))
        rates[growing] += step
        left -= speed * step
        met = growing & (demand - rates <= _TOLERANCE * np.maximum(demand, 1.0))
        rates[met] = demand[met]
        growing &= ~met
        full = (speed > 0) & ((left <= slack) | (until_full <= step))
        for resource in np.flatnonzero(full):
            stuck = growing & (usage[resource] > 0)
            limit[stuck] = resource
            growing &= ~stuck
    return rates, limit
