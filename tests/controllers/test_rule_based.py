"""``rule_based`` on observations made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.rule_based import RuleBased
from tests.controllers.observations import context, cpu, shown
from twin.types import Action, Kpi, Observation


def test_rule_based_moves_25_millicores_from_the_idle_to_the_loaded() -> None:
    controller = RuleBased(context())
    # The budget is what both had at first, so the release comes before the claim.
    assert shown(controller, cpu(1, a=(400, 500), b=(50, 500))) == [
        Action("slice:b", "cpu_millicores", 475.0),
        Action("slice:a", "cpu_millicores", 525.0),
    ]


@pytest.mark.parametrize(
    ("used", "expected"),
    [(150, []), (149, [475.0]), (300, []), (301, [525.0]), (0, [475.0]), (500, [525.0])],
)
def test_rule_based_thresholds_are_30_and_60_percent(used: float, expected: list[float]) -> None:
    controller = RuleBased(context("slice:a"), budget={"cpu_millicores": 1000})
    assert [action.value for action in shown(controller, cpu(1, a=(used, 500)))] == expected


def test_rule_based_keeps_the_budget_and_the_minimum() -> None:
    controller = RuleBased(context(), budget={"cpu_millicores": 120})
    assert shown(controller, cpu(1, a=(60, 60), b=(1, 60))) == []  # 60 - 25 < 50, nothing is free
    controller = RuleBased(context(), budget={"cpu_millicores": 150})
    # 30 are free: one step, for the more loaded.
    assert shown(controller, cpu(1, a=(50, 60), b=(55, 60))) == [Action("slice:b", "cpu_millicores", 85.0)]


def test_rule_based_averages_since_the_last_decision() -> None:
    controller = RuleBased(context("slice:a"), budget={"cpu_millicores": 1000})
    assert shown(controller, cpu(1, a=(500, 500)), cpu(2, a=(50, 500))) == []  # 55 %
    assert [action.value for action in shown(controller, cpu(3, a=(500, 500)))] == [525.0]
    assert shown(controller) == []  # nothing seen, nothing done


def test_rule_based_leaves_what_has_no_limit_alone() -> None:
    controller = RuleBased(context("slice:a", "node:app"))
    observation = Observation(1.0, (Kpi(1.0, "node:app", "cpu_used_millicores", 900.0),))
    assert shown(controller, observation) == []


def test_rule_based_moves_bandwidth_and_prbs() -> None:
    controller = RuleBased(
        context(),
        knobs=["bandwidth_mbps", "prb_share"],
        budget={"bandwidth_mbps": 30},
        step={"bandwidth_mbps": 2, "prb_share": 0.1},
    )
    kpis = []
    for name, rate, used in (("a", 9e6, 0.95), ("b", 2e6, 0.1)):
        kpis += [
            Kpi(1, f"slice:{name}", "bandwidth_limit_bps", 10e6),
            Kpi(1, f"slice:{name}", "throughput_dl_bps", rate),
            Kpi(1, f"slice:{name}", "prb_share", 0.5),
            Kpi(1, f"slice:{name}", "prb_used_dl_ratio", used),
            Kpi(1, f"slice:{name}", "prb_used_ul_ratio", 0.0),
        ]
    assert shown(controller, Observation(1.0, tuple(kpis))) == [
        Action("slice:b", "bandwidth_mbps", 8.0),
        Action("slice:a", "bandwidth_mbps", 12.0),
        Action("slice:b", "prb_share", 0.4),
        Action("slice:a", "prb_share", 0.6),
    ]


def test_rule_based_leaves_the_prbs_of_slices_out_of_scope() -> None:
    controller = RuleBased(context("slice:a"), knobs=["prb_share"])
    loaded = Observation(1.0, (Kpi(1, "slice:a", "prb_share", 0.7), Kpi(1, "slice:a", "prb_used_dl_ratio", 1.0)))
    assert shown(controller, loaded) == []  # 0.3 belong to b
    loaded = Observation(2.0, (Kpi(2, "slice:a", "prb_share", 0.6), Kpi(2, "slice:a", "prb_used_dl_ratio", 1.0)))
    assert shown(controller, loaded) == [Action("slice:a", "prb_share", 0.65)]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"high": 60}, r"high must be a number in \[0, 1\], got 60"),
        ({"low": 0.7}, r"low must be less than high \(0\.6\), got 0\.7"),
        ({"knobs": ["cpu"]}, "knobs must be a list of different words out of cpu_millicores"),
        ({"knobs": "cpu_millicores"}, "knobs must be a list"),
        ({"step": {"cpu_millicores": 0}}, "step.cpu_millicores must be a number"),
        ({"budget": {"memory": 5}}, "budget: no 'memory' here; known: cpu_millicores"),
        ({"minimum": {"cpu_millicores": 5}}, r"minimum.cpu_millicores must be a number in \[10, "),
        ({"budget": 5}, "budget must be a mapping"),
    ],
)
def test_rule_based_refuses_bad_params(params: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RuleBased(context(), **params)


def test_rule_based_needs_something_to_act_on() -> None:
    with pytest.raises(ValueError, match="none of prb_share acts on the scope node:app"):
        RuleBased(context("node:app"), knobs=["prb_share"])
