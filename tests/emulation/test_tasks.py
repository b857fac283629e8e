"""Periodic tasks and reservations in containers: knobs, KPIs, refusals, restarts, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.emulation.deadline.conftest import deadline_host
from topologies.model import Container, PeriodicTask, Topology
from twin.emulation.deadline.sched import SCHED_DEADLINE, get_attributes
from twin.emulation.deadline.tracefs import instance_exists
from twin.emulation.session import EmulationBackend, EmulationSession
from twin.journal import default_folder
from twin.load import Load
from twin.types import Action, Observation

__all__ = ["deadline_host"]
pytestmark = [pytest.mark.emulation, pytest.mark.usefixtures("emulation_host", "deadline_host")]

TASK = "task:edge.1"


class Running:
    def __init__(self, session: EmulationSession) -> None:
        self.session = session

    def step(self, interval_s: float = 0.5) -> Observation:
        # Whole multiples of the interval, as in a run.
        until_s = (self.session.clock_s() // interval_s + 1) * interval_s
        return self.session.advance(until_s)

    def until(self, condition: Callable[[Observation], bool], within_s: float = 12.0) -> Observation:
        deadline_s = self.session.clock_s() + within_s
        while self.session.clock_s() < deadline_s:
            seen = self.step()
            if condition(seen):
                return seen
        raise AssertionError([(k.entity, k.name, k.value) for k in seen.kpis if k.entity.startswith("task")])

    def do(self, knob: str, value: float | str, entity: str = TASK) -> str:
        (outcome,) = self.session.apply([Action(entity, knob, value)])
        assert outcome.applied == (not outcome.reason)
        return outcome.reason

    def reserve(self, budget_us: float, period_us: float, entity: str = TASK) -> str:
        """A reservation that others on this host may be in the way of for a while."""
        assert self.do("dl_period_us", period_us, entity) == ""
        deadline_s = time.monotonic() + 30
        while "not admitted" in (reason := self.do("dl_runtime_us", budget_us, entity)):
            if time.monotonic() > deadline_s:
                pytest.skip(f"somebody else has reserved this host: {reason}")
            time.sleep(0.2)
        return reason

    def tid(self, number: int = 1) -> int:
        reservations = self.session._network.reservations
        assert reservations is not None
        return reservations._holders[f"task:edge.{number}"].threads[0].tid


@contextmanager
def running(folder: Path, *tasks: tuple[float, float]) -> Iterator[Running]:
    container = Container(name="edge", tasks=tuple(PeriodicTask(period_s=p / 1e3, work_s=w / 1e3) for p, w in tasks))
    topology = Topology(name="t", nodes=(container,), links=())
    run_id = f"test-{uuid.uuid4().hex[:10]}"
    backend = EmulationBackend(run_id=run_id, folder=folder, probes=False)
    with backend.open(topology, Load(flows=(), duration_s=60.0), seed=1) as session:
        yield Running(session)
    assert not list(default_folder().glob(f"{run_id}*"))
    assert not instance_exists(f"twinbed-{run_id}-periods")


def test_a_task_is_reserved_for_measured_and_given_back(tmp_path: Path) -> None:
    with running(tmp_path, (50, 5), (100, 2)) as run:
        tid = run.tid()
        assert get_attributes(tid).policy == 0
        seen = run.until(
            lambda seen: seen.get(TASK, "wakeup_period_s", 0) > 0 and seen.get("task:edge.2", "wakeup_period_s", 0) > 0
        )
        assert seen.value(TASK, "wakeup_period_s") == pytest.approx(0.05, rel=0.02)
        assert seen.value("task:edge.2", "wakeup_period_s") == pytest.approx(0.1, rel=0.02)
        assert run.reserve(8000, 50_000) == ""
        attributes = get_attributes(tid)
        assert (attributes.policy, attributes.runtime_ns, attributes.period_ns) == (
            SCHED_DEADLINE,
            8_000_000,
            50_000_000,
        )
        run.step()
        seen = run.until(lambda seen: seen.get(TASK, "task_response_p50_s", 1) < 0.0075)
        assert seen.value(TASK, "jobs_per_s") == pytest.approx(20, rel=0.25)
        assert seen.value(TASK, "dl_budget_s") == pytest.approx(0.008)
        assert seen.value(TASK, "dl_alpha_ratio") == pytest.approx(0.16)
        assert seen.value(TASK, "dl_delta_s") == pytest.approx(0.084)
        assert seen.value(TASK, "dl_used_s") == pytest.approx(0.005, rel=0.25)
        assert seen.value(TASK, "task_response_max_s") >= seen.value(TASK, "task_response_p50_s") >= 0.005
        # More work than the budget: it gets the budget and no more, and jobs wait.
        assert run.do("task_work_us", 20_000) == ""
        seen = run.until(lambda seen: seen.get(TASK, "deadline_miss_ratio", 0) == 1)
        assert seen.value(TASK, "dl_used_s") == pytest.approx(0.008, rel=0.25)
        assert run.do("dl_runtime_us", 0) == ""
        assert get_attributes(tid).policy == 0
        assert run.step().get(TASK, "dl_budget_s", -1.0) == -1
        assert run.reserve(8000, 50_000) == ""
    assert not Path(f"/proc/{tid}").exists()


def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path) -> None:
    with running(tmp_path, (100, 1), (100, 1), (100, 1)) as run:
        assert run.do("dl_runtime_us", 1000) == f"{TASK} dl_runtime_us: has no period yet; set dl_period_us before"
        for number in (1, 2, 3):
            assert run.do("dl_period_us", 100_000, f"task:edge.{number}") == ""
        assert "must be 0 or in [1.024, 100000] (at most the period" in run.do("dl_runtime_us", 150_000)
        assert run.do("dl_runtime_us", 1000, "task:edge.9").startswith("no task named 'edge.9'; tasks: edge.1, edge.2")
        # However many CPUs there are, three threads cannot have all of two and a half.
        cpus = os.cpu_count() or 1
        refused = [run.do("dl_runtime_us", 99_000, f"task:edge.{number}") for number in (1, 2, 3)]
        if cpus <= 2:
            assert "not admitted" in refused[-1] and "CPUs" in refused[-1]
            assert get_attributes(run.tid(3)).policy == 0
        for number in (1, 2, 3):
            assert run.do("dl_runtime_us", 0, f"task:edge.{number}") == ""
            assert get_attributes(run.tid(number)).policy == 0


def test_a_restarted_node_has_new_threads_with_the_work_of_before(tmp_path: Path) -> None:
    with running(tmp_path, (50, 1)) as run:
        run.step()
        before = run.tid()
        assert run.do("task_work_us", 4000) == ""
        assert run.reserve(8000, 50_000) == ""
        assert run.do("node_state", "down", "node:edge") == ""
        assert run.do("dl_runtime_us", 1000) == f"{TASK} dl_runtime_us: node edge is down"
        assert run.step().get(TASK, "jobs_per_s", -1.0) == -1
        assert run.do("node_state", "up", "node:edge") == ""
        assert run.tid() != before
        assert get_attributes(run.tid()).policy == 0
        seen = run.until(lambda seen: seen.get(TASK, "jobs_per_s", 0) > 5)
        assert seen.value(TASK, "task_response_p50_s") >= 0.004
        assert run.reserve(8000, 50_000) == ""


SCENARIO = """\
name: killed
duration: 60s
interval: 500ms
topology:
  nodes:
    edge: {kind: container, tasks: [{period: 100ms, work: 1ms}]}
