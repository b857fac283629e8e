"""What both fidelities and the loader know of partitions: which knobs act on them, and which never will."""

from __future__ import annotations

from collections.abc import Mapping

from topologies.model import App, Node, Partition, Topology, Ue, Upf
from topologies.paths import candidate_paths
from twin.types import Action

READY, DEPLOYED, SUSPENDED = "ready", "deployed", "suspended"
ONLY_PARTITIONS = ("partition_state", "attack")
MEMORY_STAYS = "the memory of a partition is assigned when it is created, and stays as it is"
_LIMITS = ("cpu_millicores", "dl_runtime_us", "dl_period_us")
# The transitions of NANCY D3.4 Figure 19: wanted state -> (state that it is reached from, what is done).
_TRANSITIONS = {
    (READY, DEPLOYED): "deployed",
    (DEPLOYED, READY): "shut down",
    (DEPLOYED, SUSPENDED): "suspended",
    (SUSPENDED, DEPLOYED): "restored",
}


def unfit(node: Node, action: Action) -> str | None:
    """Why an action on a node can never be carried out because of what the node is; None when it can."""
    where = f"{action.entity} {action.knob}"
    if not isinstance(node, Partition):
        if action.knob in ONLY_PARTITIONS:
            return f"{where}: acts on nodes of kind partition, {node.name} is of kind {node.kind}"
        return None
    if action.knob == "memory_mib":
        return f"{where}: {MEMORY_STAYS}"
    if action.knob in _LIMITS and node.critical:
        return f"{where}: partition {node.name} is critical: its CPU time is never limited"
    if action.knob in _LIMITS and not node.isolated:
        return f"{where}: partition {node.name} is a plain virtual machine: nothing limits it"
    return None


def move_refusal(topology: Topology, app: str, target: str, *, deployed: bool) -> str | None:
    """Why the service of an application cannot run on a node, which is ``deployed`` or not; None when it can."""
    node = topology.node(app)
    if not isinstance(node, App) or node.service != "stream":
        return "only applications with service stream move"
    able = [one.name for one in topology.of_kind(Partition) if one.vnf == "stream"]
    if target not in (app, *able):
        return f"must be its own name or a partition with vnf stream ({', '.join([app, *able])}), got {target}"
    if target == app:
        return None
    slices = {ue.slice for ue in topology.of_kind(Ue)}
    for upf in (one.name for one in topology.of_kind(Upf) if one.slice in slices):
        if candidate_paths(topology, upf, app, 1) and not candidate_paths(topology, upf, target, 1):
            return f"no path from {upf}, the UPF of its users, to partition {target}"
    return None if deployed else f"partition {target} is not deployed"


def need_empty(partition: str, placement: Mapping[str, str]) -> str | None:
    """Why a partition cannot be shut down: a service that has moved there; None when it can."""
    for app, node in placement.items():
        if node == partition:
            return f"partition {partition} runs the service of {app}: move it elsewhere first"
    return None


def transition(name: str, state: str, wanted: str) -> str | None:
    """Why a partition cannot go from one state to another at once, in the vManager's words; None when it can."""
    if state == wanted or (state, wanted) in _TRANSITIONS:
        return None
    (required, done) = next((start, done) for (start, end), done in _TRANSITIONS.items() if end == wanted)
    return f"partition {name} is {state.upper()}; only a {required.upper()} one can be {done}"
