from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from controllers.microopt.slice_data import DELAY, THROUGHPUT, read_qos
from scenarios import dataset
from scenarios.cli import main
from scenarios.dataset import CollectionStopped, DatasetError, Plan, collect, make_plan, parse_grid, read_metadata
from scenarios.exit_codes import ExitCode
from scenarios.registry import find_scenario

GRID = {"cpu": (60.0, 500.0), "bandwidth": (2.0, 10.0)}


def plan(**changes: Any) -> Plan:
    given: dict[str, Any] = {"repeat": 1, "fidelity": "flow", "duration_s": 8.0, **changes}
    return make_plan(str(find_scenario("microopt")), given.pop("grid", GRID), **given)


def test_a_grid_is_values_and_ranges_with_units_or_without() -> None:
    assert parse_grid("cpu=100,200,bandwidth=2:10:4") == {"cpu": (100.0, 200.0), "bandwidth": (2.0, 6.0, 10.0)}
    assert parse_grid("bandwidth=500kbps,cpu=0.1cpu") == {"bandwidth": (0.5,), "cpu": (100.0,)}
    assert parse_grid("prb_share=0.1:0.3:0.1, edge_cpu=50m") == {"prb_share": (0.1, 0.2, 0.3), "edge_cpu": (50.0,)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory=5", "--grid 'memory=5': allowed AXIS=VALUE,... with cpu, bandwidth, prb_share, edge_cpu"),
        ("cpu", "--grid 'cpu': allowed AXIS=VALUE"),
        ("cpu=1,cpu=2", "--grid cpu: got '1m', allowed at least 10m"),
        ("cpu=20,cpu=30", "--grid: cpu is given twice"),
        ("cpu=lots", "--grid cpu: got 'lots'"),
        ("prb_share=0", "--grid prb_share: must be positive"),
        ("cpu=100:50:10", "--grid cpu: allowed a value or FIRST:LAST:STEP"),
        ("cpu=100:200", "--grid cpu: allowed a value or FIRST:LAST:STEP"),
        ("bandwidth=0.01:1000:0.01", "100000 values, allowed at most 1000"),
    ],
)
def test_a_bad_grid_is_explained(text: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        parse_grid(text)
    assert message in str(caught.value)


def test_rows_are_what_the_runs_measured(tmp_path: Path) -> None:
    out = tmp_path / "qos.parquet"
    told: list[str] = []
    found = collect(plan(), out, tell=told.append)
    assert (found["runs"], found["measured_now"]) == (4, 4)
    assert told[1] == "2/4: cpu 60, bandwidth 10, repetition 1"
    frame = pd.read_parquet(out)
    assert len(frame) == found["rows"]
    assert set(zip(frame.cpu, frame.bw, strict=True)) == {(60.0, 2.0), (60.0, 10.0), (500.0, 2.0), (500.0, 10.0)}
    # 60 ns of work per bit: 60 millicores carry 1 Mbit/s, whatever the bandwidth.
    scarce = frame[frame.cpu == 60]
    assert scarce.total_bandwidth_usage.mean() == pytest.approx(1.0, rel=0.05)
    assert frame[(frame.cpu == 500) & (frame.bw == 2)].total_bandwidth_usage.mean() == pytest.approx(1.9, rel=0.1)
    assert (frame.qos * frame.n_users).to_numpy() == pytest.approx(frame.total_bandwidth_usage.to_numpy())
    assert frame.time.min() >= dataset.SETTLE_S + 1
    assert frame.n_users.between(1, 5).all()
    data = read_qos(out)
    assert data.resources == ("cpu_millicores", "bandwidth_mbps")
    assert set(data.slices["embb"].qos) == {THROUGHPUT, DELAY}
    assert list(tmp_path.iterdir()) == [out]


def test_the_file_says_where_it_comes_from(tmp_path: Path) -> None:
    out = tmp_path / "qos.parquet"
    found = collect(plan(), out)
    known = read_metadata(out)
    assert known["scenario"] == "microopt"
    assert known["grid"] == {"cpu": [60.0, 500.0], "bandwidth": [2.0, 10.0]}
    assert (known["fidelity"], known["rows"], known["duration_s"]) == ("flow", found["rows"], 8.0)
    assert known["document"]["topology"]["nodes"]["gnb1"]["work_ns_per_bit"] == 60
    assert known["versions"]["numpy"]
    assert collect(plan(), out) == {**found, "measured_now": 0}
    with pytest.raises(DatasetError, match="exists and is another data set"):
        collect(plan(repeat=2), out)


def test_a_collection_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.parquet"
    collect(plan(), whole)
    out = tmp_path / "qos.parquet"
    real = dataset._measure

    def dies(plan: Plan, index: int, *rest: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return real(plan, index, *rest)

    monkeypatch.setattr(dataset, "_measure", dies)
    with pytest.raises(KeyboardInterrupt):
        collect(plan(), out)
    assert not out.exists()
    parts = tmp_path / "qos.parquet.parts"
    (parts / ".00002.parquet.4242").write_bytes(b"half a part")
    monkeypatch.setattr(dataset, "_measure", real)
    with pytest.raises(DatasetError, match="parts of another collection"):
        collect(plan(repeat=2), out)
    assert collect(plan(), out)["measured_now"] == 2
    pd.testing.assert_frame_equal(pd.read_parquet(out), pd.read_parquet(whole))
    assert not parts.exists()


def test_a_run_that_fails_stops_the_collection_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset, "SETTLE_S", 7.5)  # no whole interval is left of 8 s
    with pytest.raises(DatasetError, match=r"--duration: must be at least 8.5 s, .* got 8 s"):
        plan()
    monkeypatch.undo()
    real = dataset._measure

    def fails(plan: Plan, index: int, *rest: Any) -> Any:
        if index == 1:
            raise CollectionStopped("cpu 60: run FAILED: the container died")
        return real(plan, index, *rest)

    monkeypatch.setattr(dataset, "_measure", fails)
    monkeypatch.chdir(tmp_path)
    command = ["dataset", "collect", "microopt", "--grid", "cpu=60,500,bandwidth=2,10", "--fidelity", "flow"]
    command += ["--duration", "8s", "--out", "qos.parquet", "--format", "json"]
    assert main(command) == ExitCode.FAILED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "twin: cpu 60: run FAILED: the container died"
    monkeypatch.setattr(dataset, "_measure", real)
    assert main(command) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["measured_now"] == 3


class _Reader:
    """A run of ten intervals: slots missed for want of host CPU in the fifth, and of the slice's own in the sixth."""

    def series(self, entity: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        assert entity == "slice:embb"
        times = np.arange(1.0, 11.0)
        values = np.full(10, {"active_ues": 2.0, "qos_bps": 1e6, "delay_dl_p95_s": 0.1}.get(name, 0.0))
        if name == "missed_slots_ratio":
            values[4], values[5] = 0.4, 0.4
        if name == "cpu_throttled_ratio":
            values[5] = 0.9
        return times, values


def test_intervals_in_which_the_host_starved_the_gnb_are_left_out() -> None:
    from scenarios.loader import load_scenario

    scenario = load_scenario(find_scenario("microopt"))
    rows, starved = dataset._rows(_Reader(), scenario, "embb", {"cpu": 60.0, "bw": 2.0})  # type: ignore[arg-type]
    assert starved == 1
    assert [row["time"] for row in rows] == [3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("microopt", "--grid", "cpu=60", "--out", "q.csv"), "--out q.csv: must end in .parquet"),
        (("quickstart", "--grid", "cpu=60", "--out", "q.parquet"), "slices: embb, urllc, mmtc"),
        (("microopt", "--grid", "cpu=60", "--out", "q.parquet", "--slice", "x"), "--slice: no slice 'x'; slices: embb"),
        (
            ("microopt", "--grid", "cpu=60", "--out", "q.parquet", "--duration", "2s"),
            "--duration: must be at least 3 s",
        ),
        (("nothing", "--grid", "cpu=60", "--out", "q.parquet"), "nothing"),
        (("microopt", "--grid", "prb_share=1.5", "--out", "q.parquet"), "--grid prb_share: got '1.5'"),
    ],
)
def test_bad_input_gets_one_line_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["dataset", "collect", *arguments, "--fidelity", "flow"]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
def test_cpu_limits_the_rows_measured_on_containers(tmp_path: Path) -> None:
    try:
        found = collect(
            plan(grid={"cpu": (100.0,), "bandwidth": (10.0,)}, fidelity="emulation"), tmp_path / "qos.parquet"
        )
    except CollectionStopped as error:
        if "the host kept CPU from the gNB" not in str(error):
            raise
        pytest.skip(f"this host is too busy to measure: {error}")
    frame = pd.read_parquet(tmp_path / "qos.parquet")
    assert found["rows"] == len(frame) >= 4
    # 100 millicores at 60 ns per bit
    assert frame.total_bandwidth_usage.median() == pytest.approx(100 / 60, rel=0.15)
