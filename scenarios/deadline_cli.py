"""``twin deadline`` and ``twin period``: reservations of CPU time for running programs, and their periods."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenarios.exit_codes import ExitCode
from scenarios.options import Format, FormatOption

if TYPE_CHECKING:
    from twin.deadline.periodicity import PeriodSettings
    from twin.emulation.deadline.monitor import Sample
    from twin.emulation.deadline.periods import PeriodWizard
    from twin.emulation.deadline.session import SessionSettings

app = typer.Typer(rich_markup_mode=None)
group = typer.Typer(
    help="CPU reservations (SCHED_DEADLINE) whose budgets follow what threads use: run, attach or serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(group, name="deadline")

_GUESTS = "the virtual CPUs of partition:[DAEMON/]ID (of a vmand), vcpus:PID or qmp:SOCKET (of any QEMU)"
_TARGETS = f"PID (all its threads), tid:TID, container:NAME, or {_GUESTS}"
_SIGNALS = {signal.SIGTERM: ExitCode.SIGTERM, signal.SIGHUP: ExitCode.SIGHUP}

PeriodOption = Annotated[
    str, typer.Option("--period", metavar="TIME|auto", help="reservation period; auto: found from wake-ups")
]
FirstOption = Annotated[
    str, typer.Option("--first-period", metavar="TIME", help="with --period auto: until one is found, or none is")
]
BudgetOption = Annotated[str, typer.Option("--budget", metavar="TIME", help="budget to begin with; need not be good")]
CycleOption = Annotated[str, typer.Option("--cycle", metavar="TIME", help="how often budgets are set (T)")]
OvhOption = Annotated[float, typer.Option("--ovh", help="what a budget has above what is used, as a share of it")]
SamplesOption = Annotated[int, typer.Option("--samples", help="the most used in so many cycles counts (N)")]
ShareOption = Annotated[float, typer.Option("--max-share", help="a budget is at most this share of its period")]
ResponseOption = Annotated[
    bool, typer.Option("--response/--no-response", help="trace wake-ups and sleeps to measure response times")
]
CyclesOption = Annotated[Format, typer.Option("--format", help="a table to read, or one JSON object a line")]
DurationOption = Annotated[str | None, typer.Option("--duration", metavar="TIME", help="end after this time")]


class _Ended(Exception):
    def __init__(self, number: int) -> None:
        self.code = _SIGNALS[signal.Signals(number)]


@group.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run_command(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="the program and its arguments, after --")],
    period: PeriodOption = "auto",
    first_period: FirstOption = "100ms",
    budget: BudgetOption = "2ms",
    cycle: CycleOption = "500ms",
    ovh: OvhOption = 0.1,
    samples: SamplesOption = 2,
    max_share: ShareOption = 0.8,
    response: ResponseOption = True,
    output: CyclesOption = Format.TABLE,
) -> None:
    """Run a program with a reservation for each of its threads; the exit code is the program's.

    Prints a line for each thread and monitoring cycle, as attach does; with --format json what the program itself
    prints goes to standard error.
    """
    settings = _settings(period, first_period, budget, cycle, ovh, samples, max_share, response)
    from twin.emulation.deadline.sched import check_permission
    from twin.emulation.deadline.session import watch
    from twin.emulation.deadline.targets import family

    with _reported():
        check_permission()  # before the program is started
    try:
        with _ending():
            child = subprocess.Popen(command, stdout=sys.stderr if output is Format.JSON else None)
            try:
                with _reported():
                    watch(
                        [family(child.pid)],
                        settings,
                        emit=_printer(output),
                        tell=_tell,
                        ended=lambda: child.poll() is not None,
                    )
                code = child.wait()
            finally:
                if child.poll() is None:
                    child.terminate()
                    try:
                        child.wait(5)
                    except subprocess.TimeoutExpired:
                        child.kill()
                        child.wait()
    except FileNotFoundError as error:
        raise typer.BadParameter(f"no program {error.filename}") from None
    except PermissionError as error:
        raise typer.BadParameter(f"cannot run {error.filename}: {error.strerror}") from None
    raise typer.Exit(128 - code if code < 0 else code)


@group.command()
def attach(
    targets: Annotated[list[str], typer.Argument(metavar="TARGET...", help=_TARGETS)],
    period: PeriodOption = "auto",
    first_period: FirstOption = "100ms",
    budget: BudgetOption = "2ms",
    cycle: CycleOption = "500ms",
    ovh: OvhOption = 0.1,
    samples: SamplesOption = 2,
    max_share: ShareOption = 0.8,
    response: ResponseOption = True,
    duration: DurationOption = None,
    output: CyclesOption = Format.TABLE,
) -> None:
    """Give running threads reservations, until Ctrl-C, --duration or the end of all; then all is as before.

    Prints a line for each thread and monitoring cycle: budget and period of its reservation from now on, CPU time used
    per period, alpha = budget / period, delta = 2 (period - budget), the worst-case delay, and response, the longest
    time from a wake-up to the next sleep.
    """
    settings = _settings(period, first_period, budget, cycle, ovh, samples, max_share, response)
    until = _until(duration)
    with _ending(), _reported():
        from twin.emulation.deadline.session import watch
        from twin.emulation.deadline.targets import target

        watch([target(text) for text in targets], settings, emit=_printer(output), tell=_tell, ended=until)


@group.command()
def serve(
    listen: Annotated[
        str, typer.Option("--listen", metavar="SOCKET|HOST:PORT", help="a Unix socket, or an address on loopback")
    ] = "/run/twinbed/deadline.sock",
    period: Annotated[str, typer.Option("--period", metavar="TIME", help="where a request gives none")] = "100ms",
    budget: BudgetOption = "2ms",
    cycle: CycleOption = "500ms",
    ovh: OvhOption = 0.1,
    samples: SamplesOption = 2,
    max_share: ShareOption = 0.8,
    response: ResponseOption = True,
    duration: DurationOption = None,
) -> None:
    """A daemon with a REST API: POST /threads {"tid": N}, GET /threads, POST /periods {"tid": N}, GET /periods/N."""
    settings = _settings(period, period, budget, cycle, ovh, samples, max_share, response)
    until = _until(duration)
    with _ending(), _reported():
        from twin.emulation.deadline import daemon

        daemon.serve(listen, settings, ready=lambda where: _tell(f"listening on {where}"), tell=_tell, ended=until)


@app.command("period")
def period_command(
    target: Annotated[str, typer.Argument(metavar="PID|TID", help=f"a thread, or {_GUESTS}")],
    timeout: Annotated[str, typer.Option(metavar="TIME", help="give up waiting for wake-ups")] = "30s",
    bursts: Annotated[
        bool, typer.Option("--bursts", help="PID|TID is a virtual CPU: tell its guest's jobs from its other wake-ups")
    ] = False,
    min_period: Annotated[str, typer.Option(metavar="TIME", help="shortest period looked for")] = "5ms",
    max_period: Annotated[str, typer.Option(metavar="TIME", help="longest")] = "2s",
    plot: Annotated[bool, typer.Option("--plot", help="draw the spectrum S(f), live on a terminal")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """The period of a thread, from the times at which it wakes; "not periodic" after 100 wake-ups without one.

    A PID stands for the first thread of the process. Of virtual CPUs, the jobs of the guest count instead of wake-ups.
    """
    timeout_s = _time("--timeout", timeout)
    low_s, high_s = _time("--min-period", min_period), _time("--max-period", max_period)
    with _ending(), _reported():
        from twin.deadline.periodicity import PeriodSettings
        from twin.emulation.deadline.periods import PeriodWizard
        from twin.emulation.deadline.session import journal_name
        from twin.emulation.deadline.targets import target as resolve
        from twin.journal import Journal

        try:
            settings = PeriodSettings(min_period_s=low_s, max_period_s=high_s)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        found = resolve(f"tid:{target}" if target.isdigit() else target)
        with Journal.create(journal_name("period")) as journal, PeriodWizard(journal, settings) as wizard:
            tids = sorted(found.threads())
            for tid in tids:
                wizard.add(tid, virtual_cpu=bursts or found.virtual_cpus)
            _wait(wizard, tids, found.threads, timeout_s, settings if plot else None)
            _print_periods(wizard, tids, output, "jobs of the guest" if bursts or found.virtual_cpus else "wake-ups")


def _wait(
    wizard: PeriodWizard,
    tids: list[int],
    alive: Callable[[], set[int]],
    timeout_s: float,
    plotted: PeriodSettings | None,
) -> None:
    """Until every thread has its answer, has ended, or time is up."""
    deadline_s = time.monotonic() + timeout_s
    drawn_s, lines = 0.0, 0
    while True:
        answers = {tid: wizard.verdict(tid) for tid in tids}
        now_s = time.monotonic()
        over = all(final for _, final in answers.values()) or now_s >= deadline_s or not alive()
        if plotted is not None and (over or (sys.stderr.isatty() and now_s - drawn_s > 0.5)):
            picture = "\n".join(_drawing(wizard, tid, plotted) for tid in tids)
            print((f"\x1b[{lines}A\x1b[J" if lines and sys.stderr.isatty() else "") + picture, file=sys.stderr)
            lines, drawn_s = picture.count("\n") + 1, now_s
        if over:
            return
        time.sleep(0.05)


def _print_periods(wizard: PeriodWizard, tids: list[int], output: Format, what: str) -> None:
    from twin.emulation.deadline.periods import to_json

    for tid in tids:
        verdict, final = wizard.verdict(tid)
        if not final:
            _tell(
                f"thread {tid}: {verdict.samples} {what} are too few to tell; "
                f"{'10 to 100 are needed' if verdict.samples < 100 else 'more are needed'}"
            )
        if output is Format.JSON:
            print(json.dumps(to_json(tid, verdict)), flush=True)
        elif verdict.period_s is not None:
            print(f"{tid}: period {verdict.period_s * 1e3:.2f} ms ({verdict.samples} {what})")
        else:
            print(f"{tid}: {'not periodic' if final else 'no answer'} ({verdict.samples} {what})")


def _drawing(wizard: PeriodWizard, tid: int, settings: PeriodSettings, height: int = 10) -> str:
    """A(f) of a thread's wake-ups as text."""
    import numpy as np

    from twin.deadline.periodicity import whole_spectrum

    times_s = np.array(wizard.times_s(tid)[-settings.samples[-1] :])
    if len(times_s) < settings.samples[0] or times_s[-1] - times_s[0] <= 2 * settings.min_period_s:
        return f"S(f)/N of thread {tid}: {len(times_s)} wake-ups so far"
    width = max(20, min(120, shutil.get_terminal_size().columns - 6))
    frequencies, heights = whole_spectrum(times_s, settings)
    columns = np.array([part.max() for part in np.array_split(heights, width)])
    rows = [f"S(f)/N of thread {tid}, N = {len(times_s)}"]
    for level in range(height, 0, -1):
        label = "1.0" if level == height else "0.5" if 2 * level == height else "   "
        rows.append(f"{label} |" + "".join("█" if one * height >= level - 0.5 else " " for one in columns))
    left, right = f"{frequencies[0]:.1f}", f"{frequencies[-1]:.0f} Hz"
    rows.append("    +" + "-" * width)
    rows.append("     " + left + right.rjust(width - len(left)))
    return "\n".join(rows)


