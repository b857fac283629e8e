"""What one scarce resource lets a slice carry: the physical part of a slice model, fitted before the network.

A slice whose only scarce resource is CPU carries so many bit/s per millicore; one whose only scarce
resource is bandwidth carries a share of it; a single user reaches at most what its application sends.
The users share the least of these equally. A network that starts from this law has only its
deviations to learn, so that it is right between the cells of a coarse grid too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_SHARPNESS = (3.0, 40.0)
_OFFSET = (-2.0, 0.9)  # in units of the least allocation in the data
_STEEPEST = 40.0


@dataclass(frozen=True)
class Limits:
    """All users together get ``slope * (resource - offset)`` of each resource, shapes (K,), in the unit of the
    throughput; one user at most exp(``log_cap``). ``sharpness`` is the order of the smooth minimum."""

    slope: Array
    offset: Array
    log_cap: float
    sharpness: float


def fit_limits(points: Array, throughput: Array, counts: NDArray[np.int64]) -> Limits:
    """Robust least squares of the logarithm of the mean throughput per user.

    ``points`` (N, 1 + K): users, then the allocation; ``throughput`` (N,) per user; ``counts`` (N,) rows behind it.
    """
    from scipy.optimize import least_squares

    users, allocation = np.log(points[:, :1]), points[:, 1:]
    width = allocation.shape[1]
    low, high = allocation.min(axis=0), allocation.max(axis=0)
    target = np.log(np.maximum(throughput, 1e-3 * throughput.mean()))
    weight = np.sqrt(counts / counts.mean())

    def residual(theta: Array) -> Array:
        usable = np.maximum(allocation - theta[width : 2 * width] * low, 0.05 * allocation)
        share = theta[:width] + np.log(usable) - users
        parts = np.hstack([share, np.full((len(share), 1), theta[-2])])
        least, order = parts.min(axis=1), np.exp(theta[-1])
        smooth = least - np.log(np.exp(order * (least[:, None] - parts)).sum(axis=1)) / order
        result: Array = weight * (smooth - target)
        return result

    # To begin with every resource alone explains the most that was carried.
    most = np.quantile(throughput * points[:, 0], 0.9)
    start = np.concatenate([np.log(most / high), np.zeros(width), [np.log(throughput.max()), np.log(8.0)]])
    bounds = np.array(
        [(-_STEEPEST, _STEEPEST)] * width + [_OFFSET] * width + [(-_STEEPEST, _STEEPEST), tuple(np.log(_SHARPNESS))]
    ).T
    # Soft L1 keeps cells that were measured while the load was still changing from bending the law.
    found = least_squares(residual, np.clip(start, *bounds), bounds=bounds, loss="soft_l1", f_scale=0.05).x
    slope, offset = np.exp(found[:width]), found[width : 2 * width] * low
    return Limits(slope, offset, float(found[-2]), float(np.exp(found[-1])))
