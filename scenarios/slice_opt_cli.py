"""``twin slice-opt``: the cheapest allocation that keeps a slice's QoS, by MicroOpt and its rivals."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from scenarios.exit_codes import ExitCode
from scenarios.options import Format, FormatOption

if TYPE_CHECKING:
    from controllers.microopt.problem import Problem, Solution

app = typer.Typer(
    name="slice-opt",
    help="Slice resources by MicroOpt and its rivals, on a slice model (twin slice-model fit).",
    invoke_without_command=True,
    rich_markup_mode=None,
)


class Solver(StrEnum):
    """Solvers by name."""

    MICROOPT = "microopt"
    GRID = "grid"
    PEAK_ALLOC = "peak_alloc"
    ATLAS = "atlas"
    ATLAS_PLUS = "atlas_plus"
    CADRL = "cadrl"
    CADRL_PLUS = "cadrl_plus"
    MICROOPT_0SIGMA = "microopt_0sigma"
    MICROOPT_2SIGMA = "microopt_2sigma"


class Qos(StrEnum):
    """What the thresholds are of."""

    THROUGHPUT = "throughput_mbps"
    DELAY = "delay_s"


PAPER_THRESHOLDS = {Qos.THROUGHPUT: "3,4,5", Qos.DELAY: "0.02,0.05,0.1"}
T = TypeVar("T")
TRAFFIC = "constant:N, normal:MEAN:STD, poisson:MEAN, telecom-italia[:HOUR] or file:PATH, in users"
SeedOption = Annotated[int, typer.Option(metavar="NUMBER", min=0, help="seed of everything random")]


@app.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def solve(
    model: Annotated[list[Path], typer.Option(metavar="FILE", help="slice model; repeat it for several slices")],
    traffic: Annotated[list[str], typer.Option(metavar="TRAFFIC", help=TRAFFIC + "; one, or one per slice")],
    q_thresh: Annotated[
        list[float], typer.Option("--q-thresh", metavar="NUMBER", help="QoS threshold: Mbit/s per user, or seconds")
    ],
    beta: Annotated[list[float], typer.Option(metavar="NUMBER", help="largest QoS degradation, between 0 and 1")],
    solver: Annotated[Solver, typer.Option(help="who decides")] = Solver.MICROOPT,
    slice_name: Annotated[
        list[str] | None, typer.Option("--slice", metavar="NAME", help="slice of the model; one, or one per slice")
    ] = None,
    qos: Annotated[Qos, typer.Option(help="the QoS of the thresholds; less delay is better")] = Qos.THROUGHPUT,
    capacity: Annotated[
        list[str] | None,
        typer.Option(metavar="RESOURCE=NUMBER", help="what the slices share, e.g. bandwidth_mbps=50; repeatable"),
    ] = None,
    eta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RESOURCE=NUMBER", help="cost per unit of a resource, e.g. bandwidth_mbps=0.02; repeatable"
        ),
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="search beyond the model's data, up to the capacities")
    ] = False,
    seed: SeedOption = 0,
    output: FormatOption = Format.TABLE,
) -> None:
    """Find the cheapest allocation whose expected QoS degradation is at most beta.

    Exit code 1 when no allocation reaches the thresholds: the least bad one is printed, marked infeasible.
    """
    with torch_there():
        from controllers.microopt.registry import SOLVERS
        from twin.streams import named_stream

        problem = _problem(
            model, traffic, q_thresh, beta, slice_name or [], qos.value, capacity or [], eta or [], extrapolate
        )
        found = SOLVERS[solver.value](problem, named_stream(seed, f"slice-opt/{solver.value}"))
    _print(found, output)
    if not found.feasible:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def compare(
    model: Annotated[Path, typer.Option(metavar="FILE", help="slice model")],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="the page to write")],
    traffic: Annotated[
        str, typer.Option(metavar="TRAFFIC", help="telecom-italia: the ten distributions of the paper; or " + TRAFFIC)
    ] = "telecom-italia",
    seeds: Annotated[int, typer.Option(metavar="NUMBER", min=2, help="runs of every method")] = 10,
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="comma-separated solvers, or all; microopt and grid always run")
    ] = "all",
    q_thresh: Annotated[
        str | None,
        typer.Option(
            "--q-thresh",
            metavar="NUMBERS",
            help="comma-separated thresholds; default: the paper's, 3,4,5 Mbit/s or 0.02,0.05,0.1 s",
        ),
    ] = None,
    beta: Annotated[str, typer.Option(metavar="NUMBERS", help="comma-separated thresholds")] = "0.1,0.2,0.3",
    users: Annotated[str, typer.Option(metavar="NUMBERS", help="comma-separated constant traffic")] = "1,2,3,4,5",
    qos: Annotated[Qos, typer.Option(help="the QoS of the thresholds")] = Qos.THROUGHPUT,
    slice_name: Annotated[str | None, typer.Option("--slice", metavar="NAME", help="slice of the model")] = None,
    jobs: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="processes")] = 1,
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="where results go as they come, and are taken from; default: OUT.rows"),
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Write one page with the paper's Table I and Figures 6 to 9, from this model and these methods.

    All methods, thresholds and 10 seeds take most of an hour of CPU. Results are kept in --rows: after a cut-off the
    same command goes on, and one with more methods, seeds or thresholds solves only what is new.
    """
    with torch_there():
        from controllers.microopt.comparison import Plan, carry_out
        from controllers.microopt.page import write_page

        plan = Plan(
            model=model,
            traffic=traffic,
            seeds=seeds,
            methods=_methods(methods),
            q_thresh=_numbers("--q-thresh", q_thresh if q_thresh is not None else PAPER_THRESHOLDS[qos]),
            beta_thresh=_numbers("--beta", beta),
            users=_numbers("--users", users),
            qos=qos.value,
            slice_name=slice_name,
        )
        # The page is tried before hours of work, not after them.
        if not out.parent.is_dir():
            raise typer.BadParameter(f"--out {out}: cannot be written: no folder {out.parent}")
        store = rows if rows is not None else out.with_name(f"{out.name}.rows")
        found = carry_out(plan, jobs=jobs, store=store, progress=_tell if sys.stderr.isatty() else None)
        try:
            write_page(found, out)
        except OSError as error:
            raise typer.BadParameter(f"--out {out}: cannot be written: {error.strerror}") from None
    methods_rows = found.summary()
    if output is Format.JSON:
        from scenarios.runs import dumps

        print(dumps({"file": str(out), "rows": str(store), "methods": methods_rows}))
        return
    from scenarios.tables import print_rows

    for part in dict.fromkeys(row["traffic"] for row in methods_rows):
        shown = [_compared(row) for row in methods_rows if row["traffic"] == part]
        title = f"{part} traffic: means ± half of the 95 % interval over {seeds} seeds"
        print_rows(shown, shown[0].keys(), title=title, whole=shown[0].keys())
    print(f"written: {out}")


