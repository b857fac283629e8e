"""The charts of a report: panels over one time axis, with actions and events on it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.kpis import PARTITION_STATES
from twin.report.drawing import PALETTE, slice_colours
from twin.report.view import MAX_POINTS, RunView, in_force

_PANEL_PX, _GAP_PX, _TOP_PX, _BOTTOM_PX = 150, 56, 34, 44
_ROW_PX = 15
# Nothing at all stands out; otherwise the darker the more.
_HEAT = [[0, "#c81e1e"], [0.004, "#c81e1e"], [0.004, "#e8eef4"], [1, "#0b5f8a"]]
_STATES = ("#9aa5b1", "#d97706", "#0b5f8a")
_STYLES = {"dl": "solid", "ul": "dot", "limit": "dash", "steps": "solid"}


@dataclass(frozen=True)
class Curve:
    """One KPI in a panel: ``style`` dl, ul (dotted), limit (dashed steps) or steps (solid ones)."""

    kpi: str
    style: str = "dl"
    word: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart: title, unit, factor from SI to that unit, and what is drawn of every entity.

    With ``part_of``, a KPI, a row of colours per entity: how much of that KPI the first curve is. With ``states``,
    words, such a row too: the first curve counts them.
    """

    title: str
    unit: str
    factor: float
    curves: tuple[Curve, ...]
    scopes: tuple[str, ...] = ("slice",)
    promise: str = ""
    spread: bool = False
    part_of: str = ""
    states: tuple[str, ...] = ()


PANELS = (
    Panel("Throughput", "Mbit/s", 1e-6, (Curve("throughput_dl_bps"), Curve("throughput_ul_bps", "ul", "uplink"))),
    Panel(
        "One-way delay, 95th percentile",
        "ms",
        1e3,
        (Curve("delay_dl_p95_s"), Curve("delay_ul_p95_s", "ul", "uplink")),
        promise="latency_bound_s",
        spread=True,
    ),
    Panel("Round trip of probe packets, 95th percentile", "ms", 1e3, (Curve("rtt_p95_s"),), spread=True),
    Panel("Packet loss", "%", 100, (Curve("loss_dl_ratio"), Curve("loss_ul_ratio", "ul", "uplink"))),
    Panel("QoS: throughput per active UE", "Mbit/s", 1e-6, (Curve("qos_bps"),), promise="q_thresh_bps"),
    Panel("QoS degradation β since the start", "", 1, (Curve("qos_degradation_ratio"),), promise="beta_thresh"),
    Panel("Active UEs", "", 1, (Curve("active_ues"),)),
    Panel(
        "gNB CPU of each slice",
        "millicores",
        1,
        (Curve("cpu_used_millicores"), Curve("cpu_limit_millicores", "limit", "limit")),
    ),
    Panel("Transport rate limit", "Mbit/s", 1e-6, (Curve("bandwidth_limit_bps", "limit", "limit"),)),
    Panel(
        "PRBs: used of the slice's, and its share",
        "%",
        100,
        (
            Curve("prb_used_dl_ratio", "dl", "used"),
            Curve("prb_used_ul_ratio", "ul", "used, uplink"),
            Curve("prb_share", "limit", "share"),
        ),
    ),
    Panel("Response time, 95th percentile", "ms", 1e3, (Curve("response_p95_s"),), ("slice", "node"), spread=True),
    Panel(
        "CPU of the nodes that have a limit",
        "millicores",
        1,
        (Curve("cpu_used_millicores"), Curve("cpu_limit_millicores", "limit", "limit")),
        ("node",),
    ),
    Panel("State of the partitions", "", 1, (Curve("partition_state"),), ("node",), states=PARTITION_STATES),
    Panel(
        "Backhaul: efficiency and fairness",
        "",
        1,
        (Curve("backhaul_efficiency", "dl", "efficiency"), Curve("backhaul_fairness", "ul", "fairness")),
        ("run",),
    ),
    Panel(
        "Backhaul: what each flow carries of what it is offered",
        "%",
        100,
        (Curve("throughput_bps"),),
        ("flow",),
        part_of="offered_bps",
    ),
    Panel("Response of the jobs, longest", "ms", 1e3, (Curve("task_response_max_s"),), ("task",), spread=True),
    Panel("Deadlines missed", "%", 100, (Curve("deadline_miss_ratio"),), ("task",)),
    Panel(
        "Reservations: budget Q, and CPU time used per period",
        "ms",
        1e3,
        (Curve("dl_used_s", "ul", "used"), Curve("dl_budget_s", "steps", "budget")),
        ("task", "node"),
    ),
    Panel("Reserved CPU bandwidth, Q / P", "", 1, (Curve("dl_alpha_ratio", "steps"),), ("task", "node")),
    Panel(
        "Worst-case service delay of the reservations, 2 (P - Q)",
        "ms",
        1e3,
        (Curve("dl_delta_s", "steps"),),
        ("task", "node"),
    ),
    Panel("Period of the wake-ups", "ms", 1e3, (Curve("wakeup_period_s", "steps"),), ("task", "node")),
    Panel(
        "Host load",
        "%",
        100,
        (Curve("host_cpu_ratio", "dl", "CPU"), Curve("host_memory_ratio", "ul", "memory")),
        ("run",),
    ),
    Panel("Lateness of the intervals", "ms", 1e3, (Curve("clock_lag_s", "dl", "clock lag"),), ("run",)),
)