def _settings(
    period: str, first_period: str, budget: str, cycle: str, ovh: float, samples: int, max_share: float, response: bool
) -> SessionSettings:
    from twin.deadline.budget_law import BudgetLaw, LawSettings
    from twin.deadline.reservation import Reservation
    from twin.emulation.deadline.session import SessionSettings

    period_s = None if period == "auto" else _time("--period", period)
    first_s = _time("--first-period", first_period) if period_s is None else period_s
    budget_s = _time("--budget", budget)
    try:
        law = LawSettings(ovh, samples, max_share)
        BudgetLaw(first_s, Reservation(budget_s, first_s).budget_s, law)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return SessionSettings(period_s, first_s, budget_s, _time("--cycle", cycle), response, law)


def _time(name: str, text: str) -> float:
    from scenarios.units import DURATION, UnitError

    try:
        seconds = DURATION.parse(text)
    except UnitError as error:
        raise typer.BadParameter(f"{name}: {error}") from None
    if not 0 < seconds < 1e7:
        raise typer.BadParameter(f"{name}: allowed is a time above 0, got {text}")
    return seconds


def _until(duration: str | None) -> Callable[[], bool]:
    if duration is None:
        return lambda: False
    end_s = time.monotonic() + _time("--duration", duration)
    return lambda: time.monotonic() >= end_s


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, with everything given back."""

    def stop(number: int, _: Any) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise _Ended(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    except _Ended as ended:
        raise typer.Exit(ended.code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """What the host does not have is exit code 4; the loop itself samples on time where it may."""
    from twin.emulation.deadline.sched import DeadlineError, HostLacksError, run_on_time
    from twin.journal import JournalError

    run_on_time()
    try:
        yield
    except HostLacksError as error:
        from scenarios.registry import MissingPartError

        raise MissingPartError(str(error)) from None
    except (DeadlineError, JournalError) as error:
        _tell(f"twin: {error}")
        raise typer.Exit(ExitCode.USAGE) from None


def _printer(output: Format) -> Callable[[Sequence[Sample]], None]:
    """Prints the cycles of one moment at once: a reader sees whole lines, and soon."""
    if output is Format.JSON:
        encode = json.JSONEncoder().encode
        return lambda samples: print("\n".join(encode(one.to_json()) for one in samples), flush=True)
    head = [
        f"{'time_s':>8} {'tid':>8} {'budget':>9} {'period':>9} {'used':>9} {'alpha':>6} {'delta':>9} {'response':>9}"
    ]

    def emit(samples: Sequence[Sample]) -> None:
        print("\n".join([*head, *map(_row, samples)]), flush=True)
        head.clear()

    return emit


def _row(sample: Sample) -> str:
    shown = " ".join(_milliseconds(one) for one in (sample.budget_s, sample.period_s, sample.used_s))
    alpha = "     -" if sample.alpha is None else f"{sample.alpha:6.3f}"
    rest = f"{alpha} {_milliseconds(sample.delta_s)} {_milliseconds(sample.response_s)}"
    return f"{sample.time_s:8.2f} {sample.tid:8} {shown} {rest}"


def _milliseconds(seconds: float | None) -> str:
    return "        -" if seconds is None else f"{seconds * 1e3:7.2f}ms"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
