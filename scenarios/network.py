"""The topology of a scenario file: builders, nodes, links and slices, checked to fit together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scenarios import units
from scenarios.backhaul import backhaul_flow
from scenarios.errors import Problem, nearest, unknown
from scenarios.schema import (
    AppNode,
    BackhaulEntry,
    ComputeResources,
    ContainerNode,
    GnbNode,
    GuestFiles,
    HostNode,
    IabDonorSettings,
    IabNodeSettings,
    LinkEntry,
    NodeSettings,
    PartitionNode,
    ScenarioFile,
    SliceEntry,
    SwitchNode,
    TrafficEntry,
    UeNode,
    UpfNode,
)
from scenarios.source import Location, Source, dotted
from scenarios.units import Quantity, UnitError
from topologies.fragment import Fragment
from topologies.model import (
    App,
    BackhaulFlow,
    Container,
    EdgeServer,
    Gnb,
    Host,
    IabDonor,
    IabNode,
    Link,
    Node,
    Partition,
    PeriodicTask,
    Sla,
    Slice,
    Switch,
    Topology,
    TopologyError,
    Ue,
    Upf,
)
from topologies.paths import default_path, slice_upf
from topologies.registry import BUILDERS, Builder

_KINDS: dict[type[NodeSettings | PartitionNode], type[Node]] = {
    UeNode: Ue,
    GnbNode: Gnb,
    UpfNode: Upf,
    AppNode: App,
    PartitionNode: Partition,
    SwitchNode: Switch,
    IabNodeSettings: IabNode,
    IabDonorSettings: IabDonor,
    ContainerNode: Container,
    HostNode: Host,
}

# Keys of the file that are spelled otherwise in the model, so that an error of the model finds its line.
_FILE_KEYS = {
    "bandwidth_bps": "bw",
    "delay_s": "delay",
    "jitter_s": "jitter",
    "loss_ratio": "loss",
    "interface": "endpoints",
}

# Arguments of builders: the unit at the end of the name says how the value is written in a file.
_SUFFIXES: dict[str, tuple[str, Quantity]] = {
    "bandwidth_bps": ("bw", units.BANDWIDTH),
    "delay_s": ("delay", units.DELAY),
    "jitter_s": ("jitter", units.DELAY),
    "loss_ratio": ("loss", units.LOSS),
    "cpu_millicores": ("cpu", units.CPU),
    "memory_mib": ("memory", units.MEMORY),
}


def builder_keys(builder: Builder) -> dict[str, tuple[str, Quantity | None]]:
    """What may stand under ``with:``: key of the file -> (argument of the builder, quantity)."""
    keys: dict[str, tuple[str, Quantity | None]] = {}
    for argument in builder.parameters:
        for suffix, (key, quantity) in _SUFFIXES.items():
            if argument.endswith(suffix):
                keys[argument.removesuffix(suffix) + key] = (argument, quantity)
                break
        else:
            keys[argument] = (argument, None)
    return keys


class NetworkReader:
    """Builds the topology; every mistake is added to ``problems`` at its line."""

    def __init__(self, source: Source, document: ScenarioFile) -> None:
        self.source = source
        self.document = document
        self.problems: list[Problem] = []
        self._nodes: dict[str, tuple[Node, Location]] = {}
        self._links: list[tuple[Link, Location]] = []
        self._backhaul: list[tuple[BackhaulFlow, Location]] = []
        self._broken: set[str] = set()
        self._builder_failed = False

    def read(self) -> Topology | None:
        """The topology, or None when there are problems."""
        for index, entry in enumerate(self.document.topology.builders):
            self._add_builder(("topology", "builders", index), entry.use, entry.with_)
        for name, settings in self.document.topology.nodes.items():
            self._add_node(("topology", "nodes", name), name, settings)
        for index, link in enumerate(self.document.topology.links):
            self._add_link(("topology", "links", index), link)
        for index, flow in enumerate(self.document.topology.backhaul):
            self._add_backhaul(("topology", "backhaul", index), flow)
        if not self._nodes and not self.problems:
            self.report(("topology",), "no nodes: a topology needs nodes or builders")
        self._check_links()
        slices = self._slices()
        self._check_node_slices()
        self._limit_nodes()
        if self.problems:
            return None
        try:
            topology = Topology(
                name=self.document.name,
                nodes=tuple(node for node, _ in self._nodes.values()),
                links=tuple(link for link, _ in self._links),
                slices=slices,
                slicing=self.document.slicing,
                backhaul=tuple(flow for flow, _ in self._backhaul),
                edge=self._edge_server(),
            )
        except TopologyError as error:
            self.problems.append(self.source.problem(self._place_of(str(error)), str(error)))
            return None
        self._check_reachable(topology)
        return None if self.problems else topology

    def _edge_server(self) -> EdgeServer:
        entry = self.document.topology.edge
        memory_mib = entry.memory
        if memory_mib is not None and memory_mib.is_integer():
            memory_mib = int(memory_mib)
        given: dict[str, Any] = {"cores": entry.cores, "memory_mib": memory_mib, "cpus": entry.cpus}
        return EdgeServer(**{key: value for key, value in given.items() if value is not None})

    def report(self, location: Location, text: str) -> None:
        self.problems.append(self.source.problem(location, f"{dotted(location)}: {text}"))

    def _report_model(self, location: Location, error: TopologyError, data: Mapping[str, Any]) -> None:
        """Report an error of the model at the key that it is about, if the file has it."""
        text = str(error)
        keys = [key for key in data if f" {key} " in f" {text} "]
        keys += [key for word, key in _FILE_KEYS.items() if f" {word} " in f" {text} " and key in data]
        self.problems.append(self.source.problem((*location, *keys[:1]), text))

    # --- nodes and links

    def _add_builder(self, location: Location, name: str, given: Mapping[str, Any]) -> None:
        builder = BUILDERS.get(name)
        if builder is None:
            self.report((*location, "use"), unknown("topology builder", name, BUILDERS))
            return
        keys = builder_keys(builder)
        arguments: dict[str, Any] = {}
        before = len(self.problems)
        for key, value in given.items():
            at = (*location, "with", key)
            if key not in keys:
                self.report(at, f"unknown key {key}{nearest(str(key), keys)}; allowed: {', '.join(keys)}")
                continue
            argument, quantity = keys[key]
            try:
                arguments[argument] = quantity.parse(value) if quantity else self._plain(builder, argument, value)
            except (UnitError, TopologyError) as error:
                self.report(at, str(error))
        for key, (argument, _) in keys.items():
            if builder.parameters[argument].default is builder.parameters[argument].empty and key not in given:
                self.report((*location, "with"), f"{key} is missing")
        if len(self.problems) > before:
            self._builder_failed = True
            return
        try:
            fragment: Fragment = builder.build(**arguments)
        except TopologyError as error:
            at = self._mentioned((*location, "with"), given, str(error))
            self.problems.append(self.source.problem(at, str(error)))
            self._builder_failed = True
            return
        for node in fragment.nodes:
            self._keep_node(node, location)
        self._links += [(link, location) for link in fragment.links]
        self._backhaul += [(flow, location) for flow in fragment.backhaul]

    def _plain(self, builder: Builder, argument: str, value: Any) -> Any:
        """A value that is no quantity, checked against the annotation of the builder's argument."""
        wanted = str(builder.parameters[argument].annotation)
        checks: dict[str, tuple[type | tuple[type, ...], str]] = {
            "int": (int, "a whole number"),
            "float": ((int, float), "a number"),
            "str": (str, "text"),
            "Path": (str, "the path of a file"),
            "Sequence": (list, "a list"),
            "Mapping": (dict, "a mapping"),
        }
        for start, (kinds, words) in checks.items():
            if wanted.startswith(start) and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise TopologyError(f"got {value!r}, allowed {words}")
        if wanted.startswith("Path"):
            return Path(self.source.file).parent / value
        if isinstance(value, dict):
            return {key: self._node_settings(item) for key, item in value.items()}
        return value

    @staticmethod
    def _node_settings(settings: Any) -> Any:
        """Settings of one node under ``with:``; ``cpu`` and ``memory`` may carry a unit as elsewhere."""
        if not isinstance(settings, dict):
            return settings
        result = dict(settings)
        for argument in ("cpu_millicores", "memory_mib"):
            key, quantity = _SUFFIXES[argument]
            if key in result:
                result[argument] = quantity.parse(result.pop(key))
        return result

    @staticmethod
    def _mentioned(location: Location, given: Any, text: str) -> Location:
        """The deepest path of keys under ``location`` that ``text`` names."""
        words = text.replace(":", " ").split()
        while isinstance(given, Mapping):
            found = [key for key in given if str(key) in words]
            if not found:
                break
            location, given = (*location, found[0]), given[found[0]]
            words.remove(str(found[0]))
        if location[-1] == "with" and isinstance(given, Mapping):
            for key, value in given.items():
                if isinstance(value, Mapping):
                    deeper = NetworkReader._mentioned((*location, key), value, text)
                    if len(deeper) > len(location) + 1:
                        return deeper
        return location

    def _add_node(self, location: Location, name: str, settings: NodeSettings | PartitionNode) -> None:
        given = {key: getattr(settings, key) for key in settings.model_fields_set}
        given = {key: value for key, value in given.items() if value is not None and key != "kind"}
        for argument in ("cpu_millicores", "memory_mib"):
            key = _SUFFIXES[argument][0]
            if key in given and argument in given:
                self.report((*location, argument), f"{key} and {argument} are the same thing; give one of them")
            if key in given:
                given[argument] = given.pop(key)
        if isinstance(settings, PartitionNode):
            if "cpu_ms_per_request" in given and settings.vnf != "request":
                self.report((*location, "cpu_ms_per_request"), f"needs vnf: request, got {settings.vnf or 'none'}")
            given |= self._guest_files(location, given.pop("image", None))
        else:
            self._check_container(location, settings)
        try:
            if "tasks" in given:
                given["tasks"] = tuple(
                    PeriodicTask(period_s=entry.period, work_s=entry.work) for entry in given["tasks"]
                )
            self._keep_node(_KINDS[type(settings)](name=name, **given), location)
        except TopologyError as error:
            self._report_model(location, error, self.source_data(location))
            self._broken.add(name)

    def _guest_files(self, location: Location, files: GuestFiles | None) -> dict[str, str]:
        """Kernel, root file system and device tree of the user's own; they lie beside the scenario file."""
        found: dict[str, str] = {}
        for key in () if files is None else ("kernel", "rootfs", "dtb"):
            name = getattr(files, key)
            if name is None:
                continue
            path = Path(self.source.file).parent / name
            if not path.is_file():
                why = "not a file" if path.exists() else "no such file"
                self.report((*location, "image", key), f"{why}: {path}")
            found[key] = str(path.absolute())
        return found

    def _check_container(self, location: Location, settings: NodeSettings) -> None:
        """Report limits that nothing would apply."""
        given = settings.model_fields_set
        if isinstance(settings, SwitchNode | IabNodeSettings | IabDonorSettings | HostNode):
            for key in sorted(given & {"image", "cpu", "cpu_millicores", "memory", "memory_mib"}):
                self.report((*location, key), f"a {settings.kind} has no container that {key} could act on")
        if isinstance(settings, GnbNode):
            for key in sorted(given & {"cpu", "cpu_millicores"}):
                text = "each slice's part of the gNB has its own limit; set resources.ran.cpu of the slices"
                self.report((*location, key), text)

    def source_data(self, location: Location) -> Mapping[str, Any]:
        """The plain data of the file at ``location``, which exists and is a mapping."""
        data: Any = self.source.data
        for part in location:
            data = data[part]
        assert isinstance(data, Mapping)
        return data

    def _keep_node(self, node: Node, location: Location) -> None:
        if node.name in self._nodes:
            first = self.source.problem(self._nodes[node.name][1], "").line
            self.report(location, f"duplicate name {node.name!r}: also the name of the node in line {first}")
            return
        self._nodes[node.name] = (node, location)

    def _add_link(self, location: Location, entry: LinkEntry) -> None:
        ends = [end.partition(":") for end in entry.endpoints]
        try:
            link = Link(
                a=ends[0][0],
                b=ends[1][0],
                a_interface=ends[0][2] or None,
                b_interface=ends[1][2] or None,
                band=entry.band,
                bandwidth_bps=entry.bw,
                delay_s=entry.delay or 0.0,
                jitter_s=entry.jitter or 0.0,
                loss_ratio=entry.loss or 0.0,
            )
        except TopologyError as error:
            self._report_model(location, error, self.source_data(location))
            return
        self._links.append((link, location))

    def _check_links(self) -> None:
        seen: dict[tuple[frozenset[str], str | None], Location] = {}
        for link, location in self._links:
            at = (*location, "endpoints")
            for end in (link.a, link.b):
                # A link to a node that is reported already is no mistake of its own.
                if end not in self._nodes and end not in self._broken and not self._builder_failed:
                    self.report(at, f"link {link.name}: {unknown('node', end, self._nodes)}")
            pair = frozenset((link.a, link.b)), link.band
            if pair in seen:
                first = self.source.problem(seen[pair], "").line
                self.report(at, f"duplicate name: link {link.name} joins the same nodes as the link in line {first}")
            seen.setdefault(pair, location)
        self._check_interfaces()

    def _check_interfaces(self) -> None:
        seen: dict[tuple[str, str], Location] = {}
        for link, location in self._links:
            for node, interface in ((link.a, link.a_interface), (link.b, link.b_interface)):
                if interface is None:
                    continue
                if (node, interface) in seen:
                    first = self.source.problem(seen[node, interface], "").line
                    self.report(
                        (*location, "endpoints"),
                        f"duplicate name: interface {node}:{interface} already ends the link in line {first}",
                    )
                seen.setdefault((node, interface), location)

    # --- backhaul

    def _add_backhaul(self, location: Location, entry: BackhaulEntry) -> None:
        try:
            flow = backhaul_flow(entry, [node for node, _ in self._nodes.values()], [link for link, _ in self._links])
        except TopologyError as error:
            key = "path_index" if "path_index" in str(error) else "source" if "source" in str(error) else "paths"
            self.problems.append(self.source.problem((*location, key), f"{dotted(location)}: {error}"))
            return
        self._backhaul.append((flow, location))

    def _place_of(self, text: str) -> Location:
        """Where in the file stands what an error of the finished topology is about."""
        for link, location in self._links:
            if text.startswith(f"link {link.name}:"):
                return location
        for node, location in self._nodes.values():
            if isinstance(node, Partition) and text.startswith(f"partition {node.name}:"):
                keys = [key for key in ("cores", "memory", "memory_mib") if key in self.source_data(location)]
                return (*location, *[key for key in keys if f": {key}" in text][:1])
        if text.startswith("edge:"):
            return ("topology", "edge")
        for flow, location in self._backhaul:
            if text.startswith(f"backhaul flow {flow.name}:"):
                key = next((key for key in ("source", "sink") if f": {key} must" in text), "paths")
                number = re.search(r": path (\d+):", text)
                return (*location, key, int(number[1])) if number and key == "paths" else (*location, key)
        return ("topology",)

    # --- slices

    def _slices(self) -> tuple[Slice, ...]:
        entries = self.document.slices
        shares = {name: entry.resources.ran.prb_share for name, entry in entries.items()}
        given = sum(share for share in shares.values() if share is not None)
        silent = sum(share is None for share in shares.values())
        if given > 1 + 1e-9 or (silent and given >= 1):
            left = "nothing is left for the slices without one" if silent else f"they add up to {given:g}"
            self.report(("slices",), f"the prb_share of all slices must add up to at most 1, {left}")
            return ()
        slices = []
        for name, entry in entries.items():
            share = shares[name]
            location: Location = ("slices", name)
            try:
                slices.append(self._slice(name, entry, (1 - given) / silent if share is None else share))
            except TopologyError as error:
                self._report_model(location, error, self.source_data(location))
            if entry.sla.beta_thresh is not None and entry.sla.q_thresh is None:
                at = (*location, "sla", "beta_thresh")
                self.report(at, "needs q_thresh, the throughput below which a UE counts as degraded")
        self._check_s_nssais(slices)
        return tuple(slices)

    def _check_s_nssais(self, slices: list[Slice]) -> None:
        """An S-NSSAI identifies a slice (TS 23.501 §5.15.2)."""
        seen: dict[tuple[int, str], str] = {}
        for slice_ in slices:
            s_nssai = slice_.sst, slice_.sd.upper()
            if s_nssai in seen:
                self.report(
                    ("slices", slice_.name),
                    f"S-NSSAI SST {slice_.sst}, SD {slice_.sd} is that of slice {seen[s_nssai]}; "
                    "give it another sst or sd",
                )
            seen.setdefault(s_nssai, slice_.name)

    @staticmethod
    def _slice(name: str, entry: SliceEntry, prb_share: float) -> Slice:
        return Slice(
            name=name,
            sst=entry.sst,
            sla=Sla(
                q_thresh_bps=entry.sla.q_thresh,
                beta_thresh=entry.sla.beta_thresh,
                latency_bound_s=entry.sla.latency_bound,
            ),
            prb_share=prb_share,
            cpu_millicores=entry.resources.ran.cpu,
            bandwidth_bps=entry.resources.transport.bandwidth,
            **({} if entry.sd is None else {"sd": entry.sd}),
        )

    def _check_node_slices(self) -> None:
        for node, location in self._nodes.values():
            if isinstance(node, Ue | Upf) and node.slice not in self.document.slices:
                self.report(
                    (*location, "slice"),
                    f"{node.kind} {node.name}: {unknown('slice', node.slice, self.document.slices)}",
                )

    def _limit_nodes(self) -> None:
        """Give the UPFs and applications of a slice the limits under ``resources.core`` and ``.edge``."""
        limited: dict[str, str] = {}
        for name, entry in self.document.slices.items():
            groups = {node.name for node, _ in self._nodes.values() if isinstance(node, Ue) and node.slice == name}
            upfs = [node.name for node, _ in self._nodes.values() if isinstance(node, Upf) and node.slice == name]
            users = [item for item in self.document.traffic if isinstance(item, TrafficEntry)]
            apps = list(dict.fromkeys(item.app for item in users if item.ues in groups))
            for segment, targets, limits in (
                ("core", upfs, entry.resources.core),
                ("edge", apps, entry.resources.edge),
            ):
                for target in targets:
                    self._limit_node(("slices", name, "resources", segment), target, limits, limited)

    def _limit_node(self, location: Location, target: str, limits: ComputeResources, limited: dict[str, str]) -> None:
        node, at = self._nodes.get(target, (None, ()))
        if node is None:
            return  # the traffic entry is reported on its own
        for key, argument, value in (("cpu", "cpu_millicores", limits.cpu), ("memory", "memory_mib", limits.memory)):
            if value is None:
                continue
            by = limited.get(f"{target} {key}")
            if getattr(node, argument) is not None:
                what = f"slice {by}" if by else f"node {target} itself"
                self.report((*location, key), f"the {key} limit of {target} is already set by {what}")
                continue
            limited[f"{target} {key}"] = str(location[1])
            changes: dict[str, Any] = {argument: value}
            try:
                node = replace(node, **changes)
            except TopologyError as error:
                self.report((*location, key), str(error))
                return
            self._nodes[target] = (node, at)

    # --- paths

    def _check_reachable(self, topology: Topology) -> None:
        """Each slice has UEs at a gNB, one UPF, and a path between them."""
        for slice_ in topology.slices:
            location: Location = ("slices", slice_.name)
            unreachable = f"unreachable slice {slice_.name}"
            groups = [node for node in topology.of_kind(Ue) if node.slice == slice_.name]
            if not groups:
                self.report(location, f"{unreachable}: no UE group (node of kind ue) belongs to it")
                continue
            try:
                upf = slice_upf(topology, slice_.name)
            except TopologyError as error:
                self.report(location, f"{unreachable}: {error}")
                continue
            for group in groups:
                gnbs = [name for name in topology.neighbours(group.name) if isinstance(topology.node(name), Gnb)]
                if len(gnbs) != 1:
                    found = ", ".join(gnbs) or "none"
                    self.report(
                        location, f"{unreachable}: ue {group.name} needs a link to exactly one gNB, got {found}"
                    )
                    continue
                try:
                    default_path(topology, gnbs[0], upf)
                except TopologyError:
                    self.report(location, f"{unreachable}: no path from gNB {gnbs[0]} to UPF {upf} over switches")