def timeline(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """One Plotly figure (data, layout) per run; panels, axes and ranges are the same for all."""
    panels = [panel for panel in PANELS if any(_found(run, panel) for run in runs)]
    ranges = [_range(panel, runs) for panel in panels]
    sources = list(dict.fromkeys(_source(row.source) for run in runs for row in run.actions))
    if any(event.kind in ("label", "fault") for run in runs for event in run.events):
        sources = list(dict.fromkeys(["events", *sources]))
    end_s = max([run.observed_s for run in runs] + [1e-3])
    return [_figure(run, panels, ranges, sources, end_s) for run in runs]


def _figure(
    run: RunView, panels: Sequence[Panel], ranges: Sequence[dict[str, Any]], sources: Sequence[str], end_s: float
) -> dict[str, Any]:
    colours = slice_colours(run.topology)
    heights = ([34.0 + 22 * len(sources)] if sources else []) + [_height(panel, run) for panel in panels]
    inner = sum(heights) + _GAP_PX * (len(heights) - 1)
    layout: dict[str, Any] = {
        "height": inner + _TOP_PX + _BOTTOM_PX,
        "margin": {"l": 58, "r": 12, "t": _TOP_PX, "b": _BOTTOM_PX},
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12, "color": "#1f2933"},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "rgba(0,0,0,0)",  # the lines of the events lie below the panels
        "showlegend": False,
        "hovermode": "x",
        "hoverlabel": {"font": {"size": 12}},
        "annotations": [],
        "shapes": [],
    }
    data: list[dict[str, Any]] = []
    top = inner
    for number, height in enumerate(heights, start=1):
        suffix = "" if number == 1 else str(number)
        domain = [max(0.0, (top - height) / inner), min(1.0, top / inner)]
        last = number == len(heights)
        layout[f"xaxis{suffix}"] = {
            "anchor": f"y{suffix}",
            "range": [0, end_s],
            "gridcolor": "#eef1f4",
            "linecolor": "#c3ccd5",
            "zeroline": False,
            "ticks": "",
            "ticksuffix": " s",
            "tickfont": {"size": 11, "color": "#52606d"},
            **({} if number == 1 else {"matches": "x"}),
            **({"title": {"text": "time since the start of the run"}} if last else {}),
        }
        layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}", "domain": domain, "gridcolor": "#eef1f4", "zeroline": False}
        is_actions = bool(sources) and number == 1
        panel = None if is_actions else panels[number - 1 - bool(sources)]
        title = "<b>Actions and events</b>" if panel is None else _title(run, panel, colours)
        layout["annotations"].append(
            {
                "text": title,
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": domain[1],
                "xanchor": "left",
                "yanchor": "bottom",
                "yshift": 4,
                "showarrow": False,
                "font": {"size": 13},
            }
        )
        if panel is None:
            names = [_short(source) for source in sources]
            layout[f"yaxis{suffix}"].update(
                {
                    "type": "category",
                    "categoryarray": names[::-1],
                    "range": [-0.6, len(names) - 0.4],
                    "fixedrange": True,
                    "automargin": True,
                }
            )
            data.extend(_marks(run, sources, suffix))
        else:
            layout[f"yaxis{suffix}"].update(ranges[panels.index(panel)])
            if panel.states:
                data.extend(_states(run, panel, suffix))
            else:
                data.extend(_rows(run, panel, suffix) if panel.part_of else _curves(run, panel, suffix, colours))
        top -= height + _GAP_PX
    layout["shapes"].extend(_lines(run))
    return {"data": data, "layout": layout}


