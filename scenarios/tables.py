"""What the command line prints as tables; rich is imported only here and only when needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_MIN_WIDTH = 100


def console() -> Console:
    """Standard output; on a pipe, wide enough that nothing is cut off."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=max(_MIN_WIDTH, found.width))


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], *, title: str = "", empty: str = "") -> None:
    """A table with one row per mapping."""
    if not rows:
        console().print(empty or "nothing", markup=False)
        return
    table = Table(title=title or None, title_justify="left")
    names = list(columns)
    for name in names:
        number = all(isinstance(row.get(name), int | float) for row in rows)
        # The first column is the name that the reader looks for and types: never broken into lines.
        first = name == names[0]
        table.add_column(name.replace("_", " "), justify="right" if number else "left", overflow="fold", no_wrap=first)
    for row in rows:
        table.add_row(*(Text(cell(row.get(name))) for name in names))
    console().print(table)


def cell(value: object) -> str:
    """A value as a short text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def print_delays(on: Mapping[str, Any], off: Mapping[str, Any]) -> None:
    """What slicing does to the downlink delay of each slice, busy moments (95th percentile of the intervals)."""
    rows = []
    for entity, kpis in on["kpis"].items():
        name = "delay_dl_p95_s"
        if entity.startswith("slice:") and name in kpis and name in off["kpis"].get(entity, {}):
            sliced_s, shared_s = kpis[name]["p95"], off["kpis"][entity][name]["p95"]
            rows.append(
                {
                    "slice": entity.removeprefix("slice:"),
                    "with slicing": f"{1000 * sliced_s:.1f} ms",
                    "without": f"{1000 * shared_s:.1f} ms",
                }
            )
    print_rows(rows, ("slice", "with slicing", "without"), title="One-way downlink delay under load", empty="no delays")


def print_run(run: Mapping[str, Any], summary: object) -> None:
    """The summary of one run: slices, assertions, failed probes, where the report is."""
    out = console()
    out.print(summary)
    for item in run["assertions"]:
        mark = "[green]holds[/]" if item["passed"] else "[red]FAILS[/]"
        measured = "no samples" if item["measured"] is None else f"{item['measured']:.4g}"
        out.print(f"assert {mark}: ", end="")
        out.print(f"{item['text']} (measured {measured})", markup=False, soft_wrap=True)
    failed = [probe for probe in run["probes"] if not probe["passed"]]
    if run["probes"]:
        out.print(
            f"probes: {len(run['probes']) - len(failed)} of {len(run['probes'])} passed", markup=False, soft_wrap=True
        )
    for probe in failed:
        text = (
            f"  {probe['item']}: declared {cell(probe['declared'])}, measured {cell(probe['measured'])} {probe['unit']}"
        )
        out.print(f"{text} {probe['detail']}".rstrip(), markup=False, soft_wrap=True)
    actions = run["actions"]
    out.print(f"actions: {actions['applied']} applied, {actions['refused']} refused", markup=False, soft_wrap=True)
    for key in ("reason", "host_overloaded"):
        if run[key]:
            out.print(f"{key.replace('_', ' ')}: {run[key]}", markup=False, soft_wrap=True)
    if run["report"]:
        out.print(f"report: {run['report']}", markup=False, soft_wrap=True)
