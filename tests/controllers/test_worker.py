"""Controllers are found by entry point."""

from __future__ import annotations

import pytest

from controllers.peak_alloc import PeakAlloc
from controllers.rule_based import RuleBased
from controllers.static import Static
from controllers.worker import find_controller


@pytest.mark.parametrize(("name", "cls"), [("static", Static), ("peak_alloc", PeakAlloc), ("rule_based", RuleBased)])
def test_found_by_entry_point(name: str, cls: type) -> None:
    assert find_controller(name) is cls
