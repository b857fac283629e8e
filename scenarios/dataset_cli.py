"""``twin dataset``: QoS data sets measured on a scenario."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from scenarios.options import Format, FormatOption

app = typer.Typer(
    name="dataset",
    help="QoS data sets: measure one by running a scenario over a grid of allocations.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


class Fidelity(StrEnum):
    """What is measured."""

    EMULATION = "emulation"
    FLOW = "flow"


@app.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def collect(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="scenario file or library name")],
    grid: Annotated[
        str,
        typer.Option(
            metavar="AXIS=VALUES,...",
            help="e.g. cpu=100,200,bandwidth=2:10:2; axes cpu (millicores), bandwidth (Mbit/s), prb_share, edge_cpu",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="data set to write")],
    repeat: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=1000, help="runs per grid point")] = 1,
    fidelity: Annotated[Fidelity, typer.Option(help="measured on containers, or modelled")] = Fidelity.EMULATION,
    duration: Annotated[str | None, typer.Option(metavar="TIME", help="of each run, instead of the file's")] = None,
    slice_name: Annotated[
        str | None, typer.Option("--slice", metavar="NAME", help="whose allocation varies, if there are several")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Run a scenario once per grid point, without its controllers and events, and keep a row per interval.

    Killed at any moment, the same command goes on with the runs that are missing.
    """
    from scenarios.dataset import CollectionStopped, make_plan, parse_grid
    from scenarios.dataset import collect as measure
    from scenarios.registry import find_scenario
    from scenarios.runs import dumps
    from scenarios.units import POSITIVE_DURATION, UnitError

    try:
        duration_s = None if duration is None else POSITIVE_DURATION.parse(duration)
    except UnitError as error:
        raise typer.BadParameter(f"--duration: {error}") from None
    plan = make_plan(
        str(find_scenario(scenario)),
        parse_grid(grid),
        repeat=repeat,
        fidelity=fidelity.value,
        slice_name=slice_name,
        duration_s=duration_s,
    )
    try:
        found = measure(plan, out, tell=_say)
    except CollectionStopped as error:
        _say(f"twin: {error}")
        raise typer.Exit(error.code) from None
    if output is Format.JSON:
        print(dumps(found))
        return
    from scenarios.tables import print_rows

    print_rows([found], found)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
