"""The engine on a small in-memory network: what it logs, what it derives, what cannot break it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from scenarios.engine import Episode, RunResult, run
from scenarios.loader import load_scenario
from scenarios.model import ControllerSpec, Scenario, TimedAction
from scenarios.registry import LIBRARY
from topologies.model import App, Gnb, Link, Sla, Slice, Topology, Ue, Upf
from twin.backend import BackendError
from twin.flow.session import FlowBackend
from twin.journal import start_ticks
from twin.knobs import refusal
from twin.load import Activity, Flow, Load
from twin.store import KpiReader, RunStore, StoreFull
from twin.types import Action, Kpi, Observation, Outcome, Probe

TOPOLOGY = Topology(
    name="small",
    nodes=(
        Ue(name="phone", slice="embb", count=2),
        Gnb(name="gnb1"),
        Upf(name="upf1", slice="embb"),
        App(name="video", service="stream"),
    ),
    links=(Link(a="phone", b="gnb1"), Link(a="gnb1", b="upf1"), Link(a="upf1", b="video")),
    slices=(
        Slice(
            name="embb",
            sst=1,
            prb_share=0.5,
            cpu_millicores=500,
            sla=Sla(q_thresh_bps=5e6, beta_thresh=0.5, latency_bound_s=0.05),
        ),
        Slice(name="other", sst=2, prb_share=0.5),
    ),
)
LOAD = Load(
    flows=(
        Flow(
            name="f",
            ue="phone.1",
            slice="embb",
            app="video",
            service="stream",
            direction="dl",
            packet_bytes=1200,
            activities=(Activity(0, 10, 8e6),),
        ),
    ),
    duration_s=10,
)


class FakeNetwork:
    """Throughput is 10 kbit/s per millicore; lives in memory."""

    def __init__(self, owner: FakeBackend) -> None:
        self.owner = owner
        self.cpu_millicores = 500.0
        self.time_s = 0.0
        self.closed = 0

    @property
    def probes(self) -> Sequence[Probe]:
        return self.owner.probes

    def apply(self, actions: Sequence[Action]) -> Sequence[Outcome]:
        outcomes = []
        for action in actions:
            reason = refusal(action)
            if reason is None and (action.entity, action.knob) == ("slice:embb", "cpu_millicores"):
                self.cpu_millicores = float(action.value)
            outcomes.append(Outcome(action, reason is None, reason or "", self.time_s, 0.0))
        return outcomes

    def advance(self, until_s: float) -> Observation:
        assert until_s > self.time_s
        self.owner.before_advance(until_s)
        self.time_s = until_s
        kpis = [
            Kpi(until_s, "slice:embb", "throughput_dl_bps", self.cpu_millicores * 1e4),
            Kpi(until_s, "slice:embb", "active_ues", 1.0),
            Kpi(until_s, "slice:embb", "delay_dl_p95_s", 0.02),
            Kpi(until_s, "slice:embb", "cpu_limit_millicores", self.cpu_millicores),
        ]
        return Observation(until_s, (*kpis, *self.owner.more_kpis(until_s)), self.owner.faults(until_s))

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FakeBackend:
    """Opens one :class:`FakeNetwork`; hooks let a test disturb it."""

    name = "fake"

    def __init__(self, *, deterministic: bool = True) -> None:
        self.deterministic = deterministic
        self.probes: tuple[Probe, ...] = ()
        self.before_advance: Callable[[float], object] = lambda _: None
        self.more_kpis: Callable[[float], Sequence[Kpi]] = lambda _: ()
        self.faults: Callable[[float], tuple[tuple[str, str], ...]] = lambda _: ()
        self.network: FakeNetwork | None = None

    def open(self, topology: Topology, load: Load, *, seed: int) -> FakeNetwork:
        assert load.flows and topology.slices and seed >= 0
        self.network = FakeNetwork(self)
        return self.network


def scenario(**changes: Any) -> Scenario:
    return replace(Scenario(name="small", topology=TOPOLOGY, load=LOAD, duration_s=10.0), **changes)


def spec(cls: str, name: str = "c", **changes: Any) -> ControllerSpec:
    settings: dict[str, Any] = {"interval_s": 2.0, "scope": ("slice:embb",), "time_limit_s": 5.0}
    return ControllerSpec(name=name, controller=f"tests.scenarios.misbehaving:{cls}", **{**settings, **changes})


@pytest.fixture
def execute(tmp_path: Path) -> Iterator[Callable[..., tuple[RunResult, KpiReader]]]:
    readers: list[KpiReader] = []

    def execute(
        *controllers: ControllerSpec, backend: FakeBackend | None = None, **changes: Any
    ) -> tuple[RunResult, KpiReader]:
        store = RunStore.create(tmp_path / "runs", "small")
        result = run(scenario(**changes), backend or FakeBackend(), controllers, store)
        readers.append(KpiReader(result.path))
        return result, readers[-1]

    yield execute
    for reader in readers:
        reader.close()


def test_a_run_without_controllers_is_valid_and_complete(execute: Any) -> None:
    result, reader = execute()
    assert (result.status, result.reason, result.signal_number) == ("VALID", "", None)
    times, values = reader.series("slice:embb", "throughput_dl_bps")
    assert times.tolist() == [float(k) for k in range(1, 11)]
    assert set(values.tolist()) == {5e6}
    manifest = reader.manifest
    assert (manifest["status"], manifest["seed"], manifest["fidelity"], manifest["backend"]) == (
        "VALID",
        0,
        "flow",
        "fake",
    )
    assert manifest["scenario"]["topology"]["nodes"][1]["kind"] == "gnb"
    assert manifest["scenario"]["load"]["flows"] == 1
    assert manifest["versions"]["python"] and manifest["started"] <= manifest["ended"]


def test_a_last_short_interval_ends_with_the_scenario(execute: Any) -> None:
    _, reader = execute(duration_s=2.5)
    assert reader.series("slice:embb", "active_ues")[0].tolist() == [1.0, 2.0, 2.5]


def test_qos_degradation_and_violation_follow_equation_1(execute: Any) -> None:
    events = (TimedAction(time_s=4.0, action=Action("slice:embb", "cpu_millicores", 600.0), label="more CPU"),)
    _, reader = execute(events=events)
    assert reader.series("slice:embb", "qos_bps")[1].tolist() == [5e6] * 4 + [6e6] * 6
    # q <= q_thresh counts as degraded, equality included.
    expected = [1.0] * 4 + [4 / k for k in range(5, 11)]
    assert reader.series("slice:embb", "qos_degradation_ratio")[1].tolist() == pytest.approx(expected)
    # beta_thresh 0.5 is kept from t = 8 s on.
    assert reader.series("slice:embb", "sla_violation_s")[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 7, 7, 7]
    assert reader.names().count(("slice:other", "sla_violation_s")) == 0
    assert [event.text for event in reader.events()] == ["more CPU"]
    (action,) = reader.actions()
    assert (action.source, action.time_s, action.value, action.applied) == ("event", 4.0, 600.0, True)


def test_sla_knobs_change_the_promise_and_not_the_network(execute: Any) -> None:
    events = (
        TimedAction(time_s=5.0, action=Action("slice:embb", "q_thresh_mbps", 4.0)),
        TimedAction(time_s=5.0, action=Action("slice:embb", "latency_bound_s", 0.01)),
        TimedAction(time_s=6.0, action=Action("slice:nobody", "beta_thresh", 0.1)),
        TimedAction(time_s=6.0, action=Action("slice:embb", "beta_thresh", 2.0)),
    )
    _, reader = execute(events=events)
    assert reader.series("slice:embb", "qos_degradation_ratio")[1][-1] == 0.5
    assert reader.series("slice:embb", "sla_violation_s")[1][-1] == 10.0
    actions = reader.actions()
    assert [action.applied for action in actions] == [True, True, False, False]
    assert "no slice named nobody" in actions[2].reason and "[0, 1]" in actions[3].reason


def test_a_refused_or_late_event_is_logged(execute: Any) -> None:
    events = (
        TimedAction(time_s=1.0, action=Action("slice:embb", "cpu_millicores", -1.0)),
        TimedAction(time_s=99.0, action=Action("slice:embb", "cpu_millicores", 100.0)),
    )
    result, reader = execute(events=events)
    assert result.status == "VALID"
    assert not reader.actions()[0].applied and "cpu_millicores must be" in reader.actions()[0].reason
    assert [(event.kind, event.text) for event in reader.events()] == [
        ("not reached", "99 s: slice:embb cpu_millicores = 100.0")
    ]


def test_a_controller_acts_at_its_interval_and_is_shown_every_observation(execute: Any) -> None:
    result, reader = execute(spec("SeesAll", interval_s=3.0))
    assert result.status == "VALID"
    assert reader.series("controller:c", "faults")[1].tolist() == [0.0] * 10
    assert [(row.time_s, row.value) for row in reader.actions()] == [(1.0, 101.0), (4.0, 104.0), (7.0, 107.0)]


def test_a_controller_prepares_itself_before_the_clock_starts(execute: Any) -> None:
    result, reader = execute(spec("Prepared"))
    assert result.status == "VALID"
    assert reader.series("controller:c", "faults")[1].tolist() == [0.0] * 10
    assert reader.actions()[0].time_s == 1.0


def test_what_befalls_the_network_is_recorded(execute: Any) -> None:
    backend = FakeBackend()
    backend.faults = lambda until_s: (("node:edge1", "partition edge1: QEMU ended"),) if until_s == 3 else ()
    result, reader = execute(backend=backend)
    assert result.status == "VALID"
    (event,) = reader.events()
    assert (event.time_s, event.source, event.kind, event.text) == (
        3.0,
        "node:edge1",
        "fault",
        "partition edge1: QEMU ended",
    )


@pytest.mark.parametrize(
    ("cls", "text"),
    [
        ("Raises", "act() raised RuntimeError: no idea"),
        ("ObserveRaises", "observe() raised KeyError: 'at 1'"),
        ("Exits", "process exited with code 3; started again (1 of 3)"),
        (
            "Scribbles",
            "answer is not understood: JSONDecodeError: Expecting value: line 1 column 1 (char 0); "
            "started again (1 of 3)",
        ),
    ],
)
def test_a_controller_that_fails_is_recorded_and_its_last_action_stays(execute: Any, cls: str, text: str) -> None:
    result, reader = execute(spec(cls), spec("Good", "other", scope=("slice:other",)))
    assert result.status == "VALID"
    faults = [event.text for event in reader.events() if event.kind == "fault"]
    assert text in faults
    assert reader.series("controller:c", "faults")[1][-1] == len(faults)
    assert reader.series("controller:other", "faults")[1][-1] == 0
    if cls == "Raises":
        assert reader.series("slice:embb", "cpu_limit_millicores")[1].tolist() == [500.0] + [510.0] * 9
    if cls == "Exits":
        assert "given up after 3 restarts" in faults[-1] and len(faults) == 4


def test_a_controller_that_hangs_is_killed_and_started_again(execute: Any) -> None:
    start = time.monotonic()
    result, reader = execute(spec("Hangs", time_limit_s=0.3))
    assert time.monotonic() - start < 8
    assert result.status == "VALID"
    faults = [event.text for event in reader.events() if event.kind == "fault"]
    assert faults == [f"no decision within 0.3 s; started again ({n} of 3)" for n in (1, 2)]
    # A new instance begins anew: good, hang, good, hang, good.
    assert [(row.time_s, row.value) for row in reader.actions()] == [(1.0, 510.0), (5.0, 510.0), (9.0, 510.0)]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("none", "must return a sequence of Action, got NoneType"),
        ("text", "must return a sequence of Action, got str"),
        ("tuple", "got one with tuple"),
        ("nan", "slice:embb cpu_millicores: value must be finite, got nan"),
        ("bool", "value must be a number or text, got bool"),
        ("list", "value must be a number or text, got list"),
        ("unknown knob", "no knob named 'cpu'"),
        ("surrogate", "text must be printable and at most 500 characters, got '\\ud800'"),
        ("too many", "act() may return at most 1000 actions, got 1001"),
    ],
)
def test_nonsense_is_a_fault(execute: Any, answer: str, text: str) -> None:
    result, reader = execute(spec("Says", interval_s=20.0, params={"answer": answer}), duration_s=2.0)
    assert result.status == "VALID"
    (event,) = reader.events()
    assert (event.kind, event.source) == ("fault", "controller:c") and text in event.text
    assert reader.actions() == [] and reader.series("controller:c", "faults")[1][-1] == 1


@pytest.mark.parametrize("answer", ["out of range", "out of scope"])
def test_an_action_out_of_range_or_scope_is_refused_and_counted(execute: Any, answer: str) -> None:
    _, reader = execute(spec("Says", interval_s=20.0, params={"answer": answer}), duration_s=2.0)
    (action,) = reader.actions()
    assert not action.applied
    assert ("outside the scope of controller c: slice:embb" if answer == "out of scope" else "[10,") in action.reason
    assert reader.series("controller:c", "refused_actions")[1][-1] == 1
    assert reader.series("controller:c", "faults")[1][-1] == 0


def test_a_fault_is_one_line_that_can_be_stored(execute: Any) -> None:
    result, reader = execute(spec("RaisesLines"))
    assert result.status == "VALID"
    assert {event.text for event in reader.events()} == {"act() raised OSError: no file \\udcff here"}


def test_a_forged_decision_is_a_fault(execute: Any) -> None:
    result, reader = execute(spec("Forges"))
    assert result.status == "VALID" and not reader.actions()
    assert "value must be a number or text, got list" in reader.events()[0].text


def test_what_a_controller_forked_ends_with_the_run(execute: Any, tmp_path: Path) -> None:
    result, _ = execute(spec("Forks", params={"note": str(tmp_path / "children")}))
    assert result.status == "VALID"
    children = [int(line) for line in (tmp_path / "children").read_text().split()]
    assert len(children) == 5
    deadline = time.monotonic() + 5
    while any(start_ticks(child) is not None for child in children):
        assert time.monotonic() < deadline, "a forked process is still there"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("controller", "text"),
    [
        (spec("Good", params={"step": 0}), "controller c: step must not be 0, got 0"),
        (spec("NeverReady"), "controller c: OSError: no model file for slice:embb"),
        (spec("Nobody"), "controller c: controller 'tests.scenarios.misbehaving:Nobody' cannot be loaded"),
        (ControllerSpec(name="c", controller="nobody"), "controller c: no controller named 'nobody'; controllers: "),
    ],
)
def test_an_unusable_controller_does_not_start_the_run(execute: Any, controller: ControllerSpec, text: str) -> None:
    backend = FakeBackend()
    result, reader = execute(controller, backend=backend)
    assert result.status == "FAILED" and text in result.reason and "\n" not in result.reason
    assert reader.manifest["reason"] == result.reason
    assert backend.network is not None and backend.network.closed


def test_what_a_controller_prints_goes_to_its_log(execute: Any, capfd: pytest.CaptureFixture[str]) -> None:
    result, _ = execute(spec("Prints"))
    assert capfd.readouterr() == ("", "")
    log = (result.path / "controllers" / "c.log").read_text()
    assert "hello from a controller" in log and "hello from its file descriptor" in log


def test_a_failed_probe_makes_the_run_invalid(execute: Any) -> None:
    backend = FakeBackend()
    backend.probes = (
        Probe("link a-b delay_s", "s", 0.01, 0.0, passed=False, detail="no netem"),
        Probe("node a cpu_millicores", "1e-3 CPU", 500, 499, passed=True),
    )
    result, reader = execute(backend=backend)
    assert result.status == "INVALID"
    assert result.reason == "the host did not deliver link a-b delay_s: declared 0.01 s, measured 0 s (no netem)"
    assert tuple(reader.probes()) == backend.probes


def test_a_lost_network_fails_the_run_and_keeps_what_was_measured(execute: Any) -> None:
    backend = FakeBackend()

    def lose(until_s: float) -> None:
        if until_s > 3:
            raise BackendError("node gnb1: its container is gone")

    backend.before_advance = lose
    result, reader = execute(backend=backend)
    assert (result.status, result.reason) == ("FAILED", "node gnb1: its container is gone")
    assert reader.series("slice:embb", "active_ues")[0].tolist() == [1.0, 2.0, 3.0]
    assert backend.network is not None and backend.network.closed


def test_a_network_that_cannot_be_opened_fails_the_run(execute: Any) -> None:
    backend = FakeBackend()

    def open_(*_: object, **__: object) -> FakeNetwork:
        raise BackendError("image nosuch: not found")

    backend.open = open_  # type: ignore[method-assign]
    result, reader = execute(backend=backend)
    assert (result.status, result.reason) == ("FAILED", "image nosuch: not found")
    assert reader.manifest["status"] == "FAILED"


def test_a_full_disk_stops_the_run_and_keeps_what_was_written(tmp_path: Path) -> None:
    backend = FakeBackend(deterministic=False)
    backend.more_kpis = lambda until_s: [Kpi(until_s, f"ue:phone.{n}", "cqi", 7.0) for n in range(1000)]
    store = RunStore(tmp_path / "full", max_bytes=300_000)
    result = run(scenario(duration_s=200.0), backend, (), store)
    assert result.status == "FAILED" and "no space left" in result.reason
    assert backend.network is not None and backend.network.closed
    with KpiReader(result.path) as reader:
        assert reader.manifest["status"] == "FAILED"
        times, _ = reader.series("ue:phone.999", "cqi")
        assert 2 < times.size < 100 and times.tolist() == [float(k + 1) for k in range(times.size)]


def test_a_disk_that_is_full_at_the_end_leaves_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend(deterministic=False)
    store = RunStore.create(tmp_path, "full")
    take = store.update_manifest

    def full(**entries: object) -> None:
        if "backend_details" in entries and backend.network is not None and backend.network.time_s:
            raise StoreFull("no space left")
        take(**entries)

    monkeypatch.setattr(store, "update_manifest", full)
    monkeypatch.setattr(FakeNetwork, "details", {"images": {}}, raising=False)
    result = run(scenario(), backend, (), store)
    assert (result.status, result.reason) == ("FAILED", "closing the network: no space left")
    assert backend.network is not None and backend.network.closed


def test_values_that_are_not_finite_are_left_out_and_said_so(execute: Any) -> None:
    backend = FakeBackend()
    backend.more_kpis = lambda until_s: [Kpi(until_s, "slice:embb", "jitter_dl_s", float("nan"))]
    result, reader = execute(backend=backend)
    assert result.status == "VALID" and ("slice:embb", "jitter_dl_s") not in reader.names()
    assert [event.text for event in reader.events()] == ["KPI jitter_dl_s of slice:embb was nan and is left out"]


def test_a_host_that_is_late_is_recorded_as_overloaded(execute: Any) -> None:
    backend = FakeBackend(deterministic=False)
    backend.more_kpis = lambda until_s: [
        Kpi(until_s, "run", "clock_lag_s", 0.4 if until_s > 8 else 0.01),
        Kpi(until_s, "run", "host_cpu_ratio", 0.99),
    ]
    result, reader = execute(backend=backend)
    assert result.status == "VALID"
    assert "clock lag above 0.25 s in 2 of 10 intervals, at most 0.4 s" in result.host_overloaded
    assert "host CPU above 95% in 10 of 10" in result.host_overloaded
    assert reader.manifest["host_overloaded"] == result.host_overloaded
    assert reader.series("run", "engine_cpu_millicores")[0].size == 10


def real_time() -> FakeBackend:
    """A backend whose clock is the wall clock."""
    backend = FakeBackend(deterministic=False)
    start: list[float] = []

    def wait(until_s: float) -> None:
        start.append(time.monotonic())
        threading.Event().wait(max(0.0, start[0] + until_s - start[-1]))

    backend.before_advance = wait
    return backend


def test_a_slow_controller_does_not_slow_a_real_time_run(execute: Any) -> None:
    start_s = time.monotonic()
    result, reader = execute(
        spec("Slow", interval_s=0.1, time_limit_s=1.0), backend=real_time(), duration_s=1.2, interval_s=0.1
    )
    assert result.status == "VALID" and time.monotonic() - start_s < 3
    # 0.3 s a decision: at most one for every third interval, applied when it came.
    assert 2 <= len(reader.actions()) <= 4
    assert reader.series("controller:c", "decision_time_s")[1].min() >= 0.3
    assert reader.series("controller:c", "action_to_effect_s")[1].max() < 0.2
    assert reader.series("controller:c", "faults")[1][-1] == 0


def test_a_hung_controller_does_not_slow_a_real_time_run(execute: Any) -> None:
    start_s = time.monotonic()
    result, reader = execute(
        spec("Hangs", interval_s=0.1, time_limit_s=0.4),
        spec("Good", "other", interval_s=0.1),
        backend=real_time(),
        duration_s=1.5,
        interval_s=0.1,
    )
    assert result.status == "VALID" and time.monotonic() - start_s < 4
    assert reader.series("controller:c", "faults")[1][-1] >= 1
    assert any("no decision within 0.4 s" in event.text for event in reader.events())
    # The other one is asked in every interval meanwhile.
    assert sum(row.source == "controller:other" for row in reader.actions()) >= 12


def test_two_runs_write_the_same_rows(execute: Any) -> None:
    controllers = (spec("Good"), spec("Raises", "r"), spec("Hangs", "h", time_limit_s=0.3))
    first, second = (execute(*controllers)[1] for _ in range(2))
    for table in ("kpi", "actions", "events"):
        assert list(first.rows(table)) == list(second.rows(table))
    assert len(list(first.rows("timings"))) > 0


def test_flow_runs_are_identical_and_seeds_differ(tmp_path: Path) -> None:
    loaded = load_scenario(LIBRARY / "quickstart.twin.yml", fidelity="flow", duration_s=30.0)

    def rows(scenario: Scenario, number: int) -> list[tuple[object, ...]]:
        store = RunStore(tmp_path / f"run{number}")
        result = run(scenario, FlowBackend(), scenario.controllers, store)
        assert result.status == "VALID", result.reason
        with KpiReader(result.path) as reader:
            assert any(row.source.startswith("controller:") and row.applied for row in reader.actions())
            return [*reader.rows("kpi"), *reader.rows("actions"), *reader.rows("events")]

    first, second = rows(loaded, 1), rows(loaded, 2)
    assert repr(first) == repr(second) and len(first) > 3000
    other = load_scenario(LIBRARY / "quickstart.twin.yml", fidelity="flow", duration_s=30.0, seed=loaded.seed + 1)
    assert repr(rows(other, 3)) != repr(first)


def test_an_episode_is_stepped_from_outside(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path, "small")
    with Episode(scenario(duration_s=3.0), FakeBackend(), store) as episode:
        first = episode.step()
        second = episode.step([Action("slice:embb", "cpu_millicores", 800.0)])
        assert (first.value("slice:embb", "qos_bps"), second.value("slice:embb", "qos_bps")) == (5e6, 8e6)
        assert not episode.done
        episode.step()
        assert episode.done
        with pytest.raises(RuntimeError, match="ended at 3 s"):
            episode.step()
    with KpiReader(store.path) as reader:
        assert reader.manifest["status"] == "VALID"
        assert [row.source for row in reader.actions()] == ["agent"]


def test_an_episode_needs_no_store_and_one_left_early_is_failed(tmp_path: Path) -> None:
    with Episode(scenario(), FakeBackend()) as episode:
        episode.step()
    store = RunStore.create(tmp_path, "small")
    with Episode(scenario(), FakeBackend(), store) as episode:
        episode.step()
    assert (store.manifest["status"], store.manifest["reason"]) == ("FAILED", "stopped at 1 of 10 s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_cleanly(execute: Any, number: signal.Signals) -> None:
    backend = FakeBackend()
    backend.before_advance = lambda until_s: os.kill(os.getpid(), number) if until_s == 4 else None
    before = signal.getsignal(number)
    result, reader = execute(spec("Good"), backend=backend)
    assert (result.status, result.reason) == ("FAILED", f"interrupted by {number.name}")
    assert result.signal_number == number and signal.getsignal(number) is before
    assert backend.network is not None and backend.network.closed
    assert reader.series("slice:embb", "active_ues")[0].tolist() == [1.0, 2.0, 3.0]


def test_a_signal_during_the_clean_up_does_not_disturb_it(execute: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def close(network: FakeNetwork) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        closed.append(network)

    monkeypatch.setattr(FakeNetwork, "close", close)
    result, _ = execute()
    assert (result.status, result.signal_number, len(closed)) == ("VALID", None, 1)


def test_workers_die_with_a_killed_engine(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
from tests.scenarios.test_engine import FakeBackend, scenario, spec
from scenarios.engine import run
from twin.store import RunStore
from pathlib import Path
store = RunStore(Path({str(tmp_path / "r")!r}))
run(scenario(), FakeBackend(), [spec("Hangs", interval_s=1.0, time_limit_s=60)], store)
"""
    engine = subprocess.Popen([sys.executable, "-c", script])
    try:
        worker = _wait_for(lambda: _children(engine.pid), "no worker was started")[0]
        _wait_for(lambda: _cpu_ticks(worker) > 30, "the worker does not spin")
    finally:
        engine.kill()
        engine.wait()
    _wait_for(lambda: not _alive(worker), "the worker outlived its engine")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


def _wait_for(condition: Callable[[], Any], message: str) -> Any:
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        if found := condition():
            return found
        threading.Event().wait(0.02)
    raise AssertionError(message)


def test_store_full_is_raised_once(tmp_path: Path) -> None:
    with RunStore(tmp_path / "full", max_bytes=100_000) as store:
        with pytest.raises(StoreFull, match="no space left"):
            for step in range(1000):
                store.add_kpis([Kpi(float(step), f"ue:{n}", "cqi", 1.0) for n in range(1000)])
                store.commit()
        store.add_kpis([Kpi(0.0, "run", "clock_lag_s", 0.0)])
        store.commit()
