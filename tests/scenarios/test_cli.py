import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scenarios.assertions import AssertionResult
from scenarios.engine import RunResult
from scenarios.execution import Finished, execute, worst_exit_code
from scenarios.exit_codes import ExitCode
from tests.command import twin
from tests.scenarios.scenario_text import SMALL
from twin.kpis import KPIS

ROOT = Path(__file__).resolve().parents[2]
TWIN = [sys.executable, "-m", "scenarios.cli"]


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.twin.yml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def run_small(capsys: pytest.CaptureFixture[str], small: str, runs: Path, *more: str) -> dict:
    code, out, err = twin(capsys, "run", small, "--fidelity", "flow", "--out", str(runs), "--format", "json", *more)
    assert code in (ExitCode.OK, ExitCode.FAILED), err
    return json.loads(out)


def test_a_flow_run_prints_one_json_object(capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path) -> None:
    found = run_small(capsys, small, tmp_path / "runs")
    assert found["status"] == "VALID"
    assert found["fidelity"] == "flow"
    assert Path(found["report"]).stat().st_size > 10_000
    throughput = found["kpis"]["slice:embb"]["throughput_dl_bps"]
    assert throughput["unit"] == "bit/s"
    assert throughput["provenance"] == "modelled"
    # 2 users of 1 Mbit/s, doubled from 5 s to 10 s of 20 s.
    assert throughput["mean"] == pytest.approx(2.5e6, rel=0.02)
    assert throughput["max"] == pytest.approx(4e6, rel=0.02)
    assert found["assertions"] == [
        {
            "text": "slice:embb throughput_dl_bps >= 1Mbps",
            "passed": True,
            "measured": throughput["mean"],
            "allowed": ">= 1e+06 bit/s",
            "samples": 20,
        }
    ]
    assert found["actions"]["applied"] >= 2  # at least the two of the demand spike


def test_an_assertion_that_fails_makes_exit_code_1(
    capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path
) -> None:
    arguments = ("run", small, "--fidelity", "flow", "--out", str(tmp_path / "runs"))
    code, out, _ = twin(capsys, *arguments, "--set", "assert=['max slice:embb throughput_dl_bps > 9Mbps']")
    assert code == ExitCode.FAILED
    assert "assert FAILS: max slice:embb throughput_dl_bps > 9Mbps (measured 4e+06)" in out


def test_seed_duration_controller_and_slicing_override_the_file(
    capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path
) -> None:
    more = ("--seed", "9", "--duration", "8s", "--controller", "none", "--slicing", "off")
    found = run_small(capsys, small, tmp_path / "runs", *more)
    assert (found["seed"], found["simulated_s"]) == (9, 8.0)
    assert not any(entity.startswith("controller:") for entity in found["kpis"])
    manifest = json.loads((Path(found["path"]) / "manifest.json").read_text())
    assert manifest["scenario"]["topology"]["slicing"] is False
    assert manifest["scenario"]["document"]["seed"] == 9


