from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scenarios.cli import main
from scenarios.exit_codes import ExitCode
from tests import command


def twin(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``twin slice-model``."""
    return command.twin(capsys, "slice-model", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small data set in the columns of the public one, and a model of it."""
    made = tmp_path_factory.mktemp("slice_model")
    rng = np.random.default_rng(3)
    rows = [
        ("2024-05-18 11:00:23", users * qos, cpu, bw, users, qos)
        for cpu in (500.0, 1000.0, 2000.0, 4000.0)
        for bw in (5.0, 10.0, 20.0, 40.0)
        for users in (1.0, 3.0, 5.0)
        for qos in min(0.008 * cpu / users, 0.8 * bw / users, 11.0) * rng.normal(1, 0.05, 4)
    ]
    columns = ["time", "total_bandwidth_usage", "cpu", "bw", "n_users", "qos"]
    pd.DataFrame(rows, columns=columns).to_csv(made / "qos.csv", index=False)
    data, model = str(made / "qos.csv"), str(made / "model.pt")
    assert main(["slice-model", "fit", "--data", data, "--out", model, "--no-validate"]) == ExitCode.OK
    return made


def test_fit_says_how_it_does_on_withheld_cells_and_rows(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    model = str(folder / "checked.pt")
    arguments = ("--data", str(folder / "qos.csv"), "--kind", "gaussian", "--seed", "1", "--out", model)
    code, out, err = twin(capsys, "fit", *arguments, "--format", "json")
    assert code == ExitCode.OK, err
    found = json.loads(out)
    assert found["model"] == model
    assert (found["kind"], found["rows"], found["cells"]) == ("gaussian", 192, 16)
    assert set(found["validation"]) == {"by_cell", "by_row"}
    assert found["validation"]["by_cell"]["rows"] == 48  # a fifth of 16 cells is four, with 12 rows each
    assert found["fit_s"] > 0


def test_evaluate_prints_scores_and_calibration(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, err = twin(
        capsys, "evaluate", str(folder / "model.pt"), "--data", str(folder / "qos.csv"), "--format", "json"
    )
    assert code == ExitCode.OK, err
    found = json.loads(out)
    assert found["rows"] == 192
    assert found["mae"] < 0.25
    assert found["nll"] < 0.5
    assert set(found["calibration"]["coverage"]) == {"50%", "80%", "95%"}
    assert sum(found["calibration"]["pit"]) == pytest.approx(1.0)
    code, out, _ = twin(capsys, "evaluate", str(folder / "model.pt"), "--data", str(folder / "qos.csv"))
    assert code == ExitCode.OK
    assert "throughput_mbps" in out


def test_one_cell_can_be_scored_but_not_learned(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    frame = pd.read_csv(folder / "qos.csv")
    one = str(folder / "one.csv")
    frame[(frame.cpu == 2000) & (frame.bw == 20)].to_csv(one, index=False)
    code, _, err = twin(capsys, "evaluate", str(folder / "model.pt"), "--data", one)
    assert code == ExitCode.OK, err
    code, out, err = twin(capsys, "fit", "--data", one, "--out", str(folder / "no.pt"))
    assert code == ExitCode.USAGE
    assert out == ""
    assert err == f"{one}: slice slice: 1 cell only (cpu 2000, bw 20), needs 2 or more\n"


def test_show_writes_a_page(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    page = str(folder / "surface.html")
    code, out, err = twin(capsys, "show", str(folder / "model.pt"), "--out", page)
    assert (code, out) == (ExitCode.OK, f"{page}\n"), err
    assert "<html>" in Path(page).read_text()
    code, _, err = twin(capsys, "show", str(folder / "model.pt"), "--out", page, "--qos", "delay_s")
    assert code == ExitCode.USAGE
    assert err == "slice model: no QoS 'delay_s' of slice 'slice'; known: slice throughput_mbps\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "--data", "none.csv", "--out", "m.pt"), "none.csv: cannot be read: No such file or directory\n"),
        (("evaluate", "none.pt", "--data", "none.csv"), "none.pt: cannot be read: No such file or directory\n"),
        (("fit", "--data", "none.csv", "--out", "no/m.pt"), "--out no/m.pt: no folder no\n"),
        (("fit", "--data", "none.csv"), "twin: Missing option '--out'"),
        (("fit", "--data", "none.csv", "--out", "m.pt", "--kind", "tree"), "'tree' is not one of"),
    ],
)
def test_bad_input_gets_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = twin(capsys, *arguments)
    assert (code, out) == (ExitCode.USAGE, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_commands_say_what_to_install(tmp_path: Path) -> None:
    program = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n"
        "from scenarios.cli import main\n"
        "code = main(['slice-model', 'evaluate', 'm.pt', '--data', 'q.csv'])\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == ExitCode.MISSING, done.stderr
    assert done.stderr == "twin: slice-model: no package torch: needs pip install 'twinbed[learning]'\n"
