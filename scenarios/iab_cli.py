"""``twin iab``: IAB networks, their flow rates, and controllers that choose paths."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scenarios.options import Format, FormatOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from topologies.iab import IabNetwork

app = typer.Typer(
    name="iab",
    help="IAB networks: generate one, evaluate an allocation of paths, or find one.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


class Load(StrEnum):
    """Demand per flow."""

    LOW = "low"
    HIGH = "high"


class Heuristic(StrEnum):
    """How candidate paths are chosen."""

    SHORTEST = "shortest"
    LAST_HOP = "last_hop"
    LEAST_COMMON = "least_common"


class Capacities(StrEnum):
    """Where link capacities come from."""

    UNIFORM = "uniform"
    TR_38901 = "38.901"


CONTROLLERS = "subset_sum, random, brute_force, optimal, local_search, best, phaul, prior_search"

NetworkArgument = Annotated[Path, typer.Argument(metavar="NET.json", help="a network file")]
SeedOption = Annotated[int, typer.Option(metavar="NUMBER", min=0, help="seed of everything random")]


@app.callback()
def _group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def generate(
    out: Annotated[Path, typer.Option(metavar="FILE", help="network file to write")],
    nodes: Annotated[int, typer.Option(metavar="NUMBER", help="nodes, three donors included")] = 20,
    k_paths: Annotated[int, typer.Option(metavar="NUMBER", help="most paths per band and flow")] = 3,
    load: Annotated[Load, typer.Option(help="low: 250 to 500 Mbit/s per flow, high: 500 to 750")] = Load.HIGH,
    seed: SeedOption = 0,
    active: Annotated[float, typer.Option(metavar="PROBABILITY", help="that a node has a flow")] = 1.0,
    heuristic: Annotated[
        Heuristic, typer.Option(help="fewest hops, least used last link, or least links in common")
    ] = Heuristic.LEAST_COMMON,
    broken: Annotated[int, typer.Option(metavar="NUMBER", help="links taken away; every node stays connected")] = 0,
    matrix: Annotated[int, typer.Option(metavar="NUMBER", help="another traffic matrix of the same topology")] = 0,
    capacities: Annotated[
        Capacities,
        typer.Option(
            help="uniform: 800 to 1000 Mbit/s in mmWave, 200 to 300 in Sub-6; "
            "38.901: from sites, by the path loss, line of sight and shadow fading of TR 38.901"
        ),
    ] = Capacities.UNIFORM,
    output: FormatOption = Format.TABLE,
) -> None:
    """Write a random network of NANCY D4.2 §4.2: mmWave and Sub-6 backhaul, flows, candidate paths."""
    from topologies import iab
    from twin.ran.backhaul import backhaul_capacity_bps

    network = iab.generate(
        nodes,
        k_paths=k_paths,
        load=load.value,
        seed=seed,
        active_probability=active,
        heuristic=heuristic.value,
        broken=broken,
        matrix=matrix,
        capacities=None if capacities is Capacities.UNIFORM else backhaul_capacity_bps,
    )
    try:
        iab.write_network(network, out)
    except OSError as error:
        raise iab.IabError(f"--out {out}: cannot be written: {error.strerror}") from None
    _print(
        {
            "file": str(out),
            "nodes": len(network.nodes),
            "links": len(network.links),
            "flows": len(network.flows),
            "paths": sum(len(flow.paths) for flow in network.flows),
        },
        output,
    )


@app.command()
def evaluate(
    network: NetworkArgument,
    allocation: Annotated[Path, typer.Option(metavar="FILE", help="JSON object {flow id: path index}")],
    output: FormatOption = Format.TABLE,
) -> None:
    """Print the max-min fair rates of an allocation, its efficiency and its fairness."""
    from topologies.iab import read_allocation, read_network

    net = read_network(network)
    chosen = read_allocation(allocation, net)
    _print_allocation(net, chosen, {"decision_time_s": 0.0, "steps": 0}, output)


@app.command()
def solve(
    network: NetworkArgument,
    controller: Annotated[
        str, typer.Option(metavar="NAME", help=f"who decides: {CONTROLLERS}; best is the strongest one here")
    ] = "best",
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="what the controller learned (twin train); without it phaul learns now, which takes tens of seconds",
        ),
    ] = None,
    gamma: Annotated[float, typer.Option(metavar="NUMBER", help="from -1, fairness only, to 1, efficiency only")] = 1.0,
    seed: SeedOption = 0,
    output: FormatOption = Format.TABLE,
) -> None:
    """Choose a path for every flow. Steps are the allocations evaluated; reading and learning are not timed.

    Bounds hold for every allocation: of the efficiency, by the linear program and by the controller if it
    has a better one, and of J = (1 + gamma) efficiency + (1 - gamma) fairness.
    """
    from controllers.iab.problem import PathProblem
    from controllers.iab.registry import make_solver
    from controllers.iab.relaxation import lp_relaxation
    from topologies.iab import read_network
    from twin.streams import named_stream

    problem = PathProblem(read_network(network), gamma)
    decide = make_solver(controller, problem, policy)
    # Loads compiled code, which is no part of a decision.
    problem.prepare()
    begin_s = time.perf_counter()
    decision = decide(problem, named_stream(seed, f"iab/{controller}"))
    spent: dict[str, Any] = {"decision_time_s": time.perf_counter() - begin_s, "steps": decision.steps}
    relaxed = lp_relaxation(problem)
    spent["objective"] = float(problem.objective(decision.allocation[None])[0])
    spent["lp_efficiency_bound"] = relaxed.efficiency_bound
    spent["efficiency_bound"] = relaxed.efficiency_bound
    if decision.efficiency_bound is not None:
        spent["efficiency_bound"] = decision.efficiency_bound
    spent["objective_bound"] = (1 + gamma) * spent["efficiency_bound"] + (1 - gamma)
    if decision.objective_bound is not None:
        spent["objective_bound"] = decision.objective_bound
    _print_allocation(problem.network, decision.allocation.tolist(), spent, output)


def _print_allocation(network: IabNetwork, chosen: Sequence[int], more: dict[str, Any], output: Format) -> None:
    import numpy as np

    from twin.flow.batched import BatchedFlows, efficiency, fairness

    model = BatchedFlows(network.path_links(), network.capacity_bps(), network.demand_bps())
    rates = model.rates(np.array([chosen], dtype=np.int64))[0]
    names = [flow.id for flow in network.flows]
    found = {
        "allocation": dict(zip(names, chosen, strict=True)),
        "rates_bps": dict(zip(names, rates.tolist(), strict=True)),
        "efficiency": float(efficiency(rates, model.demand_bps)),
        "fairness": float(fairness(rates)),
        **more,
    }
    if output is Format.JSON:
        _print(found, output)
        return
    from scenarios.tables import print_rows

    rows = [
        {
            "flow": flow.id,
            "path": index,
            "band": flow.paths[index].band,
            "nodes": " > ".join(flow.paths[index].nodes),
            "demand_mbps": flow.demand_bps / 1e6,
            "rate_mbps": rate / 1e6,
        }
        for flow, index, rate in zip(network.flows, chosen, rates.tolist(), strict=True)
    ]
    print_rows(rows, ("flow", "path", "band", "nodes", "demand_mbps", "rate_mbps"), empty="no flows")
    _print({key: value for key, value in found.items() if not isinstance(value, dict)}, output)


def _print(found: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        from scenarios.runs import dumps

        print(dumps(found))
    else:
        from scenarios.tables import print_rows

        print_rows([found], found)
