"""The IAB scenarios of the library, from the file to the database, on the flow fidelity."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scenarios.cli import main
from scenarios.exit_codes import ExitCode
from tests.command import run_in_flow
from topologies.backhaul import scaled
from topologies.iab import generate, write_network
from twin.store import KpiReader

Twin = Callable[..., tuple[int, dict, str]]


@pytest.fixture
def twin(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Twin:
    """Runs a scenario; exit code, the object that was printed, standard error."""

    return functools.partial(run_in_flow, capsys, tmp_path / "runs")


@pytest.mark.parametrize("name", ["iab20", "iab40"])
def test_the_library_keeps_its_word(name: str, twin: Twin) -> None:
    code, found, err = twin(name)
    assert code == ExitCode.OK, err
    assert found["status"] == "VALID"
    assert [item["passed"] for item in found["assertions"]] == [True] * len(found["assertions"])
    controller = found["kpis"]["controller:paths"]
    assert controller["refused_actions"]["last"] == controller["faults"]["last"] == 0
    assert found["actions"]["refused"] == 0
    with KpiReader(Path(found["path"])) as reader:
        flows = [entity for entity, kpi in reader.names() if kpi == "throughput_bps"]
        assert len(flows) == int(name.removeprefix("iab")) - 3
        for flow in flows:
            np.testing.assert_allclose(
                reader.series(flow, "throughput_bps")[1], reader.series(flow, "predicted_throughput_bps")[1], rtol=1e-9
            )


def test_flows_of_a_broken_link_lose_one_interval(twin: Twin) -> None:
    _, found, _ = twin("iab20")
    cut_off = 0
    with KpiReader(Path(found["path"])) as reader:
        for flow in (entity for entity, kpi in reader.names() if kpi == "throughput_bps"):
            times, rates = reader.series(flow, "throughput_bps")
            _, offered = reader.series(flow, "offered_bps")
            silent = times[(rates == 0) & (offered > 0)].tolist()
            # The links break at 25 s and 45 s.
            assert set(silent) <= {26.0, 46.0}
            cut_off += len(silent)
        times, down = reader.series("link:n4-d2@mmwave", "link_up")
        assert times[down == 0].tolist() == [float(second) for second in range(26, 36)]
    assert cut_off >= 2


def test_controllers_by_name_in_the_order_of_their_strength(twin: Twin) -> None:
    efficiency = {}
    for name in ("none", "random", "subset_sum", "iab_paths"):
        code, found, err = twin("iab20", "--controller", name, "--set", "assert=[]", "--duration", "24s")
        assert code == ExitCode.OK, err
        efficiency[name] = found["kpis"]["run"]["backhaul_efficiency"]["mean"]
    assert efficiency["none"] < efficiency["random"] < efficiency["subset_sum"] <= efficiency["iab_paths"] + 0.005


def test_the_same_seed_gives_the_same_run(twin: Twin) -> None:
    runs = [twin("iab20", "--duration", "12s", "--set", "assert=[]", "--set", "events=[]")[1] for _ in range(2)]
    kpis = [
        {
            (entity, name): value["mean"]
            for entity, found in run["kpis"].items()
            for name, value in found.items()
            if name != "decision_time_s"
        }
        for run in runs
    ]
    assert kpis[0] == kpis[1]


def test_a_network_file_runs_beside_the_scenario(twin: Twin, tmp_path: Path) -> None:
    write_network(scaled(generate(8, seed=2), 1.0), tmp_path / "net.json")
    file = tmp_path / "own.twin.yml"
    file.write_text(
        "name: own\nduration: 3s\ntopology:\n  builders:\n"
        "    - {use: iab, with: {network: net.json, scale: 0.01}}\n"
        "controllers:\n  - {use: best, interval: 1s, time_limit: 20s}\n"
    )
    code, found, err = twin(str(file))
    assert code == ExitCode.OK, err
    manifest = json.loads((Path(found["path"]) / "manifest.json").read_text())
    assert manifest["scenario"]["document"]["topology"]["builders"][0]["with"]["scale"] == 0.01
    assert len(manifest["scenario"]["topology"]["backhaul"]) == 5
    assert manifest["scenario"]["load"]["backhaul_flows"] == 5


@pytest.mark.parametrize("name", ["phaul", "best", "subset_sum"])
def test_a_policy_that_does_not_fit_stops_before_the_run(name: str, twin: Twin, tmp_path: Path) -> None:
    missing = tmp_path / "nothing.npz"
    code, _, err = twin("iab20", "--controller", name, "--policy", str(missing))
    assert code == ExitCode.USAGE
    wanted = f"policy: {name} does not learn, so it takes none" if name == "subset_sum" else str(missing)
    assert err.startswith("--controller: controllers[0].params: ") and wanted in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [(), ("--controller", "none")])
def test_a_policy_needs_a_controller(arguments: tuple[str, ...], twin: Twin) -> None:
    code, _, err = twin("iab20", *arguments, "--policy", "learned.npz")
    assert code == ExitCode.USAGE
    assert err == "twin: --policy learned.npz: needs --controller, which says who learned it\n"


def test_a_controller_without_policy_does_not_take_one(twin: Twin) -> None:
    code, _, err = twin("iab20", "--controller", "static", "--policy", "learned.npz")
    assert code == ExitCode.USAGE
    assert "unknown parameter policy" in err


def test_a_path_controller_needs_backhaul(twin: Twin) -> None:
    code, _, err = twin("quickstart", "--controller", "best")
    assert code == ExitCode.USAGE
    assert "backhaul flow" in err and err.count("\n") == 1


def test_paths_that_flows_lack_are_refused_and_recorded(twin: Twin) -> None:
    arguments = ("--duration", "3s", "--set", "assert=[]", "--set", "events=[]")
    code, found, err = twin("iab20", "--controller", "tests.scenarios.misbehaving:WrongPaths", *arguments)
    assert code == ExitCode.OK, err
    assert found["status"] == "VALID"
    assert found["actions"] == {"applied": 0, "refused": 36}  # 17 flows and one word, twice
    with KpiReader(Path(found["path"])) as reader:
        reasons = {action.reason for action in reader.actions()}
    assert any(reason.startswith("flow:f-n1 path_index: must be a whole number in [0, ") for reason in reasons)
    assert found["kpis"]["flow:f-n1"]["path_index"]["max"] == 0


def test_a_controller_that_cannot_decide_is_named_in_the_summary(
    twin: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    """iab20 has more allocations than brute_force tries: the run is VALID, its controller useless."""
    arguments = ("--duration", "3s", "--set", "assert=[]", "--set", "events=[]")
    code, found, err = twin("iab20", "--controller", "brute_force", *arguments)
    assert code == ExitCode.OK, err
    (fault,) = found["faults"]
    assert fault["source"] == "controller:brute_force" and fault["count"] == 2
    assert "at most 16777216 allocations can be tried" in fault["text"]
    assert main(["show", found["path"]]) == ExitCode.OK
    assert f"fault of controller:brute_force: {fault['text']} (2 times)" in capsys.readouterr().out
