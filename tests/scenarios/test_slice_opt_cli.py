"""``twin slice-opt``: what it prints, exit codes, errors in one line, and the page."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from controllers.microopt.registry import SOLVERS
from scenarios.exit_codes import ExitCode
from scenarios.slice_opt_cli import Solver
from tests import command
from tests.controllers.microopt.models import saved


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(tmp_path_factory.mktemp("model")))


def twin(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``twin slice-opt``."""
    return command.twin(capsys, "slice-opt", *arguments)


def test_every_solver_has_a_name() -> None:
    assert [solver.value for solver in Solver] == list(SOLVERS)


def test_solve(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", model, "--traffic", "constant:3", "--q-thresh", "4", "--beta", "0.1", "--format", "json"]
    code, out, err = twin(capsys, "solve", *arguments)
    assert code == ExitCode.OK, err
    found: dict[str, Any] = json.loads(out)
    assert {"allocation", "cost", "expected_beta", "time_s", "feasible", "trace"} <= set(found)
    assert set(found["allocation"]) == {"cpu_millicores", "bandwidth_mbps"}
    assert found["feasible"] and 0.09 <= found["expected_beta"] <= 0.1
    cost = found["allocation"]["cpu_millicores"] / 4500 + found["allocation"]["bandwidth_mbps"] / 50
    assert found["cost"] == pytest.approx(cost, rel=1e-4)
    code, out, _ = twin(capsys, "solve", *arguments, "--solver", "grid")
    assert found["cost"] <= json.loads(out)["cost"] * 1.01


def test_slices_share(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = twin(
        capsys,
        *("solve", "--model", model, "--traffic", "constant:2", "--traffic", "normal:3:0.5"),
        *("--q-thresh", "3", "--beta", "0.2", "--beta", "0.1", "--capacity", "bandwidth_mbps=30", "--format", "json"),
    )
    assert code == ExitCode.OK, err
    found = json.loads(out)
    assert [part["beta_thresh"] for part in found["slices"]] == [0.2, 0.1]
    assert found["allocation"]["bandwidth_mbps"] <= 30
    total = sum(part["allocation"]["bandwidth_mbps"] for part in found["slices"])
    assert found["allocation"]["bandwidth_mbps"] == pytest.approx(total)


def test_nothing_can_meet_the_thresholds(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", model, "--traffic", "constant:5", "--q-thresh", "20", "--beta", "0.1")
    code, out, _ = twin(capsys, "solve", *arguments, "--format", "json")
    assert code == ExitCode.FAILED
    found = json.loads(out)
    assert not found["feasible"] and "above 0.1" in found["reason"]
    assert found["allocation"]["bandwidth_mbps"] == pytest.approx(25)
    code, out, _ = twin(capsys, "solve", *arguments)
    assert code == ExitCode.FAILED
    assert "infeasible: embb: E[beta] 1 above 0.1; this is the least bad allocation found" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--traffic": "some"}, "traffic must be one of constant:N"),
        ({"--beta": "1.5"}, "beta must be between 0 and 1, got 1.5"),
        ({"--q-thresh": "-1"}, "q-thresh must be a positive number, got -1"),
        ({"--capacity": "cpu=3"}, "capacity: no resource 'cpu'; resources: cpu_millicores, bandwidth_mbps"),
        ({"--capacity": "cpu"}, "--capacity must be RESOURCE=NUMBER, got 'cpu'"),
        ({"--slice": "urllc"}, "urllc"),
        ({"--qos": "delay_s"}, "delay_s"),
        ({"--model": "/no/such.pt"}, "/no/such.pt: cannot be read"),
        ({"--solver": "magic"}, "magic"),
    ],
)
def test_bad_input(change: dict[str, str], message: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--model": model, "--traffic": "constant:3", "--q-thresh": "4", "--beta": "0.1"} | change
    code, out, err = twin(capsys, "solve", *(word for pair in given.items() for word in pair))
    assert code == ExitCode.USAGE
    assert message in err and "Traceback" not in err and err.count("\n") == 1
    assert not out


def test_as_many_as_slices(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    beta = [word for value in ("0.1", "0.2", "0.3") for word in ("--beta", value)]
    traffic = ["--traffic", "constant:3", "--traffic", "constant:2"]
    code, _, err = twin(capsys, "solve", "--model", model, *traffic, "--q-thresh", "4", *beta)
    assert code == ExitCode.USAGE
    assert "--traffic: give one, or one per slice (3), got 2" in err


def test_compare_writes_a_page_that_opens_offline(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    code, out, err = twin(
        capsys,
        *("compare", "--model", model, "--out", str(page), "--traffic", "normal:3:0.5", "--seeds", "2"),
        *("--methods", "peak_alloc,microopt_0sigma", "--q-thresh", "4", "--beta", "0.1", "--users", "3"),
        *("--format", "json"),
    )
    assert code == ExitCode.OK, err
    rows = {(row["traffic"], row["method"]): row for row in json.loads(out)["methods"]}
    assert set(rows) == {
        *(("constant", name) for name in ("microopt", "grid", "peak_alloc", "microopt_0sigma")),
        *(("changing", name) for name in ("microopt", "grid", "peak_alloc", "microopt_0sigma")),
    }
    assert rows["constant", "microopt"]["feasible_percent"] == 100
    assert rows["constant", "peak_alloc"]["microopt_saves_percent"] > 10
    assert rows["constant", "microopt_0sigma"]["feasible_percent"] == 0
    text = page.read_text()
    assert "Table I" in text and text.count('class="plot"') == 8
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"http", text)


def test_compare_by_delay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from controllers.microopt.slice_model import save
    from tests.controllers.microopt.models import delay_model

    save(delay_model(), tmp_path / "model.pt")
    page = tmp_path / "delay.html"
    code, out, err = twin(
        capsys,
        *("compare", "--model", str(tmp_path / "model.pt"), "--qos", "delay_s", "--out", str(page), "--seeds", "2"),
        *("--traffic", "poisson:3", "--q-thresh", "0.05,0.1", "--beta", "0.2", "--users", "2,4"),
        *("--methods", "peak_alloc", "--format", "json"),
    )
    assert code == ExitCode.OK, err
    rows = {(row["traffic"], row["method"]): row for row in json.loads(out)["methods"]}
    assert rows["changing", "microopt"]["feasible_percent"] == 100
    assert rows["changing", "microopt"]["mean_beta"] == pytest.approx(0.2, abs=0.02)
    text = page.read_text().partition("<script>")[0]
    # The paper gives no figures for delay; the threshold has its unit.
    assert "Figure 12" in text and "Table I" not in text and "21.90" not in text
    assert "QoS threshold, s" in text and "Mbit/s" not in text


def test_a_comparison_goes_on_where_it_was_cut_off(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page, rows = tmp_path / "report.html", tmp_path / "report.html.rows"
    given = ["compare", "--model", model, "--out", str(page), "--traffic", "constant:2", "--users", "2"]
    given += ["--q-thresh", "4", "--beta", "0.2", "--methods", "microopt", "--format", "json", "--seeds"]
    assert twin(capsys, *given, "2")[0] == ExitCode.OK
    head, *first = rows.read_text().splitlines()
    # Killed while it wrote a line: what was whole is kept, the rest is solved again.
    rows.write_text("\n".join([head, *first[:-1], first[-1][:40]]))
    code, out, err = twin(capsys, *given, "3")
    assert code == ExitCode.OK, err
    assert json.loads(out)["rows"] == str(rows)
    lines = rows.read_text().splitlines()
    assert lines[: len(first)] == [head, *first[:-1]]
    found = [json.loads(line) for line in lines[1:]]
    assert sorted((row["part"], row["method"], row["seed"]) for row in found) == sorted(
        (part, method, seed)
        for part in ("constant", "changing")
        for method, seed in (("grid", 0), ("microopt", 0), ("microopt", 1), ("microopt", 2))
    )
    # All solved by now: as a table, a line of 100 columns for each method.
    code, out, err = twin(capsys, *[one for one in given if one not in ("--format", "json")], "3")
    assert code == ExitCode.OK, err
    table = [line for line in out.splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in table] == ["microopt", "grid"] * 2
    assert all(len(line) <= 100 and line.count("±") == 2 for line in table)
    again = {(row["part"], row["method"], row["seed"]): row["cost"] for row in found}
    torn = json.loads(first[-1])
    assert again[torn["part"], torn["method"], torn["seed"]] == torn["cost"]
    for name, value in (("users", [2]), ("seed", "1"), ("cost", math.nan), ("allocation", None)):
        rows.write_text("\n".join([head, json.dumps(found[0] | {name: value}), ""]))
        code, _, err = twin(capsys, *given, "3")
        assert code == ExitCode.USAGE
        assert f"{rows}:2: not a row of a comparison; remove the line" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello\n", "no rows of a comparison; remove it or name another file"),
        ('{"format": "twinbed.slice-opt-rows", "twinbed": "0"}\n', "rows of another comparison (twinbed 0, here"),
    ],
)
def test_rows_of_something_else(
    content: str, message: str, model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "rows").write_text(content)
    code, _, err = twin(
        capsys, "compare", "--model", model, "--out", str(tmp_path / "x.html"), "--rows", str(tmp_path / "rows")
    )
    assert code == ExitCode.USAGE
    assert message in err and err.count("\n") == 1
    assert (tmp_path / "rows").read_text() == content


def test_the_folder_of_the_page_is_missed_at_once(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = twin(capsys, "compare", "--model", model, "--out", str(tmp_path / "absent" / "x.html"))
    assert code == ExitCode.USAGE
    assert "cannot be written: no folder" in err and err.count("\n") == 1


def test_compare_names_the_solvers(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = twin(capsys, "compare", "--model", model, "--out", str(tmp_path / "x.html"), "--methods", "atlass")
    assert code == ExitCode.USAGE
    assert "no solver named atlass (did you mean atlas?)" in err
