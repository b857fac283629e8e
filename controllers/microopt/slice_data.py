"""QoS data sets: measured rows of (slice, users, allocation, QoS), from CSV or parquet.

The columns are those of the public data set of "MicroOpt: Model-Driven Slice Resource Optimization in 5G and
Beyond Networks", section V-D: ``cpu`` (millicores), ``bw`` (Mbit/s), ``n_users`` and ``qos``
(Mbit/s per user). Further ones are optional: ``delay_s``, ``slice``, and the resources ``prb_share`` and
``edge_cpu`` (millicores). Other columns are ignored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray


class SliceModelError(ValueError):
    """A data set, model or file that cannot be used; the message is one line for the user."""


THROUGHPUT = "throughput_mbps"
DELAY = "delay_s"
RESOURCE_COLUMNS = {
    "cpu": "cpu_millicores",
    "bw": "bandwidth_mbps",
    "prb_share": "prb_share",
    "edge_cpu": "edge_cpu_millicores",
}
QOS_COLUMNS = {"qos": THROUGHPUT, "delay_s": DELAY}
REQUIRED = ("cpu", "bw", "n_users", "qos")
ONLY_SLICE = "slice"
Array = NDArray[np.float64]


@dataclass(frozen=True)
class SliceData:
    """Rows of one slice: ``traffic`` (N,) users, ``allocation`` (N, K), ``qos`` by name (N,)."""

    traffic: Array
    allocation: Array
    qos: dict[str, Array]

    def cells(self) -> NDArray[np.int64]:
        """Number of the allocation of each row, shape (N,): rows of one allocation are one cell."""
        return np.unique(self.allocation, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)

    def rows(self, keep: NDArray[np.bool_]) -> SliceData:
        return SliceData(self.traffic[keep], self.allocation[keep], {k: v[keep] for k, v in self.qos.items()})


@dataclass(frozen=True)
class QosData:
    """A data set: ``resources`` in the order of the allocation's columns, rows by slice, and the file's SHA-256."""

    resources: tuple[str, ...]
    slices: dict[str, SliceData]
    source: str
    sha256: str


def read_qos(path: Path, *, least_cells: int = 2) -> QosData:
    """Read and check a data set; SliceModelError names the column and the row (1 is the first data row).

    A slice with fewer than ``least_cells`` allocations is refused: nothing can be learned about resources.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SliceModelError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except pd.errors.EmptyDataError:
        raise SliceModelError(f"{path}: empty; needs columns {', '.join(REQUIRED)}") from None
    except (ValueError, OSError, UnicodeError) as error:
        kind = "parquet" if path.suffix == ".parquet" else "CSV"
        raise SliceModelError(f"{path}: not {kind}: {str(error).splitlines()[0]}") from None
    missing = [column for column in REQUIRED if column not in frame.columns]
    if missing:
        got = ", ".join(map(str, frame.columns[:12])) or "none"
        raise SliceModelError(f"{path}: column {', '.join(missing)} is missing; got columns {got}")
    if frame.empty:
        raise SliceModelError(f"{path}: no rows")
    inputs = [column for column in RESOURCE_COLUMNS if column in frame.columns]
    metrics = [column for column in QOS_COLUMNS if column in frame.columns]
    numbers = {column: _numbers(path, frame, column) for column in (*inputs, "n_users", *metrics)}
    for column in (*inputs, "n_users"):
        _refuse(path, numbers[column], numbers[column] <= 0, column, "must be positive")
    for column in metrics:
        _refuse(path, numbers[column], numbers[column] < 0, column, "must not be negative")
    names = frame["slice"].astype(str).to_numpy() if "slice" in frame.columns else np.full(len(frame), ONLY_SLICE)
    slices = {}
    for name in dict.fromkeys(names.tolist()):
        keep = names == name
        rows = SliceData(
            numbers["n_users"][keep],
            np.stack([numbers[column][keep] for column in inputs], axis=1),
            {QOS_COLUMNS[column]: numbers[column][keep] for column in metrics},
        )
        if (count := int(rows.cells().max()) + 1) < least_cells:
            allocation = ", ".join(f"{column} {rows.allocation[0, i]:g}" for i, column in enumerate(inputs))
            raise SliceModelError(
                f"{path}: slice {name}: {count} cell only ({allocation}), needs {least_cells} or more"
            )
        slices[name] = rows
    return QosData(tuple(RESOURCE_COLUMNS[c] for c in inputs), slices, path.name, hashlib.sha256(content).hexdigest())


def _numbers(path: Path, frame: pd.DataFrame, column: str) -> Array:
    values: Array = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64)
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        row = int(bad[0])
        raise SliceModelError(
            f"{path}: column {column}, row {row + 1}: must be a number, got {frame[column].iloc[row]}"
        )
    return values


def _refuse(path: Path, values: Array, bad: NDArray[np.bool_], column: str, rule: str) -> None:
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise SliceModelError(f"{path}: column {column}, row {row + 1}: {rule}, got {values[row]:g}")
