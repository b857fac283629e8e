"""A learned prior over paths: from demands, links and a linear program to a probability of every path.

A graph network with shared weights, after the message passing of J. Gilmer et al., "Neural message
passing for quantum chemistry": what it knows of a path are numbers of its flow and links, never which
topology or flow it is, so that it holds for networks of any size. Links tell paths how much traffic
they expect, paths move their probabilities, ``ROUNDS`` times. NumPy only; :mod:`agents.path_prior_training`
is the same in PyTorch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from agents import checkpoint
from agents.checkpoint import CheckpointError
from controllers.iab.problem import PathProblem
from controllers.iab.relaxation import Relaxed
from topologies.iab import MMWAVE

AGENT = "path_prior"
ROUNDS = 4
WIDTH = 32
PATH_FEATURES = 11
LINK_FEATURES = 4
# Name and shape (out, in) of every layer.
LAYERS = {
    "begin": (WIDTH, PATH_FEATURES),
    "score": (1, WIDTH),
    "link": (WIDTH, LINK_FEATURES + 2 + WIDTH),
    "path": (WIDTH, WIDTH + 2 * WIDTH + 2 + PATH_FEATURES),
}
# Multiplications that OpenBLAS leaves to one thread. For more it wakes others, and to wait for them takes
# longer than all of this.
_ALONE = 1 << 18
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Graph:
    """Paths and links of a problem, N paths over L links, of at most H hops.

    ``flow_of``: (N,), the flow of each path. ``links``: (N, H), the links of each path, L where there
    are fewer hops. ``paths``: (N, PATH_FEATURES), ``link``: (L + 1, LINK_FEATURES). ``load``: (N, H),
    demand of the path's flow over the capacity of each link, 0 where there is none; ``hop``: (N, H), 1
    where there is a hop. All rates are in units of the largest capacity or of one another.
    """

    flow_of: Integers
    links: Integers
    paths: Floats
    link: Floats
    load: Floats
    hop: Floats
    flows: int


def graph(problem: PathProblem, relaxed: Relaxed) -> Graph:
    """What the prior sees of a problem: see :class:`Graph`. ``relaxed`` is its linear program."""
    model, network = problem.model, problem.network
    counts = model.path_counts
    flow_of = np.repeat(np.arange(model.flows), counts)
    hops = [path for choices in model.paths for path in choices]
    most = max(1, max(map(len, hops)))
    links = np.full((len(hops), most), model.links, dtype=np.int64)
    for row, path in enumerate(hops):
        links[row, : len(path)] = path
    hop = links < model.links
    capacity = np.append(model.capacity_bps, np.inf)
    demand = model.demand_bps[flow_of]
    load = np.where(hop, demand[:, None] / capacity[links], 0.0)
    likely = np.zeros(model.links + 1)
    np.add.at(likely, links, load / counts[flow_of][:, None])
    largest = model.capacity_bps.max()
    bottleneck = np.where(hop, capacity[links], np.inf).min(axis=1)
    last = links[np.arange(len(hops)), hop.sum(axis=1) - 1]
    into_donor = np.zeros(model.links + 1, dtype=np.bool_)
    into_donor[last] = True
    band = np.array([path.band == MMWAVE for flow in network.flows for path in flow.paths])
    mmwave = np.append([link.band == MMWAVE for link in network.links], False)
    donors_bps = model.capacity_bps[into_donor[:-1]].sum()
    offered = model.demand_bps.sum()
    columns = (
        np.full(len(hops), problem.gamma),
        demand / max(offered / model.flows, 1e-30),
        demand / bottleneck,
        bottleneck / largest,
        hop.sum(axis=1) / 5,
        band,
        1 / counts[flow_of],
        np.concatenate(relaxed.shares),
        np.log1p(np.where(hop, likely[links], 0.0).max(axis=1)),
        np.log1p(np.where(hop, likely[links], 0.0).sum(axis=1) / hop.sum(axis=1)),
        np.full(len(hops), np.log1p(offered / donors_bps)),
    )
    of_links = (np.append(model.capacity_bps / largest, 0.0), mmwave, np.log1p(likely), into_donor)
    return Graph(
        flow_of,
        links,
        np.stack(columns, axis=1).astype(np.float32),
        np.stack(of_links, axis=1).astype(np.float32),
        load.astype(np.float32),
        hop.astype(np.float32),
        model.flows,
    )


@dataclass(frozen=True)
class PathPrior:
    """Weights and biases by the names of ``LAYERS``."""

    weights: Mapping[str, tuple[Floats, Floats]]

    def _layer(self, name: str, values: Floats) -> Floats:
        weight, bias = self.weights[name]
        found = np.empty((len(values), len(bias)), dtype=np.float32)
        rows = max(1, _ALONE // weight.size)
        for first in range(0, len(values), rows):
            np.matmul(values[first : first + rows], weight.T, out=found[first : first + rows])
        found += bias
        return found

    def probabilities(self, one: Graph) -> Floats:
        """Of every path, shape (N,); those of a flow sum to 1."""
        state = np.tanh(self._layer("begin", one.paths))
        # Sums over the paths that cross each link are products with these.
        crossing, loaded = (_by_link(one, values) for values in (one.hop, one.load))
        hops = one.hop.sum(axis=1, keepdims=True)
        for _ in range(ROUNDS):
            share = _softmax(self._layer("score", state)[:, 0], one)
            expected, count = loaded @ share, crossing @ share
            told = crossing @ (share[:, None] * state)
            link: Floats = np.tanh(
                self._layer("link", np.column_stack((one.link, np.log1p(expected), np.log1p(count), told)))
            )
            along = link[one.links] * one.hop[..., None]
            worst = (expected[one.links] * one.hop).max(axis=1, keepdims=True)
            seen = (
                state,
                along.sum(axis=1) / hops,
                np.where(one.hop[..., None] > 0, link[one.links], -1).max(axis=1),
                np.log1p(worst),
                share[:, None],
                one.paths,
            )
            state = state + np.tanh(self._layer("path", np.concatenate(seen, axis=1, dtype=np.float32)))
        return _softmax(self._layer("score", state)[:, 0], one)


def _by_link(one: Graph, values: Floats) -> sparse.csr_array:
    """``values``, shape (N, H), as a matrix of shape (L + 1, N)."""
    real = one.hop > 0
    places = one.links[real], np.nonzero(real)[0]
    return sparse.csr_array((values[real], places), shape=(len(one.link), len(one.links)))


def _softmax(scores: Floats, one: Graph) -> Floats:
    """Over the paths of each flow, which stand together."""
    first = np.searchsorted(one.flow_of, np.arange(one.flows))
    grown = np.exp(scores - np.maximum.reduceat(scores, first)[one.flow_of])
    return np.asarray(grown / np.add.reduceat(grown, first)[one.flow_of], dtype=np.float32)


def read_prior(path: Path) -> PathPrior:
    """The prior of a checkpoint; CheckpointError names what does not fit."""
    _, arrays = checkpoint.read(path, AGENT)
    return prior_of(arrays, str(path))


def prior_of(arrays: Mapping[str, NDArray[Any]], where: str) -> PathPrior:
    """The prior with the layers in ``arrays``, ``NAME.weight`` and ``NAME.bias``."""
    found = {}
    for name, shape in LAYERS.items():
        weight, bias = arrays.get(f"{name}.weight"), arrays.get(f"{name}.bias")
        if weight is None or bias is None or weight.shape != shape or bias.shape != shape[:1]:
            raise CheckpointError(f"{where}: layer {name} must have shape {shape}")
        found[name] = weight.astype(np.float32), bias.astype(np.float32)
    return PathPrior(found)


@functools.cache
def shipped() -> PathPrior:
    """The prior that comes with TwinBed, trained by ``python -m agents.path_prior_training``."""
    with resources.as_file(resources.files("agents") / "data" / "path_prior.npz") as path:
        return read_prior(path)
