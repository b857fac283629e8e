"""The commands of the page on slice models run one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Shell, blocks

PAGE = [block for block in blocks(ROOT / "docs" / "microopt.md") if block.runnable]


def test_the_page(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    output = "".join(shell.run(block, timeout_s=240) for block in PAGE if not block.emulation)
    assert '"coverage"' in output
    assert {"qos.parquet", "model.pt", "mixture.pt", "surface.html"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_what_runs_on_containers(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (block,) = (block for block in PAGE if block.emulation)
    assert "emulation: measured" in shell.run(block, timeout_s=60)
