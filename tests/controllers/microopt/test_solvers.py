"""Solvers on a small slice model: the strict definition, the optimum, shared capacities, the rivals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from controllers.microopt import bayesian, gradient, interior_point
from controllers.microopt.problem import Problem, ProblemError, SliceDemand
from controllers.microopt.registry import SOLVERS
from controllers.microopt.slice_data import DELAY, SliceModelError
from controllers.microopt.slice_model import SliceModel
from controllers.microopt.traffic import Traffic, constant, normal, poisson
from tests.controllers.microopt.models import delay_model, delay_rows, small_model

CAPACITY = {"cpu_millicores": 1000.0, "bandwidth_mbps": 25.0}
ETA = {"cpu_millicores": 1 / 1000, "bandwidth_mbps": 1 / 25}


@pytest.fixture(scope="module")
def model() -> SliceModel:
    return small_model()


def problem(model: SliceModel, traffic: Traffic, q: float, beta: float, **more: Any) -> Problem:
    return Problem((SliceDemand(model, traffic, q, beta),), CAPACITY, ETA, **more)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sampled(stated: Problem, allocation: dict[str, float], draws: int = 200_000) -> float:
    u = torch.tensor([[list(allocation.values())]]) / stated.scale
    return float(stated.sampled_beta(u, draws, np.random.default_rng(9))[0, 0])


@pytest.mark.parametrize("traffic", [constant(2), constant(4), normal(3, 0.7, low=1, high=5)])
@pytest.mark.parametrize(("q", "beta"), [(3.0, 0.3), (4.0, 0.1)])
def test_microopt_is_feasible_and_near_the_optimum(model: SliceModel, traffic: Traffic, q: float, beta: float) -> None:
    stated = problem(model, traffic, q, beta)
    ours, best = SOLVERS["microopt"](stated, rng()), SOLVERS["grid"](stated, rng())
    assert ours.feasible and best.feasible
    assert ours.expected_beta <= beta
    assert sampled(stated, ours.allocation) <= beta
    assert best.cost - 1e-3 <= ours.cost <= best.cost * 1.01
    # Not wasteful: on the boundary, unless the least of everything will do.
    at_the_least = ours.allocation == pytest.approx({"cpu_millicores": 100, "bandwidth_mbps": 2.5})
    assert ours.expected_beta >= 0.95 * beta or at_the_least
    assert ours.cost == pytest.approx(sum(ETA[name] * value for name, value in ours.allocation.items()), rel=1e-4)
    assert ours.trace[-1]["cost"] == pytest.approx(ours.cost, rel=0.01)


def test_closed_form_agrees_with_drawing(model: SliceModel) -> None:
    stated = problem(model, normal(3, 0.7, low=1, high=5), 4, 0.1)
    u = torch.tensor([[[0.5, 0.6]], [[0.8, 0.7]]])
    exact = stated.expected_beta(u, 1024)[:, 0]
    drawn = stated.sampled_beta(u, 400_000, rng())[:, 0]
    assert exact.tolist() == pytest.approx(drawn.tolist(), abs=0.004)


def test_thresholds_that_nothing_can_meet(model: SliceModel) -> None:
    stated = problem(model, constant(5), 12, 0.1)
    for name in ("microopt", "grid"):
        found = SOLVERS[name](stated, rng())
        assert not found.feasible
        assert "E[beta] 1 above 0.1" in found.reason
        # Served best is who gets all.
        assert found.allocation == pytest.approx(CAPACITY)


def test_two_slices_share_what_there_is(model: SliceModel) -> None:
    slices = (SliceDemand(model, constant(2), 4, 0.1), SliceDemand(model, constant(3), 3, 0.2))
    free = SOLVERS["microopt"](Problem(slices, {"cpu_millicores": 2000, "bandwidth_mbps": 50}, ETA), rng())
    assert free.feasible
    alone = [SOLVERS["microopt"](Problem((part,), CAPACITY, ETA), rng()).cost for part in slices]
    assert free.cost == pytest.approx(sum(alone), rel=0.01)
    # A link that is just too narrow for both must be shared otherwise, at a price in CPU.
    tight = Problem(slices, {"cpu_millicores": 2000, "bandwidth_mbps": 0.99 * free.allocation["bandwidth_mbps"]}, ETA)
    found, best = SOLVERS["microopt"](tight, rng()), SOLVERS["grid"](tight, rng())
    assert best.feasible and found.feasible
    assert found.allocation["bandwidth_mbps"] <= tight.capacity["bandwidth_mbps"] * (1 + 1e-5)
    assert free.cost <= found.cost <= best.cost * 1.005
    assert all(part.expected_beta <= part.beta_thresh for part in found.slices)


def test_capacity_that_cannot_be_kept(model: SliceModel) -> None:
    stated = replace(problem(model, constant(4), 4, 0.1), capacity=CAPACITY | {"bandwidth_mbps": 8.0})
    found = SOLVERS["microopt"](stated, rng())
    assert not found.feasible
    assert found.allocation["bandwidth_mbps"] <= 8.0 * (1 + 1e-5)


def test_a_warm_start_and_new_thresholds_need_no_training(model: SliceModel) -> None:
    first = gradient.solve(problem(model, constant(3), 4, 0.1), rng())
    changed = problem(model, constant(3), 3, 0.3)
    warm = torch.tensor([list(first.allocation.values())]) / changed.scale
    quick = gradient.Options(candidates=32, starts=2, outer=6, inner=4)
    found = gradient.solve(changed, rng(), options=quick, warm=warm)
    assert found.feasible
    assert found.cost < first.cost
    assert found.cost <= SOLVERS["grid"](changed, rng()).cost * 1.02


def test_ablation(model: SliceModel) -> None:
    stated = problem(model, constant(3), 4, 0.1)
    zero, two = SOLVERS["microopt_0sigma"](stated, rng()), SOLVERS["microopt_2sigma"](stated, rng())
    ours = SOLVERS["microopt"](stated, rng())
    assert zero.cost < ours.cost < two.cost
    assert zero.expected_beta == pytest.approx(0.5, abs=0.05) and not zero.feasible
    assert two.expected_beta == pytest.approx(0.023, abs=0.01) and two.feasible


def test_peak_alloc_is_for_five_users_whatever_comes(model: SliceModel) -> None:
    one = SOLVERS["peak_alloc"](problem(model, constant(1), 3, 0.3), rng())
    four = SOLVERS["peak_alloc"](problem(model, constant(4), 3, 0.3), rng())
    assert one.allocation == four.allocation
    assert one.expected_beta <= four.expected_beta <= 0.05


@pytest.mark.parametrize("name", ["atlas", "cadrl"])
def test_rivals_find_something_feasible_and_dearer(model: SliceModel, name: str) -> None:
    traffic = normal(3, 0.5, low=1, high=5)
    stated = problem(model, traffic, 3, 0.2)
    solve: Any = {
        "atlas": lambda part, plus: (bayesian.atlas_plus if plus else bayesian.atlas)(
            part,
            rng(),
            bayesian.Options(rounds=12, parallel=8, pool=1000, first_fit_steps=120, fit_steps=15, dual_rate=0.5),
        ),
        "cadrl": lambda part, plus: (interior_point.cadrl_plus if plus else interior_point.cadrl)(
            part, rng(), interior_point.Options(iterations=40, batch=64, epochs=6)
        ),
    }[name]
    plain, plus = solve(stated, False), solve(stated, True)
    best = SOLVERS["grid"](stated, rng())
    assert (plain.solver, plus.solver) == (name, f"{name}_plus")
    assert plain.feasible and plus.feasible
    # Who knows the peak only pays for it; nobody is below the optimum.
    assert best.cost <= plus.cost * 1.001 and best.cost <= plain.cost * 1.001
    assert plain.expected_beta < 0.05
    assert plus.cost < 1.9
    again = solve(stated, True)
    assert again.allocation == plus.allocation


@pytest.mark.parametrize("name", ["atlas_plus", "cadrl_plus"])
def test_problems_side_by_side_are_solved_as_alone(model: SliceModel, name: str) -> None:
    stated = [
        problem(model, normal(3, 0.5, low=1, high=5), 3, 0.2),
        problem(model, constant(2), 4, 0.1),
        problem(model, normal(2, 0.4, low=1, high=5), 4, 0.3),
    ]
    solve: Any = {
        "atlas_plus": lambda problems, rngs: bayesian.atlas_plus_batch(
            problems, rngs, bayesian.Options(rounds=4, parallel=4, pool=500, first_fit_steps=20, fit_steps=5)
        ),
        "cadrl_plus": lambda problems, rngs: interior_point.cadrl_plus_batch(
            problems, rngs, interior_point.Options(iterations=8, batch=32, epochs=3)
        ),
    }[name]
    together = solve(stated, [np.random.default_rng(seed) for seed in range(3)])
    for seed, (one, found) in enumerate(zip(stated, together, strict=True)):
        (alone,) = solve([one], [np.random.default_rng(seed)])
        assert found.allocation == pytest.approx(alone.allocation, rel=1e-3)
        assert found.solver == name
        assert found.expected_beta == pytest.approx(sampled(one, found.allocation), abs=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_thresh": 0.0}, "beta must be between 0 and 1, got 0"),
        ({"q_thresh": float("nan")}, "q-thresh must be a positive number, got nan"),
        ({"qos": "delay_s"}, "delay_s"),
        ({"slice_name": "nobody"}, "nobody"),
    ],
)
def test_bad_demands(model: SliceModel, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SliceModelError, match=message):
        replace(SliceDemand(model, constant(3), 4.0, 0.1), **change)


def test_bad_problems(model: SliceModel) -> None:
    demand = SliceDemand(model, constant(3), 4, 0.1)
    with pytest.raises(ProblemError, match="capacity: no resource 'cpu'; resources: cpu_millicores, bandwidth_mbps"):
        Problem((demand,), {"cpu": 1.0})
    with pytest.raises(ProblemError, match="less than the least that the models know: bandwidth_mbps 5 of 4"):
        Problem((demand, demand), {"bandwidth_mbps": 4.0})


def test_delay_is_degraded_above_its_threshold() -> None:
    """E[beta] on the model against the share of measured delays above the threshold, cell by cell."""
    model, data = delay_model(), delay_rows(repeat=400, seed=5)
    for cpu, bw, users in ((250.0, 10.0, 2.0), (400.0, 5.0, 3.0), (1000.0, 25.0, 5.0)):
        keep = (data.allocation == (cpu, bw)).all(1) & (data.traffic == users)
        threshold = float(np.quantile(data.qos[DELAY][keep], 0.7))
        stated = Problem((SliceDemand(model, constant(users), threshold, 0.3, qos=DELAY),), CAPACITY, ETA)
        u = torch.tensor([[[cpu, bw]]]) / stated.scale
        assert float(stated.expected_beta(u)[0, 0]) == pytest.approx(0.3, abs=0.12)
        assert float(stated.sampled_beta(u, 50_000, rng())[0, 0]) == pytest.approx(
            float(stated.expected_beta(u)[0, 0]), abs=0.01
        )


def test_less_delay_costs_more() -> None:
    model = delay_model()
    costs = []
    for threshold in (0.05, 0.07, 0.1):
        stated = Problem((SliceDemand(model, poisson(3, low=1, high=5), threshold, 0.1, qos=DELAY),), CAPACITY, ETA)
        ours, best = SOLVERS["microopt"](stated, rng()), SOLVERS["grid"](stated, rng())
        assert ours.feasible and best.cost - 1e-3 <= ours.cost <= best.cost * 1.01
        assert sampled(stated, ours.allocation) <= 0.1
        costs.append(ours.cost)
    assert costs[0] > 1.1 * costs[1] > 1.2 * costs[2]
    peak = SOLVERS["peak_alloc"](stated, rng())
    assert peak.feasible and peak.cost > costs[-1]
    impossible = Problem((SliceDemand(model, constant(3), 0.005, 0.1, qos=DELAY),), CAPACITY, ETA)
    assert not SOLVERS["microopt"](impossible, rng()).feasible


def test_extrapolation_is_marked(model: SliceModel) -> None:
    inside = SOLVERS["microopt"](problem(model, constant(3), 4, 0.1), rng())
    beyond = SOLVERS["microopt"](problem(model, constant(8), 1, 0.1), rng())
    assert not inside.slices[0].extrapolated
    assert beyond.slices[0].extrapolated
