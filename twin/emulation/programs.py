"""Which data plane program runs where, and with what configuration. Pure functions of a plan.

The configurations are described in ``dataplane/README.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from topologies.model import App, Container, Gnb, Topology, Ue, Upf
from twin.emulation.backhaul import SINK_PORT, SOURCE_MTU, BackhaulPlan
from twin.emulation.plan import RADIO_PORT, Plan, transport_address

N6_MTU = 1500
UE_MTU = 1400
STREAM_PORT, TELEMETRY_PORT, REQUEST_PORT = 5001, 5002, 8000
SERVICE_PORTS = {"stream": STREAM_PORT, "telemetry": TELEMETRY_PORT, "request": REQUEST_PORT}
TRANSPORT_PREFIX = "10.1.0.0/16"
SHARED = "shared"


@dataclass(frozen=True)
class ProgramSpec:
    """One program: ``name`` is unique in the run, ``module`` is under ``twin.emulation.dataplane``.

    ``cgroup`` names a group below the run's own for programs with a limit of their own, None for
    programs that count towards their container.
    """

    name: str
    node: str
    module: str
    config: dict[str, Any]
    cgroup: str | None = None


def gnb_program(gnb: str, slice_name: str) -> str:
    """Name of the gNB program that serves a slice (``gnb1.embb``; ``gnb1.shared`` when slicing is off)."""
    return f"{gnb}.{slice_name}"


def replica_node(app: str, index: int) -> str:
    """Name of the container of one replica of an application, from 1."""
    return f"{app}-r{index}"


def replica_address(app_number: int, index: int, *, balancer: bool) -> str:
    """Address on the link between an application's balancer and one of its replicas."""
    return f"10.201.{app_number}.{index * 4 + (1 if balancer else 2)}"


def app_number(topology: Topology, app: str) -> int:
    """Position of an application among all applications."""
    return [node.name for node in topology.of_kind(App)].index(app)


def slice_upf_address(plan: Plan, slice_name: str, gnb: str) -> str:
    """N3 address of the UPF of a slice as its gNB sees it."""
    pair = plan.pair(gnb, plan.slice_upfs[slice_name])
    return pair.b.address if pair.a.node == gnb else pair.a.address


def gnb_n3_address(plan: Plan, gnb: str, slice_name: str) -> str:
    """N3 address of a gNB towards the UPF of a slice."""
    pair = plan.pair(gnb, plan.slice_upfs[slice_name])
    return pair.a.address if pair.a.node == gnb else pair.b.address


def app_address(plan: Plan, app: str, slice_name: str) -> str:
    """N6 address of an application as the UEs of a slice see it."""
    pair = plan.pair(plan.slice_upfs[slice_name], app)
    return pair.a.address if pair.a.node == app else pair.b.address


def partition_address(plan: Plan, name: str) -> str:
    """Address of a partition's guest, the same over all its links."""
    return transport_address([node.name for node in plan.topology.nodes].index(name), 1)


def programs(plan: Plan, *, seed: int, epoch_ns: int) -> Iterator[ProgramSpec]:
    """All programs at time 0, in the order in which they are best started."""
    topology = plan.topology
    for upf in topology.of_kind(Upf):
        if plan.slice_gnbs.get(upf.slice):
            yield upf_program(plan, upf)
    for app in topology.of_kind(App):
        yield from app_programs(plan, app)
    for gnb in topology.of_kind(Gnb):
        yield from gnb_programs(plan, gnb, seed=seed, epoch_ns=epoch_ns)
    for group in topology.of_kind(Ue):
        yield from ue_programs(plan, group)
    for container in topology.of_kind(Container):
        if container.tasks:
            yield tasks_program(container)
    yield from backhaul_programs(plan.backhaul)


def tasks_program(container: Container) -> ProgramSpec:
    """The periodic tasks of a container."""
    rows = [{"period_ns": round(one.period_s * 1e9), "work_ns": round(one.work_s * 1e9)} for one in container.tasks]
    return ProgramSpec(f"{container.name}.tasks", container.name, "tasks", {"node": container.name, "tasks": rows})


def backhaul_programs(plan: BackhaulPlan) -> Iterator[ProgramSpec]:
    """The sinks of the backhaul flows, then their sources."""
    for sink in plan.sinks:
        flows = [one for one in plan.flows.values() if one.flow.sink == sink]
        yield ProgramSpec(
            sink,
            sink,
            "backhaul",
            {
                "role": "sink",
                "node": sink,
                "bind": flows[0].sink_address,
                "port": SINK_PORT,
                "window": plan.window_packets,
                "flows": {one.flow.name: one.address for one in flows},
            },
        )
    for one in plan.flows.values():
        yield ProgramSpec(
            one.host,
            one.host,
            "backhaul",
            {
                "role": "source",
                "node": one.host,
                "bind": one.address,
                "sink": [one.sink_address, SINK_PORT],
                "mtu": SOURCE_MTU,
            },
        )


def upf_program(plan: Plan, upf: Upf) -> ProgramSpec:
    """The UPF of a slice."""
    first_gnb = plan.slice_gnbs[upf.slice][0]
    return ProgramSpec(
        upf.name,
        upf.name,
        "upf",
        {
            "node": upf.name,
            "slice": upf.slice,
            "n3": {"bind": slice_upf_address(plan, upf.slice, first_gnb)},
            "ue_pool": plan.ue_pools[upf.slice],
            "tun": "upf0",
            "mtu": UE_MTU,
        },
    )


