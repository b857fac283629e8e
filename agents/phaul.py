"""PHaul of NANCY D4.2 §4.2: a policy moves one flow per step, N_steps long, and the best is taken.

Deciding needs NumPy only. Training is in :mod:`agents.phaul_training`; it needs the extra ``learning``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents import checkpoint
from agents.checkpoint import CheckpointError
from agents.iab_path import LARGEST_OBJECTIVE, PathSearchError, PathSearches, PathSpace, Traffic
from controllers.iab.problem import Decision, PathProblem, Solver
from topologies.iab import IabNetwork, network_from_json, network_to_json
from twin.flow.batched import Array

AGENT = "phaul"
TRAINING_STEPS = 20_000
CHECKPOINT = "checkpoint.npz"
# Where the actor of stable-baselines3's MlpPolicy keeps its layers.
_ACTOR = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")
_TINY = np.float32(1e-30)
# A row of the learning curve; None where no episode ended.
Row = Mapping[str, float | None]
Layers = tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]


def fingerprint(network: IabNetwork) -> str:
    """Digest of nodes, links, capacities, flows and paths; demands may differ."""
    content = network_to_json(network)
    for flow in content["flows"]:
        del flow["demand_bps"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PhaulPolicy:
    """What was learned: the layers of the actor, and the searches that they are for.

    ``network`` is the topology of the training, None when it was trained across topologies. ``flows``
    are the names of its F flows in the order of the state, ``k_paths`` its K. ``layers``: weights of
    shape (out, in) and biases of shape (out,), tanh between them; 3 F inputs, 2 K F outputs. ``masking``
    says whether it was trained with actions masked.
    """

    flows: tuple[str, ...]
    k_paths: int
    gamma: float
    episode_steps: int
    network: IabNetwork | None
    layers: Layers
    masking: bool = True
    where: str = "policy"

    def logits(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of every action, shapes (B, 3 F) to (B, 2 K F)."""
        for weight, bias in self.layers[:-1]:
            state = np.tanh(state @ weight.T + bias)
        weight, bias = self.layers[-1]
        found: NDArray[np.float32] = state @ weight.T + bias
        return found

    def space_of(self, network: IabNetwork, *, anywhere: bool = False) -> PathSpace:
        """The search space of ``network`` for this policy; CheckpointError says why there is none.

        Allowed are the topology of the training, the same with links broken, some of its flows
        missing, and any topology with the same numbers where the policy was trained across them.
        ``anywhere`` allows that for every policy.
        """
        if self.network is not None and not anywhere:
            self._check_topology(self.network, network)
        names: tuple[str, ...] | None = self.flows
        here = tuple(flow.id for flow in network.flows)
        if not set(here) <= set(self.flows):
            if len(here) != len(self.flows):
                raise CheckpointError(f"{self.where}: was trained for {len(self.flows)} flows, here are {len(here)}")
            names = here
        try:
            like = None if self.network is None or anywhere else PathSpace(self.network, k_paths=self.k_paths)
            return PathSpace(network, flows=names, k_paths=self.k_paths, like=like)
        except PathSearchError as error:
            raise CheckpointError(f"{self.where}: was trained for K {self.k_paths}: {error}") from None

    def _check_topology(self, known: IabNetwork, network: IabNetwork) -> None:
        sizes = len(known.nodes), len(network.nodes)
        if sizes[0] != sizes[1]:
            raise CheckpointError(f"{self.where}: was trained for {sizes[0]} nodes, here are {sizes[1]}")
        if known.nodes != network.nodes:
            here = {node.id: node.donor for node in network.nodes}
            wrong = next((node for node in known.nodes if here.get(node.id) != node.donor), known.nodes[0])
            raise CheckpointError(f"{self.where}: is of another topology: node {wrong.id} is not the same here")
        links = {link.key: link for link in known.links}
        for link in network.links:
            if link.key not in links:
                raise CheckpointError(f"{self.where}: is of another topology: it has no link {link}")
            if not np.isclose(links[link.key].capacity_bps, link.capacity_bps, rtol=1e-9):
                raise CheckpointError(
                    f"{self.where}: is of another topology: link {link} had {links[link.key].capacity_bps:g} bit/s, "
                    f"has {link.capacity_bps:g}"
                )
        sources = {flow.id: flow.source for flow in known.flows}
        for flow in network.flows:
            if sources.get(flow.id) != flow.source:
                raise CheckpointError(
                    f"{self.where}: is of another topology: it has no flow {flow.id} of {flow.source}"
                )


def read_policy(path: Path) -> PhaulPolicy:
    """The policy of a checkpoint file, or of the folder that ``twin train`` wrote."""
    file = path / CHECKPOINT if path.is_dir() else path
    meta, arrays = checkpoint.read(file, AGENT)
    return policy_of(meta, arrays, str(file))


