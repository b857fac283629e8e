"""Finding runs under a folder and saying what they are: the objects that ``--format json`` prints."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scenarios.errors import nearest, unknown
from scenarios.registry import UnknownNameError
from twin.kpis import KPIS
from twin.store import MANIFEST, EventRow, KpiReader, StoreError, read_manifest

REPORT = "report.html"
MODELLED = ("flow", "packet")
_LAST = re.compile(r"last(?:~(\d{1,9}))?")


def run_folders(runs: Path) -> list[Path]:
    """The run folders under ``runs``, oldest first."""
    if not runs.is_dir():
        return []
    folders = [path for path in runs.iterdir() if (path / MANIFEST).is_file()]
    seconds = Counter(_second(path) for path in folders)
    # The id tells the second; only runs that began in the same one need a look into the manifest.
    return sorted(folders, key=lambda path: (_second(path), _started(path) if seconds[_second(path)] > 1 else "", path))


def _second(path: Path) -> str:
    return path.name[: len("20261121-140311")]


def _started(path: Path) -> str:
    try:
        return str(read_manifest(path).get("started", ""))
    except StoreError:
        return ""


def find_run(runs: Path, name: str) -> Path:
    """The run that ``name`` means: ``last``, ``last~1`` (the one before), an id, its beginning or end, or a path."""
    folders = run_folders(runs)
    if (match := _LAST.fullmatch(name)) and folders:
        back = int(match[1] or 0)
        if back >= len(folders):
            raise UnknownNameError(
                f"no run {name} in {runs}: there are {len(folders)}, last~{len(folders) - 1} is oldest"
            )
        return folders[-1 - back]
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    matches = [path for path in folders if path.name == name] or [
        path for path in folders if name and (path.name.startswith(name) or path.name.endswith(name))
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        found = ", ".join(path.name for path in matches)
        raise UnknownNameError(f"{name} is the beginning or end of {len(matches)} runs: {found}")
    known = [path.name for path in folders]
    shown = ", ".join(known[-5:]) or "none"
    raise UnknownNameError(f"no run {name} in {runs}{nearest(name, known)}; latest runs: {shown}")


def list_runs(runs: Path) -> list[dict[str, Any]]:
    """One row per run, oldest first."""
    rows: list[dict[str, Any]] = []
    for path in run_folders(runs):
        try:
            manifest = read_manifest(path)
        except StoreError as error:
            rows.append({"run_id": path.name, "status": "unreadable", "reason": str(error)})
            continue
        scenario = _mapping(manifest.get("scenario"))
        rows.append(
            {
                "run_id": path.name,
                "status": manifest.get("status", "?"),
                "scenario": scenario.get("name", "?"),
                "fidelity": manifest.get("fidelity", "?"),
                "seed": manifest.get("seed"),
                "duration_s": scenario.get("duration_s"),
                "started": manifest.get("started", "?"),
                "reason": manifest.get("reason", ""),
            }
        )
    return rows


def run_object(path: Path) -> dict[str, Any]:
    """The whole run as one JSON object: status, KPI summaries, probes, assertions, report."""
    with KpiReader(path) as reader:
        manifest = reader.manifest
        fidelity = str(manifest.get("fidelity", "?"))
        actions, events = reader.actions(), reader.events()
        report = path / REPORT
        return {
            "run_id": path.name,
            "path": str(path),
            "status": manifest.get("status", "?"),
            "reason": manifest.get("reason", ""),
            "host_overloaded": manifest.get("host_overloaded", ""),
            "scenario": _mapping(manifest.get("scenario")).get("name", "?"),
            "fidelity": fidelity,
            "backend": manifest.get("backend", fidelity),
            "seed": manifest.get("seed"),
            "simulated_s": manifest.get("simulated_s"),
            "kpis": {
                entity: {name: _kpi(name, asdict(summary), fidelity) for name, summary in summaries.items()}
                for entity, summaries in reader.summary().items()
            },
            "probes": [asdict(probe) for probe in reader.probes()],
            "assertions": manifest.get("assertions", []),
            "actions": {
                "applied": sum(action.applied for action in actions),
                "refused": sum(not action.applied for action in actions),
            },
            "faults": _faults(events),
            "events": len(events),
            "report": str(report) if report.is_file() else None,
        }


def _faults(events: Iterable[EventRow]) -> list[dict[str, Any]]:
    """What controllers failed at, with how often, in the order of the first time."""
    counts = Counter((event.source, event.text) for event in events if event.kind == "fault")
    return [{"source": source, "text": text, "count": count} for (source, text), count in counts.items()]


def _kpi(name: str, summary: dict[str, Any], fidelity: str) -> dict[str, Any]:
    spec = KPIS[name]
    provenance = "modelled" if fidelity in MODELLED and spec.provenance == "measured" else spec.provenance
    return {**summary, "unit": spec.unit, "provenance": provenance}


def compare(one: Path, other: Path) -> list[dict[str, Any]]:
    """Every KPI that both runs have, with its statistics, and the difference of its means.

    Of a KPI that counts since the start, the last values are set against each other (``statistic``).
    """
    with KpiReader(one) as first, KpiReader(other) as second:
        left, right = first.summary(), second.summary()
    rows = []
    for entity, summaries in left.items():
        for name, summary in summaries.items():
            if name not in right.get(entity, {}):
                continue
            statistic = "last" if KPIS[name].cumulative else "mean"
            before, after = getattr(summary, statistic), getattr(right[entity][name], statistic)
            rows.append(
                {
                    "entity": entity,
                    "kpi": name,
                    "unit": KPIS[name].unit,
                    "statistic": statistic,
                    "first": before,
                    "second": after,
                    "difference": after - before,
                    "ratio": after / before if before else None,
                    "statistics": {"first": asdict(summary), "second": asdict(right[entity][name])},
                }
            )
    return rows


def select(
    rows: Sequence[dict[str, Any]], *, everything: bool, entities: Sequence[str], kpis: Sequence[str]
) -> list[dict[str, Any]]:
    """The rows of :func:`compare` that were asked for; UnknownNameError for a name that no row has.

    Unasked, these are the ones that differ, of slices, nodes, tasks and the run. ``kpis`` by name are shown of
    every entity but UEs, ``entities`` by the beginning of their names with every KPI.
    """
    for name in kpis:
        if name not in KPIS:
            raise UnknownNameError(f"--kpi: {unknown('KPI', name, KPIS)}")
    known = dict.fromkeys(row["entity"] for row in rows)
    for prefix in entities:
        if not any(entity.startswith(prefix) for entity in known):
            shown = ", ".join(entity for entity in known if not entity.startswith("ue:"))
            raise UnknownNameError(f"--entity: nothing begins with {prefix}{nearest(prefix, known)}; known: {shown}")
    asked = everything or bool(entities) or bool(kpis)
    scopes = (
        ("slice", "node", "run", "link", "flow", "task", "controller") if kpis else ("slice", "node", "task", "run")
    )
    return [
        row
        for row in rows
        if (not kpis or row["kpi"] in kpis)
        and (
            row["entity"].startswith(tuple(entities))
            if entities
            else everything or row["entity"].partition(":")[0] in scopes
        )
        and (asked or not math.isclose(row["first"], row["second"], rel_tol=1e-9, abs_tol=1e-9))
    ]


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def dumps(value: object) -> str:
    """JSON text; a value that is not finite becomes null, since JSON has no other word for it."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
