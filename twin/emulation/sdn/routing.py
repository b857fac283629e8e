"""Source routing of IAB backhaul flows by OpenFlow 1.3, with labels in the manner of BAP (TS 38.340).

The switch where a flow enters pushes the label of the flow's path, the BAP routing id: 10 bits of destination
address, 10 bits of path identity (TS 38.340 §6.3), which fill the 20 bits of an MPLS label. Switches on the way
forward by label alone; the last one takes the label off. All paths of all flows are installed from the
beginning, so that choosing another is one overwritten rule where the flow enters: make before break. Packets
on their way keep their label and arrive on the old path; packets on the new path may overtake them.

``NETWORK`` (set by the launcher) is::

    {
        "switches": {"00000000000000a1": "n5"},
        "flows": {"f-n5": {"path_index": 0, "paths": [{"up": TUNNEL, "down": TUNNEL}]}},
    }

    TUNNEL = {
        "label": 4097,
        "ingress": {"switch": "n5", "match": {...}},
        "hops": [["n5", 3], ["n2", 4]],  # (switch, port out) before the last switch
        "egress": {"switch": "d1", "eth_dst": MAC, "set_eth_dst": MAC or null, "port": 7},
    }
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from os_ken.base import app_manager
from os_ken.controller import ofp_event
from os_ken.controller.handler import CONFIG_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from os_ken.ofproto import ofproto_v1_3

from twin.emulation.sdn.watcher import CONNECTED

NETWORK: dict[str, Any] = {}
PRIORITY = 100
MPLS, IPV4 = 0x8847, 0x0800
BARRIER_TIMEOUT_S = 2.0

_running: list[SourceRouting] = []


class PathError(ValueError):
    """A path that cannot be taken; one line for whoever asked."""


class SourceRouting(app_manager.OSKenApp):  # type: ignore[misc]
    """Installs the rules of all paths on every switch that connects, and moves flows between paths."""

    OFP_VERSIONS = (ofproto_v1_3.OFP_VERSION,)

    def __init__(self, *arguments: Any, **contexts: Any) -> None:
        super().__init__(*arguments, **contexts)
        self._names = {int(dpid, 16): name for dpid, name in NETWORK["switches"].items()}
        self._flows: dict[str, dict[str, Any]] = NETWORK["flows"]
        self._chosen = {name: int(flow["path_index"]) for name, flow in self._flows.items()}
        self._lock = threading.Lock()
        self._waiting: dict[tuple[int, int], threading.Event] = {}
        self._errors: dict[int, str] = {}
        self.ready: set[str] = set()
        _running.append(self)

    # --- switches ---------------------------------------------------------------------------------

    @set_ev_cls(ofp_event.EventOFPSwitchFeatures, CONFIG_DISPATCHER)  # type: ignore[untyped-decorator]
    def switch_connected(self, event: Any) -> None:
        """Give a switch its rules; those that it kept from before are overwritten by equal ones."""
        datapath = event.msg.datapath
        name = self._names.get(datapath.id)
        if name is None:
            self.logger.warning("a switch of nobody's: datapath id %016x", datapath.id)
            return
        rules = 0
        with self._lock:
            for rule in self._rules(datapath, name):
                datapath.send_msg(rule)
                rules += 1
            done = self._barrier(datapath)
        self.logger.info("switch %s: %d rules", name, rules)

        def confirm() -> None:
            if done.wait(10 * BARRIER_TIMEOUT_S):
                self.ready.add(name)

        threading.Thread(target=confirm, daemon=True).start()

    def _rules(self, datapath: Any, switch: str) -> Iterator[Any]:
        """All rules of one switch; a label that several flows share has one transit rule."""
        seen: set[tuple[Any, ...]] = set()
        for name, flow in self._flows.items():
            for index, path in enumerate(flow["paths"]):
                for tunnel in (path["up"], path["down"]):
                    for here, port in tunnel["hops"][1:]:
                        if here == switch and (tunnel["label"], port) not in seen:
                            seen.add((tunnel["label"], port))
                            yield _transit(datapath, tunnel["label"], port)
                    egress = tunnel["egress"]
                    if egress["switch"] == switch and (tunnel["label"], egress["eth_dst"]) not in seen:
                        seen.add((tunnel["label"], egress["eth_dst"]))
                        yield _egress(datapath, tunnel)
                    if tunnel["ingress"]["switch"] == switch and index == self._chosen[name]:
                        yield _ingress(datapath, tunnel)

    @set_ev_cls(ofp_event.EventOFPBarrierReply, [CONFIG_DISPATCHER, MAIN_DISPATCHER])  # type: ignore[untyped-decorator]
    def barrier_passed(self, event: Any) -> None:
        """Everything sent to the switch before the barrier is in force."""
        done = self._waiting.pop((event.msg.datapath.id, event.msg.xid), None)
        if done is not None:
            done.set()

    @set_ev_cls(ofp_event.EventOFPErrorMsg, [CONFIG_DISPATCHER, MAIN_DISPATCHER])  # type: ignore[untyped-decorator]
    def refused(self, event: Any) -> None:
        """The switch did not take a rule."""
        name = self._names.get(event.msg.datapath.id, "?")
        text = f"switch {name} refused a rule: type {event.msg.type}, code {event.msg.code}"
        self.logger.error(text)
        self._errors[event.msg.datapath.id] = text

    def _barrier(self, datapath: Any) -> threading.Event:
        request = datapath.ofproto_parser.OFPBarrierRequest(datapath)
        datapath.set_xid(request)
        done = threading.Event()
        self._waiting[datapath.id, request.xid] = done
        datapath.send_msg(request)
        return done

    # --- paths ------------------------------------------------------------------------------------

    def choose(self, flow: str, index: int) -> float:
        """Send a flow over another of its paths; the seconds until the switches confirmed it.

        PathError when the flow or index does not exist or a switch is not connected or refuses; the flow
        then stays where it was.
        """
        if flow not in self._flows:
            raise PathError(f"no flow named {flow!r}")
        paths = self._flows[flow]["paths"]
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(paths):
            raise PathError(f"flow {flow}: path_index must be a whole number in [0, {len(paths) - 1}], got {index!r}")
        with self._lock:
            started_s = time.monotonic()
            before = self._chosen[flow]
            try:
                # Answers find their way before what they answer does.
                for way in ("down", "up"):
                    self._overwrite(paths[index][way])
            except PathError:
                for way in ("up", "down"):
                    self._put_back(paths[before][way])
                raise
            self._chosen[flow] = index
            return time.monotonic() - started_s

    def _overwrite(self, tunnel: dict[str, Any]) -> None:
        datapath = self._datapath(tunnel["ingress"]["switch"])
        self._errors.pop(datapath.id, None)
        datapath.send_msg(_ingress(datapath, tunnel))
        if not self._barrier(datapath).wait(BARRIER_TIMEOUT_S):
            raise PathError(f"switch {tunnel['ingress']['switch']} did not confirm within {BARRIER_TIMEOUT_S:g} s")
        if datapath.id in self._errors:
            raise PathError(self._errors.pop(datapath.id))

    def _put_back(self, tunnel: dict[str, Any]) -> None:
        """As well as it goes: a switch that is gone gets all its rules when it comes back."""
        try:
            datapath = self._datapath(tunnel["ingress"]["switch"])
        except PathError:
            return
        datapath.send_msg(_ingress(datapath, tunnel))

    def _datapath(self, switch: str) -> Any:
        for dpid, datapath in list(CONNECTED.items()):
            if self._names.get(dpid) == switch:
                return datapath
        raise PathError(f"switch {switch} is not connected to the SDN controller")


def path(request: dict[str, Any]) -> dict[str, Any]:
    """Op ``path`` of the control socket: ``{"flow", "index"}`` -> ``{"confirmed_s"}``."""
    return {"confirmed_s": _running[0].choose(str(request["flow"]), request["index"])}


def ready(_: dict[str, Any]) -> dict[str, Any]:
    """Op ``ready``: names of the switches that confirmed their rules."""
    return {"switches": sorted(_running[0].ready)}


# --- rules ------------------------------------------------------------------------------------------


def _ingress(datapath: Any, tunnel: dict[str, Any]) -> Any:
    parser = datapath.ofproto_parser
    actions = [
        parser.OFPActionPushMpls(MPLS),
        parser.OFPActionSetField(mpls_label=tunnel["label"]),
        parser.OFPActionOutput(tunnel["hops"][0][1]),
    ]
    return _add(datapath, parser.OFPMatch(eth_type=IPV4, **tunnel["ingress"]["match"]), actions)


def _transit(datapath: Any, label: int, port: int) -> Any:
    parser = datapath.ofproto_parser
    return _add(datapath, parser.OFPMatch(eth_type=MPLS, mpls_label=label), [parser.OFPActionOutput(port)])


def _egress(datapath: Any, tunnel: dict[str, Any]) -> Any:
    parser, egress = datapath.ofproto_parser, tunnel["egress"]
    actions = [parser.OFPActionPopMpls(IPV4)]
    if egress["set_eth_dst"]:
        actions.append(parser.OFPActionSetField(eth_dst=egress["set_eth_dst"]))
    actions.append(parser.OFPActionOutput(egress["port"]))
    match = parser.OFPMatch(eth_type=MPLS, mpls_label=tunnel["label"], eth_dst=egress["eth_dst"])
    return _add(datapath, match, actions)


def _add(datapath: Any, match: Any, actions: list[Any]) -> Any:
    """A rule that takes the place of the one with the same match, at once and for every packet."""
    ofproto, parser = datapath.ofproto, datapath.ofproto_parser
    instructions = [parser.OFPInstructionActions(ofproto.OFPIT_APPLY_ACTIONS, actions)]
    return parser.OFPFlowMod(datapath=datapath, priority=PRIORITY, match=match, instructions=instructions)
