"""One run as the reports need it: read once, SI units, with the verdict on every promise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.kpis import KPIS
from twin.sla import LATENCY_KPIS, latency_s
from twin.store import ActionRow, EventRow, KpiReader, Summary
from twin.types import Probe

MAX_POINTS = 3000
_SLA_KEYS = {
    "q_thresh_mbps": ("q_thresh_bps", 1e6),
    "beta_thresh": ("beta_thresh", 1.0),
    "latency_bound_s": ("latency_bound_s", 1.0),
}


@dataclass(frozen=True)
class Promise:
    """One promise of one slice against what was found. ``kept`` None: nothing to judge it by."""

    slice: str
    promise: str
    found: str
    kept: bool | None


@dataclass(frozen=True)
class RunView:
    """Everything of a run that a report shows; ``label`` tells it from another one."""

    path: Path
    label: str
    manifest: dict[str, Any]
    summary: dict[str, dict[str, Summary]]
    series: dict[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]]
    actions: tuple[ActionRow, ...]
    events: tuple[EventRow, ...]
    probes: tuple[Probe, ...]
    promises: tuple[Promise, ...]

    @property
    def scenario(self) -> dict[str, Any]:
        """The resolved scenario; empty when the run never got that far."""
        return self.manifest.get("scenario") or {}

    @property
    def topology(self) -> dict[str, Any]:
        """The resolved topology: ``nodes``, ``links``, ``slices``."""
        return self.scenario.get("topology") or {"nodes": [], "links": [], "slices": []}

    @property
    def slices(self) -> list[str]:
        """Names of the slices, in the order of the file."""
        return [slice_["name"] for slice_ in self.topology["slices"]]

    @property
    def observed_s(self) -> float:
        """The run clock of the last KPIs in the database; a run that failed may have lost some."""
        return max((float(times[-1]) for times, _ in self.series.values() if times.size), default=0.0)

    def mean(self, entity: str, *names: str) -> float:
        """The largest of the run means of some KPIs; NaN when there is none."""
        found = [self.summary[entity][name].mean for name in names if name in self.summary.get(entity, {})]
        return max(found) if found else math.nan

    def last(self, entity: str, name: str) -> float:
        """The last value of a KPI; NaN when there is none."""
        return self.summary[entity][name].last if name in self.summary.get(entity, {}) else math.nan

    def provenance(self, name: str) -> str:
        """Measured, modelled or derived, in this run: only emulation measures."""
        declared = KPIS[name].provenance if name in KPIS else "unregistered"
        wall_clock = name in ("decision_time_s", "refused_actions", "faults")
        if declared == "measured" and self.manifest.get("fidelity") != "emulation" and not wall_clock:
            return "modelled"
        return declared


def read_run(path: Path, label: str = "") -> RunView:
    """Read a run folder; raises :class:`twin.store.StoreError` when it is none."""
    with KpiReader(path) as reader:
        manifest: dict[str, Any] = reader.manifest
        series = {(entity, name): reader.series(entity, name) for entity, name in reader.names() if _charted(entity)}
        actions = tuple(reader.actions())
        slices = ((manifest.get("scenario") or {}).get("topology") or {}).get("slices", [])
        promises = [promise for slice_ in slices for promise in _judge(slice_, series, actions)]
        return RunView(
            path,
            label,
            manifest,
            reader.summary(),
            series,
            actions,
            tuple(reader.events()),
            tuple(reader.probes()),
            tuple(promises),
        )


def _charted(entity: str) -> bool:
    # Thousands of UEs and links would make the file large; their summaries are kept.
    return entity.partition(":")[0] in ("run", "slice", "node", "controller", "flow", "task")


def in_force(
    slice_: dict[str, Any], key: str, times_s: NDArray[np.float64], actions: tuple[ActionRow, ...]
) -> NDArray[np.float64]:
    """The value of an SLA entry (``q_thresh_bps`` ...) in the intervals that end at ``times_s``; NaN: no promise.

    Shape (n,). SLA knobs hold for the intervals that end after their time.
    """
    first = slice_["sla"].get(key)
    values = np.full(times_s.shape, math.nan if first is None else float(first))
    for row in actions:
        name, factor = _SLA_KEYS.get(row.knob, ("", 1.0))
        if name == key and row.applied and row.entity == f"slice:{slice_['name']}":
            values[times_s > row.time_s + 1e-9] = float(row.value) * factor
    return values


def _judge(slice_: dict[str, Any], series: dict[Any, Any], actions: tuple[ActionRow, ...]) -> list[Promise]:
    name = slice_["name"]
    entity = f"slice:{name}"
    promises: list[Promise] = []
    times, quality = series.get((entity, "qos_bps"), (np.empty(0), np.empty(0)))
    threshold = in_force(slice_, "q_thresh_bps", times, actions)
    beta_times, beta = series.get((entity, "qos_degradation_ratio"), (np.empty(0), np.empty(0)))
    accepted = in_force(slice_, "beta_thresh", beta_times, actions)
    q_text = _changing(threshold, slice_["sla"].get("q_thresh_bps"), 1e-6)
    if q_text:
        promise = f"more than {q_text} Mbit/s per active UE"
        found = f"{np.mean(quality) / 1e6:.2f} Mbit/s on average" if quality.size else "no UE was active"
        b_text = _changing(accepted, slice_["sla"].get("beta_thresh"), 1)
        if b_text:
            promise += f", but for a share β of at most {b_text}"
            kept = bool(beta[-1] <= accepted[-1]) if beta.size and not math.isnan(accepted[-1]) else None
        else:
            kept = (
                bool(np.all(quality[~np.isnan(threshold)] > threshold[~np.isnan(threshold)])) if quality.size else None
            )
        found += f", β = {beta[-1]:.3f}" if beta.size else ""
        promises.append(Promise(name, promise, found, kept))
    promises.extend(_judge_latency(slice_, series, actions))
    return promises


def _judge_latency(slice_: dict[str, Any], series: dict[Any, Any], actions: tuple[ActionRow, ...]) -> list[Promise]:
    """Interval by interval, as :mod:`twin.sla` does while the run goes on."""
    entity = f"slice:{slice_['name']}"
    at: dict[float, dict[str, float]] = {}
    for name in LATENCY_KPIS:
        times, values = series.get((entity, name), (np.empty(0), np.empty(0)))
        for time_s, value in zip(times.tolist(), values.tolist(), strict=True):
            at.setdefault(time_s, {})[name] = value
    times = np.array(sorted(at))
    bounds = in_force(slice_, "latency_bound_s", times, actions)
    text = _changing(bounds, slice_["sla"].get("latency_bound_s"), 1e3)
    if not text:
        return []
    promise = f"95 % of the packets within {text} ms one way"
    judged = [
        (latency, bound)
        for time_s, bound in zip(times.tolist(), bounds.tolist(), strict=True)
        if not math.isnan(bound) and (latency := latency_s(at[time_s])) is not None
    ]
    if not judged:
        return [Promise(slice_["name"], promise, "no packet was sent", None)]
    good = sum(latency <= bound for latency, bound in judged)
    lost = sum(math.isinf(latency) for latency, _ in judged)
    arrived = [latency for latency, _ in judged if not math.isinf(latency)]
    found = f"so in {good} of {len(judged)} intervals"
    found += f"; nothing arrived in {lost}" if lost else ""
    found += f"; worst {max(arrived) * 1e3:.1f} ms" if arrived else ""
    if not any((entity, f"delay_{way}_p95_s") in series for way in ("dl", "ul")):
        found += " (half of the round trip of probe packets)"
    return [Promise(slice_["name"], promise, found, good == len(judged))]


def _changing(values: NDArray[np.float64], first: float | None, factor: float) -> str:
    """``5`` or ``5, later 3``; empty when nothing was promised."""
    known = [first] if first is not None else []
    for value in values.tolist():
        if not math.isnan(value) and (not known or value != known[-1]):
            known.append(value)
    return ", later ".join(f"{value * factor:g}" for value in known)
