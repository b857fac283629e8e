# ruff: noqa: RUF001  the page writes the letters of the paper
"""The page of a comparison: the paper's Table I and Figures 6 to 9 and 12, in one file that opens offline."""

from __future__ import annotations

import html
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from controllers.microopt.comparison import ABLATION, TOGETHER, Comparison, Row, by_seed, interval
from controllers.microopt.slice_data import DELAY
from twin import report

COLOURS = {
    "microopt": "#0b6e4f",
    "grid": "#52606d",
    "atlas": "#c2570c",
    "atlas_plus": "#e8a33d",
    "cadrl": "#6b3fa0",
    "cadrl_plus": "#a78bd0",
    "peak_alloc": "#b42318",
    "microopt_0sigma": "#7cc4a8",
    "microopt_2sigma": "#2a7f9e",
}
WORDS = {
    "microopt": "MicroOpt",
    "grid": "Grid (optimum)",
    "atlas": "Atlas",
    "atlas_plus": "Atlas⁺",
    "cadrl": "CaDRL",
    "cadrl_plus": "CaDRL⁺",
    "peak_alloc": "Peak-alloc",
    "microopt_0sigma": "MicroOpt-0σ",
    "microopt_2sigma": "MicroOpt-2σ",
}
PAPER = {
    "constant": {"microopt": 0.719, "atlas": 0.778, "cadrl": 0.920, "peak_alloc": 1.534},
    "savings": {"atlas": 7.65, "cadrl": 21.90, "peak_alloc": 53.14},
    "changing": {"atlas_plus": 4.23, "cadrl_plus": 14.23, "atlas": 14.60, "cadrl": 31.61, "peak_alloc": 20.74},
}
"""Means and savings of MicroOpt in percent, as the paper gives them (section VI-B), from its own data set."""


def write_page(found: Comparison, out: Path) -> None:
    """Write the page, whole or not at all; OSError when it cannot be written."""
    text = render(found)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def render(found: Comparison) -> str:
    """The page as text."""
    style = (Path(report.__file__).parent / "report.css").read_text(encoding="utf-8")
    figures: list[dict[str, Any]] = []

    def plot(figure: dict[str, Any]) -> str:
        figures.append(figure)
        return f'<div class="plot" id="plot-{len(figures) - 1}"></div>'

    delay = found.plan.qos == DELAY
    word = "Figure 12" if delay else "Figure 6"
    body = "".join(
        (
            _head(found),
            _section("Costs", _summary(found)),
            _section("Allocations on constant traffic" + ("" if delay else " (Table I)"), _table_one(found)),
            _section(
                f"Constant traffic: cost and degradation against the thresholds ({word})",
                f'<div class="pair">{plot(_against(found, "q_thresh", "cost"))}'
                f"{plot(_against(found, 'beta_thresh', 'cost'))}</div>"
                f"{plot(_degradation(found))}"
                '<p class="soft">Bars are means over users and the other threshold; whiskers are 95 % intervals over '
                "seeds. On the line, the degradation equals its threshold; below it, the promise is kept.</p>",
            ),
            _changing(found, plot),
            _ablation(found, plot),
            _section(
                "Convergence (Figure 10)",
                plot(_convergence(found))
                + '<p class="soft">Cost of the best feasible allocation so far, divided into the best that any method '
                "found, mean over constant settings; from the first time at which every run has one.</p>",
            ),
            _section(
                f"Slice model ({'Figure 12b' if delay else 'Figure 4c'})",
                plot(_surface(found)) + '<p class="soft">Mean QoS of a user, averaged over the users compared.</p>',
            ),
            _facts(found),
        )
    )
    scripts = "".join(
        f'<script type="application/json" id="figure-{number}">{_script(figure)}</script>\n'
        for number, figure in enumerate(figures)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>MicroOpt and its rivals: {html.escape(found.facts['model'])}</title>\n<style>{style}"
        ".plot{min-height:340px}</style>\n</head>\n<body>\n<main>\n"
        f"{body}</main>\n{scripts}<script>{get_plotlyjs()}</script>\n<script>{_DRAW}</script>\n</body>\n</html>\n"
    )