def policy_of(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], where: str) -> PhaulPolicy:
    """The policy within the content of a checkpoint; CheckpointError names what does not fit."""
    try:
        flows = tuple(str(name) for name in meta["flows"])
        k_paths, gamma, steps = int(meta["k_paths"]), float(meta["gamma"]), int(meta["episode_steps"])
        network = None if meta["network"] is None else network_from_json(meta["network"])
        masking = bool(meta["masking"])
        layers = tuple(
            (
                arrays[f"policy/{name}.weight"].astype(np.float32, casting="same_kind"),
                arrays[f"policy/{name}.bias"].astype(np.float32, casting="same_kind"),
            )
            for name in _ACTOR
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{where}: is damaged: {type(error).__name__}: {error}") from None
    width = 3 * len(flows)
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise CheckpointError(f"{where}: is damaged: a layer has shape {weight.shape}, expected (out, {width})")
        width = weight.shape[0]
    if width != 2 * k_paths * len(flows) or not -1 <= gamma <= 1 or steps < 1:
        raise CheckpointError(f"{where}: is damaged: its numbers of flows, paths and actions do not fit together")
    if network is not None and fingerprint(network) != meta.get("fingerprint"):
        raise CheckpointError(f"{where}: is damaged: its topology does not have the fingerprint that it states")
    if network is not None and flows != tuple(flow.id for flow in network.flows):
        raise CheckpointError(f"{where}: is damaged: its flows are not those of its topology")
    return PhaulPolicy(flows, k_paths, gamma, steps, network, layers, masking, where)


def search(
    policy: PhaulPolicy,
    space: PathSpace,
    demand_bps: Array,
    rng: np.random.Generator,
    *,
    steps: int | None = None,
) -> PathSearches:
    """Algorithm PHaul for B traffic matrices at once, ``demand_bps`` of shape (B, F) in bit/s; the ended searches.

    Actions are drawn from the policy, as in training. Ends after ``steps``, by default those of an episode in
    training, or when every search has reached J = 2.
    """
    searches = PathSearches(
        space, len(demand_bps), gamma=policy.gamma, episode_steps=policy.episode_steps if steps is None else steps
    )
    searches.restart(demand_bps)
    for _ in range(searches.episode_steps):
        if (searches.best_objective >= LARGEST_OBJECTIVE).all():
            break
        logits = policy.logits(searches.observation())
        if policy.masking:
            logits[~searches.masks()] = -np.inf
        noise = np.maximum(rng.standard_exponential(logits.shape, dtype=np.float32), _TINY)
        # The argmax of logits plus Gumbel noise, -log of an exponential, is a draw from their softmax.
        searches.step(np.argmax(logits - np.log(noise), axis=1))
    return searches


def controller(problem: PathProblem, policy: Path | None) -> Solver:
    """The path controller ``phaul`` for one problem: from a checkpoint, or trained here and kept.

    Without a checkpoint it is trained for ``TRAINING_STEPS`` on the problem's topology, with progress
    on standard error, and the result is kept in the user's cache for the next time.
    """
    if policy is None:
        learned = _trained(problem)
    else:
        learned = read_policy(policy)
        if learned.gamma != problem.gamma:
            raise CheckpointError(f"{learned.where}: was trained for gamma {learned.gamma:g}, not {problem.gamma:g}")
    space = learned.space_of(problem.network)

    def solve(_problem: PathProblem, rng: np.random.Generator) -> Decision:
        ended = search(learned, space, space.demand_bps[None], rng)
        return Decision(space.decided(ended.best_allocation)[0], int(ended.step_count[0]))

    return solve


def cache_folder() -> Path:
    """Where trained policies are kept: ``$XDG_CACHE_HOME/twinbed/phaul``, by default under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "twinbed" / AGENT


def _trained(problem: PathProblem) -> PhaulPolicy:
    traffic = Traffic.like(problem.network)
    key = f"{fingerprint(problem.network)} {problem.gamma!r} {traffic} {TRAINING_STEPS} {checkpoint.VERSION}"
    folder = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:24]
    with checkpoint.sole_writer(folder, wait=True):
        begun = False
        if (folder / CHECKPOINT).is_file():
            try:
                meta, arrays = checkpoint.read(folder / CHECKPOINT, AGENT)
                policy = policy_of(meta, arrays, str(folder / CHECKPOINT))
                # What an interrupted training left is no policy yet.
                begun = meta["steps_done"] < TRAINING_STEPS
                if not begun:
                    return policy
            except CheckpointError as error:
                print(f"{error}; training again", file=sys.stderr)
        from agents.phaul_training import Training, train

        plan = Training(problem.network, traffic, gamma=problem.gamma, steps=TRAINING_STEPS)
        print(f"phaul: no --policy given, training {TRAINING_STEPS} steps on this topology", file=sys.stderr)
        policy = train(plan, folder, resume=begun, progress=_line)
        print(f"phaul: kept in {folder}", file=sys.stderr)
        return policy


def _line(row: Row) -> None:
    print(progress_line(row), file=sys.stderr)


def progress_line(row: Row) -> str:
    """A row of the learning curve in words."""
    line = f"{row['steps']:>7} steps  reward {row['reward_mean']:+.3f}"
    if row["efficiency_best"] is None:
        return line
    return f"{line}  best found: efficiency {row['efficiency_best']:.3f}  fairness {row['fairness_best']:.3f}"
