"""The commands of the page on IAB in emulation run."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.runs import list_runs
from tests.docs.blocks import ROOT, Shell, blocks

PAGE = blocks(ROOT / "docs" / "iab-emulation.md")


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_the_page(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    runnable = [block for block in PAGE if block.runnable]
    assert len(runnable) == 1
    output = shell.run(runnable[0], timeout_s=120)
    assert "relative error" in output
    assert [run["fidelity"] for run in list_runs(tmp_path / "runs")] == ["emulation", "flow", "emulation"]