_DRAW = """
document.querySelectorAll(".plot").forEach(function (place, index) {
  var figure = JSON.parse(document.getElementById("figure-" + index).textContent);
  Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displaylogo: false});
});
"""


def _script(figure: dict[str, Any]) -> str:
    # "</" would end the script element.
    return json.dumps(figure, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}\n</section>\n"


def _layout(title: str, x: str, y: str, **more: Any) -> dict[str, Any]:
    axis = {"gridcolor": "#e6eaee", "zerolinecolor": "#cbd2d9", "automargin": True}
    return {
        "title": {"text": title, "font": {"size": 14}, "x": 0.01, "xanchor": "left"},
        "xaxis": {**axis, "title": {"text": x}, **more.pop("xaxis", {})},
        "yaxis": {**axis, "title": {"text": y}, **more.pop("yaxis", {})},
        "font": {"family": "system-ui, sans-serif", "size": 12.5, "color": "#1f2933"},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "margin": {"l": 56, "r": 12, "t": 42, "b": 48},
        "legend": {"orientation": "h", "y": -0.29},
        "height": 400,
        **more,
    }


def _head(found: Comparison) -> str:
    facts = found.facts
    chips = (
        f"model {facts['model']} ({facts['kind']})",
        f"{facts['seeds']} seeds",
        f"{len(found.rows)} solves",
        "calculated on the slice model",
    )
    q_thresh, beta = found.plan.strictest
    return (
        '<header><div class="head"><h1>MicroOpt and its rivals</h1>'
        + "".join(f'<span class="chip">{html.escape(chip)}</span>' for chip in chips)
        + '</div><p class="soft">Normalised cost η·r of the allocation that each method finds for one slice, and the '
        f"exact expected degradation E[β] that it has on the model. Tables with one threshold are for q {q_thresh:g} "
        f"and β {beta:g}.</p></header>\n"
    )


def _table(header: list[str], rows: list[list[str]], numbers_from: int = 1) -> str:
    def cells(tag: str, values: list[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if place >= numbers_from else ''}>{value}</{tag}>" for place, value in enumerate(values)
        )

    lines = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{cells("th", header)}</tr>\n{lines}</table></div>'


def _method(name: str) -> str:
    return f'<span class="dot" style="background:{COLOURS[name]}"></span>{WORDS[name]}'


def _summary(found: Comparison) -> str:
    text = ""
    for part, title, paper in (
        ("constant", "Constant traffic", PAPER["savings"]),
        ("changing", "Changing traffic", PAPER["changing"] if found.plan.traffic == "telecom-italia" else {}),
    ):
        if found.plan.qos == DELAY:  # of which the paper gives no figures
            paper = {}
        rows = [row for row in found.summary() if row["traffic"] == part]
        if not rows:
            continue
        lines = [
            [
                _method(row["method"]),
                f"{row['mean_cost']:.4f}" + (f" ± {row['interval_95']:.4f}" if row["seeds"] > 1 else ""),
                f"{row['above_grid_percent']:+.2f} %",
                ""
                if row["method"] == "microopt"
                else f"{row['microopt_saves_percent']:.2f} ± {row['saves_interval_95']:.2f} %",
                f"{paper[row['method']]:.2f} %" if row["method"] in paper else "",
                f"{row['mean_beta']:.3f}",
                f"{row['feasible_percent']:.0f} %",
                f"{row['mean_time_s']:.2f}",
            ]
            for row in rows
        ]
        header = [title, "cost", "above the optimum", "MicroOpt saves", "paper", "E[β]", "feasible", "time, s"]
        text += _table(header, lines) + "<br>"
    return text + (
        '<p class="soft">Means with 95 % intervals over seeds. An allocation that is not feasible may be cheaper than '
        "the optimum: read cost and feasible together. The paper's figures are from its own data and "
        f"implementations. Atlas and CaDRL are solved {TOGETHER} at a time: their time is the share of each.</p>"
    )