def _found(run: RunView, panel: Panel) -> list[tuple[str, Curve]]:
    return [
        (entity, curve)
        for curve in panel.curves
        for entity, name in run.series
        if name == curve.kpi
        and entity.partition(":")[0] in panel.scopes
        and (panel.scopes != ("node",) or panel.states or (entity, "cpu_limit_millicores") in run.series)
        and ((curve.style != "ul" and panel.scopes != ("run",)) or _matters(run, entity, name))
    ]


def _matters(run: RunView, entity: str, name: str) -> bool:
    """An uplink that is never used only hides the others, and a model is never late."""
    return bool(np.any(run.series[entity, name][1] != 0))


def _curves(run: RunView, panel: Panel, suffix: str, colours: dict[str, str]) -> list[dict[str, Any]]:
    traces = []
    others = _others(run, panel)
    for entity, curve in _found(run, panel):
        times, values = _thinned(*run.series[entity, curve.kpi])
        xs, ys = _with_gaps(times, values * panel.factor)
        name = entity.partition(":")[2]
        colour = _colour(entity, curve, colours, others)
        line = {"color": colour, "width": 2 if curve.style in ("dl", "steps") else 1.4, "dash": _STYLES[curve.style]}
        if curve.style in ("limit", "steps"):
            line["shape"] = "hv"
        label = " ".join(filter(None, (name, curve.word)))
        digits = ".3f" if not panel.unit else ".2f"
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if times.size > 1 else "markers",
                "name": label,
                "x": xs,
                "y": ys,
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "line": line,
                "marker": {"color": colour, "size": 8},
                "opacity": 0.75 if curve.style == "limit" else 1,
                "hovertemplate": f"%{{y:{digits}}} {panel.unit} · {label}<extra></extra>",
            }
        )
    traces.extend(_promises(run, panel, suffix, colours))
    return traces


def _height(panel: Panel, run: RunView) -> float:
    rows = len(_found(run, panel)) if panel.part_of or panel.states else 0
    return max(float(_PANEL_PX), rows * _ROW_PX) if not panel.states else 2.0 * _ROW_PX + rows * _ROW_PX


def _rows(run: RunView, panel: Panel, suffix: str) -> list[dict[str, Any]]:
    """A heat map: one row per entity, one column per interval; blank where there is nothing to be a part of."""
    names, shares, texts = [], [], []
    middles: NDArray[np.float64] = np.empty(0)
    for entity, curve in _found(run, panel):
        if (entity, panel.part_of) not in run.series:
            continue
        times, values = _thinned(*run.series[entity, curve.kpi])
        _, wholes = _thinned(*run.series[entity, panel.part_of])
        # Every interval is drawn from its beginning to its end.
        middles = times - (times[0] if times.size == 1 else float(np.median(np.diff(times)))) / 2
        names.append(entity.partition(":")[2])
        pairs = list(zip(values.tolist(), wholes.tolist(), strict=True))
        shares.append([round(panel.factor * value / whole, 1) if whole > 0 else None for value, whole in pairs])
        texts.append([f"{value / 1e6:.3g} of {whole / 1e6:.3g} Mbit/s" for value, whole in pairs])
    return [
        {
            "type": "heatmap",
            "x": np.round(middles, 4).tolist(),
            "y": names,
            "z": shares,
            "text": texts,
            "zmin": 0,
            "zmax": 100,
            "colorscale": _HEAT,
            "showscale": False,
            "xgap": 0,
            "ygap": 1,
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "hovertemplate": "%{y}: %{z:.0f} %, %{text}<extra></extra>",
        }
    ]


def _states(run: RunView, panel: Panel, suffix: str) -> list[dict[str, Any]]:
    """A row per entity, one column per interval, a colour per state."""
    names, values = [], []
    middles: NDArray[np.float64] = np.empty(0)
    for entity, curve in _found(run, panel):
        times, found = run.series[entity, curve.kpi]  # whole, since a mean of states is none
        middles = times - (times[0] if times.size == 1 else float(np.median(np.diff(times)))) / 2
        names.append(entity.partition(":")[2])
        values.append(found.tolist())
    last = len(panel.states) - 1
    scale = [[share / (last + 1), colour] for n, colour in enumerate(_STATES) for share in (n, n + 1)]
    return [
        {
            "type": "heatmap",
            "x": np.round(middles, 4).tolist(),
            "y": names,
            "z": values,
            "text": [[panel.states[round(value)] for value in row] for row in values],
            "zmin": -0.5,
            "zmax": last + 0.5,
            "colorscale": scale,
            "showscale": False,
            "xgap": 0,
            "ygap": 2,
            "xaxis": f"x{suffix}",
            "yaxis": f"y{suffix}",
            "hovertemplate": "%{y}: %{text}<extra></extra>",
        }
    ]


