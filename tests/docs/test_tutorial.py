"""The tutorial, from its first command to its last, in one working folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scenarios.runs import list_runs
from tests.docs.blocks import ROOT, Shell, blocks

PAGE = [block for block in blocks(ROOT / "docs" / "tutorial.md") if block.runnable]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, list[str]]]:
    """A shell in which everything that needs no emulation was done, and what it printed, block by block."""
    found = Shell(tmp_path_factory.mktemp("tutorial"))
    yield found, [found.run(block) for block in PAGE if not block.emulation]


def test_the_reader_gets_through(shell: tuple[Shell, list[str]]) -> None:
    place, output = shell
    printed = "\n".join(output)
    assert printed.count("3 passed") == 2  # the template's own tests, and those of the page
    assert "my_scaler" in printed
    (ruled,), (scaled,) = list_runs(place.cwd / "ruled"), list_runs(place.cwd / "scaled")
    assert ruled["status"] == scaled["status"] == "VALID"
    assert (place.cwd / "compared.html").stat().st_size > 100_000


def test_the_figures_of_the_page_are_those_of_the_run(shell: tuple[Shell, list[str]]) -> None:
    """The flow model is deterministic: what the page quotes is what the reader sees."""
    _, output = shell
    printed = {cells(line) for text in output for line in text.splitlines()}
    quoted = [
        line
        for block in blocks(ROOT / "docs" / "tutorial.md")
        if block.language == "text"
        for line in block.text.splitlines()
        if line.startswith("│ ")
    ]
    assert len(quoted) >= 8
    for line in quoted:
        assert cells(line) in printed, f"docs/tutorial.md quotes what is not printed any more: {line}"


def cells(line: str) -> tuple[str, ...]:
    """The cells of a table's row, whatever their width."""
    return tuple(part.strip() for part in line.split("│"))


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_the_same_on_containers(shell: tuple[Shell, list[str]]) -> None:
    place, _ = shell
    output = "\n".join(place.run(block) for block in PAGE if block.emulation)
    assert "emulation: measured" in output
    (run,) = list_runs(place.cwd / "runs")[-1:]
    assert run["fidelity"] == "emulation"
