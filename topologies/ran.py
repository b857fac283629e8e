"""The radio access network: a gNB and the UE groups in its cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topologies.fragment import Fragment, make_node
from topologies.model import Gnb, Link, Ue


def cell(
    *,
    groups: Mapping[str, Mapping[str, Any]],
    gnb: str = "gnb1",
    switch: str = "s1",
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> Fragment:
    """One gNB, its UE groups, and its link to a transport switch.

    ``groups`` maps a group's name to settings of :class:`topologies.model.Ue` (``slice``, ``count``,
    ``distance_m`` ...), ``settings`` are those of :class:`topologies.model.Gnb`. ``bandwidth_bps`` and
    ``delay_s`` belong to the link between ``gnb`` and ``switch``.
    """
    nodes = [make_node(Ue, name, group) for name, group in groups.items()]
    radio = [Link(a=node.name, b=gnb) for node in nodes]
    backhaul = Link(a=gnb, b=switch, bandwidth_bps=bandwidth_bps, delay_s=delay_s)
    return Fragment((*nodes, make_node(Gnb, gnb, settings or {})), (*radio, backhaul))
