"""The scenarios of reservations in the library, from the file to the database, on the flow fidelity."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from scenarios.exit_codes import ExitCode
from tests.command import run_in_flow
from twin.store import KpiReader

Twin = Callable[..., tuple[int, dict, str]]


@pytest.fixture
def twin(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Twin:
    """Runs a scenario; exit code, the object that was printed, standard error."""

    return functools.partial(run_in_flow, capsys, tmp_path / "runs")


@pytest.mark.parametrize(
    "arguments",
    [["edge_deadline"], ["deadline_start"], ["deadline_start", "--set", "controllers.0.params.budget_s=0.008"]],
)
def test_the_library_keeps_its_word(arguments: list[str], twin: Twin) -> None:
    code, found, err = twin(*arguments)
    assert code == ExitCode.OK, err
    assert found["status"] == "VALID"
    assert [item["passed"] for item in found["assertions"]] == [True] * len(found["assertions"])
    controller = found["kpis"]["controller:sched_deadline"]
    assert controller["refused_actions"]["last"] == controller["faults"]["last"] == 0


def test_the_budgets_are_those_of_the_figures(twin: Twin) -> None:
    """NANCY D3.4 Figures 24 and 25, from 2 ms: up to 80 % of the period, then down to C (1 + ovh)."""
    _, found, _ = twin("deadline_start")
    with KpiReader(Path(found["path"])) as reader:
        for number, work_s in ((1, 0.01), (2, 0.02)):
            _, budgets = reader.series(f"task:edge.{number}", "dl_budget_s")
            assert budgets[0] == pytest.approx(0.002)
            assert budgets.max() == pytest.approx(0.08)
            assert budgets[-1] == pytest.approx(1.1 * work_s)
            _, alphas = reader.series(f"task:edge.{number}", "dl_alpha_ratio")
            _, deltas = reader.series(f"task:edge.{number}", "dl_delta_s")
            assert alphas == pytest.approx(budgets / 0.1)
            assert deltas == pytest.approx(2 * (0.1 - budgets))
            _, responses = reader.series(f"task:edge.{number}", "task_response_max_s")
            assert 1.2 < responses.max() < 2.3  # s; the deliverable's figure peaks at about 1.7 and 2.2
            assert responses[-1] == pytest.approx(work_s)


def test_two_runs_are_the_same(twin: Twin) -> None:
    paths = [Path(twin("edge_deadline", "--duration", "10s", "--set", "assert=[]", "--set", "events=[]")[1]["path"])
             for _ in range(2)]  # fmt: skip
    with KpiReader(paths[0]) as one, KpiReader(paths[1]) as other:
        assert one.names() == other.names()
        for entity, name in one.names():
            if name != "decision_time_s":
                assert one.series(entity, name)[1].tolist() == other.series(entity, name)[1].tolist()


def test_bad_parameters_are_told_with_their_line(twin: Twin) -> None:
    code, _, err = twin("edge_deadline", "--set", "controllers.0.params.max_share=2")
    assert code == ExitCode.USAGE
    assert "max_share must be a number in [0.01, 1], got 2" in err
