"""Knobs on a running emulation: each changes what really runs and is in force when the call returns."""

from __future__ import annotations

from collections.abc import Callable

from topologies.model import App, Container, Gnb, Host, Switch, TopologyError
from topologies.paths import parse_path
from twin.emulation.errors import EmulationError
from twin.emulation.network import HOST_ERRORS, Network
from twin.emulation.replay import Replay
from twin.knobs import SLA_KNOBS, refusal
from twin.partitions import unfit
from twin.types import Action


class Actuators:
    """Carries out actions on a :class:`Network`; refuses with a reason and never raises for a bad action."""

    def __init__(self, network: Network, replay: Replay) -> None:
        self._network = network
        self._replay = replay
        self._table: dict[tuple[str, str], Callable[[str, Action], None]] = {
            ("slice", "cpu_millicores"): lambda name, a: network.set_slice_cpu(name, _number(a)),
            ("slice", "bandwidth_mbps"): lambda name, a: network.set_slice_bandwidth(name, _number(a) * 1e6),
            ("slice", "prb_share"): lambda name, a: network.set_prb_share(name, _number(a)),
            ("slice", "path"): self._path,
            ("slice", "demand_factor"): lambda name, a: replay.set_factor(name, _number(a)),
            ("node", "cpu_millicores"): lambda name, a: network.set_node_cpu(name, _number(a)),
            ("node", "memory_mib"): lambda name, a: network.set_node_memory(name, _number(a)),
            ("node", "replicas"): lambda name, a: network.set_replicas(name, int(_number(a))),
            ("node", "node_state"): self._node_state,
            ("node", "partition_state"): lambda name, a: network.set_partition_state(name, str(a.value)),
            ("node", "placement"): lambda name, a: network.placement.move(name, str(a.value)),
            ("node", "attack"): lambda name, a: network.partition(name).attack(name, str(a.value)),
            ("node", "dl_runtime_us"): lambda name, a: network.partition(name).set_dl_runtime(name, int(_number(a))),
            ("node", "dl_period_us"): lambda name, a: network.partition(name).set_dl_period(name, int(_number(a))),
            ("link", "link_state"): lambda name, a: network.set_link_state(name, a.value == "up"),
            ("link", "bandwidth_mbps"): lambda name, a: network.impair(name, bandwidth_bps=_number(a) * 1e6),
            ("link", "delay_s"): lambda name, a: network.impair(name, delay_s=_number(a)),
            ("link", "jitter_s"): lambda name, a: network.impair(name, jitter_s=_number(a)),
            ("link", "loss_ratio"): lambda name, a: network.impair(name, loss_ratio=_number(a)),
            ("flow", "path_index"): lambda name, a: network.routing.choose(name, int(_number(a))),
            ("task", "task_work_us"): lambda name, a: network.set_task_work(name, _number(a)),
            ("task", "dl_period_us"): lambda _, a: network.reserved(a.entity).set_period(a.entity, _number(a)),
            ("task", "dl_runtime_us"): lambda _, a: network.reserved(a.entity).set_budget(a.entity, _number(a)),
            ("ue", "ue_state"): lambda name, a: replay.bar(name, a.value == "detached"),
            ("ue", "cqi"): lambda name, a: network.set_cqi(name, int(_number(a))),
        }

    def apply(self, action: Action) -> str | None:
        """Carry out; None when it is in force, else why it is not."""
        reason = refusal(action) or self._unknown(action)
        if reason is not None:
            return reason
        scope, _, name = action.entity.partition(":")
        try:
            self._table[scope, action.knob](name, action)
        except (EmulationError, TopologyError, OSError, *HOST_ERRORS) as error:
            return f"{action.entity} {action.knob}: {error}"
        return None

    def _unknown(self, action: Action) -> str | None:
        scope, _, name = action.entity.partition(":")
        plan = self._network.plan
        known = {
            "slice": list(plan.slice_upfs),
            "node": [node.name for node in plan.topology.nodes],
            "link": [link.name for link in plan.topology.links],
            "ue": list(plan.ues),
            "flow": [flow.name for flow in plan.topology.backhaul],
            "task": list(plan.topology.tasks),
        }[scope]
        if name not in known:
            shown = ", ".join(known[:12]) + (" ..." if len(known) > 12 else "")
            return f"no {scope} named {name!r}; {scope}s: {shown or 'none'}"
        if action.knob in SLA_KNOBS:
            return f"{action.knob} is a promise, not something a network can be set to"
        if scope == "node":
            return self._unfit(action, name)
        inside = scope == "task" and not isinstance(plan.topology.node(name.rpartition(".")[0]), Container)
        if inside and action.knob != "task_work_us":
            return f"{action.entity} {action.knob}: a thread in a guest is not this host's to reserve for"
        return None

    def _unfit(self, action: Action, name: str) -> str | None:
        node = self._network.plan.topology.node(name)
        if (reason := unfit(node, action)) is not None:
            return reason
        if isinstance(node, Switch | Host):
            return f"{action.entity} {action.knob}: a {node.kind} has no container"
        if action.knob == "replicas" and not (isinstance(node, App) and node.service == "request"):
            return f"{action.entity} replicas: only applications with service request have replicas"
        if action.knob == "cpu_millicores" and isinstance(node, Gnb):
            return f"{action.entity} cpu_millicores: set it on a slice; each slice's part of the gNB has its own limit"
        return None

    def _path(self, name: str, action: Action) -> None:
        plan = self._network.plan
        pairs = plan.slice_pairs(name)
        routes = [parse_path(plan.topology, pair.a.node, pair.b.node, str(action.value)) for pair in pairs]
        self._network.set_path(name, routes)

    def _node_state(self, name: str, action: Action) -> None:
        if action.value == "down":
            self._network.kill(name)
            self._replay.forget(name)
        else:
            self._network.restart(name)
            self._replay.revive(name)


def _number(action: Action) -> float:
    assert not isinstance(action.value, str)  # refusal() saw to it
    return float(action.value)
