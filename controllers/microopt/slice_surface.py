"""A slice model to look at: the mean QoS over two resources (Figure 4c of MicroOpt), as one page without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from controllers.microopt.slice_data import DELAY, ONLY_SLICE, THROUGHPUT, SliceModelError
from controllers.microopt.slice_model import SliceModel

STEPS = 41
UNITS = {
    "cpu_millicores": "gNB CPU, millicores",
    "bandwidth_mbps": "transport bandwidth, Mbit/s",
    "edge_cpu_millicores": "edge CPU, millicores",
    "prb_share": "PRB share",
    THROUGHPUT: "throughput per user, Mbit/s",
    DELAY: "delay, s",
}


def write_surface(model: SliceModel, path: Path, *, slice_name: str | None = None, qos: str = THROUGHPUT) -> None:
    """Write the page: a surface per number of users and their average, and the 10 % quantile as an option.

    The first two resources are the axes; others stay in the middle of their range, as the title says.
    """
    import plotly.graph_objects as go

    model.network(slice_name, qos)
    if len(model.resources) < 2:
        raise SliceModelError(f"slice model: a surface needs two resources, the model has {model.resources[0].name}")
    first, second, *rest = model.resources
    x = torch.linspace(first.low, first.high, STEPS)
    y = torch.linspace(second.low, second.high, STEPS)
    middle = [(resource.low + resource.high) / 2 for resource in rest]
    grid = torch.cartesian_prod(x, y)
    allocation = torch.cat([grid, torch.tensor(middle).expand(len(grid), -1)], dim=1) if rest else grid
    users = [float(n) for n in range(round(model.traffic_range[0]), round(model.traffic_range[1]) + 1)]
    with torch.inference_mode():
        found = [model.distribution(n, allocation, slice_name=slice_name, qos=qos) for n in users]
        means = torch.stack([one.mean() for one in found])
        lows = torch.stack([one.quantile(0.9 if qos == DELAY else 0.1) for one in found])
    heights = {f"average over {users[0]:g} to {users[-1]:g} users": (means.mean(0), lows.mean(0))}
    heights |= {f"{n:g} user{'s' if n != 1 else ''}": (means[i], lows[i]) for i, n in enumerate(users)}
    top = float(means.max()) * 1.02
    traces: list[Any] = []
    for place, (name, (mean, low)) in enumerate(heights.items()):
        for label, height, opacity in (("mean", mean, 1.0), ("90 %" if qos == DELAY else "10 %", low, 0.55)):
            traces.append(
                go.Surface(
                    x=x.tolist(),
                    y=y.tolist(),
                    z=height.reshape(STEPS, STEPS).T.tolist(),
                    name=f"{label} of {name}",
                    visible=place == 0 and label == "mean",
                    opacity=opacity,
                    cmin=0.0,
                    cmax=top,
                    colorscale="Viridis",
                    colorbar={"title": {"text": UNITS[qos]}},
                    showscale=label == "mean",
                    hovertemplate=f"{first.name} %{{x:.0f}}<br>{second.name} %{{y:.1f}}<br>{label} %{{z:.3g}}",
                )
            )
    buttons = []
    for place, name in enumerate(heights):
        for also, words in ((False, ""), (True, f", with the {'90' if qos == DELAY else '10'} % quantile")):
            seen = [i // 2 == place and (i % 2 == 0 or also) for i in range(len(traces))]
            buttons.append({"label": name + words, "method": "update", "args": [{"visible": seen}]})
    fixed = "".join(f", {UNITS[r.name]} {m:g}" for r, m in zip(rest, middle, strict=True))
    name = slice_name or model.slices[0]
    of_slice = "" if name == ONLY_SLICE else f" of slice {name}"
    figure = go.Figure(
        traces,
        {
            "title": {"text": f"{model.kind} model{of_slice}: {UNITS[qos]}{fixed}", "x": 0.02},
            "scene": {
                "xaxis": {"title": {"text": UNITS[first.name]}},
                "yaxis": {"title": {"text": UNITS[second.name]}},
                "zaxis": {"title": {"text": UNITS[qos]}, "range": [0, top]},
                "camera": {"eye": {"x": -1.6, "y": -1.6, "z": 0.8}},
            },
            "updatemenus": [{"buttons": buttons, "x": 0.02, "xanchor": "left", "y": 0.98, "yanchor": "top"}],
            "margin": {"l": 0, "r": 0, "t": 50, "b": 0},
        },
    )
    try:
        figure.write_html(path, include_plotlyjs=True, full_html=True)
    except OSError as error:
        raise SliceModelError(f"{path}: cannot be written: {error.strerror}") from None
