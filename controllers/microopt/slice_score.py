"""How good a slice model is: likelihood, errors and calibration on data it has not seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from controllers.microopt.slice_data import THROUGHPUT, QosData, SliceData, SliceModelError
from controllers.microopt.slice_fit import Recipe, fit, one_thread
from controllers.microopt.slice_model import Kind, QosDistribution, SliceModel

INTERVALS = (0.5, 0.8, 0.95)
PIT_BINS = 10
WITHHELD = 0.2


def evaluate(model: SliceModel, data: QosData) -> dict[str, Any]:
    """Scores of ``model`` on ``data``: of the throughput of all slices together, then ``each`` slice and QoS.

    ``nll``: mean negative log density (equations 3 and 4 of MicroOpt, section IV-A, in the unit of the QoS).
    ``mse`` is of the mean and ``mae`` of the median of the predicted distribution, the points that each
    of the two errors asks for; for a Gaussian they are the same (``mae_of_mean`` says it for a mixture too).
    ``calibration``: shares of the probability integral transform in ten bins (0.1 each is perfect), its
    largest distance from the uniform distribution, and the shares of rows in the central intervals.
    ``extrapolated``: share of rows outside what the model was fitted on.
    SliceModelError when the data lacks a resource, slice or QoS of the model, or has another.
    """
    names = tuple(resource.name for resource in model.resources)
    if data.resources != names:
        raise SliceModelError(
            f"slice model: fitted on resources {', '.join(names)}; {data.source} has {', '.join(data.resources)}"
        )
    each = []
    parts: list[dict[str, NDArray[np.float64]]] = []
    for name, rows in data.slices.items():
        # A single slice needs no name in common.
        known = model.slices[0] if len(model.slices) == len(data.slices) == 1 else name
        for qos, values in rows.qos.items():
            if (known, qos) not in model.networks and qos != THROUGHPUT:
                continue
            found = _row_scores(model, rows, values, known, qos)
            each.append({"slice": known, "qos": qos, **_summary(found)})
            if qos == THROUGHPUT:
                parts.append(found)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {**_summary(joined), "each": each}


def validate(data: QosData, *, kind: Kind, seed: int, recipe: Recipe | None = None) -> dict[str, dict[str, Any]]:
    """Scores on a fifth withheld, by two splits: ``by_cell`` withholds whole allocations inside the grid,
    ``by_row`` (the paper's) random rows, so that every cell has been seen. The first is what an optimiser meets."""
    rng = np.random.default_rng(seed)
    result = {}
    for split in ("by_cell", "by_row"):
        train, test = {}, {}
        for name, rows in data.slices.items():
            held = _inner_cells(rows, rng) if split == "by_cell" else rng.random(rows.traffic.size) < WITHHELD
            if not held.any() or rows.rows(~held).cells().max() < 1:
                break
            train[name], test[name] = rows.rows(~held), rows.rows(held)
        else:
            model = fit(dataclasses.replace(data, slices=train), kind=kind, seed=seed, recipe=recipe)
            scores = evaluate(model, dataclasses.replace(data, slices=test))
            result[split] = {key: value for key, value in scores.items() if key != "each"}
    return result


def _inner_cells(rows: SliceData, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Rows of a fifth of the allocations that are at no edge of the grid."""
    cells = rows.cells()
    low, high = rows.allocation.min(axis=0), rows.allocation.max(axis=0)
    inner = np.unique(cells[((rows.allocation > low) & (rows.allocation < high)).all(axis=1)])
    count = min(inner.size, math.ceil(WITHHELD * (cells.max() + 1)))
    return np.isin(cells, rng.permutation(inner)[:count])


def _row_scores(
    model: SliceModel, rows: SliceData, values: NDArray[np.float64], slice_name: str, qos: str
) -> dict[str, NDArray[np.float64]]:
    traffic = torch.tensor(rows.traffic, dtype=torch.float32)
    allocation = torch.tensor(rows.allocation, dtype=torch.float32)
    observed = torch.tensor(values, dtype=torch.float32)
    with one_thread(), torch.inference_mode():
        found: QosDistribution = model.distribution(traffic, allocation, slice_name=slice_name, qos=qos)
        scores = {
            "nll": -found.log_prob(observed),
            "square": (found.mean() - observed) ** 2,
            "absolute": (found.quantile(0.5) - observed).abs(),
            "absolute_of_mean": (found.mean() - observed).abs(),
            "pit": found.cdf(observed),
            "extrapolated": ~model.in_hull(allocation, traffic),
        }
    return {key: value.numpy().astype(np.float64) for key, value in scores.items()}


def _summary(scores: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    pit = np.clip(scores["pit"], 0.0, 1.0)
    ranks = np.arange(1, pit.size + 1) / pit.size
    ordered = np.sort(pit)
    distance = max(float((ranks - ordered).max()), float((ordered - ranks + 1 / pit.size).max()))
    coverage = {f"{level:.0%}": float((np.abs(pit - 0.5) <= level / 2).mean()) for level in INTERVALS}
    return {
        "rows": int(pit.size),
        "nll": float(scores["nll"].mean()),
        "mse": float(scores["square"].mean()),
        "mae": float(scores["absolute"].mean()),
        "mae_of_mean": float(scores["absolute_of_mean"].mean()),
        "calibration": {
            "pit": (np.histogram(pit, PIT_BINS, (0.0, 1.0))[0] / pit.size).tolist(),
            "pit_distance": distance,
            "coverage": coverage,
        },
        "extrapolated": float(scores["extrapolated"].mean()),
    }
