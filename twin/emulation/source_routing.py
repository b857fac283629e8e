"""The backhaul of a running emulation: queues per flow, the SDN controller, paths changed while packets run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from topologies.model import Link, Switch
from twin.emulation.backhaul import QUEUE_PACKETS, FlowPlan, sink_route
from twin.emulation.client import ProgramError
from twin.emulation.errors import EmulationError
from twin.emulation.impairment import LinkHandle
from twin.emulation.plan import Plan
from twin.emulation.sdn.controller import SdnController
from twin.journal import Journal


class SourceRouting:
    """Owns the SDN controller of a run, if it has one, and which path every backhaul flow takes.

    ``app`` is a user's application, which then controls every switch and all forwarding; None leaves the
    backhaul to TwinBed's source routing and the other switches to the rules of the plan. ``port_of`` gives the
    OpenFlow port of a link, ``handle_of`` the running link.
    """

    def __init__(
        self,
        plan: Plan,
        app: str | None,
        *,
        net: Any,
        port_of: Callable[[Link], int],
        handle_of: Callable[[Link], LinkHandle],
        netns_pid: Callable[[str], int],
    ) -> None:
        self._plan = plan
        self._backhaul = plan.backhaul
        self.app = app
        self._net = net
        self._port_of = port_of
        self._handle_of = handle_of
        self._netns_pid = netns_pid
        self.path_index = {name: one.flow.path_index for name, one in plan.backhaul.flows.items()}
        self.controller: SdnController | None = None
        if app is not None and not self.switches:
            raise EmulationError(f"SDN application {app}: the network has no switch that it could control")

    @property
    def switches(self) -> list[str]:
        """Names of the switches under the controller."""
        if self.app is None:
            return self._backhaul.switches if self._backhaul else []
        return [node.name for node in self._plan.topology.of_kind(Switch)]

    def start(self, *, runtime: Path, logs: Path, journal: Journal) -> None:
        """Start the controller when there is something for it to do; does not wait for it."""
        if not self.switches:
            return
        config: Mapping[str, Any] = {"app": self.app}
        if self.app is None:
            dpids = {name: self._net.get(name).dpid for name in self.switches}
            mac_of = lambda node, link: self._plan.interface(node, link).mac  # noqa: E731 - said once
            config = {"network": self._backhaul.network(dpids=dpids, port_of=self._port_of, mac_of=mac_of)}
        self.controller = SdnController(config, runtime=runtime, logs=logs, journal=journal)

    def connect(self) -> None:
        """Put the switches under the controller and wait until it has taken them over."""
        if self.controller is None:
            return
        self.controller.wait_ready()
        words: list[str] = []
        for name in self.switches:
            bridge = self._net.get(name).bridge
            words += ["--", "set-controller", bridge, f"tcp:127.0.0.1:{self.controller.port}"]
            words += ["--", "set", "controller", bridge, "max_backoff=1000"]
        self._net.vsctl(words)
        if self.app is None:
            self.controller.wait_for("ready", self.switches)
        else:
            self.controller.wait_for("stats", [self._net.get(name).dpid for name in self.switches])

    def shape(self, links: Sequence[Link]) -> None:
        """Give every flow a queue of its own at both ends of the links that it may cross."""
        for link in links:
            flows = {one.flow.name: one.address for one in self._backhaul.flows_of(link)} if link.band else {}
            if flows:
                handle = self._handle_of(link)
                handle.shaper_a.add_labelled_flows(flows, by="src", queue_packets=QUEUE_PACKETS)
                handle.shaper_b.add_labelled_flows(flows, by="dst", queue_packets=QUEUE_PACKETS)

    def choose(self, name: str, index: int) -> None:
        """Send a flow over another of its paths; in force when this returns. EmulationError when it cannot be."""
        if self.app is not None:
            raise EmulationError(f"the SDN application {self.app} is in charge of the switches; paths are its decision")
        assert self.controller is not None
        self.controller.check_alive()
        one = self._backhaul.flows[name]
        if index >= len(one.flow.paths):
            raise EmulationError(f"must be a whole number in [0, {len(one.flow.paths) - 1}], got {index}")
        try:
            self.controller.client.call("path", flow=name, index=index)
        except ProgramError as error:
            raise EmulationError(str(error)) from None
        before, self.path_index[name] = self.path_index[name], index
        if self._wire(one, before) != self._wire(one, index):
            self._answer_through(one)

    def _wire(self, one: FlowPlan, index: int) -> str:
        """The interface of the sink towards the donor of a path."""
        return self._plan.interface(one.flow.sink, self._backhaul.donor_link(one.flow, index).name).name

    def _answer_through(self, one: FlowPlan) -> None:
        """Let the sink answer over the donor of the path that the flow takes now."""
        line = sink_route(one, self._wire(one, self.path_index[one.flow.name]))
        command = ["nsenter", "-t", str(self._netns_pid(one.flow.sink)), "-n", "ip", *line.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmulationError(f"host {one.flow.sink}: route not set: {' '.join(done.stderr.split())[:200]}")

    def check_alive(self) -> None:
        """EmulationError when the controller has ended by itself."""
        if self.controller is not None:
            self.controller.check_alive()

    @property
    def details(self) -> dict[str, object]:
        """For the manifest: who controls the switches, how flows share links."""
        if self.controller is None:
            return {}
        details: dict[str, object] = {"application": self.controller.app, "switches": self.switches}
        if self.app is None:
            details |= {"labels": "BAP routing id as MPLS label", "queues": "one per flow and link (HTB)"}
        return {"sdn": details}

    def close(self) -> None:
        """End the controller; may be called twice."""
        if self.controller is not None:
            self.controller.close()
            self.controller = None
