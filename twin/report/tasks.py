"""What a report shows of periodic tasks and of reservations of CPU time: a row per task, and per reserved node."""

from __future__ import annotations

import math
from typing import Any

from twin.report.view import RunView


def rows_of(view: RunView) -> list[dict[str, Any]]:
    """Tasks in the order of the file, then nodes with a reservation; times in ms, NaN for what is not known.

    Responses and misses are over the run, the reservation is the one at its end.
    """
    declared = {
        f"task:{node['name']}.{number}": task
        for node in view.topology["nodes"]
        for number, task in enumerate(node.get("tasks") or (), start=1)
    }
    nodes = [
        entity
        for entity in view.summary
        if entity.startswith("node:") and "dl_budget_s" in view.summary.get(entity, {})
    ]
    return [_row(view, entity, declared.get(entity)) for entity in (*declared, *nodes)]


def _row(view: RunView, entity: str, task: dict[str, Any] | None) -> dict[str, Any]:
    found = view.summary.get(entity, {})
    longest = found["task_response_max_s"].max if "task_response_max_s" in found else math.nan
    return {
        "name": entity.partition(":")[2],
        "period_ms": task["period_s"] * 1e3 if task else math.nan,
        "work_ms": task["work_s"] * 1e3 if task else math.nan,
        "response_ms": view.last(entity, "task_response_p50_s") * 1e3,
        "longest_ms": longest * 1e3,
        "missed_percent": view.mean(entity, "deadline_miss_ratio") * 100,
        "wakeup_ms": view.last(entity, "wakeup_period_s") * 1e3,
        "budget_ms": view.last(entity, "dl_budget_s") * 1e3,
        "reserved_ms": view.last(entity, "dl_period_s") * 1e3,
        "used_ms": view.last(entity, "dl_used_s") * 1e3,
        "delta_ms": view.last(entity, "dl_delta_s") * 1e3,
    }
