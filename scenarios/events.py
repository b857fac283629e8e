"""The timeline of a scenario file as timed actions, checked against the topology and the knobs."""

from __future__ import annotations

from scenarios.errors import Problem, unknown
from scenarios.model import TimedAction
from scenarios.schema import (
    DemandEvent,
    KnobEvent,
    LinkEvent,
    NodeEvent,
    ScenarioFile,
    SlaEvent,
    TimedEntry,
    UeEvent,
)
from scenarios.source import Location, Source, dotted
from topologies.model import App, Host, Partition, Switch, Topology, TopologyError, Ue
from topologies.paths import parse_path, serving_gnb, slice_upf
from twin.knobs import KNOBS, refusal
from twin.partitions import move_refusal, unfit
from twin.types import Action

_VERBS = {
    "down": ("link_state", "down", "up"),
    "up": ("link_state", "up", "down"),
    "kill": ("node_state", "down", "up"),
    "restart": ("node_state", "up", "down"),
    "attach": ("ue_state", "attached", "detached"),
    "detach": ("ue_state", "detached", "attached"),
}


def entities_of(topology: Topology) -> list[str]:
    """Every entity of a topology that a KPI or an action may name, without controllers."""
    return [
        *(f"slice:{slice_.name}" for slice_ in topology.slices),
        *(f"node:{node.name}" for node in topology.nodes),
        *(f"link:{link.name}" for link in topology.links),
        *(f"flow:{flow.name}" for flow in topology.backhaul),
        *(f"task:{name}" for name in topology.tasks),
        *(f"ue:{ue_id}" for ue in topology.of_kind(Ue) for ue_id in ue.ue_ids),
    ]


def canonical(topology: Topology, entity: str) -> str:
    """``link:b-a`` as ``link:a-b``, the order of the file; anything else as it is."""
    scope, _, name = entity.partition(":")
    if scope == "link":
        try:
            return f"link:{topology.link_named(name).name}"
        except KeyError:
            pass
    return entity


