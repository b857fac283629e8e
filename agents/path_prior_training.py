"""Training of the prior over paths, on random networks of many sizes, loads and criteria.

    python -m agents.path_prior_training --out FILE [--seed 1] [--networks 1200] [--steps 5000]

First imitation: the cross-entropy to the allocations of ``local_search``. Then reinforcement: the policy
gradient of R. J. Williams, "Simple statistical gradient-following algorithms", on J of ``SAMPLES``
allocations drawn per network, each against the mean of the others, in units of their spread.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agents import checkpoint
from agents.path_prior import AGENT, LAYERS, ROUNDS, Graph, graph, prior_of
from controllers.iab.local_search import local_search
from controllers.iab.problem import PathProblem
from controllers.iab.relaxation import lp_relaxation
from scenarios.manifest import origin
from topologies.iab import HEURISTICS, LOADS_BPS, generate
from twin.streams import named_stream

SAMPLES = 32
BATCH = 16
GAMMAS = (1.0, 0.5, 0.0, -0.5, -1.0)
_RATE = 2e-3
_IMITATED = 0.35
_ENTROPY = 2e-3


@dataclass(frozen=True)
class Example:
    """A problem, what the prior sees of it, and the allocation to imitate."""

    problem: PathProblem
    seen: Graph
    target: NDArray[np.int64]


def examples(count: int, seed: int) -> list[Example]:
    """Problems over random networks: 8 to 80 nodes, K 1 to 4, both loads, idle nodes, broken links."""
    rng = named_stream(seed, "path_prior/examples")
    found: list[Example] = []
    while len(found) < count:
        nodes = int(rng.integers(8, 81))
        network = generate(
            nodes,
            k_paths=int(rng.integers(1, 5)),
            load=str(rng.choice(list(LOADS_BPS))),
            # Seeds below 2^31 are left for evaluation.
            seed=int(rng.integers(1 << 31, 1 << 32)),
            active_probability=float(rng.choice([0.4, 0.7, 1.0, 1.0])),
            heuristic=str(rng.choice(list(HEURISTICS))),
            broken=int(rng.choice([0, 0, 1, 3])) if nodes >= 20 else 0,
        )
        gamma = float(rng.choice([*GAMMAS, rng.uniform(-1, 1)]))
        if len(network.flows) < 2:
            continue
        problem = PathProblem(network, gamma)
        target = local_search(problem, rng).allocation
        found.append(Example(problem, graph(problem, lp_relaxation(problem)), target))
    return found


class Joined:
    """Several graphs as one, with tensors for :class:`Net`."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        most = max(one.links.shape[1] for one in graphs)
        rows = np.cumsum([0, *(len(one.link) for one in graphs)])
        flows = np.cumsum([0, *(one.flows for one in graphs)])
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("flow_of", "links", "load", "hop")}
        for number, one in enumerate(graphs):
            wide = ((0, 0), (0, most - one.links.shape[1]))
            parts["flow_of"].append(one.flow_of + flows[number])
            # The last row of each graph stands for no link.
            padded = np.pad(one.links, wide, constant_values=len(one.link) - 1)
            parts["links"].append(padded + rows[number])
            parts["load"].append(np.pad(one.load, wide))
            parts["hop"].append(np.pad(one.hop, wide))
        self.flow_of, self.links, self.load, self.hop = (
            torch.from_numpy(np.concatenate(parts[name])) for name in ("flow_of", "links", "load", "hop")
        )
        self.paths = torch.from_numpy(np.concatenate([one.paths for one in graphs]))
        self.link = torch.from_numpy(np.concatenate([one.link for one in graphs]))
        self.flows = int(flows[-1])
        self.graph_of = torch.from_numpy(np.repeat(np.arange(len(graphs)), [len(one.paths) for one in graphs]))


