"""What a report shows of backhaul flows: figures of the network, and a row per flow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from twin.report.view import RunView

_MOVES_SHOWN = 3


def overview(view: RunView) -> dict[str, Any] | None:
    """Means over the run of all flows together; None without backhaul."""
    flows = view.topology.get("backhaul") or []
    if not flows:
        return None
    rows = [_row(view, flow) for flow in flows]
    active = [row for row in rows if row["offered_mbps"] > 0]
    off = [abs(row["throughput_mbps"] / row["predicted_mbps"] - 1) for row in active if row["predicted_mbps"] > 0]
    return {
        "rows": rows,
        "active": len(active),
        "offered_mbps": sum(row["offered_mbps"] for row in active),
        "throughput_mbps": sum(row["throughput_mbps"] for row in active),
        "efficiency": view.mean("run", "backhaul_efficiency"),
        "fairness": view.mean("run", "backhaul_fairness"),
        "moves": sum(row["moves"] for row in rows),
        "off_percent": 100 * float(np.median(off)) if off else math.nan,
    }


def link_usage(view: RunView) -> dict[str, float]:
    """Mean utilisation of the links that have one, by name."""
    return {
        entity.partition(":")[2]: found["link_utilisation_ratio"].mean
        for entity, found in view.summary.items()
        if "link_utilisation_ratio" in found
    }


def _row(view: RunView, flow: dict[str, Any]) -> dict[str, Any]:
    entity = f"flow:{flow['name']}"
    offered, carried = (
        0.0 if math.isnan(mean := view.mean(entity, name)) else mean for name in ("offered_bps", "throughput_bps")
    )
    _, indices = view.series.get((entity, "path_index"), (np.empty(0), np.empty(0)))
    numbers, counts = np.unique(indices.astype(np.int64), return_counts=True)
    often = sorted(zip(counts.tolist(), numbers.tolist(), strict=True), key=lambda item: (-item[0], item[1]))
    return {
        "name": flow["name"],
        "offered_mbps": offered / 1e6,
        "throughput_mbps": carried / 1e6,
        "predicted_mbps": view.mean(entity, "predicted_throughput_bps") / 1e6,
        "share_percent": 100 * carried / offered if offered > 0 else math.nan,
        "paths": [
            {**_words(flow["paths"][number]), "index": number, "percent": 100 * count / indices.size}
            for count, number in often[:_MOVES_SHOWN]
        ],
        "more_paths": max(0, len(often) - _MOVES_SHOWN),
        "moves": int(np.count_nonzero(np.diff(indices))),
    }


def _words(path: dict[str, Any]) -> dict[str, str]:
    return {"band": path["band"], "route": " > ".join(path["nodes"])}
