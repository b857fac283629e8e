import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.plugin import PluginError, write_plugin


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A new plug-in, installed into a folder of its own that is put on the path."""
    project = write_plugin("my_scaler", tmp_path)
    target = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--disable-pip-version-check", "--target", str(target), str(project)],
        check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    path = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH", "")]))
    return project, {**os.environ, "PYTHONPATH": path}


def test_a_new_controller_passes_its_own_test_and_steers_the_quickstart(
    installed: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    project, environment = installed
    own = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert own.returncode == 0, own.stdout + own.stderr
    assert "3 passed" in own.stdout
    twin = [sys.executable, "-m", "scenarios.cli"]
    arguments = ["run", "quickstart", "--fidelity", "flow", "--controller", "my_scaler", "--format", "json"]
    done = subprocess.run(
        [*twin, *arguments, "--out", str(tmp_path / "runs")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["status"] == "VALID", done.stderr
    assert found["kpis"]["controller:my_scaler"]["faults"]["max"] == 0
    assert found["actions"]["applied"] > 8
    listed = subprocess.run(
        [*twin, "list", "controllers"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "my_scaler" in listed.stdout


def test_what_was_written_is_kept(tmp_path: Path) -> None:
    project = write_plugin("my_scaler", tmp_path)
    with pytest.raises(PluginError, match="exists already"):
        write_plugin("my_scaler", tmp_path)
    assert sorted(path.name for path in project.iterdir()) == [
        "README.md",
        "my_scaler.py",
        "pyproject.toml",
        "test_my_scaler.py",
    ]
    for path in project.iterdir():
        assert "@" not in path.read_text(encoding="utf-8").replace("@property", "")


@pytest.mark.parametrize(
    "name", ["My_scaler", "1a", "", "a-b", "class", "../x", "rule_based", "twin", "json", "a" * 99]
)
def test_a_name_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        write_plugin(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
