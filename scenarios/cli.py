"""The command line ``twin``. Thin: every command calls one function and prints what it returns.

Results go to stdout, as a table or as one JSON object (``--format json``), everything else to stderr.
Heavy modules are imported inside the commands that use them, so that ``twin --help`` stays fast.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import tempfile
import traceback
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenarios import dataset_cli, deadline_cli, gap_cli, iab_cli, slice_model_cli, slice_opt_cli
from scenarios.exit_codes import ExitCode
from scenarios.options import Format, FormatOption
from scenarios.plugin_commands import PluginGroup

if TYPE_CHECKING:
    from scenarios.model import Scenario

# Base classes that typer does not export by name; click is either a package or a part of typer.
_UsageError, _ClickException = typer.BadParameter.__mro__[1:3]

app = typer.Typer(
    name="twin",
    cls=PluginGroup,
    help="TwinBed: one scenario file, three fidelities of the same 5G network.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(iab_cli.app)
app.add_typer(slice_opt_cli.app)
app.add_typer(slice_model_cli.app)
app.add_typer(dataset_cli.app)
app.add_typer(gap_cli.app)
app.add_typer(deadline_cli.app)


class Fidelity(StrEnum):
    """Backends by name."""

    FLOW = "flow"
    PACKET = "packet"
    EMULATION = "emulation"


class Fallback(StrEnum):
    """What to run instead when emulation is not possible here."""

    FLOW = "flow"


class Slicing(StrEnum):
    """With slices, without, or one run of each."""

    ON = "on"
    OFF = "off"
    BOTH = "both"


class Listing(StrEnum):
    """What ``twin list`` can list."""

    SCENARIOS = "scenarios"
    CONTROLLERS = "controllers"
    RUNS = "runs"
    KNOBS = "knobs"
    KPIS = "kpis"
    TOPOLOGIES = "topologies"
    PROFILES = "profiles"


RunsOption = Annotated[Path, typer.Option("--runs", help="folder of the runs")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="run id, its beginning or end, last, or last~1 for the one before it")
]


class UserError(Exception):
    """Something the user can change; the message is all that is printed."""

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code


@app.callback()
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,  # noqa: ARG001 main() reads it
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        from twin import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(metavar="FILE|NAME", help="a *.twin.yml file, or a library scenario")],
    fidelity: Annotated[Fidelity | None, typer.Option(help="overrides the file")] = None,
    controller: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="instead of the file's, with the interval and scope of its first one; repeatable; none: no controller",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="what the controllers given by --controller learned (twin train)"),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="NUMBER", help="overrides the file")] = None,
    duration: Annotated[str | None, typer.Option(metavar="TIME", help="overrides the file, e.g. 30s")] = None,
    slicing: Annotated[
        Slicing | None, typer.Option(help="off: all slices share one pool of everything; both: compare on with off")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override any key, e.g. slices.embb.sst=1")
    ] = None,
    pcap: Annotated[list[str] | None, typer.Option(metavar="NODE:IFACE", help="capture packets there")] = None,
    fallback: Annotated[Fallback | None, typer.Option(help="run this instead when emulation is not possible")] = None,
    runs: Annotated[Path, typer.Option("--out", help="folder of the runs")] = Path("runs"),
    output: FormatOption = Format.TABLE,
) -> None:
    """Run a scenario and report what was measured."""
    from scenarios.execution import BarProgress, execute, worst_exit_code, write_comparison
    from scenarios.registry import MissingPartError, emulation_missing
    from scenarios.runs import dumps, run_object

    if policy is not None and not [name for name in controller or () if name != "none"]:
        raise UserError(f"--policy {policy}: needs --controller, which says who learned it")
    overrides: dict[str, Any] = {
        "fidelity": fidelity and fidelity.value,
        "seed": seed,
        "duration_s": None if duration is None else _duration(duration),
        "slicing": None if slicing is None else slicing is not Slicing.OFF,
        "controllers": None if controller is None else [name for name in controller if name != "none"],
        "policy": policy,
        "settings": dict(_setting(text) for text in settings or ()),
    }
    loaded = _load(scenario, **overrides)
    if fallback is not None and loaded.fidelity == "emulation" and (missing := emulation_missing(loaded.topology)):
        _say("emulation is not possible here, running in flow instead:")
        for item in missing:
            _say(f"  {item}")
        loaded = _load(scenario, **{**overrides, "fidelity": fallback.value})
    _check_captures(pcap or [], loaded)
    scenarios = [loaded]
    if slicing is Slicing.BOTH:
        scenarios.append(_load(scenario, **{**overrides, "fidelity": loaded.fidelity, "slicing": False}))
    ended = []
    try:
        for planned in scenarios:
            with BarProgress(planned.duration_s) as progress:
                ended.append(execute(planned, runs=runs, captures=pcap or (), progress=progress))
            if ended[-1].result.signal_number is not None:
                break
    except MissingPartError as error:
        raise UserError(f"{error}. See twin doctor; --fidelity flow needs nothing.", ExitCode.MISSING) from error
    finished, *against = ended
    warnings = [warning for one in ended for warning in one.warnings]
    if against:
        warnings += write_comparison(finished.result.path, against[0].result.path)
    for warning in warnings:
        _say(f"warning: {warning}")
    found = run_object(finished.result.path)
    others = [run_object(one.result.path) for one in against]
    if output is Format.JSON:
        print(dumps(found | ({"against": others[0]} if others else {})))
        for one in ended:
            if one.result.status != "VALID":
                _say(f"{one.result.run_id}: {one.result.status}: {one.result.reason}")
    else:
        from scenarios.tables import print_delays, print_run
        from twin.report.text import summary_table

        for one, row in zip(ended, (found, *others), strict=True):
            print_run(row, summary_table(one.result.path))
        if others:
            print_delays(found, others[0])
    # What a scenario asserts is promised with slicing; without, breaking it is the point of the comparison.
    raise typer.Exit(worst_exit_code([finished, *(replace(one, assertions=()) for one in against)]))


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="scenario files or library names")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Check scenario files; one line per mistake."""
    from scenarios.errors import Problem, ScenarioFileError
    from scenarios.loader import load_scenario
    from scenarios.registry import UnknownNameError, find_scenario
    from scenarios.runs import dumps

    results = []
    for name in files:
        problems: tuple[Problem, ...] = ()
        try:
            load_scenario(find_scenario(name))
        except ScenarioFileError as error:
            problems = error.problems
        except UnknownNameError as error:
            problems = (Problem(name, 0, str(error)),)
        results.append(
            {
                "file": name,
                "valid": not problems,
                "problems": [{"file": item.file, "line": item.line or None, "text": item.text} for item in problems],
            }
        )
        if output is Format.TABLE:
            for item in problems:
                _say(str(item))
            if not problems:
                print(f"{name}: valid")
    if output is Format.JSON:
        print(dumps({"files": results}))
    if not all(result["valid"] for result in results):
        raise typer.Exit(ExitCode.USAGE)


