"""The topology builder ``iab``: an integrated access and backhaul network, random or from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from topologies import iab
from topologies.backhaul import from_network, scaled
from topologies.fragment import Fragment
from topologies.iab import IabError, IabNetwork
from topologies.model import TopologyError

DEFAULT_LOAD = "high"
DEFAULT_K_PATHS = 3
DEFAULT_HEURISTIC = "least_common"


def network(
    *,
    scale: float,
    nodes: int | None = None,
    k_paths: int | None = None,
    seed: int | None = None,
    heuristic: str | None = None,
    load: str | None = None,
    active_probability: float | None = None,
    network: Path | None = None,
    sink: str = "cu",
) -> Fragment:
    """An IAB network: random after NANCY D4.2 §4.2, or that of a network file; all rates times ``scale``.

    ``nodes`` includes the three donors. Every node has a flow; ``load`` and ``active_probability`` decide
    what it demands, 0 where it is not active. ``network`` is a file of ``twin iab generate`` and stands for
    all the others. ``sink`` is the host behind the donors.
    """
    drawing = {
        "nodes": nodes,
        "k_paths": k_paths,
        "seed": seed,
        "heuristic": heuristic,
        "load": load,
        "active_probability": active_probability,
    }
    given = [name for name, value in drawing.items() if value is not None]
    try:
        if network is None:
            if nodes is None:
                raise TopologyError("iab: needs nodes (how many to draw) or network (a file)")
            found = _drawn(
                nodes,
                DEFAULT_K_PATHS if k_paths is None else k_paths,
                0 if seed is None else seed,
                heuristic or DEFAULT_HEURISTIC,
                load or DEFAULT_LOAD,
                1.0 if active_probability is None else active_probability,
            )
        elif given:
            raise TopologyError(f"iab: network is a finished network; leave {', '.join(given)} out")
        else:
            found = iab.read_network(network)
        # A rate may leave the range of rates.
        found = scaled(found, scale)
    except IabError as error:
        raise TopologyError(f"iab: {error}") from None
    return from_network(found, sink=sink)


def _drawn(nodes: int, k_paths: int, seed: int, heuristic: str, load: str, active_probability: float) -> IabNetwork:
    """The network in which every node has a flow; those that are not active demand nothing."""

    def drawn(probability: float) -> IabNetwork:
        return iab.generate(
            nodes, k_paths=k_paths, seed=seed, heuristic=heuristic, load=load, active_probability=probability
        )

    everyone = drawn(1.0)
    demand = {flow.id: flow.demand_bps for flow in drawn(active_probability).flows}
    return replace(everyone, flows=tuple(replace(flow, demand_bps=demand.get(flow.id, 0.0)) for flow in everyone.flows))
