"""Finding runs under a folder and saying what they are: the objects that ``--format json`` prints."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scenarios.errors import nearest
from scenarios.registry import UnknownNameError
from twin.kpis import KPIS
from twin.store import MANIFEST, KpiReader, StoreError, read_manifest

REPORT = "report.html"
MODELLED = ("flow", "packet")


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
    """The run that ``name`` means: ``last``, an id or its beginning, the end of one, or a path."""
    folders = run_folders(runs)
    if name == "last" and folders:
        return folders[-1]
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
        actions = reader.actions()
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
            "events": len(reader.events()),
            "report": str(report) if report.is_file() else None,
        }


def _kpi(name: str, summary: dict[str, Any], fidelity: str) -> dict[str, Any]:
    spec = KPIS[name]
    provenance = "modelled" if fidelity in MODELLED and spec.provenance == "measured" else spec.provenance
    return {**summary, "unit": spec.unit, "provenance": provenance}


def compare(one: Path, other: Path) -> list[dict[str, Any]]:
    """Means of every KPI that both runs have, and their difference."""
    with KpiReader(one) as first, KpiReader(other) as second:
        left, right = first.summary(), second.summary()
    rows = []
    for entity, summaries in left.items():
        for name, summary in summaries.items():
            if name not in right.get(entity, {}):
                continue
            mean = right[entity][name].mean
            rows.append(
                {
                    "entity": entity,
                    "kpi": name,
                    "unit": KPIS[name].unit,
                    "first": summary.mean,
                    "second": mean,
                    "difference": mean - summary.mean,
                    "ratio": mean / summary.mean if summary.mean else None,
                }
            )
    return rows


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
