"""``twin`` commands inside the process of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scenarios.cli import main


def twin(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_in_flow(capsys: pytest.CaptureFixture[str], runs: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the object that was printed, and stderr of ``twin run`` on the flow fidelity."""
    code, out, err = twin(capsys, "run", *arguments, "--fidelity", "flow", "--out", str(runs), "--format", "json")
    return code, json.loads(out) if out else {}, err
