from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sb3_contrib")

from agents.checkpoint import sole_writer
from agents.phaul import CHECKPOINT, read_policy
from scenarios.cli import main
from scenarios.exit_codes import ExitCode
from tests.command import twin
from topologies.iab import generate, write_network

SMALL = ("--episode-steps", "40", "--seed", "1")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "net.json"
    write_network(generate(10, k_paths=2, seed=1), path)
    return str(path)


@pytest.fixture(scope="module")
def trained(network: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["train", network, "--agent", "phaul", "--steps", "4096", "--out", str(path), *SMALL]
    assert main(arguments) == ExitCode.OK
    return path


def test_leaves_a_checkpoint_a_curve_and_a_manifest(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    code, printed, progress = twin(capsys, "train", network, "--steps", "3000", "--out", str(out), "--format", "json")
    assert code == ExitCode.OK, progress
    assert not list(temporary.glob("SB3*"))
    assert sorted(path.name for path in out.iterdir()) == [CHECKPOINT, "curve.csv", "curve.html", "manifest.json"]
    found = json.loads(printed)
    assert found["steps"] == 4096 and found["training_time_s"] > 0
    assert progress.count(" steps  reward ") == 2
    with (out / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["steps"] for row in rows] == ["2048", "4096"]
    # 16 searches of 300 steps end in 4096 steps of 8 environments, 8 of them in the second update.
    assert rows[-1]["episodes"] == "8" and 0 < float(rows[-1]["efficiency_best"]) <= 1
    page = (out / "curve.html").read_text()
    assert "training steps" in page and "<script src=" not in page
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "DONE" and manifest["agent"] == "phaul"
    assert manifest["plan"]["steps"] == 3000 and manifest["plan"]["flows"] == 7
    assert {"torch", "stable-baselines3", "twinbed"} <= set(manifest["versions"])
    assert {"commit", "started", "topology", "scenario_sha256", "checkpoint_sha256", "argv"} <= set(manifest)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, ExitCode.FAILED), (errno.EROFS, ExitCode.USAGE)])
