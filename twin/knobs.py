"""The registry of knobs: everything that can be changed while a network runs.

Controllers and scripted events use the same knobs. A backend refuses a knob that it does not know,
a value out of range, and an entity of another scope; nothing is clamped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from twin.types import Action

Kind = Literal["number", "integer", "choice", "text"]


@dataclass(frozen=True, slots=True)
class KnobSpec:
    """Name, unit, entity scopes, allowed values, and what it changes in a running network."""

    name: str
    unit: str
    scopes: tuple[str, ...]
    kind: Kind
    meaning: str
    low: float = 0.0
    high: float = math.inf
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        if self.kind == "text":
            return "text"
        low, high = f"[{self.low:g}", "inf)" if math.isinf(self.high) else f"{self.high:g}]"
        return f"{'whole number' if self.kind == 'integer' else 'number'} in {low}, {high}"


KNOBS: dict[str, KnobSpec] = {
    spec.name: spec
    for spec in (
        KnobSpec(
            "cpu_millicores",
            "1e-3 CPU",
            ("slice", "node"),
            "number",
            "CPU limit: of a slice's part of the gNB, or of a node's container",
            10,
            1_000_000,
        ),
        KnobSpec("memory_mib", "MiB", ("node",), "number", "memory limit of a node's container", 8, 16_777_216),
        KnobSpec(
            "bandwidth_mbps",
            "Mbit/s",
            ("slice", "link"),
            "number",
            "transport rate of a slice in each direction, or rate of a link",
            0.01,
            100_000,
        ),
        KnobSpec(
            "prb_share",
            "1",
            ("slice",),
            "number",
            "share of each gNB's PRBs; the shares of all slices add up to at most 1",
            0,
            1,
        ),
        KnobSpec(
            "path",
            "",
            ("slice",),
            "text",
            "transport path of a slice between gNB and UPF: switch names joined by '>', e.g. s1>s3>s2",
        ),
        KnobSpec("path_index", "1", ("flow",), "integer", "path that a backhaul flow takes, counted from 0", 0, 65535),
        KnobSpec("replicas", "1", ("node",), "integer", "containers behind an application's load balancer", 1, 16),
        KnobSpec("link_state", "", ("link",), "choice", "cut or mend a link", choices=("up", "down")),
        KnobSpec("delay_s", "s", ("link",), "number", "one-way delay of a link", 0, 60),
        KnobSpec("jitter_s", "s", ("link",), "number", "jitter of a link", 0, 60),
        KnobSpec("loss_ratio", "1", ("link",), "number", "loss of a link in each direction", 0, 1),
        KnobSpec(
            "node_state", "", ("node",), "choice", "kill a node's container or start it again", choices=("up", "down")
        ),
        KnobSpec("ue_state", "", ("ue",), "choice", "attach or detach one UE", choices=("attached", "detached")),
        KnobSpec("cqi", "1", ("ue",), "integer", "fix the CQI of one UE (0 is out of range)", 0, 15),
        KnobSpec(
            "demand_factor",
            "1",
            ("slice",),
            "number",
            "multiply the rate of all flows of a slice (a demand spike)",
            0,
            1000,
        ),
        KnobSpec(
            "partition_state",
            "",
            ("node",),
            "choice",
            "deploy, shut down (ready), suspend or restore (deployed) a partition",
            choices=("ready", "deployed", "suspended"),
        ),
        KnobSpec(
            "dl_runtime_us",
            "1e-6 s",
            ("task", "node"),
            "number",
            "budget of a SCHED_DEADLINE reservation: of a thread, or of each vCPU of a partition; 0 gives it back",
            0,
            4_194_304,
        ),
        KnobSpec(
            "dl_period_us",
            "1e-6 s",
            ("task", "node"),
            "number",
            "period of a SCHED_DEADLINE reservation; takes effect with the budget, which comes after it",
            100,
            4_194_304,
        ),
        KnobSpec("task_work_us", "1e-6 s", ("task",), "number", "CPU time that a job of a periodic task takes", 0, 1e7),
        KnobSpec(
            "placement",
            "",
            ("node",),
            "text",
            "where the stream service of an application runs: its own name, or that of a partition",
        ),
        KnobSpec(
            "attack",
            "",
            ("node",),
            "choice",
            "denial of service against a partition: its processors, its memory, or its network",
            choices=("none", "cpu", "memory", "network"),
        ),
        KnobSpec("q_thresh_mbps", "Mbit/s", ("slice",), "number", "QoS threshold of the SLA", 0, 100_000),
        KnobSpec("beta_thresh", "1", ("slice",), "number", "highest accepted QoS degradation of the SLA", 0, 1),
        KnobSpec("latency_bound_s", "s", ("slice",), "number", "latency bound of the SLA", 0, 60),
    )
}

SLA_KNOBS = ("q_thresh_mbps", "beta_thresh", "latency_bound_s")


def refusal(action: Action) -> str | None:
    """Why the action cannot be carried out on any network, or None when its form is right.

    Backends add what depends on the network: unknown entity, shares adding up to more than 1.
    """
    spec = KNOBS.get(action.knob)
    if spec is None:
        return f"no knob named {action.knob!r}; knobs: {', '.join(KNOBS)}"
    scope = action.entity.partition(":")[0]
    if scope not in spec.scopes:
        return f"knob {spec.name} acts on {' or '.join(spec.scopes)}, got {action.entity!r}"
    where = f"{action.entity} {spec.name}"
    if spec.kind in ("choice", "text"):
        if not isinstance(action.value, str) or (spec.choices and action.value not in spec.choices):
            return f"{where} must be {spec.allowed}, got {action.value!r}"
        return None
    if isinstance(action.value, bool) or not isinstance(action.value, int | float):
        return f"{where} must be a {spec.allowed}, got {action.value!r}"
    value = float(action.value)
    if not (math.isfinite(value) and spec.low <= value <= spec.high) or (spec.kind == "integer" and value % 1):
        return f"{where} must be a {spec.allowed}, got {action.value!r}"
    return None