def _table_one(found: Comparison) -> str:
    q_thresh, beta = found.plan.strictest
    lines = []
    for method in found.methods:
        if method in ABLATION:
            continue
        for users in found.plan.users:
            rows = found.of(part="constant", method=method, users=users, q_thresh=q_thresh, beta_thresh=beta)
            if not rows:
                continue
            cells = [_method(method), f"{users:g}"]
            for name in rows[0].allocation:
                mean, half = interval([row.allocation[name] for row in rows])
                cells.append(f"{mean:.2f}" + (f" ± {half:.2f}" if len(rows) > 1 else ""))
            cost, _ = interval([row.cost for row in rows])
            degraded, _ = interval([row.expected_beta for row in rows])
            cells += [f"{cost:.4f}", f"{degraded:.3f}", f"{sum(row.feasible for row in rows)} of {len(rows)}"]
            lines.append(cells)
    names = list(found.rows[0].allocation)
    header = ["method", "users", *(name.replace("_", " ") for name in names), "cost", "E[β]", "feasible"]
    return _table(header, lines)


def _bars(
    found: Comparison, part: str, methods: list[str], groups: list[tuple[str, dict[str, Any]]], field: str
) -> list[dict[str, Any]]:
    value: Callable[[Row], float] = lambda row: float(getattr(row, field))  # noqa: E731
    data = []
    for method in methods:
        means, halves = [], []
        for _, wanted in groups:
            rows = found.of(part=part, method=method, **wanted)
            mean, half = interval(by_seed(rows, value)) if rows else (None, 0.0)
            means.append(mean)
            halves.append(half)
        data.append(
            {
                "type": "bar",
                "name": WORDS[method],
                "x": [label for label, _ in groups],
                "y": means,
                "error_y": {"type": "data", "array": halves, "thickness": 1, "width": 3, "color": "#1f2933"},
                "marker": {"color": COLOURS[method]},
            }
        )
    return data


def _compared(found: Comparison, part: str) -> list[str]:
    return [
        method
        for method in ("microopt", "atlas_plus", "cadrl_plus", "atlas", "cadrl", "peak_alloc", "grid")
        if found.of(part=part, method=method)
    ]


def _against(found: Comparison, field: str, value: str) -> dict[str, Any]:
    levels = found.plan.q_thresh if field == "q_thresh" else found.plan.beta_thresh
    unit = "s" if found.plan.qos == DELAY else "Mbit/s"
    word = f"QoS threshold, {unit}" if field == "q_thresh" else "β threshold"
    groups = [(f"{level:g}", {field: level}) for level in levels]
    return {
        "data": _bars(found, "constant", _compared(found, "constant"), groups, value),
        "layout": _layout(
            f"Cost against {word.partition(',')[0]}", word, "cost η·r", xaxis={"type": "category"}, barmode="group"
        ),
    }


def _degradation(found: Comparison) -> dict[str, Any]:
    levels = sorted(found.plan.beta_thresh)
    data: list[dict[str, Any]] = []
    for method in _compared(found, "constant"):
        means, halves = [], []
        for level in levels:
            rows = found.of(part="constant", method=method, beta_thresh=level)
            mean, half = interval(by_seed(rows, lambda row: row.expected_beta))
            means.append(mean)
            halves.append(half)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": WORDS[method],
                "x": levels,
                "y": means,
                "error_y": {"type": "data", "array": halves, "thickness": 1, "width": 3},
                "line": {"color": COLOURS[method]},
            }
        )
    top = max(levels) * 1.1
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "x = y",
            "x": [0, top],
            "y": [0, top],
            "line": {"color": "#52606d", "dash": "dash", "width": 1.5},
        }
    )
    return {"data": data, "layout": _layout("Degradation against its threshold", "β threshold", "E[β]")}