def _others(run: RunView, panel: Panel) -> list[str]:
    """Entities of a panel that are no slices and so have no colour of their own."""
    return [entity for entity in dict.fromkeys(e for e, _ in _found(run, panel)) if not entity.startswith("slice:")]


def _colour(entity: str, curve: Curve, colours: dict[str, str], others: Sequence[str]) -> str:
    scope, _, name = entity.partition(":")
    if scope == "run":
        return PALETTE[0] if curve.style == "dl" else PALETTE[1]
    if scope == "slice":
        return colours.get(name, "#4D4D4D")
    return PALETTE[(len(colours) + others.index(entity)) % len(PALETTE)]


def _title(run: RunView, panel: Panel, colours: dict[str, str]) -> str:
    """Title and unit, and the names of the curves that the legend above the charts does not explain."""
    text = f"<b>{panel.title}{f', {panel.unit}' if panel.unit else ''}</b>"
    others = _others(run, panel)
    if panel.states:
        named = list(zip(panel.states, _STATES, strict=True))
    elif panel.part_of:
        named = [("all", "#0b5f8a"), ("little", "#8fa6b8"), ("nothing", "#c81e1e")]
    elif panel.scopes == ("run",):
        named = [(curve.word, _colour("run", curve, colours, ())) for curve in panel.curves]
    else:
        named = [(entity.partition(":")[2], _colour(entity, panel.curves[0], colours, others)) for entity in others]
    words = [f"<span style='color:{colour}'>{html.escape(word)}</span>" for word, colour in named[:6]]
    more = [f"and {len(named) - 6} more"] if len(named) > 6 else []
    return "   ".join([text, *words, *more])


def _promises(run: RunView, panel: Panel, suffix: str, colours: dict[str, str]) -> list[dict[str, Any]]:
    """Thin steps where the SLA says how far a curve may go."""
    traces: list[dict[str, Any]] = []
    if not panel.promise:
        return traces
    for slice_ in run.topology["slices"]:
        entity = f"slice:{slice_['name']}"
        drawn = [curve.kpi for curve in panel.curves if (entity, curve.kpi) in run.series]
        if not drawn:
            continue
        times, _ = _thinned(*run.series[entity, drawn[0]])
        values = in_force(slice_, panel.promise, times, run.actions) * panel.factor
        if np.all(np.isnan(values)):
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"{slice_['name']} promise",
                "x": np.round(times, 4).tolist(),
                "y": [None if math.isnan(value) else value for value in values.tolist()],
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "line": {"color": colours[slice_["name"]], "width": 1, "dash": "longdashdot", "shape": "hv"},
                "opacity": 0.6,
                "hovertemplate": f"%{{y:.4g}} {panel.unit} · {slice_['name']} promise<extra></extra>",
            }
        )
    return traces


def _marks(run: RunView, sources: Sequence[str], suffix: str) -> list[dict[str, Any]]:
    """Applied, refused and faults as three traces, so that each has its own shape."""
    groups: dict[str, list[tuple[float, str, str]]] = {"applied": [], "refused": [], "fault": [], "event": []}
    for row in run.actions:
        value = f"{row.value:g}" if isinstance(row.value, float) else row.value
        text = f"{row.entity} {row.knob} = {value}"
        if row.applied:
            lag = f"<br>in force after {row.lag_s * 1e3:.1f} ms" if row.lag_s else ""
            groups["applied"].append((row.time_s, _short(_source(row.source)), text + lag))
        else:
            groups["refused"].append((row.time_s, _short(_source(row.source)), f"refused: {text}<br>{row.reason}"))
    for event in run.events:
        if event.kind in ("label", "fault"):
            source = "events" if event.kind == "label" else _source(event.source)
            source = source if source in sources else "events"
            groups["event" if event.kind == "label" else "fault"].append(
                (event.time_s, _short(source), f"{event.kind}: {event.text}")
            )
    looks = {
        "applied": ("circle", "#3e4c59", 8),
        "refused": ("x", "#c81e1e", 9),
        "fault": ("triangle-up", "#c81e1e", 10),
        "event": ("diamond", "#7c5e10", 10),
    }
    # An empty trace keeps every source on the axis of both figures.
    traces = [_points("", [(None, _short(source), "") for source in sources], ("circle", "#fff", 1), suffix)]
    traces.extend(_points(name, points, looks[name], suffix) for name, points in groups.items() if points)
    return traces


