"""The commands of the page on slice models run one after the other."""

from __future__ import annotations

from pathlib import Path

from tests.docs.blocks import ROOT, Shell, blocks

PAGE = [block for block in blocks(ROOT / "docs" / "microopt.md") if block.runnable]


def test_the_page(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    output = "".join(shell.run(block, timeout_s=240) for block in PAGE)
    assert '"coverage"' in output
    assert {"qos.parquet", "model.pt", "mixture.pt", "surface.html"} <= {path.name for path in tmp_path.iterdir()}
