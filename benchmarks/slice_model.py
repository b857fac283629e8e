"""Slice models on cells that they have not seen, and how long a prediction takes.

    python benchmarks/slice_model.py DATA.csv [--kinds paper gaussian mdn] [--format json]

``DATA.csv``: the public data set of MicroOpt. For every CPU and every bandwidth inside the grid, all rows with
that value are withheld, a model is fitted on the others and scored on them, as the authors' off-grid
test does with 1500 millicores and 20 Mbit/s. Beside it the noise floor of the withheld rows: the error of
the mean of every cell, and the likelihood of the best single normal per cell. Withholding a value doubles
the gap to bridge, so that the figures are upper bounds for a value between two neighbours. Targets: MAE at
most 0.07 (gaussian) and 0.05 (mdn) above the floor, NLL at most 0.24 and 0.14 above it; inference of one point
within 0.2 ms and of 1024 within 1 ms.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from controllers.microopt.slice_data import THROUGHPUT, QosData, SliceData, read_qos
from controllers.microopt.slice_fit import fit
from controllers.microopt.slice_model import SliceModel
from controllers.microopt.slice_score import evaluate

REPETITIONS = 300


def floor(rows: SliceData) -> tuple[float, float]:
    """(NLL, MAE) of a normal with the mean and spread of every (users, allocation) of the rows themselves."""
    frame = pd.DataFrame(np.column_stack([rows.traffic, rows.allocation])).assign(q=rows.qos[THROUGHPUT])
    cells = frame.groupby([0, 1, 2]).q
    spread = np.maximum(cells.transform("std", ddof=0), 1e-3)
    nll = float((np.log(spread) + 0.5 + 0.5 * math.log(2 * math.pi)).mean())
    return nll, float((frame.q - cells.transform("mean")).abs().mean())


def withheld(data: QosData, kind: Any, axis: int, value: float) -> dict[str, Any]:
    """Scores on all rows with ``value`` of resource ``axis`` of a model fitted without them."""
    (name, rows), *_ = data.slices.items()
    held = rows.allocation[:, axis] == value
    begin_s = time.perf_counter()
    model = fit(dataclasses.replace(data, slices={name: rows.rows(~held)}), kind=kind, seed=0)
    fit_s = time.perf_counter() - begin_s
    test = rows.rows(held)
    scores = evaluate(model, dataclasses.replace(data, slices={name: test}))
    nll, mae = floor(test)
    return {
        "kind": kind,
        "withheld": f"{data.resources[axis]} {value:g}",
        **{key: scores[key] for key in ("nll", "mse", "mae", "mae_of_mean")},
        "floor_nll": nll,
        "floor_mae": mae,
        "in_80": scores["calibration"]["coverage"]["80%"],
        "fit_s": fit_s,
    }


def inference_ms(model: SliceModel, batch: int) -> float:
    """Median time of one forward pass over ``batch`` points, one thread."""
    torch.set_num_threads(1)
    low, high = model.low, model.high
    allocation = low + (high - low) * torch.rand(batch, len(low))
    traffic = torch.full((batch,), 3.0)
    taken = []
    with torch.inference_mode():
        for _ in range(REPETITIONS):
            begin_s = time.perf_counter()
            model.distribution(traffic, allocation)
            taken.append(time.perf_counter() - begin_s)
    return 1e3 * statistics.median(taken)


def main() -> None:
    """Print a row per kind and withheld value, then the inference times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kinds", nargs="+", default=["paper", "gaussian", "mdn"])
    parser.add_argument("--values", nargs="+", type=float, help="only these values")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    data = read_qos(arguments.data)
    (rows,) = data.slices.values()
    found = []
    for kind in arguments.kinds:
        for axis in range(rows.allocation.shape[1]):
            for value in np.unique(rows.allocation[:, axis])[1:-1].tolist():
                if not arguments.values or value in arguments.values:
                    found.append(withheld(data, kind, axis, value))
                    if arguments.format == "table":
                        words = [f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in found[-1].items()]
                        print("  ".join(words), flush=True)
    times = {}
    for kind in arguments.kinds:
        model = fit(data, kind=kind, seed=0)
        times[kind] = {f"batch {batch}": inference_ms(model, batch) for batch in (1, 1024)}
        if arguments.format == "table":
            print(kind, "  ".join(f"{name}: {value:.3f} ms" for name, value in times[kind].items()), flush=True)
    if arguments.format == "json":
        print(json.dumps({"withheld": found, "inference_ms": times}))


if __name__ == "__main__":
    main()
