"""What the command line prints as tables; rich is imported only here and only when needed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_MIN_WIDTH = 100
_MOST_FAULTS = 5


def console() -> Console:
    """Standard output; on a pipe, wide enough that nothing is cut off."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=max(_MIN_WIDTH, found.width))


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
    *,
    title: str = "",
    empty: str = "",
    whole: Container[str] | None = None,
    cut: Container[str] = (),
) -> None:
    """A table with one row per mapping.

    Columns in ``whole`` (without it the first) are never broken into lines: names that the reader looks for and types.
    Those in ``cut`` end in an ellipsis where a terminal is too narrow for them.
    """
    out = console()
    if not rows:
        out.print(empty or "nothing", markup=False)
        return
    table = Table(title=title or None, title_justify="left")
    names = list(columns)
    for name in names:
        number = all(isinstance(row.get(name), int | float) for row in rows)
        kept = name == names[0] if whole is None else name in whole
        table.add_column(
            name.replace("_", " "),
            justify="right" if number else "left",
            overflow="ellipsis" if kept else "fold",
            no_wrap=kept,
        )
    for row in rows:
        table.add_row(
            *(
                Text(cell(row.get(name)), no_wrap=True, overflow="ellipsis")
                if name in cut and out.is_terminal
                else Text(cell(row.get(name)))
                for name in names
            )
        )
    out.print(table)


# What of a listing is a table: what a line of 80 columns has room for; --format json has the rest.
_LISTED = {
    "runs": ("run_id", "status", "fidelity", "seed", "reason"),
    "kpis": ("name", "unit", "scopes", "meaning"),
    "scenarios": ("name", "description"),
}


def print_listing(what: str, rows: Sequence[Mapping[str, Any]], *, empty: str) -> None:
    """What ``twin list`` shows."""
    columns = _LISTED.get(what) or tuple(dict.fromkeys(key for row in rows for key in row))
    if what == "runs" and not any(row.get("reason") for row in rows):
        columns = columns[:-1]
    print_rows(
        rows, columns, empty=empty, whole=("run_id", "name", "status", "fidelity", "seed", "unit"), cut=("reason",)
    )


def print_comparison(rows: Sequence[Mapping[str, Any]], first: str, second: str, *, left_out: int) -> None:
    """Two runs, KPI by KPI, within 100 columns, and how much of the comparison is not shown."""
    shown = [
        {
            **row,
            "change": "-" if row["ratio"] is None else f"{100 * (row['ratio'] - 1):+.1f} %",
        }
        for row in rows
    ]
    columns = ("entity", "kpi", "first", "second", "change")
    empty = "no difference to show" if left_out else "the runs have nothing of that in common"
    print_rows(shown, columns, title=f"first: {first}\nsecond: {second}", empty=empty, whole=columns[1:])
    if ends := dict.fromkeys(row["kpi"] for row in rows if row["statistic"] == "last"):
        console().print(f"means over the run; {', '.join(ends)}: at its end", markup=False)
    if left_out:
        console().print(f"{left_out} more rows with --all, or chosen with --entity and --kpi", markup=False)


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
    for fault in run["faults"][:_MOST_FAULTS]:
        text = f"fault of {fault['source']}: {fault['text']} ({fault['count']} times)"
        out.print(text, markup=False, soft_wrap=True)
    if (more := len(run["faults"]) - _MOST_FAULTS) > 0:
        out.print(f"other faults: {more}, see the report", markup=False, soft_wrap=True)
    for key in ("reason", "host_overloaded"):
        if run[key]:
            out.print(f"{key.replace('_', ' ')}: {run[key]}", markup=False, soft_wrap=True)
    if run["report"]:
        out.print(f"report: {run['report']}", markup=False, soft_wrap=True)
