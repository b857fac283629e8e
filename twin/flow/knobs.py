"""Actions on the flow model: what they change, and what this network refuses."""

from __future__ import annotations

from topologies.model import App, Container, Host, Partition, Switch, TopologyError
from twin.flow.network import Network
from twin.knobs import SLA_KNOBS, refusal
from twin.partitions import DEPLOYED, READY, move_refusal, need_empty, unfit
from twin.types import Action

_MBPS = 1e6


def apply(network: Network, action: Action) -> str | None:
    """Carry out an action; the reason when it is refused, in which case nothing has changed."""
    reason = refusal(action)
    if reason is not None:
        return reason
    if action.knob in SLA_KNOBS:
        return f"{action.knob} is a promise, not a resource: it is kept by the run, not by the network"
    scope, _, name = action.entity.partition(":")
    tables: dict[str, list[str]] = {
        "slice": list(network.slices),
        "node": list(network.nodes),
        "link": list(network.links),
        "ue": list(network.ues),
        "flow": [flow.name for flow in network.topology.backhaul],
        "task": list(network.topology.tasks),
    }
    known = tables[scope]
    if name not in known:
        more = ", ..." if len(known) > 20 else ""
        return f"no {scope} named {name!r}; {scope}s: {', '.join(known[:20]) or 'none'}{more}"
    if scope == "slice":
        return _slice(network, name, action)
    if scope == "node":
        return _node(network, name, action)
    if scope == "link":
        return _link(network, name, action)
    if scope == "flow":
        return _flow(network, name, action)
    if scope == "task":
        return _task(network, name, action)
    return _ue(network, name, action)


def _slice(network: Network, name: str, action: Action) -> str | None:
    state = network.slices[name]
    value = action.value
    if not network.topology.slicing and action.knob in ("cpu_millicores", "bandwidth_mbps", "prb_share"):
        return f"{action.entity} {action.knob}: slicing is off, so that the slice has no {action.knob} of its own"
    match action.knob:
        case "cpu_millicores":
            state.cpu_millicores = float(value)
        case "bandwidth_mbps":
            state.bandwidth_bps = float(value) * _MBPS
        case "demand_factor":
            state.demand_factor = float(value)
        case "prb_share":
            others = sum(other.prb_share for other in network.slices.values() if other is not state)
            if others + float(value) > 1 + 1e-9:
                return (
                    f"{action.entity} prb_share must be at most {1 - others:g} "
                    f"(the other slices have {others:g}), got {float(value):g}"
                )
            state.prb_share = float(value)
        case "path":
            try:
                state.routes = network.new_routes(state, str(value))
            except TopologyError as error:
                return str(error)
    return None


def _node(network: Network, name: str, action: Action) -> str | None:
    state = network.nodes[name]
    node = network.topology.node(name)
    if (reason := unfit(node, action)) is not None:
        return reason
    if isinstance(node, Partition):
        return _partition(network, name, action)
    if isinstance(node, Switch | Host):
        return f"{action.entity} {action.knob}: {_what(node)} has no container"
    match action.knob:
        case "cpu_millicores" if node.kind == "gnb":
            return f"{action.entity} cpu_millicores: set it on a slice; each slice's part of the gNB has its own limit"
        case "cpu_millicores":
            state.cpu_millicores = float(action.value)
        case "memory_mib":
            state.memory_mib = float(action.value)
        case "node_state":
            state.up = action.value == "up"
            network.tasks.restart(name)
        case "placement":
            target = str(action.value)
            there = target in network.guests and network.guests.deployed(target)
            if (refused := move_refusal(network.topology, name, target, deployed=there)) is not None:
                return f"{action.entity} placement: {refused}"
            network.placement = {**network.placement, name: target}
            if target == name:
                del network.placement[name]
        case "replicas":
            if not isinstance(node, App) or node.service != "request":
                return f"{action.entity} replicas needs an application of service request, got {_what(node)}"
            state.replicas = int(float(action.value))
    return None


def _partition(network: Network, name: str, action: Action) -> str | None:
    guests, where = network.guests, f"{action.entity} {action.knob}"
    reason: str | None = None
    match action.knob:
        case "partition_state" | "node_state" if action.value in (READY, "down") and (
            hosts := need_empty(name, network.placement)
        ):
            reason = hosts
        case "partition_state":
            reason = guests.set_state(name, str(action.value), network.now_s)
        case "node_state":
            reason = guests.set_state(name, READY if action.value == "down" else DEPLOYED, network.now_s)
        case "attack":
            reason = guests.set_attack(name, str(action.value))
        case "cpu_millicores":
            guests.set_cpu(name, float(action.value))
        case "dl_period_us":
            guests.set_period(name, float(action.value))
        case "dl_runtime_us":
            reason = guests.set_budget(name, float(action.value))
        case _:
            reason = "is not modelled for a partition"
    return None if reason is None else f"{where}: {reason}"


def _what(node: object) -> str:
    if isinstance(node, App):
        return f"service {node.service}"
    kind: str = getattr(node, "kind", "node")
    return f"{'an' if kind.startswith('iab') else 'a'} {kind}"


def _link(network: Network, name: str, action: Action) -> str | None:
    state = network.links[name]
    delay_s = float(action.value) if action.knob == "delay_s" else state.delay_s
    jitter_s = float(action.value) if action.knob == "jitter_s" else state.jitter_s
    if jitter_s > delay_s:
        return f"{action.entity} {action.knob}: jitter cannot exceed delay, got jitter {jitter_s:g} s of {delay_s:g} s"
    match action.knob:
        case "link_state":
            state.up = action.value == "up"
        case "bandwidth_mbps":
            state.bandwidth_bps = float(action.value) * _MBPS
        case "delay_s":
            state.delay_s = float(action.value)
        case "jitter_s":
            state.jitter_s = float(action.value)
        case "loss_ratio":
            state.loss_ratio = float(action.value)
    return None


def _flow(network: Network, name: str, action: Action) -> str | None:
    paths = len(network.topology.backhaul_named(name).paths)
    index = int(float(action.value))
    if index >= paths:
        return f"{action.entity} path_index: must be a whole number in [0, {paths - 1}], got {index}"
    network.path_index[name] = index
    return None


def _task(network: Network, name: str, action: Action) -> str | None:
    owner, _, number = name.rpartition(".")
    node = network.topology.node(owner)
    if isinstance(node, Partition) and action.knob == "task_work_us":
        refused = network.guests.set_work(owner, int(number), float(action.value) * 1e-6)
        return None if refused is None else f"{action.entity} task_work_us: {refused}"
    if not isinstance(node, Container):
        return f"{action.entity} {action.knob}: a thread in {_what(node)} is not this server's to reserve for"
    if not network.node_up(node.name):
        return f"{action.entity} {action.knob}: node {node.name} is down"
    match action.knob:
        case "task_work_us":
            network.tasks.set_work(name, float(action.value))
        case "dl_period_us":
            network.tasks.set_period(name, float(action.value))
        case "dl_runtime_us":
            reason = network.tasks.set_budget(name, float(action.value))
            return None if reason is None else f"{action.entity} dl_runtime_us: {reason}"
    return None


def _ue(network: Network, name: str, action: Action) -> str | None:
    state = network.ues[name]
    match action.knob:
        case "cqi":
            state.forced_cqi = int(float(action.value))
        case "ue_state":
            state.forced_attached = action.value == "attached"
    return None
