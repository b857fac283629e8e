from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sb3_contrib")

import torch

from agents.checkpoint import CheckpointError
from agents.iab_path import PathSearchError, PathSearches, PathSpace, Traffic
from agents.phaul import CHECKPOINT, PhaulPolicy, read_policy, search
from agents.phaul_training import CURVE, SearchVecEnv, Training, train
from topologies.iab import IabNetwork, generate

STEPS = 2 * 2048


@pytest.fixture(scope="module")
def network() -> IabNetwork:
    return generate(12, k_paths=2, seed=1)


@pytest.fixture(scope="module")
def plan(network: IabNetwork) -> Training:
    return Training(network, Traffic.of_load("high"), gamma=0.5, steps=STEPS, episode_steps=60, seed=3)


@pytest.fixture(scope="module")
def folder(plan: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    train(plan, path)
    return path


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    plan: Training, folder: Path, tmp_path: Path
) -> None:
    train(plan, tmp_path / "again")
    train(replace(plan, seed=4), tmp_path / "other")
    first = (folder / CHECKPOINT).read_bytes()
    assert (tmp_path / "again" / CHECKPOINT).read_bytes() == first
    assert (tmp_path / "again" / CURVE).read_text() == (folder / CURVE).read_text()
    ours, theirs = read_policy(folder), read_policy(tmp_path / "other")
    assert any((a != b).any() for (a, _), (b, _) in zip(ours.layers, theirs.layers, strict=True))


@pytest.mark.parametrize("change", [{}, {"across": True}, {"masking": False}])
def test_interrupted_and_resumed_is_the_same_as_in_one_go(
    change: dict[str, bool], plan: Training, tmp_path: Path
) -> None:
    whole = replace(plan, **change)
    one, two = tmp_path / "one", tmp_path / "two"
    train(whole, one)
    train(replace(whole, steps=2048), two)
    assert (two / CHECKPOINT).read_bytes() != (one / CHECKPOINT).read_bytes()
    train(whole, two, resume=True)
    assert (two / CHECKPOINT).read_bytes() == (one / CHECKPOINT).read_bytes()
    assert (two / CURVE).read_bytes() == (one / CURVE).read_bytes()


def test_training_leaves_the_global_generators_alone(plan: Training) -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.random(), float(torch.rand(()))
    np.random.seed(5)
    torch.manual_seed(5)
    train(replace(plan, steps=1))
    assert (np.random.random(), float(torch.rand(()))) == expected


def test_learns(network: IabNetwork) -> None:
    """Found within the same steps: more than by a policy that knows nothing."""
    plan = Training(network, Traffic.of_load("high"), steps=10 * 2048, episode_steps=60, seed=1)
    policy = train(plan)
    nothing = replace(policy, layers=tuple((weight * 0, bias * 0) for weight, bias in policy.layers))
    space = policy.space_of(network)
    demand = plan.traffic.draw(np.random.default_rng(9), (100, space.flows))
    found, blind = (
        search(one, space, demand, np.random.default_rng(0), steps=15).best_objective for one in (policy, nothing)
    )
    assert (found - blind).mean() > 0.01


def test_numpy_decides_as_torch_would(plan: Training) -> None:
    policy = train(replace(plan, steps=1))
    environment = SearchVecEnv(plan)
    state = environment.reset()
    from sb3_contrib import MaskablePPO

    model = MaskablePPO("MlpPolicy", environment, seed=0, device="cpu")
    weights = dict(model.policy.state_dict())
    names = ("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")
    for name, (weight, bias) in zip(names, policy.layers, strict=True):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.from_numpy(weight), torch.from_numpy(bias)
    model.policy.load_state_dict(weights)
    with torch.no_grad():
        expected = model.policy.get_distribution(torch.from_numpy(state)).distribution.logits.numpy()
    ours = policy.logits(state)
    ours = ours - np.log(np.exp(ours).sum(axis=1, keepdims=True))
    assert ours == pytest.approx(expected, abs=1e-5)


def test_a_search_of_many_matrices_keeps_to_the_masks(network: IabNetwork, folder: Path) -> None:
    policy = read_policy(folder)
    space = policy.space_of(network)
    demand = Traffic.of_load("high", 0.6).draw(np.random.default_rng(2), (50, space.flows))
    ended = search(policy, space, demand, np.random.default_rng(0))
    assert ended.refused.sum() == 0
    assert (ended.step_count == policy.episode_steps).all()
    start = PathSearches(space, 50, gamma=0.5)
    start.restart(demand)
    assert (ended.best_objective >= start.objective).all()
    assert (ended.best_objective > start.objective).mean() > 0.9


