"""The summary of a run in the terminal: one row per slice, or one for the backhaul."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from twin.report.backhaul import overview
from twin.report.tasks import rows_of
from twin.report.view import RunView, read_run


def summary_table(run: Path) -> Table:
    """Throughput, delay, round trip, loss, beta and CPU of each slice, and whether its promises were kept.

    Figures are means over the run; delay is the mean of the intervals' 95th percentiles, the slower
    direction; beta and CPU limit are those at the end. A network without slices has its backhaul instead, or its
    periodic tasks.
    Raises :class:`twin.store.StoreError`.
    """
    view = read_run(run)
    title = f"{view.manifest.get('run_id', run.name)}: {view.manifest.get('status', '?')}"
    kind = "measured" if view.manifest.get("fidelity") == "emulation" else "modelled"
    caption = f"{view.manifest.get('fidelity', '?')}: {kind}, {view.observed_s:g} s"
    backhaul = overview(view)
    if backhaul and not view.slices:
        return _backhaul_table(backhaul, title, caption, measured=kind == "measured")
    tasks = rows_of(view)
    if tasks and not view.slices and not backhaul:
        return _task_table(tasks, title, caption)
    if backhaul:
        caption += f"; backhaul: efficiency {_number(backhaul['efficiency'] * 1e2, 1)} %"
    table = Table(title=title, caption=caption)
    table.add_column("slice")
    for heading in ("DL Mbit/s", "UL Mbit/s", "delay p95 ms", "RTT p95 ms", "loss %", "β", "CPU m used/limit"):
        table.add_column(heading, justify="right")
    table.add_column("SLA")
    for name in view.slices:
        entity = f"slice:{name}"
        used, limit = view.mean(entity, "cpu_used_millicores"), view.last(entity, "cpu_limit_millicores")
        table.add_row(
            name,
            _number(view.mean(entity, "throughput_dl_bps") / 1e6, 2),
            _number(view.mean(entity, "throughput_ul_bps") / 1e6, 2),
            _number(view.mean(entity, "delay_dl_p95_s", "delay_ul_p95_s") * 1e3, 1),
            _number(view.mean(entity, "rtt_p95_s") * 1e3, 1),
            _number(view.mean(entity, "loss_dl_ratio", "loss_ul_ratio") * 1e2, 2),
            _number(view.last(entity, "qos_degradation_ratio"), 3),
            "-" if math.isnan(used) else f"{used:.0f}/{_number(limit, 0)}",
            _verdict(view, name),
        )
    return table


def _task_table(rows: Sequence[dict[str, Any]], title: str, caption: str) -> Table:
    table = Table(title=title, caption=f"{caption}; reservation, use and response at the end")
    table.add_column("task")
    columns = {
        "response ms": ("response_ms", 2),
        "longest ms": ("longest_ms", 1),
        "missed %": ("missed_percent", 1),
        "period found ms": ("wakeup_ms", 1),
        "used ms": ("used_ms", 2),
        "budget ms": ("budget_ms", 2),
        "of ms": ("reserved_ms", 1),
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row["name"], *(_number(row[key], digits) for key, digits in columns.values()))
    return table


def _backhaul_table(found: dict[str, Any], title: str, caption: str, *, measured: bool) -> Table:
    table = Table(title=title, caption=caption)
    cells = [
        ("flows that send", f"{found['active']} of {len(found['rows'])}"),
        ("offered Mbit/s", _number(found["offered_mbps"], 2)),
        ("carried Mbit/s", _number(found["throughput_mbps"], 2)),
        ("efficiency %", _number(found["efficiency"] * 1e2, 1)),
        ("fairness", _number(found["fairness"], 3)),
        ("changes of path", str(found["moves"])),
    ]
    if measured:
        cells.append(("off the flow model %", _number(found["off_percent"], 1)))
    for heading, _ in cells:
        table.add_column(heading, justify="right")
    table.add_row(*(text for _, text in cells))
    return table


def _verdict(view: RunView, name: str) -> str:
    kept = [promise.kept for promise in view.promises if promise.slice == name and promise.kept is not None]
    if not kept:
        return "-"
    return "[green]kept[/]" if all(kept) else f"[red]{kept.count(False)} of {len(kept)} broken[/]"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
