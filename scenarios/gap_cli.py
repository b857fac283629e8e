"""``twin gap``: how far measurement and model are apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scenarios.exit_codes import ExitCode
from scenarios.options import Format, FormatOption

app = typer.Typer(rich_markup_mode=None)


@app.command()
def gap(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [RUN] | SCENARIO",
            help="one run: measured against predicted throughput of its backhaul flows; two: every KPI that both "
            "have; a scenario (file or library name): run it in flow and in emulation, then as two runs",
        ),
    ],
    skip: Annotated[str, typer.Option(metavar="TIME", help="leave out the beginning, while rates settle")] = "3s",
    kpis: Annotated[list[str] | None, typer.Option("--kpi", metavar="NAME", help="only this KPI; repeatable")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every row, not the throughput of flows only")] = False,
    within: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO",
            min=0,
            help="exit with code 1 when the median relative error of a throughput (or of a --kpi) is above, e.g. 0.05",
        ),
    ] = None,
    duration: Annotated[
        str | None, typer.Option(metavar="TIME", help="of a scenario's runs, instead of its own")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="folder of the runs")] = Path("runs"),
    output: FormatOption = Format.TABLE,
) -> None:
    """Differences between model and measurement, per flow and per KPI: median and 95th percentile of the error."""
    from scenarios.gap import between_runs, within_run
    from scenarios.runs import dumps, find_run
    from scenarios.units import DURATION, UnitError

    if len(names) > 2:
        raise typer.BadParameter(f"needs one run, two runs or a scenario, got {len(names)} names")
    try:
        skip_s = DURATION.parse(skip)
    except UnitError as error:
        raise typer.BadParameter(f"--skip: {error}") from None
    code: int = ExitCode.OK
    if len(names) == 1 and _is_scenario(names[0]):
        paths, code = _run_both(names[0], duration, runs)
        if code in (ExitCode.FAILED, ExitCode.SIGINT, ExitCode.SIGTERM, ExitCode.SIGHUP):
            raise typer.Exit(code)
    elif duration is not None:
        raise typer.BadParameter("--duration is for a scenario; a run has its own")
    else:
        paths = [find_run(runs, name) for name in names]
    try:
        found = within_run(paths[0], skip_s=skip_s) if len(paths) == 1 else between_runs(*paths, skip_s=skip_s)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if kpis:
        found = found.only(kpis)
    summary = found.summary
    if output is Format.JSON:
        print(dumps({"reference": found.reference, "measured": found.measured, "summary": summary, "rows": found.rows}))
    else:
        _print(found.reference, found.measured, summary, found.rows, everything=everything or bool(kpis))
    if within is not None:
        judged = [row for row in summary if (kpis or "throughput" in row["kpi"]) and row["median"] is not None]
        if not judged:
            print("twin: --within: nothing to judge, every reference is 0", file=sys.stderr)
            code = max(code, ExitCode.FAILED)
        for row in judged:
            if row["median"] > within:
                print(f"twin: median error of {row['kpi']} is {row['median']:.3g}, allowed {within:g}", file=sys.stderr)
                code = max(code, ExitCode.FAILED)
    raise typer.Exit(code)


def _is_scenario(name: str) -> bool:
    from scenarios.registry import library_names

    return name in library_names() or Path(name).suffix in (".yml", ".yaml")


def _run_both(name: str, duration: str | None, runs: Path) -> tuple[list[Path], int]:
    """Run a scenario in flow and in emulation; the folders, and the worse exit code, assertions left aside."""
    from scenarios.execution import BarProgress, execute, worst_exit_code
    from scenarios.loader import load_scenario
    from scenarios.registry import find_scenario, make_backend
    from scenarios.units import POSITIVE_DURATION, UnitError

    try:
        duration_s = None if duration is None else POSITIVE_DURATION.parse(duration)
    except UnitError as error:
        raise typer.BadParameter(f"--duration: {error}") from None
    # Before the first run, not after it
    make_backend("emulation", load_scenario(find_scenario(name), settings={"assert": []}).topology)
    ended = []
    for fidelity in ("flow", "emulation"):
        # What a scenario asserts is not the question, and may not even fit into another duration.
        options: dict[str, Any] = {"duration_s": duration_s, "settings": {"assert": []}}
        scenario = load_scenario(find_scenario(name), fidelity=fidelity, **options)
        with BarProgress(scenario.duration_s) as progress:
            ended.append(execute(scenario, runs=runs, progress=progress))
        for warning in ended[-1].warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if ended[-1].result.status != "VALID":
            result = ended[-1].result
            print(f"{result.run_id}: {result.status}: {result.reason}", file=sys.stderr)
        if ended[-1].result.signal_number is not None or ended[-1].result.status == "FAILED":
            break
    return [one.result.path for one in ended], worst_exit_code(ended)


def _print(
    reference: str, measured: str, summary: list[dict[str, Any]], rows: tuple[dict[str, Any], ...], *, everything: bool
) -> None:
    from scenarios.gap import MEASURED
    from scenarios.tables import print_rows

    shown = [row for row in rows if everything or (row["entity"].startswith("flow:") and row["kpi"] == MEASURED)]
    print(f"reference: {reference}\nmeasured:  {measured}")
    print_rows(summary, ("kpi", "unit", "entities", "median", "p95", "largest", "where"), title="relative error")
    if shown:
        print_rows(shown, ("entity", "kpi", "unit", "reference", "measured", "relative_error"))