def _points(
    name: str, points: Sequence[tuple[float | None, str, str]], look: tuple[str, str, int], suffix: str
) -> dict[str, Any]:
    symbol, colour, size = look
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point[0] for point in points],
        "y": [point[1] for point in points],
        "text": [point[2] for point in points],
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "marker": {"symbol": symbol, "color": colour, "size": size, "line": {"width": 1, "color": "#fff"}},
        "hovertemplate": "%{x:.2f} s · %{text}<extra></extra>",
        "cliponaxis": False,
    }


def _lines(run: RunView) -> list[dict[str, Any]]:
    """A vertical line through all panels at every scripted event, and faint ones at decisions."""
    events = {row.time_s for row in run.actions if row.source == "event"}
    decisions = {row.time_s for row in run.actions if row.applied} - events
    shapes: list[dict[str, Any]] = []
    for times, colour in ((decisions if len(decisions) <= 80 else set(), "rgba(62,76,89,.10)"), (events, "#b08d2e")):
        shapes.extend(
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": time_s,
                "x1": time_s,
                "y0": 0,
                "y1": 1,
                "layer": "between",  # over the grid, under the curves
                "line": {"color": colour, "width": 1, **({"dash": "dot"} if colour.startswith("#") else {})},
            }
            for time_s in sorted(times)
        )
    return shapes


def _range(panel: Panel, runs: Sequence[RunView]) -> dict[str, Any]:
    """The value axis: from 0, or logarithmic where a panel spreads over more than a factor of 20."""
    if panel.part_of or panel.states:
        return {"autorange": "reversed", "tickfont": {"size": 10}, "dtick": 1, "showgrid": False, "automargin": True}
    drawn = [run.series[entity, curve.kpi][1] for run in runs for entity, curve in _found(run, panel)]
    values = np.concatenate([*drawn, np.empty(0)]) * panel.factor
    for run in runs:
        for slice_ in run.topology["slices"] if panel.promise else []:
            promised = in_force(slice_, panel.promise, np.array([0.0, math.inf]), run.actions) * panel.factor
            values = np.concatenate([values, promised[~np.isnan(promised)]])
    positive = values[values > 0]
    if panel.spread and positive.size and positive.max() > 20 * np.percentile(positive, 2):
        low, high = np.log10(np.percentile(positive, 2)), np.log10(positive.max())
        span = range(math.floor(low) - 1, math.ceil(high) + 1)
        steps = (1, 2, 5) if high - low < 2 else (1,)
        ticks = [step * 10.0**power for power in span for step in steps]
        return {
            "type": "log",
            "range": [low - 0.15, high + 0.15],
            "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks],
        }
    top = float(values.max()) if values.size else 0.0
    if panel.unit == "%" and top <= 100:
        top = max(top, 1.0) if "loss" in panel.title else 100.0
    if panel.title.startswith("QoS degradation"):
        top = max(top, 0.05)
    return {"range": [0, 1.08 * top if top > 0 else 1]}


def _thinned(
    times: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``MAX_POINTS`` points: means of neighbours, at the time of the last of them."""
    step = math.ceil(times.size / MAX_POINTS)
    if step <= 1:
        return times, values
    edges = np.arange(0, times.size, step)
    counts = np.diff(np.append(edges, times.size))
    return times[np.minimum(edges + step, times.size) - 1], np.add.reduceat(values, edges) / counts


def _with_gaps(times: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[list[float], list[float | None]]:
    """The same points with a None where samples are missing, so that no line is drawn across."""
    usual_s = float(np.median(np.diff(times))) if times.size > 1 else 0.0
    xs: list[float] = []
    ys: list[float | None] = []
    for time_s, value in zip(np.round(times, 4).tolist(), values.tolist(), strict=True):
        if xs and time_s - xs[-1] > 1.6 * usual_s:
            xs.append(xs[-1])
            ys.append(None)
        xs.append(time_s)
        ys.append(float(f"{value:.6g}"))
    return xs, ys


def _source(source: str) -> str:
    return "events" if source == "event" else source


def _short(source: str) -> str:
    name = source.partition(":")[2] or source
    return name if len(name) <= 12 else name[:11] + "…"
