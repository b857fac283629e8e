"""``twin train``: learn a controller on a network, with progress, a learning curve and checkpoints."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenarios.options import Format, FormatOption

if TYPE_CHECKING:
    from agents.phaul import Row
    from topologies.iab import IabNetwork


class Agent(StrEnum):
    """What can be trained."""

    PHAUL = "phaul"


class Demand(StrEnum):
    """Demands of the traffic matrices."""

    DRAWN = "drawn"
    LOW = "low"
    HIGH = "high"


def train(
    scenario: Annotated[
        str, typer.Argument(metavar="FILE|NAME", help="a *.twin.yml file or library scenario with IAB, or a NET.json")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of checkpoint, learning curve and manifest")],
    agent: Annotated[Agent, typer.Option(help="what learns")] = Agent.PHAUL,
    steps: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, help="training steps, rounded up to updates of 2048")
    ] = 20_000,
    seed: Annotated[int, typer.Option(metavar="NUMBER", min=0, help="seed of everything random")] = 0,
    gamma: Annotated[float, typer.Option(metavar="NUMBER", help="from -1, fairness only, to 1, efficiency only")] = 1.0,
    episode_steps: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, help="steps of an episode, and later of a decision")
    ] = 300,
    demand: Annotated[
        Demand,
        typer.Option(help="between the least and largest of the file, or 250 to 500, or 500 to 750 Mbit/s"),
    ] = Demand.DRAWN,
    active: Annotated[
        float, typer.Option(metavar="PROBABILITY", help="that a flow has a demand in a traffic matrix")
    ] = 1.0,
    across: Annotated[
        bool, typer.Option("--across", help="a new random topology of this size every episode, not the file's")
    ] = False,
    masking: Annotated[
        bool, typer.Option("--masking/--no-masking", help="never choose paths that a flow lacks, or choose in vain")
    ] = True,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint in DIR, up to --steps")] = False,
    output: FormatOption = Format.TABLE,
) -> None:
    """Train a controller on the flow model. A kill loses at most the 2048 steps since the last checkpoint."""
    from dataclasses import replace

    from agents import checkpoint
    from agents.iab_path import Traffic
    from agents.phaul import CHECKPOINT, progress_line
    from scenarios.runs import dumps

    network, rates = _network(scenario)
    traffic = Traffic.like(network, rates) if demand is Demand.DRAWN else Traffic.of_load(demand.value)
    traffic = replace(traffic, active_probability=active)
    from agents.phaul_training import Training, read_resumable, train
    from agents.training_record import Record

    plan = Training(network, traffic, gamma, steps, episode_steps, seed, across, masking)
    if resume and not (out / CHECKPOINT).exists():
        raise checkpoint.CheckpointError(f"--resume: no checkpoint in {out}")
    begin_s = time.perf_counter()

    def progress(row: Row) -> None:
        print(progress_line(row), file=sys.stderr)

    with checkpoint.sole_writer(out):
        # Before the manifest of the training that is there is replaced.
        if resume:
            read_resumable(plan, out)
        elif (out / CHECKPOINT).exists():
            raise checkpoint.CheckpointError(f"--out {out}: has a checkpoint already; --resume goes on with it")
        with Record(out, scenario, agent.value, plan) as record:
            try:
                train(plan, out, resume=resume, progress=progress)
            except KeyboardInterrupt:
                if (out / CHECKPOINT).exists():
                    print(f"interrupted; with --resume the training goes on from {out / CHECKPOINT}", file=sys.stderr)
                raise
            elapsed_s = time.perf_counter() - begin_s
            record.finish(elapsed_s)
    found: dict[str, Any] = {
        "checkpoint": str(out / CHECKPOINT),
        "curve": str(out / "curve.html"),
        "manifest": str(out / "manifest.json"),
        "steps": checkpoint.read(out / CHECKPOINT, agent.value)[0]["steps_done"],
        "training_time_s": elapsed_s,
    }
    if output is Format.JSON:
        print(dumps(found))
    else:
        from scenarios.tables import print_rows

        print_rows([found], found)


def _network(scenario: str) -> tuple[IabNetwork, list[float]]:
    """The IAB network of a network file or a scenario, and the rates in bit/s that a scenario's sources send."""
    from controllers.iab.problem import SolveError
    from topologies.iab import read_network

    if scenario.endswith(".json"):
        return read_network(Path(scenario)), []
    from scenarios.loader import load_scenario
    from scenarios.registry import find_scenario
    from topologies.backhaul import to_network

    loaded = load_scenario(find_scenario(scenario))
    if not loaded.topology.backhaul:
        raise SolveError(f"{scenario}: has no backhaul flows, so there are no paths to learn")
    return to_network(loaded.topology), [item.rate for one in loaded.load.backhaul for item in one.activities]
