"""Waiting times at resources that are not overloaded, as means and as random draws."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MAX_LOAD = 0.99


def md1_wait_s(load: float, service_s: float) -> float:
    """Mean wait of an M/D/1 queue: load * service / (2 (1 - load)), the Pollaczek-Khinchine formula
    for constant service (L. Kleinrock, "Queueing Systems" vol. 1, section 5.6).

    ``load`` above 0.99 counts as 0.99: what an overloaded queue does is the fluid backlog's part.
    """
    load = min(load, MAX_LOAD)
    return load * service_s / (2 * (1 - load))


def multi_server_wait_s(load: float, service_s: float, servers: int) -> float:
    """Mean wait behind a round-robin balancer over ``servers`` single workers with constant service.

    Each worker sees every ``servers``-th Poisson arrival: Erlang arrivals with squared coefficient of
    variation 1/servers. Kingman's approximation of G/G/1 with c_a^2 = 1/servers and c_s^2 = 0
    ("The single server queue in heavy traffic", 1961): load/(1 - load) * service * c_a^2 / 2; exact
    (M/D/1) for one server. ``load`` is that of each worker.
    """
    return md1_wait_s(load, service_s) / servers


def draw_waits(
    rng: np.random.Generator, shape: tuple[int, ...], load: float, mean_s: float, most_s: float | Array
) -> Array:
    """Waits of arriving customers: 0 with probability 1 - load, else exponential, so that the mean is ``mean_s``.

    The tail of an M/G/1 wait is close to exponential (Kleinrock vol. 2, section 2.1). Draws above
    ``most_s`` (a number, or an array of shape ``shape``), which the buffer does not allow, are the
    buffer's time.
    """
    return waits_of(rng.random(shape), load, mean_s, most_s)


def waits_of(uniform: Array, load: float, mean_s: float, most_s: float | Array) -> Array:
    """The waits of :func:`draw_waits` that these uniform numbers stand for."""
    load = min(max(load, 0.0), MAX_LOAD)
    if load <= 0 or mean_s <= 0:
        return np.zeros(uniform.shape)
    with np.errstate(divide="ignore"):
        waits: Array = np.where(uniform < load, -np.log(uniform / load) * (mean_s / load), 0.0)
    return np.minimum(waits, most_s)


def mean_wait_s(load: float, mean_s: float, most_s: float) -> float:
    """Mean of what :func:`draw_waits` draws: E[min(W, most)] = mean (1 - exp(-most load / mean))."""
    load = min(max(load, 0.0), MAX_LOAD)
    if load <= 0 or mean_s <= 0:
        return 0.0
    return mean_s * -math.expm1(-most_s * load / mean_s)


def weighted_percentiles(samples: Array, weights: Array, ranks: tuple[int, ...]) -> tuple[float, ...]:
    """The smallest samples below which ``rank`` percent of the weight lies; needs a positive weight."""
    order = np.argsort(samples, kind="stable")
    reached = np.cumsum(weights[order])
    total = float(reached[-1])
    places = reached.searchsorted([rank / 100 * total for rank in ranks], side="left").tolist()
    return tuple(float(samples[order[min(place, samples.size - 1)]]) for place in places)