def _compared(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a comparison as the table shows it, within 100 columns; ``--format json`` has all digits."""
    return {
        "method": row["method"],
        "cost": f"{row['mean_cost']:.4f} ± {row['interval_95']:.4f}",
        "above grid": f"{row['above_grid_percent']:.2f} %",
        "microopt saves": f"{row['microopt_saves_percent']:.2f} ± {row['saves_interval_95']:.2f} %",
        "beta": f"{row['mean_beta']:.3f}",
        "feasible": f"{row['feasible_percent']:.0f} %",
        "time s": row["mean_time_s"],
    }


def _tell(done: int, of: int) -> None:
    print(f"\r{done} of {of} solved", end="\n" if done == of else "", file=sys.stderr, flush=True)


@contextlib.contextmanager
def torch_there() -> Iterator[None]:
    """One line instead of a traceback where torch is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        from scenarios.registry import MissingPartError

        raise MissingPartError("twin slice-opt needs pip install 'twinbed[learning]'") from None


def _problem(
    models: list[Path],
    traffic: list[str],
    q_thresh: list[float],
    beta: list[float],
    names: list[str],
    qos: str,
    capacity: list[str],
    eta: list[str],
    extrapolate: bool,
) -> Problem:
    import torch

    from controllers.microopt.problem import Problem, SliceDemand
    from controllers.microopt.slice_model import load
    from controllers.microopt.traffic import parse_traffic

    # The networks are small: a second thread costs more than it brings.
    torch.set_num_threads(1)
    given: dict[str, Sequence[object]] = {
        "--model": models,
        "--traffic": traffic,
        "--q-thresh": q_thresh,
        "--beta": beta,
        "--slice": names,
    }
    count = max(len(values) for values in given.values())
    for option, values in given.items():
        if len(values) not in (1, count) and not (option == "--slice" and not values):
            raise typer.BadParameter(f"{option}: give one, or one per slice ({count}), got {len(values)}")
    loaded = {path: load(path) for path in dict.fromkeys(models)}
    slices = []
    for index in range(count):
        known = loaded[_pick(models, index)]
        low, high = known.traffic_range
        slices.append(
            SliceDemand(
                known,
                parse_traffic(_pick(traffic, index), low=low, high=high),
                _pick(q_thresh, index),
                _pick(beta, index),
                _pick(names, index) if names else None,
                qos,
            )
        )
    return Problem(tuple(slices), _settings("--capacity", capacity), _settings("--eta", eta), extrapolate)


def _pick(values: Sequence[T], index: int) -> T:
    """The value of one slice: its own, or the only one."""
    return values[index if len(values) > 1 else 0]


def _settings(option: str, texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{option} must be RESOURCE=NUMBER, got {text!r}") from None
    return found


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} must be numbers with commas between them, got {text!r}") from None


def _methods(text: str) -> tuple[str, ...]:
    if text == "all":
        return tuple(Solver)
    from scenarios.errors import unknown

    chosen = [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in list(Solver):
            raise typer.BadParameter(f"--methods: {unknown('solver', name, list(Solver))}")
    return tuple(name for name in Solver if name in chosen or name in ("microopt", "grid"))


def _print(found: Solution, output: Format) -> None:
    whole: dict[str, Any] = {
        "solver": found.solver,
        "allocation": found.allocation,
        "cost": found.cost,
        "expected_beta": found.expected_beta,
        "time_s": found.time_s,
        "feasible": found.feasible,
        "reason": found.reason,
        "extrapolated": any(part.extrapolated for part in found.slices),
        "evaluations": found.evaluations,
    }
    if output is Format.JSON:
        from scenarios.runs import dumps

        if len(found.slices) > 1:
            whole["slices"] = [_slice_row(part) | {"allocation": part.allocation} for part in found.slices]
        print(dumps(whole | {"trace": list(found.trace)}))
        return
    from scenarios.tables import print_rows

    rows = [_slice_row(part) | part.allocation for part in found.slices]
    print_rows(rows, rows[0].keys())
    shown = {key: value for key, value in whole.items() if key not in ("allocation", "expected_beta", "reason")}
    print_rows([shown], shown.keys())
    if not found.feasible:
        print(f"infeasible: {found.reason}; this is the least bad allocation found")


def _slice_row(part: Any) -> dict[str, Any]:
    return {
        "slice": part.name,
        "expected_beta": part.expected_beta,
        "beta_thresh": part.beta_thresh,
        "q_thresh": part.q_thresh,
        "extrapolated": part.extrapolated,
    }