def _changing(found: Comparison, plot: Callable[[dict[str, Any]], str]) -> str:
    rows = found.of(part="changing")
    if not rows:
        return ""
    keys = list(dict.fromkeys((row.sigma, row.users, row.traffic) for row in rows))
    groups: list[tuple[str, dict[str, Any]]] = [
        (f"{users:g} users, σ {sigma}" if sigma != "given" else name, {"traffic": name}) for sigma, users, name in keys
    ]
    overall: list[tuple[str, dict[str, Any]]] = [
        (f"σ {sigma}" if sigma != "given" else found.plan.traffic, {"sigma": sigma})
        for sigma in dict.fromkeys(sigma for sigma, _, _ in keys)
    ]
    methods = _compared(found, "changing")
    q_thresh, beta = found.plan.strictest
    note = (
        f"q {q_thresh:g}, β {beta:g}. Truncated normals around 1 to 5 users with σ mean "
        f"{found.facts['sigma_mean']:.3f} and σ max {found.facts['sigma_max']:.3f} users, cut off to the "
        f"{found.facts['traffic_range'][0]:g} to {found.facts['traffic_range'][1]:g} users of the model's data; from "
        f"{found.facts['traffic']}."
        if found.plan.traffic == "telecom-italia"
        else found.plan.traffic
    )
    cost = {
        "data": _bars(found, "changing", methods, overall, "cost"),
        "layout": _layout(
            "Cost (Figure 7)", "", "cost η·r", barmode="group", xaxis={"type": "category", "title": {"text": ""}}
        ),
    }
    degraded = {
        "data": _bars(found, "changing", methods, overall, "expected_beta"),
        "layout": _layout(
            "Degradation (Figure 8)",
            "",
            "E[β]",
            barmode="group",
            xaxis={"type": "category", "title": {"text": ""}},
            shapes=[
                {
                    "type": "line",
                    "xref": "paper",
                    "x0": 0,
                    "x1": 1,
                    "y0": beta,
                    "y1": beta,
                    "line": {"dash": "dash", "color": "#52606d", "width": 1.5},
                }
            ],
        ),
    }
    lines = []
    for label, wanted in groups:
        cells = [html.escape(label)]
        for method in methods:
            part = found.of(part="changing", method=method, **wanted)
            mean, half = interval([row.cost for row in part])
            bad = sum(not row.feasible for row in part)
            cells.append(
                f"{mean:.4f}"
                + (f" ± {half:.4f}" if len(part) > 1 else "")
                + (f' <span class="broken">({bad} infeasible)</span>' if bad else "")
            )
        lines.append(cells)
    return _section(
        "Changing traffic (Figures 7 and 8)",
        f'<div class="pair">{plot(cost)}{plot(degraded)}</div>'
        + _table(["distribution", *(WORDS[method] for method in methods)], lines)
        + f'<p class="soft">{html.escape(note)}</p>',
    )


def _ablation(found: Comparison, plot: Callable[[dict[str, Any]], str]) -> str:
    order: list[str] = ["microopt_0sigma", "microopt", "microopt_2sigma"]
    methods = [method for method in order if method in found.methods]
    if len(methods) < 2:
        return ""
    groups = [(f"{level:g}", {"beta_thresh": level}) for level in found.plan.beta_thresh]
    data = _bars(found, "constant", methods, groups, "cost")
    for trace, method in zip(data, methods, strict=True):
        trace["text"] = [
            f"β {statistics.fmean(row.expected_beta for row in found.of(part='constant', method=method, **wanted)):.2f}"
            for _, wanted in groups
        ]
        trace["textposition"] = "outside"
        trace["cliponaxis"] = False
    figure = {
        "data": data,
        "layout": _layout(
            "Scalar slice models against the distribution",
            "β threshold",
            "cost η·r",
            barmode="group",
            xaxis={"type": "category"},
        ),
    }
    return _section(
        "Why a distribution (Figure 9)",
        plot(figure)
        + '<p class="soft">0σ optimises the mean alone: the cheapest, and half of the users are degraded. 2σ takes the '
        "mean less two standard deviations. Above the bars: E[β] by the whole distribution.</p>",
    )