events:
  - {at: 0s, entity: "task:edge.1", knob: dl_period_us, value: 100000}
  - {at: 0s, entity: "task:edge.1", knob: dl_runtime_us, value: 2000}
"""


def test_gc_after_a_kill_gives_back_what_was_reserved(tmp_path: Path) -> None:
    (tmp_path / "killed.twin.yml").write_text(SCENARIO)
    twin = [sys.executable, "-m", "scenarios.cli"]
    environment = {**os.environ, "TWINBED_STATE": str(tmp_path / "state")}
    command = [
        *twin,
        "run",
        str(tmp_path / "killed.twin.yml"),
        "--fidelity",
        "emulation",
        "--out",
        str(tmp_path / "runs"),
    ]
    journal = tmp_path / "state" / "journal"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as engine:
        try:
            tid = reserved(journal, engine)
            assert get_attributes(tid).policy == SCHED_DEADLINE
        finally:
            engine.send_signal(signal.SIGKILL)
    swept = subprocess.run([*twin, "gc", "--format", "json"], capture_output=True, check=True, env=environment)
    kinds = [row["kind"] for row in json.loads(swept.stdout)["removed"]]
    assert {"reservation", "tracing", "container"} <= set(kinds)
    assert list(journal.glob("*.jsonl")) == []
    assert not Path(f"/proc/{tid}").exists() or get_attributes(tid).policy == 0


def reserved(journal: Path, engine: subprocess.Popen[bytes], within_s: float = 30) -> int:
    """The thread of the first reservation that a run writes down and makes."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        assert engine.poll() is None
        for path in journal.glob("*.jsonl"):
            for line in path.read_text().splitlines():
                if '"reservation"' in line:
                    tid = int(json.loads(line)["ids"]["tid"])
                    if get_attributes(tid).policy == SCHED_DEADLINE:
                        return tid
        time.sleep(0.05)
    raise AssertionError("no reservation within the time")


def test_the_controller_follows_the_work_on_real_threads(tmp_path: Path) -> None:
    """The library's scenario, from its first change on, in short."""
    command = [sys.executable, "-m", "scenarios.cli", "run", "deadline_start", "--fidelity", "emulation"]
    command += ["--duration", "14s", "--out", str(tmp_path), "--format", "json", "--set", "assert=[]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    from twin.store import KpiReader

    (run,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    with KpiReader(run) as reader:
        if any("not admitted" in row.reason for row in reader.actions()):
            pytest.skip("somebody else has reserved this host")
        for number, work_s in ((1, 0.01), (2, 0.02)):
            entity = f"task:edge.{number}"
            _, budgets = reader.series(entity, "dl_budget_s")
            assert budgets[0] == pytest.approx(0.002)
            late = sorted(budgets[-8:])
            # The middle of the last cycles: a busy host disturbs single ones.
            assert work_s <= late[4] <= 1.1 * 1.1 * work_s
            _, responses = reader.series(entity, "task_response_p50_s")
            assert sorted(responses[-8:])[3] == pytest.approx(work_s, rel=0.1)