@app.command("list")
def list_(
    what: Annotated[Listing, typer.Argument(help="what to list")],
    runs: RunsOption = Path("runs"),
    output: FormatOption = Format.TABLE,
) -> None:
    """List what there is."""
    from scenarios import listings
    from scenarios.runs import dumps

    if what is Listing.RUNS:
        from scenarios.runs import list_runs

        rows = list_runs(runs)
    else:
        rows = listings.LISTINGS[what.value]()
    if output is Format.JSON:
        print(dumps({what.value: rows}))
    else:
        from scenarios.tables import print_listing

        print_listing(what.value, rows, empty=f"no {what.value}" + (f" in {runs}" if what is Listing.RUNS else ""))


@app.command()
def show(name: RunArgument, runs: RunsOption = Path("runs"), output: FormatOption = Format.TABLE) -> None:
    """Show a run: KPIs, probes, assertions, report."""
    from scenarios.runs import dumps, find_run, run_object

    path = find_run(runs, name)
    found = run_object(path)
    if output is Format.JSON:
        print(dumps(found))
    else:
        from scenarios.tables import print_run
        from twin.report.text import summary_table

        print_run(found, summary_table(path))


@app.command()
def export(
    name: RunArgument,
    parquet: Annotated[Path, typer.Option(metavar="DIR", help="folder for one Parquet file per table")],
    runs: RunsOption = Path("runs"),
    output: FormatOption = Format.TABLE,
) -> None:
    """Export a run as Parquet files."""
    from scenarios.runs import dumps, find_run
    from twin.store import KpiReader

    with KpiReader(find_run(runs, name)) as reader:
        try:
            written = reader.export_parquet(parquet)
        except OSError as error:
            raise UserError(f"--parquet {parquet}: cannot be written: {error.strerror}") from error
    if output is Format.JSON:
        print(dumps({"files": [str(path) for path in written]}))
    else:
        for path in written:
            print(path)


