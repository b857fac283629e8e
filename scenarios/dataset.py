"""QoS data sets by measurement: one run of a scenario per grid point, the rows of all of them in one file.

Every run leaves a part of its own, written and then renamed, so that a collection that was killed goes on
with the runs that are missing. When all are there, they become one parquet file with the provenance in its
metadata, and the parts go.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.exit_codes import ExitCode
from scenarios.units import BANDWIDTH, CPU, RATIO, Quantity, UnitError

if TYPE_CHECKING:
    from scenarios.model import Scenario
    from twin.store import KpiReader

METADATA_KEY = "twinbed.dataset"
SETTLE_S = 2.0
"""Left out of every run: the slice's queues fill and the first users attach."""

STARVED = 0.05
"""Share of slots that a gNB may miss beyond what its CPU limit explains; more, and the interval is left out."""

_COLUMNS = ("time", "total_bandwidth_usage", "cpu", "bw", "prb_share", "edge_cpu", "n_users", "qos", "delay_s")
_PLAN = "plan.json"


class DatasetError(ValueError):
    """A collection that cannot be made; the message is one line for the user."""


class CollectionStopped(Exception):
    """A run gave no rows: what has been measured stays, and the same command goes on from there.

    ``code`` is what the command exits with.
    """

    def __init__(self, message: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Axis:
    """A resource that a grid may vary: its name there, its column, its key in a slice's resources in a scenario file,
    the unit of both, and the factor from that unit to what a parsed quantity holds."""

    name: str
    column: str
    key: str
    unit: str
    factor: float
    quantity: Quantity


AXES = {
    axis.name: axis
    for axis in (
        Axis("cpu", "cpu", "ran.cpu", "m", 1.0, CPU),
        Axis("bandwidth", "bw", "transport.bandwidth", "Mbps", 1e6, BANDWIDTH),
        Axis("prb_share", "prb_share", "ran.prb_share", "", 1.0, RATIO),
        Axis("edge_cpu", "edge_cpu", "edge.cpu", "m", 1.0, CPU),
    )
}


@dataclass(frozen=True)
class Plan:
    """What is measured: ``grid`` values per axis (millicores, Mbit/s, share) of slice ``slice_name``, each ``repeat``
    times. Every run has a seed of its own, counted up from the scenario's, so that users come and go differently."""

    scenario: str
    slice_name: str
    grid: Mapping[str, tuple[float, ...]]
    repeat: int
    fidelity: str
    duration_s: float | None

    def points(self) -> list[tuple[int, tuple[float, ...]]]:
        """(repetition, values in the order of ``grid``); a whole grid before the next repetition."""
        return [
            (number, values)
            for number in range(self.repeat)
            for values in itertools.product(*(self.grid[name] for name in self.grid))
        ]


def parse_grid(text: str) -> dict[str, tuple[float, ...]]:
    """``cpu=100,200,bandwidth=2:10:2``: values or first:last:step in millicores, Mbit/s, shares, or with a unit."""
    grid: dict[str, tuple[float, ...]] = {}
    for part in re.split(r",(?=[^,:]+=)", text):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or name not in AXES:
            raise DatasetError(f"--grid {part!r}: allowed AXIS=VALUE,... with {', '.join(AXES)}")
        if name in grid:
            raise DatasetError(f"--grid: {name} is given twice")

        found: list[float] = []
        for word in values.split(","):
            ends = [_number(AXES[name], end) for end in word.split(":")]
            if len(ends) == 1:
                found += ends
            elif len(ends) == 3 and ends[0] <= ends[1]:
                count = int((ends[1] - ends[0]) / ends[2] * (1 + 1e-9)) + 1
                if count > 1000:
                    raise DatasetError(f"--grid {name}: {count} values, allowed at most 1000")
                found += [round(ends[0] + ends[2] * i, 9) for i in range(count)]
            else:
                raise DatasetError(f"--grid {name}: allowed a value or FIRST:LAST:STEP, got {word!r}")
        grid[name] = tuple(dict.fromkeys(found))
    return grid


def _number(axis: Axis, word: str) -> float:
    """A positive value in the unit of the axis, given with a unit or without."""
    text = word.strip()
    plain = re.fullmatch(r"[-+.\deE]+", text) is not None
    try:
        value = axis.quantity.parse(text + axis.unit if plain else text)
    except UnitError as error:
        raise DatasetError(f"--grid {axis.name}: {error}") from None
    if not value > 0:
        raise DatasetError(f"--grid {axis.name}: must be positive, got {text!r}")
    return value / axis.factor


def make_plan(
    scenario: str,
    grid: Mapping[str, tuple[float, ...]],
    *,
    repeat: int,
    fidelity: str,
    slice_name: str | None = None,
    duration_s: float | None = None,
) -> Plan:
    """Check a collection as a whole before its first run: the slice exists, and every corner of the grid is a valid
    scenario. DatasetError or ScenarioFileError otherwise."""
    from scenarios.loader import load_scenario

    loaded = load_scenario(scenario, controllers=[])
    names = [slice_.name for slice_ in loaded.topology.slices]
    if slice_name is None and len(names) != 1:
        raise DatasetError(f"--slice: name the slice that the grid varies; slices: {', '.join(names) or 'none'}")
    name = slice_name or names[0]
    if name not in names:
        raise DatasetError(f"--slice: no slice {name!r}; slices: {', '.join(names)}")
    plan = Plan(scenario, name, dict(grid), repeat, fidelity, duration_s)
    for corner in (min, max):
        values = tuple(corner(values) for values in plan.grid.values())
        planned = _scenario(plan, 0, values)
        _allocation(planned, plan, values)
    if planned.duration_s - SETTLE_S < planned.interval_s:
        raise DatasetError(
            f"--duration: must be at least {SETTLE_S + planned.interval_s:g} s, of which the first {SETTLE_S:g} s "
            f"are left out, got {planned.duration_s:g} s"
        )
    return plan


def collect(plan: Plan, out: Path, *, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure what is missing, then write ``out``. Returns ``file``, ``rows``, ``runs``, ``measured_now``.

    ``tell`` hears a line per run. CollectionStopped when a run fails, is invalid twice, or is interrupted.
    """
    digest = _digest(plan)
    if out.suffix != ".parquet":
        raise DatasetError(f"--out {out}: must end in .parquet")
    parts = out.with_name(f"{out.name}.parts")
    if out.exists() and not parts.exists():
        known = read_metadata(out)
        if known.get("plan_sha256") != digest:
            raise DatasetError(f"--out {out}: exists and is another data set")
        return {"file": str(out), "rows": known["rows"], "runs": known["runs"], "measured_now": 0}
    try:
        parts.mkdir(parents=True, exist_ok=True)
        _claim(parts, digest)
    except OSError as error:
        raise DatasetError(f"--out {out}: cannot be written: {error.strerror}") from None
    points = plan.points()
    now = 0
    for index, (number, values) in enumerate(points):
        part = parts / f"{index:05}.parquet"
        if part.exists():
            continue
        words = ", ".join(f"{name} {value:g}" for name, value in zip(plan.grid, values, strict=True))
        tell(f"{index + 1}/{len(points)}: {words}, repetition {number + 1}")
        rows = _measure(plan, index, values, parts / "runs", words)
        _write(part, rows, {})
        now += 1
    return _join(plan, out, parts, digest, now)


def read_metadata(path: Path) -> dict[str, Any]:
    """The provenance in a data set's metadata; empty for a parquet file without it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not parquet: {str(error).splitlines()[0]}") from None
    content: dict[str, Any] = json.loads(found.get(METADATA_KEY.encode(), b"{}"))
    return content


def _scenario(plan: Plan, index: int, values: Sequence[float]) -> Scenario:
    from scenarios.loader import load_scenario

    settings: dict[str, Any] = {"events": [], "assert": []}
    for name, value in zip(plan.grid, values, strict=True):
        axis = AXES[name]
        settings[f"slices.{plan.slice_name}.resources.{axis.key}"] = f"{value:.12g}{axis.unit}" if axis.unit else value
    base = load_scenario(plan.scenario)
    return load_scenario(
        plan.scenario,
        controllers=[],
        fidelity=plan.fidelity,
        duration_s=plan.duration_s,
        seed=base.seed + index,
        settings=settings,
    )


def _allocation(scenario: Scenario, plan: Plan, values: Sequence[float]) -> dict[str, float]:
    """The slice's allocation by column: the grid's, and where it does not vary CPU or bandwidth, the scenario's."""
    found = next(slice_ for slice_ in scenario.topology.slices if slice_.name == plan.slice_name)
    bandwidth = None if found.bandwidth_bps is None else found.bandwidth_bps / 1e6
    result = {"cpu": found.cpu_millicores, "bw": bandwidth}
    result |= {AXES[name].column: value for name, value in zip(plan.grid, values, strict=True)}
    for column, value in result.items():
        if value is None:
            raise DatasetError(
                f"{plan.scenario}: slice {plan.slice_name} has no limit on {column}: give it one there or in --grid"
            )
    return {column: value for column, value in result.items() if value is not None}


def _measure(plan: Plan, index: int, values: Sequence[float], runs: Path, words: str) -> list[dict[str, float | str]]:
    """The rows of one run; an invalid one (what was declared was not what the probes found) is tried once more."""
    from scenarios.execution import execute
    from twin.store import KpiReader

    scenario = _scenario(plan, index, values)
    fixed = _allocation(scenario, plan, values) | {"repetition": float(plan.points()[index][0])}
    for attempt in (1, 2):
        ended = execute(scenario, runs=runs)
        folder, status = ended.result.path, ended.result.status
        if ended.result.signal_number is not None:
            code = 128 + ended.result.signal_number
            raise CollectionStopped("interrupted: the same command goes on with what is missing", code)
        if status == "VALID":
            with KpiReader(folder) as reader:
                rows, starved = _rows(reader, scenario, plan.slice_name, fixed)
            shutil.rmtree(folder)
            if starved > len(rows):
                raise CollectionStopped(
                    f"{words}: the host kept CPU from the gNB in {starved} of {starved + len(rows)} intervals: "
                    "the same command goes on when it is quieter"
                )
            if not rows:
                raise CollectionStopped(f"{words}: no interval with an active user in {scenario.duration_s:g} s")
            return rows
        if status == "FAILED" or attempt == 2:
            raise CollectionStopped(f"{words}: run {status}: {ended.result.reason} ({folder})")
        shutil.rmtree(folder)
    raise AssertionError  # the loop returns or raises


def _rows(
    reader: KpiReader, scenario: Scenario, slice_name: str, fixed: dict[str, float]
) -> tuple[list[dict[str, float | str]], int]:
    """The rows of a run, and how many intervals were left out because other programs of the host starved the gNB."""
    entity = f"slice:{slice_name}"
    series = {}
    for name in ("active_ues", "qos_bps", "delay_dl_p95_s", "missed_slots_ratio", "cpu_throttled_ratio"):
        times, values = reader.series(entity, name)
        series[name] = dict(zip(times.round(6).tolist(), values.tolist(), strict=True))
    rows: list[dict[str, float | str]] = []
    starved = 0
    for time_s, qos_bps in series["qos_bps"].items():
        users = series["active_ues"].get(time_s, 0.0)
        delay_s = series["delay_dl_p95_s"].get(time_s)
        # Without a packet in the interval there is a throughput, 0, but no delay.
        if time_s - scenario.interval_s < SETTLE_S - 1e-9 or users <= 0 or delay_s is None:
            continue
        # Slots missed while the slice's own limit did not hold it back: not what the allocation does.
        missed, throttled = (series[name].get(time_s, 0.0) for name in ("missed_slots_ratio", "cpu_throttled_ratio"))
        if missed > throttled + STARVED:
            starved += 1
            continue
        rows.append(
            {"time": time_s, "total_bandwidth_usage": qos_bps * users / 1e6, "n_users": users}
            | fixed
            | {"qos": qos_bps / 1e6, "delay_s": delay_s, "slice": slice_name}
        )
    return rows, starved


def _digest(plan: Plan) -> str:
    """What makes two collections the same: the scenario as a file, the grid, how often, at which fidelity."""
    document = json.dumps(
        _scenario(plan, 0, tuple(v[0] for v in plan.grid.values())).document, sort_keys=True, default=str
    )
    words = [plan.slice_name, {k: list(v) for k, v in plan.grid.items()}, plan.repeat, plan.fidelity, plan.duration_s]
    return hashlib.sha256((document + json.dumps(words)).encode()).hexdigest()


def _claim(parts: Path, digest: str) -> None:
    """The folder of parts belongs to one plan; one of another is left alone."""
    plan = parts / _PLAN
    if plan.exists():
        if json.loads(plan.read_text()).get("plan_sha256") != digest:
            raise DatasetError(f"{parts}: parts of another collection; remove the folder or choose another --out")
        return
    draft = parts / f".{_PLAN}.{os.getpid()}"
    draft.write_text(json.dumps({"plan_sha256": digest}))
    draft.replace(plan)


def _join(plan: Plan, out: Path, parts: Path, digest: str, now: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    from scenarios.manifest import origin

    files = sorted(parts.glob("[0-9]*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    found = {"file": str(out), "rows": len(rows), "runs": len(files), "measured_now": now}
    base = _scenario(plan, 0, tuple(values[0] for values in plan.grid.values()))
    source = origin()
    metadata = {
        "plan_sha256": digest,
        "rows": len(rows),
        "runs": len(files),
        "scenario": base.name,
        "document": json.loads(json.dumps(base.document, default=str)),
        "slice": plan.slice_name,
        "grid": {name: list(values) for name, values in plan.grid.items()},
        "units": {"cpu": "millicores", "bw": "Mbit/s", "qos": "Mbit/s per user", "delay_s": "s", "time": "s"},
        "delay": "95th percentile of the one-way downlink delay in the interval",
        "repeat": plan.repeat,
        "first_seed": base.seed,
        "fidelity": plan.fidelity,
        "duration_s": base.duration_s,
        "settle_s": SETTLE_S,
        "starved": f"intervals with more than {STARVED:g} of the slots missed for want of host CPU are left out",
        "interval_s": base.interval_s,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: source[key] for key in ("commit", "versions", "host")},
    }
    _write(out, rows, {METADATA_KEY: json.dumps(metadata)})
    shutil.rmtree(parts)
    return found


def _write(path: Path, rows: Sequence[Mapping[str, float | str]], metadata: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name in _COLUMNS if name in rows[0]]
    fields = [(name, pa.float64()) for name in (*names, "repetition")] + [("slice", pa.string())]
    schema = pa.schema(fields, metadata=dict(metadata))
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, draft)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise DatasetError(f"{path}: cannot be written: {error.strerror}") from None
