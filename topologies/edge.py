"""Applications behind N6, at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topologies.fragment import Fragment, make_node
from topologies.model import App, Link, TopologyError


def edge(
    *, apps: Mapping[str, Mapping[str, Any]], bandwidth_bps: float | None = None, delay_s: float = 0.0
) -> Fragment:
    """Applications, each linked (N6) to the UPFs that its ``upf`` setting names (one name or a list).

    ``apps`` maps an application's name to ``upf`` and settings of :class:`topologies.model.App`
    (``service``, ``replicas``, ``cpu_ms_per_request`` ...). A switch may stand in place of a UPF.
    """
    nodes: list[App] = []
    links: list[Link] = []
    for name, settings in apps.items():
        if not isinstance(settings, Mapping) or not settings.get("upf"):
            raise TopologyError(f"app {name}: upf is missing (the UPF, or list of UPFs, that it is linked to)")
        upfs = settings["upf"]
        links += [
            Link(a=str(upf), b=name, bandwidth_bps=bandwidth_bps, delay_s=delay_s)
            for upf in ([upfs] if isinstance(upfs, str) else upfs)
        ]
        nodes.append(make_node(App, name, {key: value for key, value in settings.items() if key != "upf"}))
    return Fragment(tuple(nodes), tuple(links))
