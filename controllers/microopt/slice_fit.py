"""Fitting a slice model: maximum likelihood (equation 4 of MicroOpt, section IV-A) on every row of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controllers.microopt.slice_data import QosData, SliceData
from controllers.microopt.slice_limits import Limits, fit_limits
from controllers.microopt.slice_model import (
    THROUGHPUT,
    Architecture,
    Kind,
    QosNetwork,
    Resource,
    SliceModel,
    SliceModelError,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a kind of model is trained: Adam for ``steps`` steps over all rows, at ``rate`` and, after half of
    them, at a tenth of it (the paper: 3000 epochs, 0.001, then 0.0001)."""

    architecture: dict[str, Any]
    steps: int
    rate: float
    decay: float = 0.0


_PAPER: dict[str, Any] = {"features": "raw", "smooth": False, "link": "linear", "base": False}
RECIPES: dict[Kind, Recipe] = {
    "paper": Recipe(architecture=_PAPER, steps=3000, rate=1e-2),
    "gaussian": Recipe(architecture={"members": 5}, steps=1000, rate=1e-2),
    "mdn": Recipe(architecture={"members": 3, "components": 4}, steps=800, rate=1e-2, decay=1e-3),
}


def fit(data: QosData, *, kind: Kind, seed: int, recipe: Recipe | None = None) -> SliceModel:
    """A slice model of every slice and QoS in ``data``; the same seed gives the same model on the same host."""
    recipe = recipe or RECIPES[kind]
    networks = {}
    with one_thread():
        torch.manual_seed(seed)
        for name, rows in data.slices.items():
            for qos, values in rows.qos.items():
                made = {**recipe.architecture}
                if qos != THROUGHPUT:
                    made["base"] = False  # the least share is a throughput: other QoS only read it
                architecture = Architecture(kind=kind, resources=len(data.resources), **made)
                networks[name, qos] = fit_network(architecture, rows, values, recipe)
    allocation = np.concatenate([rows.allocation for rows in data.slices.values()])
    traffic = np.concatenate([rows.traffic for rows in data.slices.values()])
    low, high = allocation.min(axis=0), allocation.max(axis=0)
    return SliceModel(
        kind=kind,
        resources=[Resource(n, float(a), float(b)) for n, a, b in zip(data.resources, low, high, strict=True)],
        traffic_range=(float(traffic.min()), float(traffic.max())),
        hull=hull_of(allocation),
        networks=networks,
        provenance={
            "data": {
                "file": data.source,
                "sha256": data.sha256,
                "rows": int(traffic.size),
                "cells": int(np.unique(allocation, axis=0).shape[0]),
            },
            "kind": kind,
            "seed": seed,
            "steps": recipe.steps,
            "rate": recipe.rate,
            "torch": torch.__version__.split("+")[0],
        },
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Layers of 16 are too small to share: on a busy host the threads of one step wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_network(architecture: Architecture, rows: SliceData, values: NDArray[np.float64], recipe: Recipe) -> QosNetwork:
    """One network. Rows of one (users, allocation) share a forward pass: there are few such points."""
    network = QosNetwork(architecture)
    points, counts, index = _points(rows)
    traffic, allocation = points[:, 0], points[:, 1:]
    network.least_traffic.fill_(float(traffic.min()))
    weight = torch.tensor(counts / counts.sum(), dtype=torch.float32).unsqueeze(-1)
    if architecture.features == "limits":
        throughput = np.bincount(index.numpy(), rows.qos[THROUGHPUT]) / counts
        _set_limits(network, fit_limits(points.numpy(), throughput, counts))
    features = network.features(traffic, allocation)
    network.input_mean.copy_((features * weight).sum(0))
    spread = ((features - network.input_mean) ** 2 * weight).sum(0).sqrt()
    network.input_std.copy_(torch.where(spread > 1e-9, spread, 1.0))
    scale = float(values.std())
    if not scale > 0:
        raise SliceModelError(f"slice model: the QoS is {values[0]:g} in every row: nothing to learn")
    network.std_floor.fill_(1e-3 * scale)
    scaled = np.log(np.maximum(values, 1e-3 * scale)) if architecture.link == "log" else values
    if architecture.base:
        scaled = scaled - features[index, -2].numpy()
    network.qos_mean.fill_(float(scaled.mean()))
    network.qos_std.fill_(float(scaled.std()))
    observed = torch.tensor(values, dtype=torch.float32)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, max(1, recipe.steps // 2), 0.1)
    for _ in range(recipe.steps):
        optimiser.zero_grad()
        loss = _loss(network, traffic, allocation, index, observed)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return network


def hull_of(allocation: NDArray[np.float64]) -> Tensor:
    """Half-spaces of the convex hull of allocations (N, K), see :meth:`SliceModel.hull`."""
    from scipy.spatial import ConvexHull, QhullError

    low, high = allocation.min(axis=0), allocation.max(axis=0)
    width = allocation.shape[1]
    box = np.concatenate(
        [
            np.hstack([np.eye(width), -(high > low).astype(float)[:, None]]),
            np.hstack([-np.eye(width), np.zeros((width, 1))]),
        ]
    )
    scaled = np.unique((allocation - low) / np.where(high > low, high - low, 1.0), axis=0)
    try:
        halves = np.concatenate([box, ConvexHull(scaled).equations]) if width > 1 else box
    except (QhullError, ValueError):  # all on one line or plane: the box is all that is known
        halves = box
    return torch.tensor(np.unique(halves.round(9), axis=0), dtype=torch.float32)


def _set_limits(network: QosNetwork, found: Limits) -> None:
    network.slope.copy_(torch.tensor(found.slope))
    network.offset.copy_(torch.tensor(found.offset))
    network.cap.fill_(found.log_cap)
    network.sharpness.fill_(found.sharpness)


def _points(rows: SliceData) -> tuple[Tensor, NDArray[np.int64], Tensor]:
    """Unique (users, allocation), how many rows each has, and the point of every row."""
    joined = np.column_stack([rows.traffic, rows.allocation])
    points, index, counts = np.unique(joined, axis=0, return_inverse=True, return_counts=True)
    return torch.tensor(points, dtype=torch.float32), counts, torch.tensor(index.reshape(-1))


def _loss(network: QosNetwork, traffic: Tensor, allocation: Tensor, index: Tensor, observed: Tensor) -> Tensor:
    """Mean over the rows, summed over the members: each learns by itself."""
    members = network.member_distributions(traffic, allocation)
    picked = type(members)(*(part[:, index] for part in (members.weights, members.means, members.stds)))
    return -picked.log_prob(observed).mean(-1).sum()