def test_broken_links_and_idle_flows_need_no_new_policy(network: IabNetwork, folder: Path) -> None:
    policy = read_policy(folder)
    broken = generate(12, k_paths=2, seed=1, broken=2)
    assert len(broken.links) == len(network.links) - 2
    for here in (broken, replace(network, flows=network.flows[1:])):
        space = policy.space_of(here)
        ended = search(policy, space, space.demand_bps[None], np.random.default_rng(0))
        assert space.decided(ended.best_allocation).shape == (1, len(here.flows))


def test_a_policy_across_topologies_fits_all_of_its_size(plan: Training) -> None:
    policy = train(replace(plan, across=True, steps=1))
    assert policy.network is None
    for seed in (7, 8):
        assert policy.space_of(generate(12, k_paths=2, seed=seed)).flows == 9
    with pytest.raises(CheckpointError, match="was trained for 9 flows, here are 12"):
        policy.space_of(generate(15, k_paths=2, seed=7))


def renamed(network: IabNetwork) -> IabNetwork:
    first = replace(network.flows[0], id="someone")
    return replace(network, flows=(first, *network.flows[1:]))


def weaker(network: IabNetwork) -> IabNetwork:
    first = replace(network.links[0], capacity_bps=network.links[0].capacity_bps / 2)
    return replace(network, links=(first, *network.links[1:]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda _: generate(15, k_paths=2, seed=1), "was trained for 12 nodes, here are 15"),
        (lambda _: generate(12, k_paths=2, seed=2), "is of another topology: "),
        (weaker, r"is of another topology: link n1-d1 \(sub6\) had .* bit/s, has "),
        (renamed, "is of another topology: it has no flow someone of n1"),
        (lambda _: generate(12, k_paths=3, seed=1), "was trained for K 2: flow f-n.*: more than 2 paths in band"),
    ],
)
def test_another_network_is_refused_by_the_difference(other, message, network, folder: Path) -> None:  # type: ignore[no-untyped-def]
    policy = read_policy(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        policy.space_of(other(network))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_resumed_training_must_be_the_same(plan: Training, folder: Path, tmp_path: Path) -> None:
    before = (folder / CHECKPOINT).read_bytes()
    cases = [
        (replace(plan, seed=9), "seed was another: 3, not 9"),
        (replace(plan, gamma=1.0), "gamma was another: 0.5, not 1.0"),
        (replace(plan, network=generate(12, k_paths=2, seed=9)), "was another"),
    ]
    for other, message in cases:
        with pytest.raises(CheckpointError, match=message):
            train(other, folder, resume=True)
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        train(plan, tmp_path, resume=True)
    with pytest.raises(PathSearchError, match="steps: must be at least 1"):
        replace(plan, steps=0)
    assert (folder / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_that_contradicts_itself(folder: Path, tmp_path: Path) -> None:
    from agents import checkpoint

    meta, arrays = checkpoint.read(folder / CHECKPOINT, "phaul")
    content = {name: value for name, value in meta.items() if name not in ("format", "version", "agent")}
    weight = "policy/action_net.weight"
    cases = [
        ({**content, "flows": content["flows"][1:]}, arrays, "a layer has shape"),
        ({**content, "k_paths": 5}, arrays, "numbers of flows, paths and actions do not fit"),
        ({**content, "gamma": 3}, arrays, "do not fit together"),
        ({**content, "fingerprint": "0"}, arrays, "does not have the fingerprint that it states"),
        ({**content, "network": {"nodes": []}}, arrays, "is damaged: IabError"),
        ({name: value for name, value in content.items() if name != "gamma"}, arrays, "is damaged: KeyError: 'gamma'"),
        (
            {name: value for name, value in content.items() if name != "masking"},
            arrays,
            "is damaged: KeyError: 'masking'",
        ),
        ({**content, "k_paths": float("inf")}, arrays, "is damaged: OverflowError"),
        ({**content, "flows": content["flows"][::-1]}, arrays, "its flows are not those of its topology"),
        (content, {**arrays, weight: arrays[weight][:, :5]}, "a layer has shape"),
        (content, {**arrays, weight: arrays[weight] * 1j}, "is damaged: TypeError"),
    ]
    path = tmp_path / "bad.npz"
    for meta, values, message in cases:
        checkpoint.write(path, "phaul", meta, values)
        with pytest.raises(CheckpointError, match=message):
            read_policy(path)


def test_spaces_know_the_policy(network: IabNetwork, folder: Path) -> None:
    policy: PhaulPolicy = read_policy(folder)
    assert policy.network == network
    assert (policy.gamma, policy.k_paths, policy.episode_steps) == (0.5, 2, 60)
    assert policy.space_of(network).names == PathSpace(network).names