class Net(nn.Module):
    """:class:`agents.path_prior.PathPrior` with gradients; the tests hold the two together."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(size, out) for name, (out, size) in LAYERS.items()})

    def forward(self, one: Joined) -> torch.Tensor:
        """Logarithms of the probabilities of all paths, shape (N,)."""
        state = torch.tanh(self.layers["begin"](one.paths))
        hops = one.hop.sum(1, keepdim=True)
        flat = one.links.ravel()
        for _ in range(ROUNDS):
            share = _log_softmax(self.layers["score"](state)[:, 0], one).exp()
            expected = _to_links(share[:, None] * one.load, one, flat)
            count = _to_links(share[:, None] * one.hop, one, flat)
            told = torch.zeros(len(one.link), state.shape[1])
            message = (share[:, None] * state)[:, None] * one.hop[..., None]
            told = told.index_add(0, flat, message.reshape(len(flat), -1))
            link = torch.cat((one.link, torch.log1p(expected)[:, None], torch.log1p(count)[:, None], told), 1)
            link = torch.tanh(self.layers["link"](link))
            along = link[one.links]
            seen = (
                state,
                (along * one.hop[..., None]).sum(1) / hops,
                torch.where(one.hop[..., None] > 0, along, -torch.ones(())).max(1).values,
                torch.log1p((expected[one.links] * one.hop).max(1, keepdim=True).values),
                share[:, None],
                one.paths,
            )
            state = state + torch.tanh(self.layers["path"](torch.cat(seen, 1)))
        return _log_softmax(self.layers["score"](state)[:, 0], one)


def _to_links(values: torch.Tensor, one: Joined, flat: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(one.link)).index_add(0, flat, values.ravel())


def _log_softmax(scores: torch.Tensor, one: Joined) -> torch.Tensor:
    largest = torch.full((one.flows,), -torch.inf).scatter_reduce(0, one.flow_of, scores.detach(), "amax")
    shifted = scores - largest[one.flow_of]
    total = torch.zeros(one.flows).index_add(0, one.flow_of, shifted.exp())
    return shifted - total.log()[one.flow_of]


def train(found: Sequence[Example], steps: int, seed: int, *, log_every: int = 0) -> Net:
    """Imitate for a part of the steps, then reinforce."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = named_stream(seed, "path_prior/batches")
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, _RATE / 20)
    sums = np.zeros(3)
    for step in range(steps):
        chosen = [found[number] for number in rng.integers(0, len(found), BATCH)]
        joined = Joined([one.seen for one in chosen])
        log = net(joined)
        if step < _IMITATED * steps:
            loss = _imitation(log, chosen)
        else:
            loss, values = _reinforcement(log, joined, chosen, rng)
            sums += (*values, 1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if log_every and (step + 1) % log_every == 0:
            mean = sums / max(1, sums[2])
            print(f"{step + 1:>6} loss {loss.item():+.4f} J {mean[0]:.4f} best {mean[1]:.4f}", file=sys.stderr)
            sums[:] = 0
    return net


def _imitation(log: torch.Tensor, chosen: Sequence[Example]) -> torch.Tensor:
    places, first = [], 0
    for one in chosen:
        counts = one.problem.model.path_counts
        starts = first + np.concatenate(([0], np.cumsum(counts[:-1])))
        places.append(starts + one.target)
        first += int(counts.sum())
    return -log[torch.from_numpy(np.concatenate(places))].mean()


def _reinforcement(
    log: torch.Tensor, joined: Joined, chosen: Sequence[Example], rng: np.random.Generator
) -> tuple[torch.Tensor, tuple[float, float]]:
    weights, first = np.zeros(len(log), dtype=np.float32), 0
    probabilities = log.detach().exp().numpy()
    mean, best = [], []
    for one in chosen:
        model = one.problem.model
        part = slice(first, first + int(model.path_counts.sum()))
        first = part.stop
        starts = np.concatenate(([0], np.cumsum(model.path_counts)))
        # Gumbel noise: the argmax over the paths of a flow is a draw.
        noisy = np.log(probabilities[part] + 1e-20) + rng.gumbel(size=(SAMPLES, part.stop - part.start))
        drawn = np.stack([noisy[:, a:b].argmax(1) for a, b in itertools.pairwise(starts)], axis=1)
        values = one.problem.objective(drawn)
        mean.append(values.mean())
        best.append(values.max() / max(1e-9, float(one.problem.objective(one.target[None])[0])))
        against = (values.sum() - values) / (SAMPLES - 1)
        gain = (values - against) / (values.std() + 1e-4)
        np.add.at(weights[part], starts[:-1] + drawn, np.repeat(gain[:, None], model.flows, axis=1) / SAMPLES)
    entropy = -(log.exp() * log).sum() / joined.flows
    loss = -(torch.from_numpy(weights) * log).sum() / len(chosen) - _ENTROPY * entropy
    return loss, (float(np.mean(mean)), float(np.mean(best)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--networks", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=5000)
    arguments = parser.parse_args()
    begin_s = time.perf_counter()
    found = examples(arguments.networks, arguments.seed)
    print(f"{len(found)} problems in {time.perf_counter() - begin_s:.0f} s", file=sys.stderr)
    net = train(found, arguments.steps, arguments.seed, log_every=200)
    arrays = {name.removeprefix("layers."): value.detach().numpy() for name, value in net.state_dict().items()}
    prior_of(arrays, str(arguments.out))
    meta = {
        "command": f"python -m agents.path_prior_training --seed {arguments.seed} "
        f"--networks {arguments.networks} --steps {arguments.steps}",
        "versions": {**_versions(), "torch": torch.__version__},
    }
    checkpoint.write(arguments.out, AGENT, meta, arrays)
    print(f"{arguments.out}: {time.perf_counter() - begin_s:.0f} s", file=sys.stderr)
    return 0


def _versions() -> dict[str, str]:
    versions = origin()["versions"]
    assert isinstance(versions, dict)
    return versions


if __name__ == "__main__":
    raise SystemExit(main())
