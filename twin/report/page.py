"""``report.html``: one file that opens offline, for one run or for two side by side."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from twin.kpis import KPIS
from twin.report.backhaul import link_usage, overview
from twin.report.charts import timeline
from twin.report.drawing import BAND_COLOURS, BAND_WORDS, slice_colours, topology_svg
from twin.report.tasks import rows_of
from twin.report.view import MAX_POINTS, RunView, read_run

_HERE = Path(__file__).parent
_CONTRASTED = {
    "delay_dl_p95_s": "One-way downlink delay",
    "rtt_p95_s": "Round trip of probe packets",
    "delay_ul_p95_s": "One-way uplink delay",
}


def write_report(run: Path, against: Path | None = None, *, to: Path | None = None) -> Path:
    """Write the report of a run folder, beside another run if ``against`` is given; return its path.

    Default places are ``report.html`` in the run folder, and ``report-against-ID.html`` for two runs.
    Raises :class:`twin.store.StoreError` when a folder holds no run, OSError when nothing can be written.
    """
    views = [read_run(folder) for folder in (run, against) if folder is not None]
    views = [_labelled(view, views) for view in views]
    if to is None:
        to = run / ("report.html" if against is None else f"report-against-{against.name}.html")
    text = render(views)
    # Never a part of a page: a full disk leaves none, and a reader sees the old or the new one.
    temporary = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)
    return to


def render(views: Sequence[RunView]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    longest = max((times.size for view in views for times, _ in view.series.values()), default=0)
    return environment.get_template("report.html.j2").render(
        title=" against ".join(view.manifest.get("run_id", view.path.name) for view in views),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
        runs=[_context(view) for view in views],
        figures=[_script(figure) for figure in timeline(views)],
        contrast=_contrast(views) if len(views) == 2 else [],
        same_topology=len({json.dumps(_wiring(view), sort_keys=True) for view in views}) == 1,
        thinned=longest > MAX_POINTS,
    )


def _labelled(view: RunView, views: Sequence[RunView]) -> RunView:
    """What tells two runs apart: slicing, fidelity, controllers, or at least their ids."""
    if len(views) == 1:
        return view
    for told in (_slicing, _fidelity, _controllers):
        if told(views[0]) != told(views[1]):
            return _with_label(view, told(view))
    return _with_label(view, str(view.manifest.get("run_id", view.path.name)))


def _with_label(view: RunView, label: str) -> RunView:
    return RunView(**{**{field: getattr(view, field) for field in view.__dataclass_fields__}, "label": label})


def _slicing(view: RunView) -> str:
    return "slicing on" if view.topology.get("slicing", True) else "slicing off"


def _fidelity(view: RunView) -> str:
    return str(view.manifest.get("fidelity", "?"))


def _controllers(view: RunView) -> str:
    return ", ".join(spec["controller"] for spec in view.scenario.get("controllers", [])) or "no controller"


def _wiring(view: RunView) -> dict[str, Any]:
    return {key: value for key, value in view.topology.items() if key in ("nodes", "links")}


def _script(figure: dict[str, Any]) -> Markup:
    # "</" would end the script element.
    return Markup(json.dumps(figure, separators=(",", ":"), allow_nan=False).replace("</", "<\\/"))


def _context(view: RunView) -> dict[str, Any]:
    # A run that failed early knows little about itself.
    unknown = {"status": "?", "fidelity": "?", "seed": "?", "reason": "", "host_overloaded": ""}
    manifest = {"run_id": view.path.name, **unknown, **view.manifest}
    scenario = {"name": "", "description": "", **view.scenario}
    colours = slice_colours(view.topology)
    return {
        "view": view,
        "manifest": manifest,
        "scenario": scenario,
        "measured": view.manifest.get("fidelity") == "emulation",
        "colours": colours,
        "svg": Markup(topology_svg(view.topology, link_usage(view))),
        "bands": {BAND_WORDS[band]: BAND_COLOURS[band] for band in _bands(view)},
        "backhaul": overview(view),
        "tasks": rows_of(view),
        "tiles": [_tile(view, slice_, colours[slice_["name"]]) for slice_ in view.topology["slices"]],
        "controllers": _controllers(view),
        "slicing": _slicing(view),
        "refused": [row for row in view.actions if not row.applied],
        "applied": sum(row.applied for row in view.actions),
        "faults": [event for event in view.events if event.kind not in ("label",)],
        "failed_probes": sum(not probe.passed for probe in view.probes),
        "host_load": _host_load(view),
        "kpis": [
            (entity, name, summary, view.provenance(name), KPIS.get(name))
            for entity, names in view.summary.items()
            if entity.partition(":")[0] != "ue"
            for name, summary in names.items()
        ],
        "ues": sum(entity.startswith("ue:") for entity in view.summary),
        "provenance": sorted({view.provenance(name) for names in view.summary.values() for name in names}),
        "facts": _facts(view),
        "assertions": view.manifest.get("assertions") or [],
    }


def _bands(view: RunView) -> list[str]:
    used = {link.get("band") for link in view.topology["links"]}
    return [band for band in BAND_COLOURS if band in used]


def _tile(view: RunView, slice_: dict[str, Any], colour: str) -> dict[str, Any]:
    entity = f"slice:{slice_['name']}"
    down, up = view.mean(entity, "throughput_dl_bps"), view.mean(entity, "throughput_ul_bps")
    kept = [promise.kept for promise in view.promises if promise.slice == slice_["name"] and promise.kept is not None]
    return {
        "name": slice_["name"],
        "nssai": f"SST {slice_['sst']}, SD {slice_['sd']}",
        "colour": colour,
        "throughput_mbps": (0 if math.isnan(down) else down / 1e6) + (0 if math.isnan(up) else up / 1e6),
        "delay_ms": view.mean(entity, "delay_dl_p95_s", "delay_ul_p95_s") * 1e3,
        "loss_percent": view.mean(entity, "loss_dl_ratio", "loss_ul_ratio") * 100,
        "beta": view.last(entity, "qos_degradation_ratio"),
        "rtt_ms": view.mean(entity, "rtt_p95_s") * 1e3,
        "response_ms": view.mean(entity, "response_p95_s") * 1e3,
        "kept": None if not kept else all(kept),
    }


def _contrast(views: Sequence[RunView]) -> list[dict[str, Any]]:
    """Delay of the slices in both runs as bars on one logarithmic scale, the first thing to see.

    The first of the delays that at least two slices of both runs have, so that like is set against
    like. The 95th percentile over the intervals shows the time of congestion, which a mean
    would hide.
    """
    counts = {kpi: min(len(_delays(view, kpi)) for view in views) for kpi in _CONTRASTED}
    kpi = next((kpi for kpi, count in counts.items() if count > 1), max(counts, key=lambda kpi: counts[kpi]))
    found: list[dict[str, Any]] = []
    for view in views:
        delays = _delays(view, kpi)
        colours = slice_colours(view.topology)
        rows: list[dict[str, Any]] = [
            {"slice": name, "colour": colours[name], "delay_ms": delay_ms} for name, delay_ms in delays.items()
        ]
        ratio = max(delays.values()) / min(delays.values()) if len(delays) > 1 else math.nan
        found.append({"label": view.label, "rows": rows, "ratio": ratio, "kpi": _CONTRASTED[kpi]})
    logs = [math.log10(row["delay_ms"]) for group in found for row in group["rows"]]
    if not logs:
        return []
    low, high = min(logs) - 0.3, max(logs)
    for group in found:
        for row in group["rows"]:
            row["width_percent"] = 100 * (math.log10(row["delay_ms"]) - low) / (high - low)
    return found


def _delays(view: RunView, kpi: str) -> dict[str, float]:
    """Slice to the 95th percentile of a KPI over the run in ms, of the slices that have it."""
    return {
        name: found[kpi].p95 * 1e3
        for name in view.slices
        if kpi in (found := view.summary.get(f"slice:{name}", {})) and found[kpi].p95 > 0
    }


def _host_load(view: RunView) -> list[tuple[str, str]]:
    run = view.summary.get("run", {})
    lines = []
    for name, word, factor, unit in (
        ("host_cpu_ratio", "host CPU", 100, "%"),
        ("host_memory_ratio", "host memory", 100, "%"),
        ("engine_cpu_millicores", "CPU of TwinBed itself", 1, "millicores"),
        ("clock_lag_s", "lateness of an interval", 1e3, "ms"),
    ):
        if name in run:
            found = run[name]
            figures = ", ".join(f"{key} {getattr(found, key) * factor:.1f}" for key in ("mean", "p95", "max"))
            lines.append((word, f"{figures} {unit}"))
    return lines


def _facts(view: RunView) -> list[tuple[str, str]]:
    manifest, scenario = view.manifest, view.scenario
    host = manifest.get("host") or {}
    versions = manifest.get("versions") or {}
    length = f"{view.observed_s:g} of {scenario.get('duration_s', 0):g} s"
    lines = [
        ("run", manifest.get("run_id", view.path.name)),
        ("fidelity", f"{manifest.get('fidelity', '?')} (backend {manifest.get('backend', '?')})"),
        ("length", f"{length}, an observation every {scenario.get('interval_s', 0):g} s"),
        ("seed", str(manifest.get("seed", "?"))),
        ("controllers", _controllers(view)),
        ("slicing", "on" if view.topology.get("slicing", True) else "off"),
        ("started", str(manifest.get("started", "?"))),
        ("ended", str(manifest.get("ended", "?"))),
        ("host", ", ".join(str(host[key]) for key in ("name", "kernel", "machine") if key in host) or "?"),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items()) or "?"),
        ("commit", str(manifest.get("commit") or "not from a repository")),
        ("command", " ".join(manifest.get("argv") or []) or "?"),
    ]
    return [(name, value) for name, value in lines if value]


def _number(value: float, digits: int = 1) -> str:
    """A number for people: a few figures, a dash when there is none."""
    if value is None or math.isnan(value):
        return "-"
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 10**-digits / 2):
        return f"{value:.3g}"
    return f"{value:.{digits}f}"
