"""The three built-in controllers on observations made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.base import ControllerContext
from controllers.peak_alloc import PeakAlloc
from controllers.rule_based import RuleBased
from controllers.static import Static
from controllers.worker import find_controller
from topologies.model import App, Gnb, Sla, Slice, Topology, Upf
from twin.knobs import refusal
from twin.types import Action, Kpi, Observation

TOPOLOGY = Topology(
    name="t",
    nodes=(Gnb(name="gnb1", work_ns_per_bit=120.0), Upf(name="upf1", slice="a"), App(name="app", service="request")),
    links=(),
    slices=(
        Slice(name="a", sst=1, prb_share=0.5, cpu_millicores=500, sla=Sla(q_thresh_bps=5e6)),
        Slice(name="b", sst=2, prb_share=0.3, cpu_millicores=500),
    ),
)


def context(*scope: str) -> ControllerContext:
    return ControllerContext(topology=TOPOLOGY, scope=scope or ("slice:a", "slice:b"), interval_s=5.0, seed=1)


def cpu(time_s: float, **slices: tuple[float, float]) -> Observation:
    kpis = []
    for name, (used, limit) in slices.items():
        kpis.append(Kpi(time_s, f"slice:{name}", "cpu_used_millicores", used))
        kpis.append(Kpi(time_s, f"slice:{name}", "cpu_limit_millicores", limit))
    return Observation(time_s, tuple(kpis))


def shown(controller: Any, *observations: Observation) -> list[Action]:
    for observation in observations:
        controller.observe(observation)
    actions = list(controller.act())
    assert all(refusal(action) is None for action in actions)
    return actions


@pytest.mark.parametrize(("name", "cls"), [("static", Static), ("peak_alloc", PeakAlloc), ("rule_based", RuleBased)])
def test_found_by_entry_point(name: str, cls: type) -> None:
    assert find_controller(name) is cls


def test_static_does_nothing_by_default_and_sets_its_values_once() -> None:
    assert list(Static(context()).act()) == []
    controller = Static(context(), {"slice:a": {"cpu_millicores": 300, "prb_share": 0.2}})
    assert list(controller.act()) == [Action("slice:a", "cpu_millicores", 300), Action("slice:a", "prb_share", 0.2)]
    assert list(controller.act()) == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"slice:c": {"prb_share": 0.1}}, "values: slice:c is outside the scope: slice:a, slice:b"),
        ({"slice:a": {"prb_share": 7}}, r"values: slice:a prb_share must be a number in \[0, 1\], got 7"),
        ({"slice:a": {"cpu": 7}}, "values: no knob named 'cpu'"),
        ({"slice:a": 3}, "values.slice:a must be a mapping, got 3"),
        ([1], r"values must be a mapping, got \[1\]"),
    ],
)
def test_static_refuses_bad_values(values: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Static(context(), values)


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


def test_peak_alloc_allocates_once_for_the_peak() -> None:
    controller = PeakAlloc(context(), peak_users=5, headroom=0.1, cpu_base_millicores=50)
    # 1.1 * 5 users * 5 Mbit/s = 27.5 Mbit/s, and at 120 ns per bit 3300 millicores.
    actions = shown(controller)
    assert [(action.entity, action.knob) for action in actions] == [
        ("slice:a", "cpu_millicores"),
        ("slice:a", "bandwidth_mbps"),
    ]
    assert [action.value for action in actions] == pytest.approx([3350.0, 27.5])
    assert shown(controller) == []


def test_peak_alloc_prb_share_and_per_slice_peaks() -> None:
    controller = PeakAlloc(context(), peak_users={"b": 2}, q_thresh_mbps=10, headroom=0, knobs=["prb_share"])
    (action,) = shown(controller)
    assert action.entity == "slice:b"
    assert action.value == pytest.approx(20e6 / (106 * 12 * 30e3 * 2.4063 * 0.86))


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"peak_users": -1}, "peak_users must be a number"),
        ({"peak_users": {"c": 1}}, "peak_users: no 'c' here; known: a, b"),
        ({"headroom": "much"}, "headroom must be a number"),
        ({"peak_users": 30, "knobs": ["prb_share"]}, "the peak needs more than all PRBs: shares add up to 2"),
    ],
)
def test_peak_alloc_refuses_bad_params(params: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PeakAlloc(context(), **params)


def test_peak_alloc_needs_a_slice() -> None:
    with pytest.raises(ValueError, match="scope holds no slice, got node:app"):
        PeakAlloc(context("node:app"))
