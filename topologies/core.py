"""The user plane of the core network: a UPF per slice."""

from __future__ import annotations

from collections.abc import Sequence

from topologies.fragment import Fragment
from topologies.model import Link, TopologyError, Upf


def core(
    *,
    slices: Sequence[str],
    switch: str = "s2",
    prefix: str = "upf-",
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    cpu_millicores: float | None = None,
    memory_mib: float | None = None,
) -> Fragment:
    """A UPF named ``upf-SLICE`` for each slice, all linked (N3) to one transport switch."""
    if isinstance(slices, str) or not all(isinstance(name, str) for name in slices):
        raise TopologyError(f"core: slices must be a list of slice names, got {slices!r}")
    nodes = tuple(
        Upf(name=f"{prefix}{name}", slice=name, cpu_millicores=cpu_millicores, memory_mib=memory_mib) for name in slices
    )
    links = tuple(Link(a=switch, b=node.name, bandwidth_bps=bandwidth_bps, delay_s=delay_s) for node in nodes)
    return Fragment(nodes, links)
