"""``peak_alloc``: the arithmetic and the checks."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.peak_alloc import PeakAlloc
from tests.controllers.observations import context, shown


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
