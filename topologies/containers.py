"""Plain containers on switches, in the shapes of Mininet: a single switch, a line, a tree."""

from __future__ import annotations

from topologies.fragment import Fragment, check_count
from topologies.model import Container, Link, Node, Switch


def linear(
    *,
    switches: int = 2,
    per_switch: int = 1,
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    image: str | None = None,
) -> Fragment:
    """Switches in a row, ``per_switch`` containers on each; ``switches=1`` is Mininet's single topology."""
    check_count("containers_linear", "switches", switches, 1, 64)
    check_count("containers_linear", "per_switch", per_switch, 0, 1000)
    nodes: list[Node] = []
    links: list[Link] = []
    for index in range(1, switches + 1):
        nodes.append(Switch(name=f"s{index}"))
        if index > 1:
            links.append(Link(a=f"s{index - 1}", b=f"s{index}", bandwidth_bps=bandwidth_bps, delay_s=delay_s))
        for _ in range(per_switch):
            number = sum(isinstance(node, Container) for node in nodes) + 1
            nodes.append(Container(name=f"c{number}", image=image))
            links.append(Link(a=f"c{number}", b=f"s{index}", bandwidth_bps=bandwidth_bps, delay_s=delay_s))
    return Fragment(tuple(nodes), tuple(links))


def tree(
    *,
    depth: int = 2,
    fanout: int = 2,
    bandwidth_bps: float | None = None,
    delay_s: float = 0.0,
    image: str | None = None,
) -> Fragment:
    """A tree of switches of the given depth with ``fanout ** depth`` containers as leaves."""
    check_count("containers_tree", "depth", depth, 1, 6)
    check_count("containers_tree", "fanout", fanout, 1, 32)
    check_count("containers_tree", "fanout ** depth", fanout**depth, 1, 1000)
    nodes: list[Node] = []
    links: list[Link] = []
    counts = {"s": 0, "c": 0}

    def grow(levels_left: int) -> str:
        letter = "s" if levels_left else "c"
        counts[letter] += 1
        name = f"{letter}{counts[letter]}"
        if not levels_left:
            nodes.append(Container(name=name, image=image))
            return name
        nodes.append(Switch(name=name))
        for _ in range(fanout):
            child = grow(levels_left - 1)
            links.append(Link(a=name, b=child, bandwidth_bps=bandwidth_bps, delay_s=delay_s))
        return name

    grow(depth)
    return Fragment(tuple(nodes), tuple(links))
