"""The program of periodic tasks on its own."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulation.dataplane.chain import Program, wait_until

Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(*tasks: tuple[float, float]) -> Program:
            rows = [{"period_ns": int(period_ms * 1e6), "work_ns": int(work_ms * 1e6)} for period_ms, work_ms in tasks]
            program = Program("tasks", None, {"node": "edge", "tasks": rows}, tmp_path, "edge")
            stack.callback(program.stop)
            return program.ready()

        yield begin


def rows(program: Program) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = program.call("stats")["tasks"]
    return found


def gone(pid: int) -> bool:
    """A child of a program that was killed is reaped by nobody here: a zombie has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_jobs_come_in_every_period_and_take_their_work(start: Start) -> None:
    program = start((20, 2), (50, 1))
    assert [row["jobs"] for row in rows(program)] == [0, 0]
    epoch_ns = time.monotonic_ns()
    program.call("epoch", time_ns=epoch_ns)
    assert "the tasks run already" in program.ask("epoch", time_ns=epoch_ns)["error"]
    first = wait_until(lambda: (found := rows(program))[1]["jobs"] >= 10 and found[0]["jobs_now"] and found)
    passed_s = (time.monotonic_ns() - epoch_ns) / 1e9
    assert first[0]["jobs"] == pytest.approx(passed_s / 0.02, abs=3)
    assert 2000 <= first[0]["p50_us"] <= first[0]["p99_us"] <= first[0]["max_us"]
    # Each process burns its own work and little more.
    cpu_ms = [int(Path(f"/proc/{row['pid']}/schedstat").read_text().split()[0]) / 1e6 for row in first]
    assert 2 * first[0]["jobs"] <= cpu_ms[0] <= 2.6 * first[0]["jobs"] + 15
    assert len({row["pid"] for row in first}) == 2


def test_work_changes_with_the_next_job(start: Start) -> None:
    program = start((20, 1))
    program.call("epoch", time_ns=time.monotonic_ns())
    program.call("set_work", task=1, work_ns=8_000_000)
    row = rows(program)[0]
    assert row["work_ns"] == 8_000_000
    found = wait_until(lambda: (now := rows(program)[0])["jobs"] > row["jobs"] + 5 and now)
    assert found["p99_us"] >= 8000
    for bad in ({"task": 2, "work_ns": 0}, {"task": 1, "work_ns": -1}, {"task": 1}):
        assert program.ask("set_work", **bad)["ok"] is False


def test_responses_are_told_once(start: Start) -> None:
    program = start((1, 0))
    program.call("epoch", time_ns=time.monotonic_ns())
    told = 0

    def counted() -> bool:
        nonlocal told
        row = rows(program)[0]
        told += row["jobs_now"]
        assert told == row["jobs"]
        return bool(told > 200)

    wait_until(counted)


def test_the_tasks_end_with_the_program(start: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        program = start((100, 1), (10, 1))
        program.call("epoch", time_ns=time.monotonic_ns())
        pids = [row["pid"] for row in rows(program)]
        os.kill(program.call("ping")["pid"], number)
        wait_until(lambda pids=pids: all(map(gone, pids)))
        program.stop()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "tasks: must be 1 to 64, got 0"),
        ([{"period_ns": 1, "work_ns": 1}], "period_ns: must be in [1e+06, 1e+10], got 1"),
        ([{"period_ns": 1e6, "work_ns": "x"}], "work_ns: must be int or float, got 'x'"),
        ([{"period_ns": 1e6}], "key 'work_ns' is missing"),
    ],
)
def test_bad_configurations(tmp_path: Path, tasks: list[dict[str, Any]], message: str) -> None:
    program = Program("tasks", None, {"node": "edge", "tasks": tasks}, tmp_path, "edge")
    try:
        _, said = program.process.communicate(timeout=10)
        assert program.process.returncode == 2
        assert message in said
    finally:
        program.stop()
