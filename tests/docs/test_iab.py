"""The commands of the page on IAB run, with an allocation as the page describes it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.docs.blocks import ROOT, Shell, blocks
from topologies.iab import generate

PAGE = blocks(ROOT / "docs" / "iab.md")


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    # The network that the first command writes.
    flows = [flow.id for flow in generate(40, k_paths=3, load="high", seed=3).flows]
    (tmp_path / "alloc.json").write_text(json.dumps(dict.fromkeys(flows, 0)))
    (block,) = (block for block in PAGE if block.runnable)
    output = shell.run(block)
    found = []
    decoder = json.JSONDecoder()
    while "{" in output:
        one, end = decoder.raw_decode(output := output[output.index("{") :])
        found.append(one)
        output = output[end:]
    solved, evaluated = found
    assert set(solved["allocation"]) == set(evaluated["allocation"]) == set(flows)
    assert evaluated["efficiency"] < solved["efficiency"] <= solved["efficiency_bound"] + 1e-9
