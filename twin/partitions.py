"""What both fidelities and the loader know of partitions: which knobs act on them, and which never will."""

from __future__ import annotations

from topologies.model import Node, Partition
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


def transition(name: str, state: str, wanted: str) -> str | None:
    """Why a partition cannot go from one state to another at once, in the vManager's words; None when it can."""
    if state == wanted or (state, wanted) in _TRANSITIONS:
        return None
    (required, done) = next((start, done) for (start, end), done in _TRANSITIONS.items() if end == wanted)
    return f"partition {name} is {state.upper()}; only a {required.upper()} one can be {done}"
