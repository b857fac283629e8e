"""Controllers are found by entry point."""

from __future__ import annotations

import subprocess
import sys

import pytest

from controllers.peak_alloc import PeakAlloc
from controllers.rule_based import RuleBased
from controllers.static import Static
from controllers.worker import find_controller


@pytest.mark.parametrize(("name", "cls"), [("static", Static), ("peak_alloc", PeakAlloc), ("rule_based", RuleBased)])
def test_found_by_entry_point(name: str, cls: type) -> None:
    assert find_controller(name) is cls


def test_ends_with_its_parent_however_that_ends() -> None:
    child = "from controllers.worker import end_with_parent; import os, time; end_with_parent(os.getppid());"
    child += "print(flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        # The child holds the other end of the pipe for as long as it lives.
        assert process.stdout.read() == ""
