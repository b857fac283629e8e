"""Fixtures for reservations on this host."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twin.emulation.deadline.sched import DeadlineError, get_attributes, reserve, set_attributes
from twin.emulation.deadline.tracefs import Tracefs
from twin.emulation.netns import in_thread

TASK = Path(__file__).parents[3] / "benchmarks" / "deadline_task.py"
Start = Callable[..., tuple["subprocess.Popen[str]", int]]


def _try_reservation() -> None:
    before = get_attributes(0)
    reserve(0, 1e-4, 0.1)
    set_attributes(0, before)


@pytest.fixture(scope="session")
def deadline_host() -> None:
    """A host with SCHED_DEADLINE and tracefs: skips with the reason where it lacks one, and fails instead in CI."""
    missing = "" if os.geteuid() == 0 else "not root"
    if not missing:
        try:
            in_thread(_try_reservation)
            Tracefs.open().close()
        except DeadlineError as error:
            missing = str(error)
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"no reservations here: {missing}")
    if missing:
        pytest.skip(f"no reservations here: {missing}")


@pytest.fixture
def task() -> Iterator[Start]:
    """Starts ``benchmarks/deadline_task.py`` with arguments; gives the process and its thread id, and ends it."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> tuple[subprocess.Popen[str], int]:
            command = [sys.executable, str(TASK), *arguments]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, int(process.stdout.readline())

        yield start
