"""Proof of constraints: after bring-up, what was declared is measured on the running network."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from topologies.model import Gnb, Host, Partition, Switch
from twin.emulation.cgroups import Cgroup
from twin.emulation.client import ProgramError
from twin.emulation.dataplane import histogram
from twin.emulation.network import Network
from twin.emulation.plan import UePlan, declares
from twin.emulation.probes import CpuDeclaration, LinkDeclaration, probe_cpu_limits, probe_links
from twin.load import Flow, Service
from twin.types import Probe

PATH_TIMEOUT_S = 2.0


def prove(network: Network) -> tuple[Probe, ...]:
    """Links, CPU limits and the path of every slice, each against its declaration."""
    return (
        *probe_links(_link_declarations(network)),
        *probe_cpu_limits(_cpu_declarations(network)),
        *_slice_paths(network),
    )


def _link_declarations(network: Network) -> Iterator[LinkDeclaration]:
    for link in network.plan.topology.links:
        if declares(link):
            spec = network.link(link.name).spec
            yield LinkDeclaration(
                name=link.name,
                a=spec.a,
                b=spec.b,
                bandwidth_bps=link.bandwidth_bps,
                delay_s=link.delay_s,
                jitter_s=link.jitter_s,
                loss_ratio=link.loss_ratio,
            )


def _cpu_declarations(network: Network) -> Iterator[CpuDeclaration]:
    topology = network.plan.topology
    for program, group in network.groups.items():
        limit = group.stats().cpu_limit_millicores
        if limit is not None:
            yield CpuDeclaration(name=f"gnb {program}", group=group, cpu_millicores=limit)
    for node in topology.nodes:
        if node.cpu_millicores is not None and not isinstance(node, Switch | Host | Gnb):
            if isinstance(node, Partition):
                group = network.partition(node.name).group(node.name)
                yield CpuDeclaration(name=f"node {node.name}", group=group, cpu_millicores=node.cpu_millicores)
                continue
            for member in network.limited(node.name):
                group = Cgroup.of_container(network.container(member))
                yield CpuDeclaration(name=f"node {member}", group=group, cpu_millicores=node.cpu_millicores)


def _slice_paths(network: Network) -> Iterator[Probe]:
    """One UE of each slice attaches and exchanges packets with an application and every partition that serves."""
    plan = network.plan
    for slice_name in plan.slice_upfs:
        ue = next((ue for ue in plan.ues.values() if ue.slice == slice_name), None)
        if ue is None:
            continue
        for number, (app, service) in enumerate(_apps(network, slice_name)):
            # One application stands for all; a partition has a network of its own.
            if number == 0 or isinstance(plan.topology.node(app), Partition):
                yield _slice_path(network, ue, slice_name, app, service)


def _apps(network: Network, slice_name: str) -> Iterator[tuple[str, Service]]:
    upf = network.plan.slice_upfs[slice_name]
    for app in network.apps:
        if any({pair.a.node, pair.b.node} == {upf, app.name} for pair in network.plan.pairs):
            yield app.name, app.service


def _slice_path(network: Network, ue: UePlan, slice_name: str, app: str, service: Service) -> Probe:
    """Packets of the slice reach an application and come back; the round trip is what was measured."""
    item = f"slice {slice_name} path {ue.group}-{ue.gnb}-{network.plan.slice_upfs[slice_name]}-{app}"
    flow = Flow(
        name=f"probe:{slice_name}", ue=ue.id, slice=slice_name, app=app, service=service,
        direction="dl", packet_bytes=200, activities=(),
    )  # fmt: skip
    terminal, traffic = network.client(ue.group), network.client(f"{ue.group}.traffic")
    rtt_us: float | None = None
    detail = "no packet came back"
    try:
        terminal.call("attach", ue=ue.id)
        network.start_flow(flow, 10_000.0 if service != "request" else 0.1)
        deadline_s = time.monotonic() + PATH_TIMEOUT_S
        while rtt_us is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
            rtt_us = histogram.percentile(traffic.call("stats")["flows"][flow.name]["rtt"], 50)
        traffic.call("stop", flow=flow.name)
        terminal.call("detach", ue=ue.id)
    except ProgramError as error:
        detail = str(error)
    if rtt_us is None:
        return Probe(item, "s", 0.0, math.nan, False, detail)
    return Probe(item, "s", 0.0, rtt_us / 1e6, True, "round trip of a small packet; declared is any answer")