def test_a_full_disk_is_no_bad_input(
    number: int,
    code: ExitCode,
    network: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    found, _, error = twin(capsys, "train", network, "--steps", "1", "--out", str(tmp_path / "run"), *SMALL)
    assert (found, error.count("\n")) == (code, 1)
    assert f"cannot be written: {os.strerror(number)}" in error


def test_solve_takes_the_checkpoint(network: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for policy in (trained, trained / CHECKPOINT):
        arguments = ("iab", "solve", network, "--controller", "phaul", "--policy", str(policy), "--format", "json")
        code, printed, error = twin(capsys, *arguments)
        assert code == ExitCode.OK, error
        found.append(json.loads(printed))
    keys = ["allocation", "rates_bps", "efficiency", "fairness", "decision_time_s", "steps"]
    assert list(found[0])[:6] == keys
    assert found[0]["steps"] == 40
    assert found[0]["allocation"] == found[1]["allocation"]


def test_solve_without_a_checkpoint_learns_once(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("agents.phaul.TRAINING_STEPS", 2048)
    arguments = ("iab", "solve", network, "--controller", "phaul", "--gamma", "0.5", "--format", "json")
    code, first, progress = twin(capsys, *arguments)
    assert code == ExitCode.OK, progress
    assert "training 2048 steps on this topology" in progress and "kept in" in progress
    code, again, progress = twin(capsys, *arguments)
    assert code == ExitCode.OK and progress == ""
    assert json.loads(first)["allocation"] == json.loads(again)["allocation"]
    (kept,) = tmp_path.glob(f"twinbed/phaul/*/{CHECKPOINT}")
    kept.write_bytes(kept.read_bytes()[:500])
    code, repaired, progress = twin(capsys, *arguments)
    assert code == ExitCode.OK and "is damaged; training again" in progress
    assert json.loads(repaired)["allocation"] == json.loads(first)["allocation"]


def start(network: str, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """A training in a process of its own."""
    script = "import sys; from scenarios.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["train", network, "--steps", "8192", "--out", str(out), *SMALL, *more]
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_killed_and_resumed_is_as_if_nothing_had_happened(network: str, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    one = start(network, killed)
    deadline_s = time.monotonic() + 120
    try:
        while not (killed / "curve.csv").exists() or len((killed / "curve.csv").read_text().splitlines()) < 2:
            assert one.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.02)
        os.kill(one.pid, signal.SIGKILL)
    finally:
        one.kill()
        one.wait()
    assert one.returncode == -signal.SIGKILL
    read_policy(killed)
    assert json.loads((killed / "manifest.json").read_text())["status"] == "RUNNING"
    assert main(["train", network, "--steps", "8192", "--out", str(killed), *SMALL, "--resume"]) == ExitCode.OK
    assert main(["train", network, "--steps", "8192", "--out", str(whole), *SMALL]) == ExitCode.OK
    assert (killed / CHECKPOINT).read_bytes() == (whole / CHECKPOINT).read_bytes()
    assert (killed / "curve.csv").read_bytes() == (whole / "curve.csv").read_bytes()


@pytest.mark.parametrize("episode_steps", ["32", "300"])
def test_stopped_where_episodes_begin_is_resumed(episode_steps: str, network: str, tmp_path: Path) -> None:
    """Every search has just begun: after 256 steps of 32 a search, and before the first step of all."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    options: tuple[str, ...] = ("--episode-steps", episode_steps, "--steps")
    if episode_steps == "300":
        one = start(network, stopped, "--episode-steps", "300")
        deadline_s = time.monotonic() + 120
        try:
            while not (stopped / "curve.csv").exists():
                assert one.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.001)
            os.kill(one.pid, signal.SIGKILL)
        finally:
            one.kill()
            one.wait()
        options = ("--seed", "1", *options)
    else:
        assert main(["train", network, "--out", str(stopped), *options, "2048"]) == ExitCode.OK
        read_policy(stopped)
    assert main(["train", network, "--out", str(stopped), *options, "4096", "--resume"]) == ExitCode.OK
    assert main(["train", network, "--out", str(whole), *options, "4096"]) == ExitCode.OK
    assert (stopped / CHECKPOINT).read_bytes() == (whole / CHECKPOINT).read_bytes()


def test_one_training_at_a_time_in_a_folder(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with sole_writer(out):
        code, printed, error = twin(capsys, "train", network, "--out", str(out), *SMALL)
    assert code == ExitCode.USAGE and printed == ""
    assert error == f"{out}: another training writes there now\n"
    assert not list(out.iterdir())


def test_a_refused_resume_leaves_the_manifest(network: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "manifest.json").read_bytes()
    code, _, error = twin(capsys, "train", network, "--out", str(trained), "--resume", *SMALL[:3], "2")
    assert code == ExitCode.USAGE and "seed was another: 1, not 2" in error
    assert (trained / "manifest.json").read_bytes() == before


def test_an_interrupted_training_of_solve_is_no_policy(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("iab", "solve", network, "--controller", "phaul", "--format", "json")
    monkeypatch.setattr("agents.phaul.TRAINING_STEPS", 4096)

    def interrupt(_row: object) -> None:
        raise KeyboardInterrupt

    found = []
    for name, line in (("whole", None), ("stopped", interrupt)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        if line is not None:
            with monkeypatch.context() as patch:
                patch.setattr("agents.phaul._line", line)
                # Between the first row and its checkpoint.
                assert twin(capsys, *arguments)[0] == ExitCode.SIGINT
        code, printed, progress = twin(capsys, *arguments)
        assert code == ExitCode.OK and "   4096 steps" in progress, progress
        found.append(json.loads(printed)["allocation"])
    assert found[0] == found[1]


def test_mistakes_are_one_line(network: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    write_network(generate(12, k_paths=2, seed=1), other)
    idle = tmp_path / "idle.json"
    content: dict[str, Any] = json.loads(Path(network).read_text())
    for flow in content["flows"]:
        flow["demand_bps"] = 0
    idle.write_text(json.dumps(content))
    (tmp_path / "file").write_text("")
    solve = ("iab", "solve", network, "--controller", "phaul", "--policy")
    cases = [
        (("train", network, "--out", str(trained)), "has a checkpoint already; --resume goes on with it"),
        (("train", network, "--out", str(tmp_path / "no"), "--resume"), "--resume: no checkpoint in"),
        (("train", network, "--out", str(trained), "--resume", *SMALL[:3], "2"), "seed was another: 1, not 2"),
        (("train", network, "--out", str(tmp_path / "file" / "x")), "cannot be made: Not a directory"),
        (("train", network, "--out", "x", "--gamma", "2"), "gamma: must be in -1..1, got 2"),
        (("train", network, "--out", "x", "--active", "0"), "active_probability: must be in (0, 1], got 0"),
        (("train", network, "--out", "x", "--agent", "sac"), "'sac' is not"),
        (("train", network, "--out", "x", "--steps", "0"), "'--steps'"),
        (("train", str(idle), "--out", "x"), "every flow of the network has 0 bit/s"),
        (("train", "quickstart", "--out", "x"), "quickstart: has no backhaul flows"),
        (("train", "nowhere", "--out", "x"), "nowhere"),
        (("train", "/nowhere.json", "--out", "x"), "/nowhere.json: cannot be read"),
        ((*solve, str(trained), "--gamma", "0"), "was trained for gamma 1, not 0"),
        ((*solve, network), "is not a checkpoint of TwinBed"),
        ((*solve, "/nowhere"), "/nowhere: cannot be read: No such file"),
        (("iab", "solve", network, "--controller", "random", "--policy", str(trained)), "random does not learn"),
        (("iab", "solve", str(other), "--controller", "phaul", "--policy", str(trained)), "10 nodes, here are 12"),
    ]
    for arguments, message in cases:
        code, printed, error = twin(capsys, *arguments)
        assert code == ExitCode.USAGE, (arguments, error)
        assert printed == "" and error.count("\n") == 1, error
        assert message in error
    assert not Path("x").exists()


def test_help_does_not_need_what_learning_needs(tmp_path: Path) -> None:
    """Neither the list of the commands nor another command imports torch."""
    script = (
        "import sys\n"
        "for name in ('torch', 'stable_baselines3', 'sb3_contrib', 'gymnasium'):\n"
        "    sys.modules[name] = None\n"
        "from scenarios.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "train" in done.stdout, done.stderr
    write_network(generate(8, seed=1), tmp_path / "net.json")
    arguments = ["train", str(tmp_path / "net.json"), "--out", str(tmp_path / "x")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert done.stderr == "training: no package torch: needs pip install 'twinbed[learning]'\n"
