"""What every backend must do, as tests: make a subclass named ``Test...`` with :meth:`make_backend`.

One network is brought up for the whole class and led through a walk of actions; the tests look at
the record. So a backend that needs seconds to start pays once. A subclass may change the numbers
at its top to suit a backend whose time is real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from topologies.model import (
    App,
    BackhaulFlow,
    BackhaulPath,
    Container,
    Gnb,
    Host,
    IabDonor,
    IabNode,
    Link,
    PeriodicTask,
    Slice,
    Switch,
    Topology,
    Ue,
    Upf,
)
from twin.backend import Backend, Session
from twin.knobs import KNOBS, SLA_KNOBS
from twin.kpis import KPIS
from twin.load import Activity, BackhaulDemand, Flow, Load
from twin.types import Action, Observation, Outcome, Probe

STREAM_BPS = 2e6
EXTRA_DELAY_S = 0.05
HEALTHY_BPS = 0.85 * 2 * STREAM_BPS
DURATION_S = 3600.0


def network(*, slicing: bool = True) -> Topology:
    """Two slices, a gNB, two transport paths s1>s2 (short) and s1>s3>s2, one application of each kind."""
    return Topology(
        name="conformance",
        slicing=slicing,
        nodes=(
            Ue(name="phones", slice="embb", count=2, cqi_script=((0.0, 15),)),
            Ue(name="robots", slice="urllc", count=2, cqi_script=((0.0, 15),), always_attached=True),
            Gnb(name="gnb1", prb_total=51),
            *(Switch(name=name) for name in ("s1", "s2", "s3")),
            Upf(name="upf-embb", slice="embb"),
            Upf(name="upf-urllc", slice="urllc"),
            App(name="video", service="stream"),
            App(name="api", service="request", cpu_ms_per_request=2.0, cpu_millicores=300.0),
            App(name="sink", service="telemetry"),
            Container(name="edge", tasks=(PeriodicTask(period_s=0.05, work_s=0.002),)),
        ),
        links=(
            Link(a="phones", b="gnb1"),
            Link(a="robots", b="gnb1"),
            Link(a="gnb1", b="s1"),
            Link(a="s1", b="s2", bandwidth_bps=20e6, delay_s=0.005),
            Link(a="s1", b="s3", bandwidth_bps=20e6, delay_s=0.005),
            Link(a="s3", b="s2"),
            Link(a="s2", b="upf-embb"),
            Link(a="s2", b="upf-urllc"),
            Link(a="upf-embb", b="video"),
            Link(a="upf-urllc", b="api"),
            Link(a="upf-urllc", b="sink"),
        ),
        slices=(
            Slice(name="embb", sst=1, prb_share=0.6, cpu_millicores=600.0, bandwidth_bps=8e6),
            Slice(name="urllc", sst=2, prb_share=0.2, cpu_millicores=100.0, bandwidth_bps=2e6),
        ),
    )


def load() -> Load:
    """Two streams down, one request flow, one telemetry flow up, all the time."""
    always = (Activity(0.0, DURATION_S, STREAM_BPS),)
    return Load(
        duration_s=DURATION_S,
        flows=(
            *(
                Flow(
                    name=f"watch.{ue}", ue=ue, slice="embb", app="video", service="stream", direction="dl",
                    packet_bytes=1200, activities=always,
                )
                for ue in ("phones.1", "phones.2")
            ),
            Flow(
                name="ask.robots.1", ue="robots.1", slice="urllc", app="api", service="request", direction="dl",
                packet_bytes=200, activities=(Activity(0.0, DURATION_S, 10.0),),
            ),
            Flow(
                name="report.robots.2", ue="robots.2", slice="urllc", app="sink", service="telemetry", direction="ul",
                packet_bytes=200, activities=(Activity(0.0, DURATION_S, 100e3),),
            ),
        ),
    )  # fmt: skip


REFUSED: tuple[tuple[Action, str], ...] = (
    (Action("slice:embb", "colour", 1), "no knob named"),
    (Action("slice:ghost", "cpu_millicores", 100), "no slice named 'ghost'"),
    (Action("node:ghost", "node_state", "down"), "no node named 'ghost'"),
    (Action("link:s1-s9", "link_state", "down"), "no link named 's1-s9'"),
    (Action("ue:phones.9", "cqi", 3), "no ue named 'phones.9'"),
    (Action("link:s1-s2", "prb_share", 0.1), "acts on slice"),
    (Action("nonsense", "prb_share", 0.1), "acts on slice"),
    (Action("slice:embb", "cpu_millicores", -5), "must be a number in"),
    (Action("slice:embb", "cpu_millicores", float("nan")), "must be a number in"),
    (Action("slice:embb", "bandwidth_mbps", "fast"), "must be a number in"),
    (Action("ue:phones.1", "cqi", 3.5), "must be a whole number in"),
    (Action("slice:embb", "prb_share", 0.9), "at most"),
    (Action("slice:embb", "path", "s1>s9>s2"), "no switch named 's9'"),
    (Action("slice:embb", "path", "s2>s1"), "no link between"),
    (Action("link:s1-s2", "link_state", "sideways"), "one of up, down"),
    (Action("node:video", "replicas", 2), "replicas"),
    (Action("node:s1", "node_state", "down"), "has no container"),
    (Action("node:gnb1", "cpu_millicores", 100), "set it on a slice"),
    (Action("task:edge.2", "task_work_us", 100), "no task named 'edge.2'"),
    (Action("task:edge.1", "dl_runtime_us", 100), "set dl_period_us before"),
    (Action("task:edge.1", "dl_runtime_us", -1), "must be a number in"),
)


@dataclass
class Phase:
    """What was asked and what was seen after it."""

    outcomes: Sequence[Outcome]
    seen: list[Observation] = field(default_factory=list)

    def value(self, entity: str, name: str) -> float:
        """Of the last interval; 0 when it has none."""
        return self.seen[-1].get(entity, name, 0.0)


@dataclass
class Record:
    """The whole walk, by the name of the phase."""

    probes: Sequence[Probe]
    phases: dict[str, Phase]
    refused: Sequence[Outcome]
    backwards: BaseException | None
    closed_twice: bool

    @property
    def observations(self) -> Iterator[Observation]:
        for phase in self.phases.values():
            yield from phase.seen


class Walk:
    """Leads a session from phase to phase."""

    def __init__(self, session: Session, interval_s: float, settle: int, patience: int) -> None:
        self._session = session
        self._interval_s = interval_s
        self._settle = settle
        self._patience = patience
        self.now_s = 0.0
        self.phases: dict[str, Phase] = {}

    def phase(self, name: str, *actions: Action, until: Callable[[Observation], bool] | None = None) -> None:
        """Act, then let ``settle`` intervals pass, or as many as ``until`` needs within the patience."""
        phase = self.phases[name] = Phase(self._session.apply(actions))
        for count in range(1, self._patience + 1):
            self.now_s += self._interval_s
            phase.seen.append(self._session.advance(self.now_s))
            if count >= self._settle and (until is None or until(phase.seen[-1])):
                return


def _embb_runs(observation: Observation) -> bool:
    return observation.get("slice:embb", "throughput_dl_bps", 0.0) >= HEALTHY_BPS


def _one_streams(observation: Observation) -> bool:
    """What is left of a backlog may take a while to drain."""
    return abs(observation.get("slice:embb", "throughput_dl_bps", 0.0) - STREAM_BPS) <= 0.1 * STREAM_BPS


class BackendConformance:
    """The tests. ``settle``: intervals until an action must show; ``patience``: until a restart must."""

    interval_s = 0.5
    settle = 2
    patience = 12
    # Shares by which rates and ratios may miss what was set.
    rate_tolerance = 0.15
    delay_tolerance_s = 0.01

    @classmethod
    def make_backend(cls) -> Backend:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def record(cls) -> Record:
        backend = cls.make_backend()
        with backend.open(network(), load(), seed=1) as session:
            walk = Walk(session, cls.interval_s, cls.settle, cls.patience)
            walk.phase("start", until=_embb_runs)
            walk.phase("plain")
            refused = session.apply([action for action, _ in REFUSED])
            walk.phase("after refusals")
            cls._limits(walk)
            cls._faults(walk)
            backwards = None
            try:
                session.advance(walk.now_s - cls.interval_s)
            except BaseException as error:  # noqa: BLE001  the test tells what it must be
                backwards = error
            probes = tuple(session.probes)
            session.close()
            session.close()
        return Record(probes, walk.phases, refused, backwards, closed_twice=True)

    @staticmethod
    def _limits(walk: Walk) -> None:
        embb = "slice:embb"
        walk.phase("bandwidth", Action(embb, "bandwidth_mbps", 1.0))
        walk.phase("cpu", Action(embb, "bandwidth_mbps", 8.0), Action(embb, "cpu_millicores", 40.0))
        walk.phase("prb", Action(embb, "cpu_millicores", 600.0), Action(embb, "prb_share", 0.02))
        walk.phase("cqi", Action(embb, "prb_share", 0.6), Action("ue:phones.1", "cqi", 0), until=_one_streams)
        walk.phase("detached", Action("ue:phones.1", "cqi", 15), Action("ue:phones.1", "ue_state", "detached"))
        walk.phase("attached", Action("ue:phones.1", "ue_state", "attached"), until=_embb_runs)
        walk.phase("demand", Action(embb, "demand_factor", 0.5), until=_one_streams)
        late_s = walk.phases["plain"].value(embb, "delay_dl_p50_s") + EXTRA_DELAY_S
        walk.phase(
            "delay",
            Action(embb, "demand_factor", 1.0),
            Action("link:s1-s2", "delay_s", 0.005 + EXTRA_DELAY_S),
            until=lambda seen: abs(seen.get(embb, "delay_dl_p50_s", 0.0) - late_s) <= EXTRA_DELAY_S / 10,
        )
        walk.phase("loss", Action("link:s1-s2", "delay_s", 0.005), Action("link:s1-s2", "loss_ratio", 0.2))
        walk.phase("work", Action("task:edge.1", "task_work_us", 6000.0))
        walk.phase(
            "reservation",
            Action("task:edge.1", "dl_period_us", 50_000.0),
            Action("task:edge.1", "dl_runtime_us", 3000.0),
        )
        walk.phase(
            "given back", Action("task:edge.1", "dl_runtime_us", 0.0), Action("task:edge.1", "task_work_us", 1000.0)
        )
        walk.phase("path", Action("link:s1-s2", "loss_ratio", 0.0), Action(embb, "path", "s1>s3>s2"))
        walk.phase(
            "node limits",
            Action("node:api", "replicas", 2),
            Action("node:api", "cpu_millicores", 200.0),
            Action("node:video", "memory_mib", 256),
        )

    @staticmethod
    def _faults(walk: Walk) -> None:
        walk.phase("link down", Action("link:s1-s3", "link_state", "down"))
        walk.phase("link up", Action("link:s1-s3", "link_state", "up"), until=_embb_runs)
        walk.phase("node down", Action("node:upf-embb", "node_state", "down"))
        walk.phase("node up", Action("node:upf-embb", "node_state", "up"), until=_embb_runs)

    def test_probes_are_typed(self, record: Record) -> None:
        assert all(isinstance(probe, Probe) for probe in record.probes)
        assert [probe for probe in record.probes if not probe.passed] == []

    def test_clock_is_monotonic(self, record: Record) -> None:
        times = [observation.time_s for observation in record.observations]
        expected = [self.interval_s * count for count in range(1, len(times) + 1)]
        assert times == pytest.approx(expected)
        assert {kpi.time_s for observation in record.observations for kpi in observation.kpis} <= set(times)

    def test_time_cannot_go_back(self, record: Record) -> None:
        assert isinstance(record.backwards, ValueError)

    def test_kpis_are_registered_with_their_scope_and_come_once(self, record: Record) -> None:
        for observation in record.observations:
            keys = [(kpi.entity, kpi.name) for kpi in observation.kpis]
            assert len(keys) == len(set(keys))
            for kpi in observation.kpis:
                assert kpi.name in KPIS, kpi
                assert kpi.entity.partition(":")[0] in KPIS[kpi.name].scopes, kpi
                assert kpi.value == kpi.value and abs(kpi.value) < float("inf"), kpi

    def test_ratios_are_between_0_and_1(self, record: Record) -> None:
        for observation in record.observations:
            for kpi in observation.kpis:
                if kpi.name.endswith("_ratio"):
                    assert -1e-9 <= kpi.value <= 1.05, kpi

    def test_plain_traffic_gets_through(self, record: Record) -> None:
        plain = record.phases["plain"]
        assert plain.value("slice:embb", "throughput_dl_bps") == pytest.approx(4e6, rel=self.rate_tolerance)
        assert plain.value("slice:urllc", "throughput_ul_bps") >= 100e3 * (1 - self.rate_tolerance)
        for entity, name in (("embb", "active_ues"), ("embb", "attached_ues"), ("urllc", "attached_ues")):
            assert plain.value(f"slice:{entity}", name) == pytest.approx(2, rel=0.01)
        assert 0.005 <= plain.value("slice:embb", "delay_dl_p50_s") <= 0.05
        assert plain.value("slice:embb", "rtt_p50_s") >= 0.01
        answered = sum(seen.get("node:api", "requests_per_s", 0.0) for seen in record.observations)
        assert answered > 0
        for name in ("cpu_used_millicores", "prb_used_dl_ratio", "cpu_limit_millicores", "bandwidth_limit_bps"):
            assert plain.value("slice:embb", name) > 0
        assert plain.value("ue:phones.1", "cqi") == 15
        assert plain.value("link:s1-s2", "link_up") == 1
        assert plain.value("node:upf-embb", "memory_used_bytes") > 0

    def test_refused_actions_say_why_and_change_nothing(self, record: Record) -> None:
        assert len(record.refused) == len(REFUSED)
        for outcome, (action, reason) in zip(record.refused, REFUSED, strict=True):
            assert outcome.action is action
            assert not outcome.applied
            assert reason in outcome.reason, outcome
            assert "\n" not in outcome.reason
        after = record.phases["after refusals"]
        assert after.value("slice:embb", "throughput_dl_bps") == pytest.approx(4e6, rel=self.rate_tolerance)
        assert after.value("slice:embb", "prb_share") == pytest.approx(0.6)

    def test_right_actions_are_applied_in_order(self, record: Record) -> None:
        for name, phase in record.phases.items():
            for outcome in phase.outcomes:
                assert outcome.applied, (name, outcome)
                assert outcome.reason == ""
                assert outcome.lag_s >= 0

    def test_every_knob_is_tried(self, record: Record) -> None:
        tried = {outcome.action.knob for phase in record.phases.values() for outcome in phase.outcomes}
        elsewhere = {"jitter_s", "path_index", "partition_state", "placement", "attack"}
        assert tried | set(SLA_KNOBS) | elsewhere == set(KNOBS)

    def test_tasks_and_their_reservations(self, record: Record) -> None:
        plain, work, held, after = (record.phases[name] for name in ("plain", "work", "reservation", "given back"))
        assert plain.value("task:edge.1", "jobs_per_s") == pytest.approx(20, rel=0.25)
        assert plain.value("task:edge.1", "task_response_p50_s") >= 0.002 - 1e-9
        assert work.value("task:edge.1", "task_response_p50_s") >= 0.006 - 1e-9
        assert held.value("task:edge.1", "dl_budget_s") == pytest.approx(0.003)
        assert held.value("task:edge.1", "dl_period_s") == pytest.approx(0.05)
        assert held.value("task:edge.1", "dl_used_s") == pytest.approx(0.003, rel=0.3)
        assert held.value("task:edge.1", "dl_alpha_ratio") == pytest.approx(0.06)
        assert held.value("task:edge.1", "dl_delta_s") == pytest.approx(0.094)
        assert held.value("task:edge.1", "deadline_miss_ratio") > 0.5
        assert after.value("task:edge.1", "dl_budget_s") == 0
        assert record.phases["node up"].value("task:edge.1", "wakeup_period_s") == pytest.approx(0.05, rel=0.02)

    def test_bandwidth_limits(self, record: Record) -> None:
        limited = record.phases["bandwidth"]
        assert 0.7e6 <= limited.value("slice:embb", "throughput_dl_bps") <= 1.05e6
        assert limited.value("slice:embb", "bandwidth_limit_bps") == pytest.approx(1e6)
        assert limited.value("slice:embb", "loss_dl_ratio") > 0.5
        assert limited.value("slice:urllc", "loss_ul_ratio") < 0.05

    def test_cpu_limits(self, record: Record) -> None:
        # 40 millicores at 40 ns per bit carry 1 Mbit/s
        limited = record.phases["cpu"]
        assert 0.4e6 <= limited.value("slice:embb", "throughput_dl_bps") <= 1.4e6
        assert limited.value("slice:embb", "cpu_limit_millicores") == pytest.approx(40)
        assert limited.value("slice:embb", "cpu_used_millicores") <= 40 * 1.2

    def test_prbs_limit(self, record: Record) -> None:
        limited = record.phases["prb"]
        assert limited.value("slice:embb", "prb_share") == pytest.approx(0.02)
        assert limited.value("slice:embb", "throughput_dl_bps") <= 0.6 * HEALTHY_BPS
        assert limited.value("slice:embb", "prb_used_dl_ratio") > 0.8

    def test_bad_radio(self, record: Record) -> None:
        bad = record.phases["cqi"]
        assert bad.value("ue:phones.1", "throughput_dl_bps") == 0
        assert bad.value("ue:phones.2", "throughput_dl_bps") == pytest.approx(STREAM_BPS, rel=self.rate_tolerance)

    def test_detach_and_attach(self, record: Record) -> None:
        assert record.phases["detached"].value("ue:phones.1", "throughput_dl_bps") == 0
        assert record.phases["detached"].value("slice:embb", "attached_ues") == pytest.approx(1, rel=0.01)
        assert _embb_runs(record.phases["attached"].seen[-1])

    def test_demand_factor(self, record: Record) -> None:
        halved = record.phases["demand"]
        assert halved.value("slice:embb", "throughput_dl_bps") == pytest.approx(2e6, rel=self.rate_tolerance)

    def test_link_impairment(self, record: Record) -> None:
        plain, late = (record.phases[name].value("slice:embb", "delay_dl_p50_s") for name in ("plain", "delay"))
        assert late - plain == pytest.approx(EXTRA_DELAY_S, abs=self.delay_tolerance_s)
        assert 0.1 <= record.phases["loss"].value("slice:embb", "loss_dl_ratio") <= 0.3

    def test_path_moves_the_traffic(self, record: Record) -> None:
        moved = record.phases["path"]
        assert moved.value("link:s1-s3", "link_throughput_bps") >= HEALTHY_BPS
        assert moved.value("link:s1-s2", "link_throughput_bps") < 0.5 * HEALTHY_BPS
        assert _embb_runs(moved.seen[-1])

    def test_node_limits_show(self, record: Record) -> None:
        limited = record.phases["node limits"]
        assert limited.value("node:api", "replicas") == 2
        assert limited.value("node:api", "cpu_limit_millicores") == pytest.approx(400)  # of both replicas
        assert limited.value("node:video", "memory_limit_bytes") == pytest.approx(256 * 2**20)

    @pytest.mark.parametrize("what", ["link", "node"])
    def test_faults_act_and_mend(self, record: Record, what: str) -> None:
        assert record.phases[f"{what} down"].value("slice:embb", "throughput_dl_bps") < 0.1 * HEALTHY_BPS
        assert record.phases[f"{what} down"].value("slice:urllc", "throughput_ul_bps") > 50e3
        assert _embb_runs(record.phases[f"{what} up"].seen[-1])

    def test_link_state_shows(self, record: Record) -> None:
        assert record.phases["link down"].value("link:s1-s3", "link_up") == 0
        assert record.phases["link up"].value("link:s1-s3", "link_up") == 1

    def test_close_twice(self, record: Record) -> None:
        assert record.closed_twice


# --- backhaul

BACKHAUL_BPS = 4e6
SHARED_BPS = 6e6
NARROW_BPS = 2e6


def backhaul_network() -> Topology:
    """f1 and f2 share n1-d1 in mmWave; f2 may also take a narrow Sub-6 link to the other donor."""
    shared, around = BackhaulPath("mmwave", ("n2", "n1", "d1")), BackhaulPath("sub6", ("n2", "d2"))
    return Topology(
        name="backhaul",
        nodes=(IabDonor(name="d1"), IabDonor(name="d2"), IabNode(name="n1"), IabNode(name="n2"), Host(name="cu")),
        links=(
            Link(a="n1", b="d1", band="mmwave", bandwidth_bps=SHARED_BPS),
            Link(a="n2", b="n1", band="mmwave", bandwidth_bps=SHARED_BPS),
            Link(a="n2", b="d2", band="sub6", bandwidth_bps=NARROW_BPS),
            Link(a="d1", b="cu"),
            Link(a="d2", b="cu"),
        ),
        backhaul=(
            BackhaulFlow(name="f1", source="n1", sink="cu", paths=(BackhaulPath("mmwave", ("n1", "d1")),)),
            BackhaulFlow(name="f2", source="n2", sink="cu", paths=(shared, around)),
        ),
    )


def backhaul_load() -> Load:
    """Both flows offer 4 Mbit/s all the time."""
    always = (Activity(0.0, DURATION_S, BACKHAUL_BPS),)
    return Load(
        flows=(),
        duration_s=DURATION_S,
        backhaul=tuple(BackhaulDemand(flow=name, activities=always) for name in ("f1", "f2")),
    )


REFUSED_PATHS: tuple[tuple[Action, str], ...] = (
    (Action("flow:f2", "path_index", 2), "must be a whole number in [0, 1], got 2"),
    (Action("flow:f2", "path_index", -1), "must be a whole number in"),
    (Action("flow:f2", "path_index", 0.5), "must be a whole number in"),
    (Action("flow:f9", "path_index", 0), "no flow named 'f9'"),
    (Action("link:n2-n1@mmwave", "path_index", 0), "acts on flow"),
    (Action("link:n2-n1", "link_state", "down"), "no link named 'n2-n1'"),
    (Action("node:n1", "node_state", "down"), "has no container"),
)

# Rates of f1 and f2 in the phases of the walk, by max-min fair sharing.
EXPECTED_BPS: dict[str, tuple[float, float]] = {
    "start": (3e6, 3e6),
    "after refusals": (3e6, 3e6),
    "broken": (4e6, 0.0),
    "rerouted": (4e6, NARROW_BPS),
    "narrowed": (4e6, 1e6),
    "mended": (3e6, 3e6),
}


class BackhaulConformance:
    """Backhaul flows on any backend: rates, broken links, paths."""

    interval_s = 0.5
    settle = 2
    patience = 12
    rate_tolerance = 0.15

    @classmethod
    def make_backend(cls) -> Backend:
        raise NotImplementedError

    @classmethod
    def _settled(cls, name: str) -> Callable[[Observation], bool]:
        expected = EXPECTED_BPS[name]

        def settled(seen: Observation) -> bool:
            rates = [seen.get(f"flow:{flow}", "throughput_bps", -1.0) for flow in ("f1", "f2")]
            return rates == pytest.approx(expected, rel=0.8 * cls.rate_tolerance, abs=1e4)

        return settled

    @pytest.fixture(scope="class")
    @classmethod
    def record(cls) -> Record:
        down = "link:n2-n1@mmwave"
        with cls.make_backend().open(backhaul_network(), backhaul_load(), seed=1) as session:
            walk = Walk(session, cls.interval_s, cls.settle, cls.patience)
            walk.phase("start", until=cls._settled("start"))
            refused = session.apply([action for action, _ in REFUSED_PATHS])
            for name, actions in (
                ("after refusals", ()),
                ("broken", (Action(down, "link_state", "down"),)),
                ("rerouted", (Action("flow:f2", "path_index", 1),)),
                ("narrowed", (Action("link:n2-d2@sub6", "bandwidth_mbps", 1.0),)),
                ("mended", (Action(down, "link_state", "up"), Action("flow:f2", "path_index", 0))),
            ):
                walk.phase(name, *actions, until=cls._settled(name))
            probes = tuple(session.probes)
        return Record(probes, walk.phases, refused, None, closed_twice=False)

    @pytest.mark.parametrize("name", EXPECTED_BPS)
    def test_rates_are_max_min_fair(self, record: Record, name: str) -> None:
        phase = record.phases[name]
        for flow, expected in zip(("f1", "f2"), EXPECTED_BPS[name], strict=True):
            found = phase.value(f"flow:{flow}", "throughput_bps")
            assert found == pytest.approx(expected, rel=self.rate_tolerance, abs=2e4), (flow, phase.seen[-1].time_s)

    def test_what_is_offered_does_not_depend_on_what_gets_through(self, record: Record) -> None:
        for phase in record.phases.values():
            for flow in ("f1", "f2"):
                offered = phase.value(f"flow:{flow}", "offered_bps")
                assert offered == pytest.approx(BACKHAUL_BPS, rel=self.rate_tolerance)

    def test_links_show_what_they_carry_and_whether_they_are_up(self, record: Record) -> None:
        start, rerouted = record.phases["start"], record.phases["rerouted"]
        assert start.value("link:n1-d1@mmwave", "link_throughput_bps") == pytest.approx(
            SHARED_BPS, rel=self.rate_tolerance
        )
        assert start.value("link:n2-d2@sub6", "link_throughput_bps") < 0.1 * NARROW_BPS
        assert rerouted.value("link:n2-d2@sub6", "link_throughput_bps") == pytest.approx(
            NARROW_BPS, rel=self.rate_tolerance
        )
        assert rerouted.value("link:n2-n1@mmwave", "link_up") == 0
        assert record.phases["mended"].value("link:n2-n1@mmwave", "link_up") == 1

    def test_refused_paths_say_why(self, record: Record) -> None:
        for outcome, (action, reason) in zip(record.refused, REFUSED_PATHS, strict=True):
            assert outcome.action is action
            assert not outcome.applied
            assert reason in outcome.reason, outcome
            assert "\n" not in outcome.reason

    def test_paths_and_links_are_changed(self, record: Record) -> None:
        for name, phase in record.phases.items():
            for outcome in phase.outcomes:
                assert outcome.applied, (name, outcome)

    def test_kpis_are_registered_with_their_scope_and_come_once(self, record: Record) -> None:
        for observation in record.observations:
            keys = [(kpi.entity, kpi.name) for kpi in observation.kpis]
            assert len(keys) == len(set(keys))
            for kpi in observation.kpis:
                assert kpi.entity.partition(":")[0] in KPIS[kpi.name].scopes, kpi