class EventReader:
    """Turns events into actions; every mistake is added to ``problems`` at its line."""

    def __init__(self, source: Source, document: ScenarioFile, topology: Topology) -> None:
        self.source = source
        self.document = document
        self.topology = topology
        self.entities = entities_of(topology)
        self.problems: list[Problem] = []

    def read(self) -> tuple[TimedAction, ...]:
        """The actions in order of time; actions of one time keep the order of the file."""
        actions: list[TimedAction] = []
        for index, event in enumerate(self.document.events):
            location: Location = ("events", index)
            # A run that the command line shortens leaves out its last events; the engine records that.
            shortened = ("duration",) in self.source.origins
            if event.at >= self.document.duration and not shortened:
                self._report(
                    (*location, "at"),
                    f"got {event.at:g} s, allowed less than the duration, {self.document.duration:g} s",
                )
            actions += self._expand(location, event)
        return tuple(sorted(actions, key=lambda action: action.time_s))

    def _report(self, location: Location, text: str) -> None:
        self.problems.append(self.source.problem(location, f"{dotted(location)}: {text}"))

    def _expand(self, location: Location, event: TimedEntry) -> list[TimedAction]:
        if isinstance(event, LinkEvent | NodeEvent | UeEvent):
            return self._switched(location, event)
        if isinstance(event, DemandEvent):
            return self._timed(
                location, event, "slice", f"slice:{event.slice}", "demand_factor", event.demand_factor, 1.0
            )
        if isinstance(event, SlaEvent):
            knobs = {
                "q_thresh_mbps": event.sla.q_thresh and event.sla.q_thresh / 1e6,
                "beta_thresh": event.sla.beta_thresh,
                "latency_bound_s": event.sla.latency_bound,
            }
            result: list[TimedAction] = []
            for knob, value in knobs.items():
                if value is not None:
                    result += self._timed(location, event, "slice", f"slice:{event.slice}", knob, value)
            if not result and not self.problems:
                self._report((*location, "sla"), "names no promise; allowed: q_thresh, beta_thresh, latency_bound")
            return result
        assert isinstance(event, KnobEvent)
        if event.knob not in KNOBS:
            self._report(
                (*location, "knob"),
                unknown("knob", event.knob, KNOBS),
            )
            return []
        return self._timed(location, event, "entity", event.entity, event.knob, event.value)

    def _switched(self, location: Location, event: LinkEvent | NodeEvent | UeEvent) -> list[TimedAction]:
        if isinstance(event, UeEvent):
            key, targets = "ue", self._ues(event.ue)
        elif isinstance(event, LinkEvent):
            key, targets = "link", [f"link:{event.link}"]
        else:
            key, targets = "node", [f"node:{event.node}"]
        knob, value, undo = _VERBS[event.do]
        result = []
        for target in targets:
            result += self._timed(location, event, key, target, knob, value, undo)
        return result

    def _ues(self, name: str) -> list[str]:
        for group in self.topology.of_kind(Ue):
            if group.name == name:
                return [f"ue:{ue_id}" for ue_id in group.ue_ids]
        return [f"ue:{name}"]

    def _timed(
        self,
        location: Location,
        event: TimedEntry,
        key: str,
        entity: str,
        knob: str,
        value: float | str,
        undo: float | str | None = None,
    ) -> list[TimedAction]:
        """The action and, when the event says ``for``, the one that undoes it."""
        action = Action(canonical(self.topology, entity), knob, value)
        text = refusal(action)
        if text is not None:
            at = (*location, knob if knob == "demand_factor" else "value" if isinstance(event, KnobEvent) else key)
            self._report(at, text)
            return []
        if action.entity not in self.entities:
            scope = entity.partition(":")[0]
            known = [item.partition(":")[2] for item in self.entities if item.startswith(f"{scope}:")]
            self._report((*location, key), unknown(scope, entity.partition(":")[2], known))
            return []
        impossible = self._impossible(action)
        if impossible:
            self._report((*location, "value" if isinstance(event, KnobEvent) else key), impossible)
            return []
        result = [TimedAction(time_s=event.at, action=action, label=event.label or "")]
        after_s = getattr(event, "for_", None)
        if after_s is not None and undo is not None:
            back = Action(action.entity, knob, undo)
            result.append(TimedAction(time_s=event.at + after_s, action=back, label=event.label or ""))
        return result

    def _impossible(self, action: Action) -> str | None:
        """Why this topology cannot do what the action asks for, as far as that is known before the run."""
        scope, _, name = action.entity.partition(":")
        if scope == "node" and (reason := unfit(self.topology.node(name), action)) is not None:
            return reason
        if scope == "node" and isinstance(node := self.topology.node(name), Switch | Host):
            return f"{action.entity} {action.knob}: a {node.kind} has no container"
        if scope in ("node", "task") and action.knob in ("dl_runtime_us", "dl_period_us"):
            node = self.topology.node(name.rpartition(".")[0] or name)
            if isinstance(node, Partition) != (scope == "node"):
                return (
                    f"{action.knob} acts on tasks of containers and on partitions as a whole, got {action.entity} "
                    f"of a {node.kind}"
                )
        if action.knob == "placement":
            target = str(action.value)
            if (reason := move_refusal(self.topology, name, target, deployed=True)) is not None:
                return f"{action.entity} placement: {reason}"
        if action.knob == "replicas":
            node = self.topology.node(name)
            if not (isinstance(node, App) and node.service == "request"):
                return f"replicas acts on applications with service request, got {action.entity}"
        if action.knob == "path_index":
            last = len(self.topology.backhaul_named(name).paths) - 1
            if float(action.value) > last:
                return f"{action.entity} path_index: must be a whole number in [0, {last}], got {action.value}"
        if action.knob == "path":
            upf = slice_upf(self.topology, name)
            for group in self.topology.of_kind(Ue):
                if group.slice == name:
                    try:
                        gnb = serving_gnb(self.topology, group.name)
                        parse_path(self.topology, gnb, upf, str(action.value))
                    except TopologyError as error:
                        return str(error)
        return None
