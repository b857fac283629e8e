"""Parts of a network that add up to a topology.

>>> from topologies import core, edge, ran, transport
>>> from topologies.model import Slice
>>> network = (
...     ran.cell(groups={"phones": {"slice": "embb", "count": 6}}, switch="s1")
...     + transport.redundant(bandwidth_bps=12e6, delay_s=0.005)
...     + core.core(slices=["embb"], switch="s2")
...     + edge.edge(apps={"video": {"service": "stream", "upf": "upf-embb"}})
... )
>>> network.topology("example", slices=[Slice(name="embb", sst=1, prb_share=1.0)]).neighbours("s1")
('gnb1', 's2', 's3')
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from topologies.model import BackhaulFlow, Link, Node, Slice, Topology, TopologyError

_N = TypeVar("_N", bound=Node)


@dataclass(frozen=True)
class Fragment:
    """Nodes, links and backhaul flows; a link may name a node of another fragment."""

    nodes: tuple[Node, ...] = ()
    links: tuple[Link, ...] = ()
    backhaul: tuple[BackhaulFlow, ...] = ()

    def __add__(self, other: Fragment) -> Fragment:
        return Fragment(self.nodes + other.nodes, self.links + other.links, self.backhaul + other.backhaul)

    def topology(self, name: str, *, slices: Iterable[Slice] = (), slicing: bool = True) -> Topology:
        """The finished topology; TopologyError when the parts do not fit together."""
        return Topology(
            name=name,
            nodes=self.nodes,
            links=self.links,
            slices=tuple(slices),
            slicing=slicing,
            backhaul=self.backhaul,
        )


def make_node(kind: type[_N], name: str, settings: Mapping[str, object]) -> _N:
    """A node from a mapping of settings; TopologyError names an unknown setting and a wrong type."""
    where = f"{kind.kind} {name}"
    if not isinstance(settings, Mapping):
        raise TopologyError(f"{where}: settings must be a mapping, got {settings!r}")
    known = {item.name: item for item in fields(kind) if item.name != "name"}
    for key, value in settings.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise TopologyError(f"{where}: unknown key {key}{hint}; allowed: {', '.join(known)}")
        wanted = str(known[key].type)
        kinds: tuple[type, ...] = (str,)
        if wanted.startswith("float"):
            kinds = (int, float)
        elif wanted.startswith("int"):
            kinds = (int,)
        elif wanted == "bool":
            kinds = (bool,)
        elif wanted.startswith("tuple"):
            kinds = (tuple, list)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TopologyError(f"{where}: {key} must be a {wanted}, got {value!r}")
    missing = [name for name in ("slice", "service") if name in known and name not in settings]
    if missing:
        raise TopologyError(f"{where}: {missing[0]} is missing")
    values = {
        key: tuple(tuple(item) if isinstance(item, list) else item for item in value)
        if isinstance(value, list)
        else value
        for key, value in settings.items()
    }
    return kind(name=name, **values)  # type: ignore[arg-type]


def check_count(where: str, quantity: str, value: object, low: int, high: int) -> None:
    """TopologyError unless ``value`` is a whole number in [``low``, ``high``]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TopologyError(f"{where}: {quantity} must be a whole number in [{low}, {high}], got {value!r}")
