"""``twin gap``: rows against sums done by hand, exit codes, one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenarios.cli import main
from scenarios.gap import between_runs, within_run
from twin.store import RunStore
from twin.types import Kpi


def make_run(runs: Path, fidelity: str, values: dict[tuple[str, str], list[float]]) -> Path:
    """A run with one sample per second from 1 s on."""
    with RunStore.create(runs, "gap") as store:
        store.update_manifest(fidelity=fidelity, backend=fidelity, status="RUNNING")
        for (entity, name), samples in values.items():
            store.add_kpis([Kpi(float(time_s), entity, name, value) for time_s, value in enumerate(samples, start=1)])
        store.finish("VALID", "", simulated_s=4.0)
        return store.path


MEASURED = {
    ("flow:a", "throughput_bps"): [0.0, 90.0, 90.0, 90.0],
    ("flow:a", "predicted_throughput_bps"): [100.0] * 4,
    ("flow:b", "throughput_bps"): [500.0, 202.0, 202.0, 202.0],
    ("flow:b", "predicted_throughput_bps"): [200.0] * 4,
    ("flow:c", "throughput_bps"): [0.0] * 4,
    ("flow:c", "predicted_throughput_bps"): [0.0] * 4,
    ("slice:embb", "throughput_dl_bps"): [1.0, 5.0, 5.0, 5.0],
    ("run", "clock_lag_s"): [0.1] * 4,
}


def test_one_run_against_its_own_prediction(tmp_path: Path) -> None:
    gap = within_run(make_run(tmp_path, "emulation", MEASURED), skip_s=1.0)
    assert {row["entity"]: row["relative_error"] for row in gap.rows} == {
        "flow:a": pytest.approx(0.1),
        "flow:b": pytest.approx(0.01),
        "flow:c": None,
    }
    (summary,) = gap.summary
    assert summary["entities"] == 3
    # Of the two flows that carry something.
    assert summary["median"] == pytest.approx(0.055)
    assert summary["p95"] == pytest.approx(0.0955)
    assert (summary["largest"], summary["where"]) == (pytest.approx(0.1), "flow:a")


def test_two_runs_in_any_order_with_the_modelled_one_as_reference(tmp_path: Path) -> None:
    measured = make_run(tmp_path, "emulation", MEASURED)
    model = {("slice:embb", "throughput_dl_bps"): [4.0] * 4, ("run", "clock_lag_s"): [0.0] * 4}
    modelled = make_run(tmp_path, "flow", model | {("flow:a", "throughput_bps"): [0.0] * 4})
    for pair in ((measured, modelled), (modelled, measured)):
        gap = between_runs(*pair, skip_s=1.0)
        assert gap.reference == modelled.name
        rows = {(row["entity"], row["kpi"]): row for row in gap.rows}
        assert set(rows) == {("slice:embb", "throughput_dl_bps"), ("flow:a", "throughput_bps")}
        assert rows["slice:embb", "throughput_dl_bps"]["relative_error"] == pytest.approx(0.25)
        # No share of nothing.
        assert rows["flow:a", "throughput_bps"]["relative_error"] is None


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_run(tmp_path, "emulation", MEASURED)

    def twin(*arguments: str) -> tuple[int, str, str]:
        code = main(["gap", *arguments, "--runs", str(tmp_path)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    code, out, _ = twin("last", "--skip", "1s", "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert found["summary"][0]["entities"] == 3 and len(found["rows"]) == 3
    assert twin("last", "--skip", "1s", "--within", "0.06")[0] == 0
    code, _, err = twin("last", "--skip", "1s", "--within", "0.05")
    assert (code, err) == (1, "twin: median error of throughput_bps is 0.055, allowed 0.05\n")
    code, out, _ = twin("last", "--skip", "1s")
    assert code == 0 and "flow:b" in out
    idle = {key: samples for key, samples in MEASURED.items() if key[0] == "flow:c"}
    make_run(tmp_path, "emulation", idle)
    assert twin("last", "--skip", "1s")[0] == 0
    code, _, err = twin("last", "--skip", "1s", "--within", "0.5")
    assert (code, err) == (1, "twin: --within: nothing to judge, every reference is 0\n")
    for arguments, message in (
        (("last", "last", "last"), "needs one run, two runs or a scenario, got 3 names"),
        (("nothing",), "no run nothing"),
        (("last", "--skip", "9s"), "no predicted_throughput_bps after 9 s"),
        (("last", "--kpi", "throughput"), "no KPI named throughput"),
        (("last", "--skip", "soon"), "--skip"),
        (("last", "--duration", "3s"), "--duration is for a scenario"),
        (("no_such.twin.yml",), "no_such.twin.yml"),
    ):
        code, out, err = twin(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err and err.count("\n") == 1, err
