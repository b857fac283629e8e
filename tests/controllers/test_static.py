"""``static``: sets its values once."""

from __future__ import annotations

from typing import Any

import pytest

from controllers.static import Static
from tests.controllers.observations import context
from twin.types import Action


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
