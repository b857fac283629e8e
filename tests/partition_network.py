"""A network with three partitions, and what every fidelity must make of them: a walk of actions, and expectations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from topologies.model import (
    App,
    EdgeServer,
    Gnb,
    Link,
    Partition,
    PeriodicTask,
    Slice,
    Switch,
    Topology,
    Ue,
    Upf,
)
from twin.backend import Session
from twin.load import Activity, Flow, Load
from twin.types import Action, Observation

INTERVAL_S = 0.5
DURATION_S = 3600.0
REQUESTS_PER_S = 10.0


def network() -> Topology:
    """``control`` is critical and answers requests, ``vision`` works on a schedule, ``plain`` has no limits."""
    return Topology(
        name="partitions",
        nodes=(
            Ue(name="robots", slice="urllc", cqi_script=((0.0, 15),), always_attached=True),
            Gnb(name="gnb1"),
            Upf(name="upf", slice="urllc"),
            Switch(name="s1"),
            App(name="video", service="stream"),
            Partition(name="control", critical=True, vnf="request", cpu_ms_per_request=3.0),
            Partition(
                name="vision",
                cpu_millicores=800.0,
                tasks=(PeriodicTask(period_s=0.04, work_s=0.005), PeriodicTask(period_s=0.1, work_s=0.01)),
            ),
            Partition(name="plain", isolated=False, memory_mib=64),
        ),
        links=(
            Link(a="robots", b="gnb1"),
            Link(a="gnb1", b="upf"),
            Link(a="upf", b="s1"),
            Link(a="s1", b="video"),
            Link(a="s1", b="control", bandwidth_bps=20e6, delay_s=0.002),
            Link(a="s1", b="vision"),
            Link(a="s1", b="plain"),
        ),
        slices=(Slice(name="urllc", sst=1, prb_share=1.0),),
        edge=EdgeServer(cores=3, memory_mib=512),
    )


def load() -> Load:
    """Requests to the critical partition, all the time."""
    flow = Flow(
        name="ask.robots.1", ue="robots.1", slice="urllc", app="control", service="request", direction="dl",
        packet_bytes=200, activities=(Activity(0.0, DURATION_S, REQUESTS_PER_S),),
    )  # fmt: skip
    return Load(duration_s=DURATION_S, flows=(flow,))


@dataclass
class Walk:
    """A session that is led from one state to the next; waits for what it expects."""

    session: Session
    patience: int = 12
    time_s: float = 0.0
    seen: list[Observation] = field(default_factory=list)

    def step(self) -> Observation:
        self.time_s += INTERVAL_S
        self.seen.append(self.session.advance(self.time_s))
        return self.seen[-1]

    def until(self, what: str, holds: Callable[[Observation], bool]) -> Observation:
        for _ in range(self.patience):
            if holds(self.step()):
                return self.seen[-1]
        rows = [
            f"{kpi.entity} {kpi.name} {kpi.value:g}" for kpi in self.seen[-1].kpis if kpi.entity[:4] in ("node", "task")
        ]
        raise AssertionError(f"not within {self.patience} intervals: {what}\n" + "\n".join(rows))

    def do(self, entity: str, knob: str, value: float | str) -> None:
        (outcome,) = self.session.apply([Action(entity, knob, value)])
        assert outcome.applied, outcome.reason

    def refused(self, entity: str, knob: str, value: float | str) -> str:
        (outcome,) = self.session.apply([Action(entity, knob, value)])
        assert not outcome.applied
        assert "\n" not in outcome.reason
        return outcome.reason


def walk(session: Session, patience: int) -> Walk:
    """Every knob of a partition, and what it does."""
    on = Walk(session, patience)
    names = ("control", "vision", "plain")

    def jobs(seen: Observation, task: str = "vision.1") -> float:
        return seen.get(f"task:{task}", "jobs_per_s", -1.0)

    def answered(seen: Observation) -> bool:
        return (
            seen.get("node:control", "requests_per_s", 0.0) > 0 and seen.get("ue:robots.1", "requests_per_s", 0.0) > 0
        )

    plain = on.until("everything runs", lambda seen: answered(seen) and 22 <= jobs(seen) <= 28)
    for name in names:
        assert plain.value(f"node:{name}", "partition_state") == 2
        assert plain.value(f"node:{name}", "memory_used_bytes") > 64 << 20
        assert plain.value(f"node:{name}", "cpu_used_millicores") > 0
    assert plain.value("node:vision", "cpu_limit_millicores") == 800
    assert (
        plain.get("node:plain", "cpu_limit_millicores", -1)
        == plain.get("node:control", "cpu_limit_millicores", -1)
        == -1
    )
    assert plain.get("node:plain", "memory_limit_bytes", -1) == -1
    assert 0.003 <= plain.value("ue:robots.1", "response_p50_s") <= 0.2
    assert plain.value("node:control", "response_p50_s") < plain.value("ue:robots.1", "response_p50_s")
    assert plain.value("ue:robots.1", "rtt_p50_s") >= 0.004
    assert 0.002 <= plain.value("task:vision.2", "task_response_p50_s") <= 0.2

    # states: suspended, refused, restored
    on.do("node:vision", "partition_state", "suspended")
    still = on.until("nothing runs in the suspended one", lambda seen: jobs(seen) == 0)
    assert still.value("node:vision", "partition_state") == 1
    assert "vision is SUSPENDED; only a DEPLOYED one can be shut down" in on.refused(
        "node:vision", "node_state", "down"
    )
    on.do("node:vision", "partition_state", "suspended")  # is so already
    on.do("node:vision", "partition_state", "deployed")
    on.until("it goes on", lambda seen: jobs(seen) > 20 and seen.value("node:vision", "partition_state") == 2)

    # limits: less than the tasks want, then a reservation that covers them
    on.do("node:vision", "cpu_millicores", 100.0)
    on.until("deadlines are missed", lambda seen: seen.get("task:vision.1", "deadline_miss_ratio", 0.0) > 0.5)
    assert on.seen[-1].value("node:vision", "cpu_limit_millicores") == 100
    assert on.seen[-1].value("node:vision", "cpu_used_millicores") <= 130
    assert "set dl_period_us before" in on.refused("node:vision", "dl_runtime_us", 10_000)
    on.do("node:vision", "dl_period_us", 20_000)
    assert "at most the period" in on.refused("node:vision", "dl_runtime_us", 30_000)
    on.do("node:vision", "dl_runtime_us", 14_000)
    held = on.until(
        "the reservation covers the tasks",
        lambda seen: jobs(seen) > 20 and seen.get("task:vision.1", "deadline_miss_ratio", 1.0) <= 0.1,
    )
    assert held.value("node:vision", "dl_alpha_ratio") == 0.7
    assert abs(held.value("node:vision", "dl_delta_s") - 0.012) < 1e-9
    assert held.value("node:vision", "cpu_limit_millicores") == 700
    assert 0 < held.value("node:vision", "dl_used_s") <= 0.0145
    on.do("node:vision", "dl_runtime_us", 0)
    on.do("node:vision", "cpu_millicores", 1000.0)
    free = on.until("the reservation is gone", lambda seen: seen.get("node:vision", "dl_budget_s", -1) == -1)
    assert free.value("node:vision", "cpu_limit_millicores") == 1000
    assert 0.7 <= free.get("node:control", "dl_alpha_ratio", 0.8) <= 0.9  # absent where the host grants none

    # work of one task
    on.do("task:vision.1", "task_work_us", 500)
    on.until("its jobs are shorter", lambda seen: 0 < seen.get("task:vision.1", "task_response_p50_s", 1) < 0.004)
    assert on.refused("task:vision.1", "task_work_us", 50_000)

    # what is never done
    assert "is critical: its CPU time is never limited" in on.refused("node:control", "cpu_millicores", 500)
    assert "is critical: its CPU time is never limited" in on.refused("node:control", "dl_period_us", 10_000)
    assert "plain virtual machine: nothing limits it" in on.refused("node:plain", "cpu_millicores", 500)
    assert "assigned when it is created" in on.refused("node:vision", "memory_mib", 200)
    assert "acts on nodes of kind partition" in on.refused("node:video", "partition_state", "ready")

    # down and up
    on.do("node:control", "node_state", "down")
    gone = on.until("nobody answers", lambda seen: seen.get("ue:robots.1", "request_failures_per_s", 0.0) > 0)
    assert gone.value("node:control", "partition_state") == 0
    assert gone.get("node:control", "cpu_used_millicores", -1) == -1
    assert "only a DEPLOYED one can be suspended" in on.refused("node:control", "partition_state", "suspended")
    on.do("node:control", "partition_state", "deployed")
    back = on.until(
        "it answers again", lambda seen: answered(seen) and seen.get("ue:robots.1", "request_failures_per_s", 1.0) == 0
    )
    assert back.value("node:control", "partition_state") == 2
    return on