def test_show_list_export_and_compare_work_on_what_run_wrote(
    capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    first = run_small(capsys, small, runs)
    second = run_small(capsys, small, runs, "--set", "traffic.0.rate=0.5Mbps")
    where = ("--runs", str(runs))
    assert json.loads(twin(capsys, "show", first["run_id"][-6:], *where, "--format", "json")[1]) == first
    assert json.loads(twin(capsys, "show", "last", *where, "--format", "json")[1]) == second
    listed = json.loads(twin(capsys, "list", "runs", *where, "--format", "json")[1])["runs"]
    assert [row["run_id"] for row in listed] == [first["run_id"], second["run_id"]]
    assert {row["status"] for row in listed} == {"VALID"}
    code, out, _ = twin(capsys, "show", "last", *where)
    assert code == 0
    assert second["run_id"] in out
    assert "assert holds" in out
    code, out, _ = twin(capsys, "export", "last", "--parquet", str(tmp_path / "parquet"), *where)
    assert code == 0
    assert {Path(line).name for line in out.split()} >= {"kpi.parquet", "actions.parquet"}
    rows = json.loads(twin(capsys, "compare", first["run_id"], "last", *where, "--format", "json")[1])["kpis"]
    (row,) = [row for row in rows if (row["entity"], row["kpi"]) == ("slice:embb", "throughput_dl_bps")]
    assert row["ratio"] == pytest.approx(0.5, rel=0.02)
    (tmp_path / "file").touch()
    code, out, err = twin(capsys, "export", "last", "--parquet", str(tmp_path / "file"), *where)
    assert (code, out, err) == (2, "", f"twin: --parquet {tmp_path / 'file'}: cannot be written: File exists\n")
    assert twin(capsys, "show", "", *where)[0] == 2
    report = tmp_path / "both.html"
    code, out, _ = twin(capsys, "compare", first["run_id"], "last", *where, "--report", str(report))
    assert code == 0
    assert report.is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bogus"], 2, "twin: no command named bogus; known: run, validate, "),
        (["run"], 2, "Missing argument"),
        (["run", "quikstart"], 2, "no scenario named quikstart (did you mean quickstart?); known: "),
        (["run", "nowhere/x.twin.yml"], 2, "nowhere/x.twin.yml: no such file"),
        (["run", "quickstart", "--fidelity", "flo"], 2, "'flo' is not one of 'flow', 'packet', 'emulation'"),
        (["run", "quickstart", "--fidelity", "packet"], 4, "fidelity packet (ns-3) is not part of this version"),
        (
            ["run", "quickstart", "--controller", "ruled_base"],
            2,
            "--controller: controllers[0].use: no controller named",
        ),
        (["run", "quickstart", "--duration", "5Mbps"], 2, "--duration: got '5Mbps', allowed a number (seconds)"),
        (["run", "quickstart", "--set", "seed"], 2, "--set seed: allowed KEY=VALUE"),
        (["run", "quickstart", "--set", "sed=3"], 2, "--set sed: sed: unknown key sed (did you mean seed?)"),
        (["run", "quickstart", "--set", "slices=[1"], 2, "not valid YAML"),
        (["run", "quickstart", "--fidelity", "flow", "--pcap", "s1:eth1"], 2, "--pcap captures real packets"),
        (["run", "quickstart", "--pcap", "s9:eth1"], 2, "--pcap s9:eth1: no node named s9"),
        (["run", "quickstart", "--pcap", "s1"], 2, "--pcap s1: allowed NODE:IFACE"),
        (["show", "nothing"], 2, "no run nothing in runs"),
        (["show", "last~1"], 2, "no run last~1 in runs"),
        (["show", ""], 2, "no run  in runs"),
        (["export", "nothing", "--parquet", "x"], 2, "no run nothing in runs"),
        (["list", "knob"], 2, "'knob' is not one of"),
        (["new-controller", "class"], 2, "controller name must be a Python name"),
        (["new-controller", "rule_based"], 2, "a controller named rule_based is installed already"),
        (["new-controller", "json"], 2, "json is the name of a Python package"),
        (["validate", "nope"], 2, "no scenario named nope"),
    ],
)
def test_bad_input_is_one_line_and_its_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = twin(capsys, *arguments)
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_validate_names_every_mistake_of_every_file(
    capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.twin.yml"
    bad.write_text(SMALL.replace("seed: 3", "sed: 3").replace("delay: 5ms", "delay: 5"), encoding="utf-8")
    code, out, err = twin(capsys, "validate", small, str(bad))
    assert code == ExitCode.USAGE
    assert out == f"{small}: valid\n"
    assert [line.rpartition("bad.twin.yml")[2].split(":")[1] for line in err.splitlines()] == ["3", "18"]
    code, out, err = twin(capsys, "validate", small, str(bad), "--format", "json")
    assert err == ""
    files = json.loads(out)["files"]
    assert [(item["valid"], [problem["line"] for problem in item["problems"]]) for item in files] == [
        (True, []),
        (False, [3, 18]),
    ]


@pytest.mark.parametrize("what", ["scenarios", "controllers", "knobs", "kpis", "topologies", "profiles", "runs"])
def test_every_listing_as_table_and_json(what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = twin(capsys, "list", what, "--runs", str(tmp_path), "--format", "json")
    assert (code, err) == (0, "")
    rows = json.loads(out)[what]
    code, out, err = twin(capsys, "list", what, "--runs", str(tmp_path))
    assert (code, err) == (0, "")
    for row in rows:
        assert row["name"] in out
    assert rows or what == "runs"


def test_doctor_says_what_is_there_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = twin(capsys, "doctor", "--format", "json")
    found = json.loads(out)
    assert err == ""
    assert code == (ExitCode.OK if found["emulation"] else ExitCode.MISSING)
    assert found["emulation"] == (not found["missing"])
    for row in found["capabilities"]:
        assert row["unlocks"]
        assert row["remedy"] or row["present"]
    code, out, _ = twin(capsys, "doctor")
    assert all(row["name"] in out for row in found["capabilities"])


def test_gc_and_destroy_need_only_the_journal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twin.emulation.gc.default_folder", lambda: tmp_path / "journal")
    monkeypatch.chdir(tmp_path)
    assert twin(capsys, "gc", "--format", "json") == (0, '{\n  "removed": [],\n  "kept": []\n}\n', "")
    assert twin(capsys, "gc")[:2] == (0, "nothing to remove\n")
    code, out, err = twin(capsys, "destroy", "20261121-000000-x-aaaa")
    assert (code, out) == (ExitCode.USAGE, "")
    assert err.startswith("twin: no run 20261121-000000-x-aaaa: there is no journal folder")


def test_an_unexpected_error_is_one_line_with_a_log_and_debug_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(__import__("scenarios.listings", fromlist=["LISTINGS"]).LISTINGS, "knobs", broken)
    code, _, err = twin(capsys, "list", "knobs")
    assert code == ExitCode.FAILED
    assert err.startswith("twin: unexpected ZeroDivisionError: oops (a bug; details in ")
    log = Path(err.rpartition("details in ")[2].strip().rstrip(")"))
    assert "ZeroDivisionError" in log.read_text(encoding="utf-8")
    log.unlink()
    code, _, err = twin(capsys, "--debug", "list", "knobs")
    assert code == ExitCode.FAILED
    assert "Traceback" in err


def test_without_emulation_the_fallback_runs_in_flow_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenarios.registry.emulation_missing", lambda _: ["docker (no socket): start dockerd"])
    runs = ("--out", str(tmp_path / "runs"))
    code, out, err = twin(capsys, "run", small, *runs)
    assert code == ExitCode.MISSING
    assert err.startswith("twin: emulation is not possible here: docker (no socket): start dockerd.")
    assert not (tmp_path / "runs").exists()
    code, out, err = twin(capsys, "run", small, *runs, "--fallback", "flow", "--format", "json")
    assert code == ExitCode.OK
    assert "docker (no socket): start dockerd" in err
    assert json.loads(out)["fidelity"] == "flow"


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "quickstart"], ["list", "scenarios"]])
def test_start_up_does_not_import_what_it_does_not_need(arguments: list[str]) -> None:
    code = (
        "import sys; from scenarios.cli import main; main(sys.argv[1:]);"
        "heavy = ('pandas','plotly','docker','mininet','scipy','pyarrow','jinja2','pyroute2');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [*TWIN, "list", "kpis", "--format", "json"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
    assert done.stderr == ""
    assert done.returncode == ExitCode.FAILED


@pytest.mark.parametrize(
    ("redirect", "message"),
    [
        (">/dev/full", "twin: cannot write the output: No space left on device"),
        (">&-", "twin: standard output and standard error must be open"),
    ],
)
def test_output_that_nobody_takes_is_one_line(redirect: str, message: str) -> None:
    command = ["sh", "-c", f'"$@" {redirect}', "sh", *TWIN, "list", "knobs"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, f"{message}\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_exit_code(number: int, code: int, small: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = ["run", small, "--fidelity", "flow", "--duration", "100000s", "--out", str(runs), "--format", "json"]
    process = subprocess.Popen([*TWIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not list(runs.glob("*/manifest.json")):
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == code, err
    assert json.loads(out)["status"] == "FAILED"
    assert "interrupted by" in err


def test_an_interrupt_outside_a_run_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr("scenarios.listings.LISTINGS", {"kpis": interrupted})
    code, out, err = twin(capsys, "list", "kpis")
    assert (code, out, err.strip()) == (ExitCode.SIGINT, "", "twin: interrupted")


def test_slicing_both_runs_twice_and_shows_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    short = ("--fidelity", "flow", "--duration", "8s", "--slicing", "both", "--out", str(tmp_path))
    _, out, _ = twin(capsys, "run", "quickstart", *short, "--format", "json")
    found = json.loads(out)
    assert found["against"]["run_id"] != found["run_id"]
    assert "cpu_limit_millicores" in found["kpis"]["slice:embb"]
    assert "cpu_limit_millicores" not in found["against"]["kpis"]["slice:embb"]
    page = Path(found["report"]).read_text()
    assert found["run_id"] in page and found["against"]["run_id"] in page
    assert "One-way downlink delay under load" in twin(capsys, "run", "quickstart", *short)[1]


def test_slicing_both_exits_with_the_worse_of_both(
    capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(one: Finished, status: str) -> Finished:
        return replace(one, result=replace(one.result, status=status, reason="the host was too slow"))

    def second(*arguments: object, **words: object) -> Finished:
        done = execute(*arguments, **words)
        statuses.append(done.result.status)
        return done if len(statuses) == 1 else ended(done, "INVALID")

    statuses: list[str] = []
    monkeypatch.setattr("scenarios.execution.execute", second)
    arguments = ("run", small, "--fidelity", "flow", "--slicing", "both", "--out", str(tmp_path / "runs"))
    assert twin(capsys, *arguments, "--format", "json")[0] == ExitCode.INVALID
    assert statuses == ["VALID", "VALID"]

    def unsliced(*arguments: object, **words: object) -> Finished:
        done = execute(*arguments, **words)
        statuses.append(done.result.status)
        return done if len(statuses) == 1 else replace(done, assertions=(broken,))

    result = RunResult("x", tmp_path, "VALID")
    kept, broken = (
        AssertionResult(text="x", passed=passed, measured=1.0, allowed=">= 1", samples=1) for passed in (True, False)
    )
    worse = [
        Finished(result, (kept,)),
        Finished(result, (kept, broken)),
        Finished(replace(result, status="INVALID"), ()),
        Finished(replace(result, status="FAILED"), ()),
        Finished(replace(result, status="FAILED", signal_number=signal.SIGINT), ()),
    ]
    codes = [ExitCode.OK, ExitCode.FAILED, ExitCode.INVALID, ExitCode.FAILED, ExitCode.SIGINT]
    for rank, (one, code) in enumerate(zip(worse, codes, strict=True)):
        for other in worse[: rank + 1]:
            assert worst_exit_code([one, other]) == worst_exit_code([other, one]) == code

    statuses.clear()
    monkeypatch.setattr("scenarios.execution.execute", unsliced)
    assert twin(capsys, *arguments, "--format", "json")[0] == ExitCode.OK


def test_compare_shows_what_differs_and_more_when_asked(
    capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path
) -> None:
    where = ("--runs", str(tmp_path))
    first = run_small(capsys, small, tmp_path)
    run_small(capsys, small, tmp_path, "--set", "traffic.0.rate=0.5Mbps", "--set", "slices.embb.sla.q_thresh=0.9Mbps")

    def rows(*more: str) -> list[dict]:
        code, out, err = twin(capsys, "compare", "last~1", "last", *where, "--format", "json", *more)
        assert (code, err) == (0, "")
        return json.loads(out)["kpis"]

    everything, shown = rows("--all"), rows()
    assert {row["entity"].partition(":")[0] for row in everything} >= {"slice", "node", "link", "ue"}
    assert 0 < len(shown) < len(everything) / 2
    assert {row["entity"].partition(":")[0] for row in shown} <= {"slice", "node", "run"}
    assert all(row["difference"] for row in shown)
    ues = rows("--entity", "ue:", "--kpi", "throughput_dl_bps")
    assert ues and {(row["entity"][:3], row["kpi"]) for row in ues} == {("ue:", "throughput_dl_bps")}
    two = rows("--kpi", "link_up", "--kpi", "throughput_dl_bps")
    assert {row["kpi"] for row in two} == {"link_up", "throughput_dl_bps"}
    assert not any(row["entity"].startswith("ue:") for row in two)
    for row in everything:
        statistic = "last" if KPIS[row["kpi"]].cumulative else "mean"
        assert row["statistic"] == statistic
        assert row["first"] == row["statistics"]["first"][statistic]
        assert row["second"] == row["statistics"]["second"][statistic]
        if row["entity"] in first["kpis"]:
            assert row["statistics"]["first"]["p95"] == first["kpis"][row["entity"]][row["kpi"]]["p95"]

    code, out, err = twin(capsys, "compare", "last~1", "last", *where, "--all")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 100
    for row in everything:
        assert any(row["entity"] in line and f" {row['kpi']} " in line for line in out.splitlines())
    assert "means over the run; qos_degradation_ratio, sla_violation_s, " in out
    assert "more rows with --all" in twin(capsys, "compare", "last~1", "last", *where)[1]
    for more, message in (
        (("--kpi", "throughput_dl"), "--kpi: no KPI named throughput_dl (did you mean throughput_dl_bps?)"),
        (("--entity", "slise:"), "--entity: nothing begins with slise:"),
    ):
        code, out, err = twin(capsys, "compare", "last~1", "last", *where, *more)
        assert (code, out) == (ExitCode.USAGE, "")
        assert err.startswith(message) and len(err.splitlines()) == 1
    code, out, err = twin(capsys, "show", "last~2", *where)
    assert (code, out) == (ExitCode.USAGE, "")
    assert "there are 2" in err


def test_what_counts_since_the_start_is_marked() -> None:
    assert {spec.name for spec in KPIS.values() if spec.cumulative} == {
        spec.name for spec in KPIS.values() if "since the start" in spec.meaning
    }


@pytest.mark.parametrize("columns", [80, 100])
def test_names_stay_whole_on_a_narrow_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_small(capsys, small, tmp_path)
    manifest = Path(found["path"]) / "manifest.json"
    reason = "the host did not deliver what the scenario declares: link s1-s2"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "status": "INVALID", "reason": reason}))
    monkeypatch.setattr(
        "scenarios.tables.console", lambda: Console(width=columns, force_terminal=True, color_system=None)
    )
    out = twin(capsys, "list", "runs", "--runs", str(tmp_path))[1]
    (line,) = [line for line in out.splitlines() if found["run_id"] in line]
    assert [word for word in ("INVALID", "flow", "the h") if word in line] == ["INVALID", "flow", "the h"]
    assert len(line) <= columns and line.rstrip(" │").endswith("…")
    assert len(out.splitlines()) == 5
    out = twin(capsys, "list", "kpis")[1]
    for name, spec in KPIS.items():
        assert any(f"│ {name} " in line and f" {spec.unit} " in line for line in out.splitlines())


@pytest.mark.parametrize("active", [True, False])
def test_the_command_for_a_new_controller_needs_no_network(
    active: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix if active else "/elsewhere")
    code, out, _ = twin(capsys, "new-controller", "my_scaler", "--dir", str(tmp_path / "a folder"))
    assert code == 0
    folder = "" if active else f"{Path(sys.executable).parent}/"
    project = f"'{tmp_path}/a folder/my_scaler'"
    assert out.splitlines()[1].startswith(
        f"next: {folder}pip install --no-build-isolation -e {project} && {folder}twin"
    )