def app_programs(plan: Plan, app: App) -> Iterator[ProgramSpec]:
    """The server of an application; for requests its load balancer and its replicas."""
    if app.service != "request":
        yield ProgramSpec(
            app.name, app.name, f"app_{app.service}", {"node": app.name, "port": SERVICE_PORTS[app.service]}
        )
        return
    yield ProgramSpec(
        app.name,
        app.name,
        "balancer",
        {
            "node": app.name,
            "port": REQUEST_PORT,
            "policy": "least_connections",
            "replicas": [replica_endpoint(plan.topology, app.name, index) for index in range(1, app.replicas + 1)],
        },
    )
    for index in range(1, app.replicas + 1):
        yield replica_program(app, index)


def replica_endpoint(topology: Topology, app: str, index: int) -> str:
    """``ip:port`` of one replica as the balancer sees it."""
    return f"{replica_address(app_number(topology, app), index, balancer=False)}:{REQUEST_PORT}"


def replica_program(app: App, index: int) -> ProgramSpec:
    """One replica of a request application."""
    name = replica_node(app.name, index)
    return ProgramSpec(
        name,
        name,
        "app_request",
        {
            "node": name,
            "port": REQUEST_PORT,
            "cpu_ms_per_request": app.cpu_ms_per_request,
            "response_bytes": app.response_bytes,
        },
    )


def gnb_slices(plan: Plan, gnb: str) -> list[str]:
    """The slices that a gNB serves, in file order."""
    return [name for name, gnbs in plan.slice_gnbs.items() if gnb in gnbs]


def radio_port(plan: Plan, gnb: str, slice_name: str) -> int:
    """UDP port of the radio link of a slice's part of a gNB; one port for all when slicing is off."""
    return RADIO_PORT + (gnb_slices(plan, gnb).index(slice_name) if plan.topology.slicing else 0)


def gnb_programs(plan: Plan, gnb: Gnb, *, seed: int, epoch_ns: int) -> Iterator[ProgramSpec]:
    """One program per slice of the gNB, or one for all slices when slicing is off."""
    served = gnb_slices(plan, gnb.name)
    parts = [(name, [name]) for name in served] if plan.topology.slicing else [(SHARED, served)]
    for part, names in parts:
        if not names:
            continue
        slices = [plan.topology.slice_named(name) for name in names]
        yield ProgramSpec(
            gnb_program(gnb.name, part),
            gnb.name,
            "gnb",
            {
                "node": gnb.name,
                "slices": [
                    {
                        "name": slice_.name,
                        "prb_share": slice_.prb_share,
                        "upf": slice_upf_address(plan, slice_.name, gnb.name),
                        "qfi": 9,
                        "sst": slice_.sst,
                        "sd": slice_.sd,
                    }
                    for slice_ in slices
                ],
                "shared_pool": not plan.topology.slicing,
                "radio": {"bind": "0.0.0.0", "port": radio_port(plan, gnb.name, names[0])},
                "n3": {"bind": gnb_n3_address(plan, gnb.name, names[0])},
                "prb_total": gnb.prb_total,
                "subcarrier_khz": gnb.subcarrier_khz,
                "carrier_ghz": gnb.carrier_ghz,
                "tx_power_dbm": gnb.tx_power_dbm,
                "path_loss": gnb.path_loss,
                "scheduler": gnb.scheduler,
                "work_ns_per_bit": gnb.work_ns_per_bit,
                "queue_bytes": gnb.queue_bytes,
                "seed": seed,
                "epoch_ns": epoch_ns,
                "ues": {
                    ue.id: _gnb_ue(plan, ue.id) for ue in plan.ues.values() if ue.gnb == gnb.name and ue.slice in names
                },
            },
            cgroup=gnb_program(gnb.name, part),
        )


def _gnb_ue(plan: Plan, ue_id: str) -> dict[str, Any]:
    ue = plan.ues[ue_id]
    group = plan.topology.node(ue.group)
    assert isinstance(group, Ue)
    return {
        "index": ue.index,
        "slice": ue.slice,
        "address": ue.address,
        "distance_m": group.distance_m,
        "speed_mps": group.speed_mps,
        "cqi_script": [list(step) for step in group.cqi_script],
    }


def ue_programs(plan: Plan, group: Ue) -> Iterator[ProgramSpec]:
    """The UEs of one container and the traffic they make."""
    gnb = plan.group(group.name)[0].gnb
    gnb_radio = plan.interface(gnb, plan.radio_links[group.name])
    yield ProgramSpec(
        group.name,
        group.name,
        "ue",
        {
            "node": group.name,
            "tun": "tun0",
            "mtu": UE_MTU,
            "gnb": {"address": gnb_radio.address, "port": radio_port(plan, gnb, group.slice)},
            "routes": [TRANSPORT_PREFIX],
            "ues": [
                {"id": ue.id, "index": ue.index, "address": ue.address, "slice": ue.slice}
                for ue in plan.group(group.name)
            ],
        },
    )
    yield ProgramSpec(f"{group.name}.traffic", group.name, "traffic", {"node": group.name, "mtu": UE_MTU})
