"""The key ``sdn`` of a scenario: files beside it, modules, mistakes, and what a modelled run makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.errors import ScenarioFileError
from scenarios.execution import execute
from scenarios.loader import load_scenario
from tests.scenarios.scenario_text import SMALL


def written(folder: Path, app: str) -> Path:
    path = folder / "small.twin.yml"
    path.write_text(f"{SMALL}\nsdn: {{app: {app}}}\n", encoding="utf-8")
    return path


def test_a_file_is_looked_for_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "switch.py").touch()
    assert load_scenario(written(tmp_path, "switch.py")).sdn_app == str(tmp_path / "switch.py")
    assert load_scenario(written(tmp_path, "package.module")).sdn_app == "package.module"
    (tmp_path / "plain.twin.yml").write_text(SMALL, encoding="utf-8")
    assert load_scenario(tmp_path / "plain.twin.yml").sdn_app is None


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("nowhere.py", "must be a Python file that exists or package.module, got nowhere.py"),
        ("apps/switch", "must be a Python file that exists or package.module, got apps/switch"),
        ("'no module'", "must be a file that ends with .py or package.module, got 'no module'"),
        ("''", "sdn.app"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, app: str, message: str) -> None:
    with pytest.raises(ScenarioFileError) as error:
        load_scenario(written(tmp_path, app))
    (problem,) = error.value.problems
    assert message in str(problem) and problem.line > 1


def test_a_modelled_run_says_that_it_leaves_the_application_out(tmp_path: Path) -> None:
    (tmp_path / "switch.py").touch()
    scenario = load_scenario(
        written(tmp_path, "switch.py"), fidelity="flow", duration_s=2.0, settings={"assert": [], "events": []}
    )
    finished = execute(scenario, runs=tmp_path / "runs")
    assert finished.result.status == "VALID"
    assert any("switch.py runs in emulation only" in warning for warning in finished.warnings)
