"""Slice models made by hand for tests: what a gNB of 40 ns per bit and a transport limit give, with noise."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch

from controllers.microopt.slice_data import DELAY, THROUGHPUT, QosData, SliceData
from controllers.microopt.slice_fit import RECIPES, Recipe, fit
from controllers.microopt.slice_model import SliceModel, save

NOISE_MBPS = 0.4
RATE_MBPS = 8.0


def rows(repeat: int = 12, seed: int = 0) -> SliceData:
    """CPU of 100 to 1000 millicores carries 25 Mbit/s per 1000; the scarcer of CPU and bandwidth is shared."""
    rng = np.random.default_rng(seed)
    points = [
        (users, cpu, bw)
        for cpu, bw, users, _ in product(
            range(100, 1001, 150), (2.5, 5.0, 10.0, 15.0, 20.0, 25.0), range(1, 6), range(repeat)
        )
    ]
    table = np.array(points, float)
    mean = np.minimum(np.minimum(table[:, 1] * 0.025, table[:, 2]) / table[:, 0], RATE_MBPS)
    quality = np.maximum(mean + rng.normal(0, NOISE_MBPS * np.minimum(1, mean / 3), mean.size), 0.0)
    return SliceData(table[:, 0], table[:, 1:], {THROUGHPUT: quality})


def delay_rows(repeat: int = 12, seed: int = 0) -> SliceData:
    """The same with a delay: 10 ms, and what 100 kbit take of a user's share, with 20 % of noise."""
    data = rows(repeat, seed)
    rng = np.random.default_rng(seed + 1)
    cpu, bw = data.allocation.T
    share = np.minimum(np.minimum(cpu * 0.025, bw) / data.traffic, RATE_MBPS)
    delay = (0.01 + 0.1 / share) * np.exp(0.2 * rng.standard_normal(share.size))
    return SliceData(data.traffic, data.allocation, {**data.qos, DELAY: delay})


@cache
def delay_model() -> SliceModel:
    """Throughput and delay of one slice, fitted in a few seconds."""
    torch.set_num_threads(1)
    data = QosData(("cpu_millicores", "bandwidth_mbps"), {"urllc": delay_rows()}, "made by hand", "")
    recipe = RECIPES["gaussian"]
    quick = Recipe(architecture={**recipe.architecture, "members": 1}, steps=600, rate=recipe.rate)
    return fit(data, kind="gaussian", seed=0, recipe=quick)


@cache
def small_model() -> SliceModel:
    """Fitted in a few seconds."""
    torch.set_num_threads(1)
    data = QosData(("cpu_millicores", "bandwidth_mbps"), {"embb": rows()}, "made by hand", "")
    recipe = RECIPES["gaussian"]
    quick = Recipe(architecture={**recipe.architecture, "members": 1}, steps=600, rate=recipe.rate)
    return fit(data, kind="gaussian", seed=0, recipe=quick)


def saved(folder: Path) -> Path:
    path = folder / "model.pt"
    save(small_model(), path)
    return path