@app.command()
def compare(
    first: RunArgument,
    second: RunArgument,
    runs: RunsOption = Path("runs"),
    everything: Annotated[
        bool, typer.Option("--all", help="UEs, links and controllers too, and what is the same in both")
    ] = False,
    entities: Annotated[
        list[str] | None,
        typer.Option("--entity", metavar="PREFIX", help="only these, e.g. slice:embb or ue:; repeatable"),
    ] = None,
    kpis: Annotated[list[str] | None, typer.Option("--kpi", metavar="NAME", help="only this KPI; repeatable")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also write a report of both, side by side")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Compare two runs, KPI by KPI: means, and the last value of what counts since the start.

    Shown is what differs of slices, nodes and the run; --all, --entity and --kpi choose otherwise.
    """
    from scenarios.runs import compare as compare_runs
    from scenarios.runs import dumps, find_run, select

    one, other = find_run(runs, first), find_run(runs, second)
    found = compare_runs(one, other)
    rows = select(found, everything=everything, entities=entities or (), kpis=kpis or ())
    if report is not None:
        from twin.report.page import write_report

        try:
            write_report(one, other, to=report)
        except OSError as error:
            raise UserError(f"--report {report}: cannot be written: {error.strerror}") from error
    if output is Format.JSON:
        print(dumps({"first": one.name, "second": other.name, "kpis": rows}))
    else:
        from scenarios.tables import print_comparison

        left_out = 0 if entities or kpis else len(found) - len(rows)
        print_comparison(rows, one.name, other.name, left_out=left_out)


@app.command()
def doctor(output: FormatOption = Format.TABLE) -> None:
    """Say what this host can do, what is missing, and what each missing part would unlock."""
    from scenarios.registry import emulation_missing
    from scenarios.runs import dumps
    from twin.emulation.capabilities import detect

    rows = [asdict(item) for item in detect()]
    missing = emulation_missing()
    if output is Format.JSON:
        print(dumps({"emulation": not missing, "missing": missing, "capabilities": rows}))
    else:
        from scenarios.tables import print_rows

        for row in rows:
            row["what to do"] = "" if row["present"] else f"{row['remedy']}; unlocks {row['unlocks']}"
            row["present"] = row["present"] if row["judged"] else "?"
        print_rows(rows, ("name", "present", "detail", "what to do"))
        print("emulation: " + ("not possible: " + "; ".join(missing) if missing else "possible"))
    if missing:
        raise typer.Exit(ExitCode.MISSING)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Remove what dead runs left on the host, and nothing else."""
    _collect(None, dry_run, output)


@app.command()
def destroy(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN", help="as for show, in ./runs; or the id of a run whose folder is gone")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Stop one run and remove everything it created on the host."""
    _collect(run_id, dry_run, output)


@app.command("new-controller")
def new_controller(
    name: Annotated[str, typer.Argument(metavar="NAME", help="name, e.g. my_scaler")],
    folder: Annotated[Path, typer.Option("--dir", help="where the project folder is made")] = Path(),
    output: FormatOption = Format.TABLE,
) -> None:
    """Write a controller plug-in: a project that runs and passes its own test."""
    from scenarios.plugin import write_plugin
    from scenarios.runs import dumps

    project = write_plugin(name, folder)
    if output is Format.JSON:
        print(dumps({"project": str(project), "controller": name}))
    else:
        # Without the virtual environment in PATH, its programs are named in full.
        active = os.environ.get("VIRTUAL_ENV") == sys.prefix
        programs = "" if active else shlex.quote(f"{Path(sys.executable).parent}/")
        install = f"{programs}pip install --no-build-isolation -e {shlex.quote(str(project))}"
        print(f"{project}\nnext: {install} && {programs}twin run quickstart --fidelity flow --controller {name}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files."""
    from scenarios.json_schema import schema_text

    print(schema_text(), end="")


def _collect(run_id: str | None, dry_run: bool, output: Format) -> None:
    from scenarios.runs import dumps
    from twin.emulation.gc import CollectError, collect

    try:
        removed = [asdict(item) for item in collect(run_id=run_id and _full_id(run_id), dry_run=dry_run)]
    except CollectError as error:
        raise UserError(str(error)) from error
    except PermissionError as error:
        raise UserError(f"the journals of runs are not yours to read: {error}; run with sudo") from error
    kept = [item for item in removed if item["outcome"] == "kept"]
    if output is Format.JSON:
        print(dumps({"removed": [item for item in removed if item["outcome"] != "kept"], "kept": kept}))
    else:
        from scenarios.tables import print_rows

        print_rows(removed, ("kind", "id", "run_id", "outcome", "detail"), empty="nothing to remove")
    if kept:
        raise typer.Exit(ExitCode.FAILED)


def _full_id(name: str) -> str:
    """The whole id when ``name`` is the beginning of one in ``runs`` (or last), else ``name`` itself."""
    from scenarios.registry import UnknownNameError
    from scenarios.runs import find_run

    try:
        return find_run(Path("runs"), name).name
    except UnknownNameError:
        return name


def _load(name: str, **overrides: Any) -> Scenario:
    from scenarios.loader import load_scenario
    from scenarios.registry import find_scenario

    return load_scenario(find_scenario(name), **overrides)


def _check_captures(captures: list[str], scenario: Scenario) -> None:
    from scenarios.errors import unknown

    if captures and scenario.fidelity != "emulation":
        raise UserError(f"--pcap captures real packets and needs fidelity emulation, got {scenario.fidelity}")
    names = [node.name for node in scenario.topology.nodes]
    for capture in captures:
        node, colon, interface = capture.partition(":")
        if not colon or not interface:
            raise UserError(f"--pcap {capture}: allowed NODE:IFACE, e.g. {names[0]}:eth1")
        if node not in names:
            raise UserError(f"--pcap {capture}: {unknown('node', node, names)}")


def _setting(text: str) -> tuple[str, Any]:
    """``key=value``; the value is read as YAML, so that numbers, lists and text work as in a file."""
    from scenarios.source import parse_source

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: allowed KEY=VALUE, e.g. slices.embb.resources.ran.prb_share=0.5")
    return key, parse_source(f"value: {value}", f"--set {text}").data["value"]


def _duration(text: str) -> float:
    from scenarios.units import POSITIVE_DURATION, UnitError

    try:
        return POSITIVE_DURATION.parse(text)
    except UnitError as error:
        raise UserError(f"--duration: {error}") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _user_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is meant for the user; imported late, when one has been raised."""
    from controllers.iab.problem import SolveError
    from controllers.microopt.slice_data import SliceModelError
    from scenarios.dataset import DatasetError
    from scenarios.errors import ScenarioFileError
    from scenarios.plugin import PluginError
    from scenarios.registry import UnknownNameError
    from topologies.iab import IabError
    from twin.store import StoreError

    of_scenarios = ScenarioFileError, UnknownNameError, PluginError, DatasetError
    return *of_scenarios, StoreError, IabError, SolveError, SliceModelError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code (the console script passes it to sys.exit)."""
    given = sys.argv[1:] if arguments is None else arguments
    if sys.stdout is None or sys.stderr is None:
        # Closed by the caller (>&-), where the next file to be opened would take its place.
        print("twin: standard output and standard error must be open", file=sys.stderr or sys.stdout)
        return ExitCode.FAILED
    try:
        code = app(given, prog_name="twin", standalone_mode=False)
        sys.stdout.flush()
        if code == ExitCode.SIGINT:  # what typer makes of a KeyboardInterrupt
            _say("twin: interrupted")
        return int(code or 0)
    except BrokenPipeError:
        _discard_stdout()
        return ExitCode.FAILED
    except KeyboardInterrupt:
        _say("twin: interrupted")
        return ExitCode.SIGINT
    except Exception as error:  # noqa: BLE001 the last line of defence: one line instead of a traceback
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _discard_stdout()
            _say(f"twin: cannot write the output: {error.strerror}")
            return ExitCode.FAILED
        code = _explain(error, "--debug" in given)
        # A file that cannot be written is a bad --out, unless no other would do either.
        return ExitCode.FAILED if code == ExitCode.USAGE and _disk_full(error) else code


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error was raised because the disk, or the user's share of it, is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _discard_stdout() -> None:
    """Keep the interpreter from complaining at exit that nobody takes what is left to print."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, _UsageError):
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        text = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        if match := re.fullmatch(r"No such command '(.*)'\.?", text):
            from scenarios.errors import unknown

            group: Any = context.command if context else typer.main.get_command(app)
            text = unknown("command", match[1], group.list_commands(context))
        _say(f"twin: {text.replace('Value error, ', '')}{hint}")
        return ExitCode.USAGE
    if isinstance(error, _ClickException):
        _say(f"twin: {error.format_message()}")  # type: ignore[attr-defined]
        return ExitCode.USAGE
    if isinstance(error, UserError):
        _say(f"twin: {error}")
        return error.code
    if isinstance(error, _user_errors()):
        _say(str(error))
        return ExitCode.USAGE
    from scenarios.registry import MissingPartError

    if isinstance(error, MissingPartError):
        _say(f"twin: {error}")
        return ExitCode.MISSING
    if not debug:
        with tempfile.NamedTemporaryFile("w", prefix="twin-error-", suffix=".log", delete=False) as log:
            log.write("".join(traceback.format_exception(error)))
        _say(f"twin: unexpected {type(error).__name__}: {error} (a bug; details in {log.name})")
    return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