def _convergence(found: Comparison) -> dict[str, Any]:
    data = []
    for method in ("microopt", "atlas", "cadrl"):
        rows = found.of(part="constant", method=method)
        curves = []
        for row in rows:
            steps = [(time_s, cost) for time_s, cost in row.trace if cost is not None]
            best = (
                min(
                    other.cost
                    for other in found.of(
                        part="constant", users=row.users, q_thresh=row.q_thresh, beta_thresh=row.beta_thresh
                    )
                    if other.feasible and other.method not in ABLATION
                )
                if row.feasible
                else None
            )
            if steps and best is not None:
                curves.append([(time_s, best / cost) for time_s, cost in steps])
        if not curves:
            continue
        begin = max(curve[0][0] for curve in curves)
        end = max(curve[-1][0] for curve in curves)
        times = [begin * (max(end, begin * 1.01) / begin) ** (place / 60) for place in range(61)]
        means = [statistics.fmean(_at(curve, time_s) for curve in curves) for time_s in times]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": WORDS[method],
                "x": times,
                "y": means,
                "line": {"color": COLOURS[method], "width": 2.5},
            }
        )
    return {
        "data": data,
        "layout": _layout(
            "Optimality ratio over time", "time, s", "optimum / cost", xaxis={"type": "log", "dtick": "D2"}
        ),
    }


def _at(curve: list[tuple[float, float]], time_s: float) -> float:
    value = curve[0][1]
    for when, ratio in curve:
        if when > time_s:
            break
        value = ratio
    return value


def _surface(found: Comparison) -> dict[str, Any]:
    surface = found.facts["surface"]
    unit = "Mbit/s" if found.plan.qos == "throughput_mbps" else "s"
    return {
        "data": [
            {
                "type": "surface",
                "x": surface["x"],
                "y": surface["y"],
                "z": surface["z"],
                "colorscale": "Viridis",
                "colorbar": {"title": {"text": unit}, "thickness": 14},
            }
        ],
        "layout": {
            "scene": {
                "xaxis": {"title": {"text": surface["names"][0].replace("_", " ")}},
                "yaxis": {"title": {"text": surface["names"][1].replace("_", " ")}},
                "zaxis": {"title": {"text": f"mean QoS, {unit}"}},
                "camera": {"eye": {"x": -1.5, "y": -1.6, "z": 0.9}},
            },
            "margin": {"l": 0, "r": 0, "t": 10, "b": 0},
            "height": 460,
            "font": {"family": "system-ui, sans-serif", "size": 12},
        },
    }


def _facts(found: Comparison) -> str:
    data = found.facts["provenance"].get("data", {})
    lines = [
        ("slice model", f"{found.facts['model']}, {found.facts['kind']}"),
        ("fitted on", ", ".join(f"{key} {value}" for key, value in data.items()) or "?"),
        ("traffic", found.facts["traffic"]),
        ("thresholds", f"q {_list(found.plan.q_thresh)}; β {_list(found.plan.beta_thresh)}"),
        ("users", _list(found.plan.users)),
        ("extrapolated", f"{sum(row.extrapolated for row in found.rows)} of {len(found.rows)} results"),
    ]
    rows = "".join(
        f'<tr><td class="key">{html.escape(key)}</td><td class="wide">{html.escape(value)}</td></tr>\n'
        for key, value in lines
    )
    return _section("What this is of", f'<div class="scroll"><table>{rows}</table></div>')


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
