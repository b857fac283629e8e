from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controllers.iab.registry import SOLVERS, solver_names
from scenarios.exit_codes import ExitCode
from scenarios.iab_cli import CONTROLLERS, Heuristic, Load
from tests import command
from topologies.iab import HEURISTICS, LOADS_BPS

KEYS = ["allocation", "rates_bps", "efficiency", "fairness", "decision_time_s", "steps"]


def twin(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``twin iab``."""
    return command.twin(capsys, "iab", *arguments)


@pytest.fixture
def network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    path = str(tmp_path / "net.json")
    arguments = ("--nodes", "20", "--k-paths", "1", "--load", "high", "--seed", "3", "--format", "json")
    code, out, err = twin(capsys, "generate", *arguments, "--out", path)
    assert code == ExitCode.OK, err
    links = len(json.loads(Path(path).read_text())["links"])
    assert json.loads(out) == {"file": path, "nodes": 20, "links": links, "flows": 17, "paths": 34}
    return path


def solved(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = twin(capsys, "solve", *arguments, "--format", "json")
    assert code == ExitCode.OK, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("controller", [None, *SOLVERS])
def test_evaluate_agrees_with_solve(
    controller: str | None, network: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = solved(capsys, network, *(["--controller", controller] if controller else []))
    assert list(found)[:6] == KEYS
    assert found["decision_time_s"] > 0
    (tmp_path / "alloc.json").write_text(json.dumps(found["allocation"]))
    code, out, err = twin(capsys, "evaluate", network, "--allocation", str(tmp_path / "alloc.json"), "--format", "json")
    assert code == ExitCode.OK, err
    again = json.loads(out)
    assert list(again) == KEYS
    assert [again[key] for key in KEYS[:4]] == [found[key] for key in KEYS[:4]]
    flows = json.loads(Path(network).read_text())["flows"]
    offered = sum(flow["demand_bps"] for flow in flows)
    rates = found["rates_bps"].values()
    assert found["efficiency"] == pytest.approx(sum(rates) / offered)
    assert found["fairness"] == pytest.approx(sum(rates) ** 2 / (len(flows) * sum(rate**2 for rate in rates)))


def test_best_is_as_good_as_brute_force_and_gamma_matters(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    exact = solved(capsys, network, "--controller", "brute_force")
    best = solved(capsys, network, "--controller", "best", "--gamma", "1")
    fair = solved(capsys, network, "--controller", "best", "--gamma", "-1")
    assert exact["steps"] == 2**17
    assert best["efficiency"] >= 0.995 * exact["efficiency"]
    assert fair["fairness"] > exact["fairness"]
    assert fair["efficiency"] < exact["efficiency"]


@pytest.mark.parametrize("controller", ["random", "local_search", "optimal"])
@pytest.mark.parametrize("gamma", [-1.0, 0.0, 1.0])
def test_bounds_are_printed(controller: str, gamma: float, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = solved(capsys, network, "--controller", controller, "--gamma", str(gamma))
    objective = (1 + gamma) * found["efficiency"] + (1 - gamma) * found["fairness"]
    assert found["objective"] == pytest.approx(objective)
    assert found["objective"] <= found["objective_bound"] + 1e-9
    assert found["efficiency"] <= found["efficiency_bound"] + 1e-9 <= found["lp_efficiency_bound"] + 2e-9
    exact = solved(capsys, network, "--controller", "brute_force", "--gamma", str(gamma))
    assert exact["objective_bound"] == exact["objective"] <= found["objective_bound"] + 1e-6
    if controller == "optimal":
        assert found["objective"] == pytest.approx(exact["objective"])
        assert found["objective_bound"] == pytest.approx(exact["objective"], abs=2e-6)


def test_capacities_by_path_loss(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    arguments = ("--nodes", "40", "--seed", "2", "--capacities", "38.901", "--out", str(path), "--format", "json")
    code, _, err = twin(capsys, "generate", *arguments)
    assert code == ExitCode.OK, err
    links = json.loads(path.read_text())["links"]
    for band, most_bps in (("mmwave", 870e6), ("sub6", 285e6)):
        capacities = {link["capacity_bps"] for link in links if link["band"] == band}
        assert 0 < min(capacities) < max(capacities) < most_bps
    assert solved(capsys, str(path))["efficiency"] > 0


def test_tables_for_people(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = twin(capsys, "solve", network, "--controller", "subset_sum")
    assert code == ExitCode.OK
    assert "f-n1" in out and "mmwave" in out and "efficiency" in out
    code, out, _ = twin(capsys)
    assert code == ExitCode.OK
    assert "generate" in out


def test_a_network_without_flows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text('{"nodes": [{"id": "d", "donor": true}], "links": [], "flows": []}')
    (tmp_path / "alloc.json").write_text("{}")
    allocation = ("--allocation", str(tmp_path / "alloc.json"), "--format", "json")
    code, out, err = twin(capsys, "evaluate", str(tmp_path / "net.json"), *allocation)
    assert code == ExitCode.OK, err
    assert json.loads(out)["rates_bps"] == {}
    code, _, err = twin(capsys, "solve", str(tmp_path / "net.json"))
    assert code == ExitCode.USAGE
    assert err == "flows: the network has none, so there is nothing to decide\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "NET", "--gamma", "2"], "gamma: must be in -1..1, got 2"),
        (["solve", "NET", "--controller", "brute"], "controller: must be one of subset_sum, random,"),
        (["solve", "/nowhere/net.json"], "/nowhere/net.json: cannot be read: No such file"),
        (["evaluate", "NET", "--allocation", "NET"], "flow nodes: the network has no such flow"),
        (["generate", "--out", "/nowhere/net.json"], "--out /nowhere/net.json: cannot be written"),
        (["generate", "--out", "NET", "--nodes", "2"], "nodes: must be in 4..1023 (BAP addresses have 10 bits), got 2"),
        (["generate", "--out", "NET", "--seed", "-1"], "'--seed': Input should be greater than or equal to 0"),
        (["generate", "--out", "NET", "--capacities", "rician"], "'rician' is not one of 'uniform', '38.901'"),
        (["generate", "--out", "NET", "--active", "nan"], "active_probability: must be above 0"),
        (["improve"], "no command named improve; known: generate, evaluate, solve"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = twin(capsys, *(network if item == "NET" else item for item in arguments))
    assert code == ExitCode.USAGE
    assert out == ""
    assert message in err
    assert err.count("\n") == 1 and "Traceback" not in err


def test_choices_are_those_of_the_code() -> None:
    assert set(CONTROLLERS.split(", ")) == set(solver_names())
    assert {item.value for item in Load} == set(LOADS_BPS)
    assert {item.value for item in Heuristic} == set(HEURISTICS)
