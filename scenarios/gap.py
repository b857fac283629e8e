"""How far measurement and model are apart: two runs of one scenario, or one run and its own prediction.

The relative error of a KPI is ``|measured - reference| / |reference|``, of means over the run after a
settling time (of the last value for what counts since the start); it is undefined where the reference is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scenarios.errors import unknown
from scenarios.registry import UnknownNameError
from scenarios.runs import MODELLED
from twin.kpis import KPIS
from twin.store import KpiReader

MEASURED, PREDICTED = "throughput_bps", "predicted_throughput_bps"
# What the host and the engine spend, and numbers that are names, have no relative error.
_LEFT_OUT = ("clock_lag_s", "engine_cpu_millicores", "host_cpu_ratio", "decision_time_s", "path_index")


@dataclass(frozen=True)
class Gap:
    """Rows per entity and KPI, and what they were made from."""

    reference: str
    measured: str
    rows: tuple[dict[str, Any], ...]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """Per KPI: number of entities, median, 95th percentile and largest relative error, and where that is."""
        found = []
        for name in dict.fromkeys(row["kpi"] for row in self.rows):
            rows = [row for row in self.rows if row["kpi"] == name and row["relative_error"] is not None]
            errors = np.array([row["relative_error"] for row in rows])
            worst = max(rows, key=lambda row: float(row["relative_error"]), default=None)
            found.append(
                {
                    "kpi": name,
                    "unit": KPIS[name].unit,
                    "entities": sum(row["kpi"] == name for row in self.rows),
                    "median": float(np.median(errors)) if rows else None,
                    "p95": float(np.percentile(errors, 95)) if rows else None,
                    "largest": float(errors.max()) if rows else None,
                    "where": worst["entity"] if worst else "",
                }
            )
        return found

    def only(self, kpis: Sequence[str]) -> Gap:
        """The gap of these KPIs; UnknownNameError for one that it does not have."""
        known = dict.fromkeys(row["kpi"] for row in self.rows)
        for name in kpis:
            if name not in known:
                raise UnknownNameError(f"--kpi: {unknown('KPI', name, known)}")
        return Gap(self.reference, self.measured, tuple(row for row in self.rows if row["kpi"] in kpis))


def within_run(path: Path, *, skip_s: float) -> Gap:
    """Measured against predicted throughput of every backhaul flow of one run.

    ValueError when the run has no such prediction.
    """
    with KpiReader(path) as reader:
        flows = [entity for entity, name in reader.names() if name == PREDICTED]
        rows = []
        for entity in flows:
            reference = _value(reader, entity, PREDICTED, skip_s)
            measured = _value(reader, entity, MEASURED, skip_s)
            if reference is not None and measured is not None:
                rows.append(_row(entity, MEASURED, reference, measured))
    if not rows:
        raise ValueError(
            f"run {path.name}: no {PREDICTED} after {skip_s:g} s to compare {MEASURED} with: "
            "name two runs, or a scenario"
        )
    return Gap(f"{path.name}: {PREDICTED}", f"{path.name}: {MEASURED}", tuple(rows))


def between_runs(one: Path, other: Path, *, skip_s: float) -> Gap:
    """Every KPI that both runs have; the modelled run is the reference, else the first one.

    ValueError when they have none in common.
    """
    with KpiReader(one) as first, KpiReader(other) as second:
        modelled = [str(reader.manifest.get("fidelity")) in MODELLED for reader in (first, second)]
        if modelled == [False, True]:
            first, second, one, other = second, first, other, one
        common = set(second.names())
        rows = []
        for entity, name in first.names():
            if (entity, name) not in common or name in _LEFT_OUT:
                continue
            reference, measured = (_value(reader, entity, name, skip_s) for reader in (first, second))
            if reference is not None and measured is not None:
                rows.append(_row(entity, name, reference, measured))
    if not rows:
        raise ValueError(f"runs {one.name} and {other.name} have no KPI in common after {skip_s:g} s")
    return Gap(one.name, other.name, tuple(rows))


def _value(reader: KpiReader, entity: str, name: str, skip_s: float) -> float | None:
    times, values = reader.series(entity, name)
    kept = values[times > skip_s]
    if not len(kept):
        return None
    return float(kept[-1] if KPIS[name].cumulative else kept.mean())


def _row(entity: str, name: str, reference: float, measured: float) -> dict[str, Any]:
    difference = measured - reference
    # No share of nothing, also where both are 0: entities that do nothing would make any median look good.
    error = abs(difference / reference) if reference and math.isfinite(difference / reference) else None
    return {
        "entity": entity,
        "kpi": name,
        "unit": KPIS[name].unit,
        "reference": reference,
        "measured": measured,
        "difference": difference,
        "relative_error": error,
    }
