"""The topology as an SVG: users on the left, applications on the right, slices in their colours."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

# Okabe and Ito's palette: told apart with every common kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#4D4D4D")
BAND_COLOURS = {"mmwave": "#0072B2", "sub6": "#D55E00"}
BAND_WORDS = {"mmwave": "mmWave", "sub6": "Sub-6"}
_KINDS = {"ue": "UE", "gnb": "gNB", "upf": "UPF", "switch": "switch", "iab-node": "IAB node", "iab-donor": "IAB donor"}
_WIDTH, _HEIGHT, _COLUMN, _ROW, _MARGIN = 132, 50, 236, 92, 16
_IAB_ROW = 62
_BAND_SHIFT = 5
_LETTER, _LINE = 6.2, 13


def slice_colours(topology: dict[str, Any]) -> dict[str, str]:
    """One colour per slice, in the order of the file."""
    return {slice_["name"]: PALETTE[n % len(PALETTE)] for n, slice_ in enumerate(topology["slices"])}


def topology_svg(topology: dict[str, Any], usage: Mapping[str, float] | None = None) -> str:
    """The drawing as an ``<svg>`` element; empty for a topology without nodes.

    ``usage``: utilisation (0 to 1) of links with a band by name; the more, the thicker.
    """
    if not topology["nodes"]:
        return ""
    colours = slice_colours(topology)
    place = _layout(topology)
    rows = max(row for _, row in place.values())
    columns = max(column for column, _ in place.values())
    width = 2 * _MARGIN + columns * _COLUMN + _WIDTH
    banded = any(link.get("band") for link in topology["links"])
    step = _IAB_ROW if banded else _ROW
    height = 2 * _MARGIN + rows * step + _HEIGHT
    at = {name: (_MARGIN + column * _COLUMN, _MARGIN + row * step) for name, (column, row) in place.items()}
    parts = [
        f'<svg class="topology" viewBox="0 0 {width:.0f} {height:.0f}" style="min-width:{min(width, 760):.0f}px;'
        f'max-width:{width * 1.15:.0f}px" role="img" aria-label="the network of this run">'
    ]
    labels: list[str] = []
    taken: list[tuple[float, float, float, float]] = []
    for link in topology["links"]:
        if link.get("band"):
            parts.append(_band_link(link, at, usage or {}))
            continue
        line, label = _link(link, at, taken)
        parts.append(line)
        labels.append(label)
    parts.extend(_node(node, at[node["name"]], colours) for node in topology["nodes"])
    return "".join([*parts, *labels, "</svg>"])


def _layout(topology: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """(column, row) of each node: distance from the users, ordered so that few links cross."""
    names = [node["name"] for node in topology["nodes"]]
    near: dict[str, list[str]] = {name: [] for name in names}
    for link in topology["links"]:
        near[link["a"]].append(link["b"])
        near[link["b"]].append(link["a"])
    column = _iab_columns(topology)
    starts = [node["name"] for node in topology["nodes"] if node["kind"] == "ue"] or names[:1]
    while len(column) < len(names):
        front = [name for name in starts if name not in column] or [n for n in names if n not in column][:1]
        column.update(dict.fromkeys(front, 0))
        while front:
            following = dict.fromkeys(other for name in front for other in near[name] if other not in column)
            column.update(dict.fromkeys(following, column[front[0]] + 1))
            front = list(following)
    groups: dict[int, list[str]] = {}
    for name in names:
        groups.setdefault(column[name], []).append(name)
    tallest = max(len(group) for group in groups.values())
    row: dict[str, float] = {}
    for group in (groups[number] for number in sorted(groups)):
        for index, name in enumerate(group):
            row[name] = index + (tallest - len(group)) / 2
    for _ in range(4):
        for number in sorted(groups):
            group = groups[number]
            group.sort(key=lambda n: sum(row[o] for o in near[n]) / len(near[n]) if near[n] else row[n])
            for index, name in enumerate(group):
                row[name] = index + (tallest - len(group)) / 2
    ranks = {number: rank for rank, number in enumerate(sorted(groups))}
    return {name: (float(ranks[column[name]]), row[name]) for name in names}


def _iab_columns(topology: dict[str, Any]) -> dict[str, int]:
    """Columns of an IAB network: far nodes to the left, donors to the right, and the sinks behind them."""
    depth = {node["name"]: 0 for node in topology["nodes"] if node["kind"] == "iab-donor"}
    front, hops = list(depth), 0
    while front:
        hops += 1
        below = [link["a"] for link in topology["links"] if link.get("band") and link["b"] in front]
        front = [name for name in dict.fromkeys(below) if name not in depth]
        depth.update(dict.fromkeys(front, hops))
    deepest = max(depth.values(), default=0)
    hosts = {flow["sink"] for flow in topology.get("backhaul", ())}
    return {**{name: deepest - hops for name, hops in depth.items()}, **dict.fromkeys(hosts, deepest + 1)}


def _band_link(link: dict[str, Any], at: dict[str, tuple[float, float]], usage: Mapping[str, float]) -> str:
    """A link with a band in the band's colour; two bands between the same nodes run side by side."""
    name = f"{link['a']}-{link['b']}@{link['band']}"
    (ax, ay), (bx, by) = at[link["a"]], at[link["b"]]
    shift = _BAND_SHIFT if link["band"] == "sub6" else -_BAND_SHIFT
    y1, y2 = ay + _HEIGHT / 2 + shift, by + _HEIGHT / 2 + shift
    if ax == bx:
        x1 = x2 = ax + _WIDTH
        first, second = x1 + 46, x2 + 46
    else:
        x1, x2 = (ax + _WIDTH, bx) if ax < bx else (ax, bx + _WIDTH)
        first = second = (x1 + x2) / 2
    used = usage.get(name)
    width = 1.2 if used is None else 0.8 + 3.4 * min(1.0, used)
    text = f"{name}: {link['bandwidth_bps'] / 1e6:.3g} Mbit/s" + (
        "" if used is None else f", {used:.0%} used on average"
    )
    return (
        f'<path d="M{x1},{y1} C{first},{y1} {second},{y2} {x2},{y2}" class="link" '
        f'style="stroke:{BAND_COLOURS[link["band"]]};stroke-width:{width:.1f}"><title>{html.escape(text)}</title></path>'
    )


def _link(
    link: dict[str, Any], at: dict[str, tuple[float, float]], taken: list[tuple[float, float, float, float]]
) -> tuple[str, str]:
    """The curve of a link and its label, moved down from the labels in ``taken`` (x, y, width, height)."""
    (ax, ay), (bx, by) = at[link["a"]], at[link["b"]]
    words = _words(link)
    width = max((len(word) for word in words), default=0) * _LETTER + 8
    height = len(words) * _LINE + 4
    if ax == bx and abs(ay - by) <= _ROW:  # neighbours in a column: straight, the label between their boxes
        x = ax + _WIDTH / 2
        path = f"M{x},{min(ay, by) + _HEIGHT} L{x},{max(ay, by)}"
        middle = (x + width / 2 + 4, (ay + by + _HEIGHT) / 2)
    elif ax == bx:  # past others in the same column: bow to the right
        x, y1, y2 = ax + _WIDTH, ay + _HEIGHT / 2, by + _HEIGHT / 2
        path = f"M{x},{y1} C{x + 46},{y1} {x + 46},{y2} {x},{y2}"
        middle = (x + 36, (y1 + y2) / 2)
    else:
        if ax > bx:
            ax, ay, bx, by = bx, by, ax, ay
        x1, y1, x2, y2 = ax + _WIDTH, ay + _HEIGHT / 2, bx, by + _HEIGHT / 2
        bend = (x2 - x1) / 2
        path = f"M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"
        middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    title = html.escape(f"{link['a']}-{link['b']}: {', '.join(words) or 'not limited'}")
    curve = f'<path d="{path}" class="link"><title>{title}</title></path>'
    if not words:
        return curve, ""
    x, y = middle
    while any(abs(x - tx) < (width + tw) / 2 and abs(y - ty) < (height + th) / 2 for tx, ty, tw, th in taken):
        y += 6
    taken.append((x, y, width, height))
    lines = "".join(
        f'<text x="{x:.0f}" y="{y + (n - (len(words) - 1) / 2) * _LINE + 4:.0f}" class="label">{word}</text>'
        for n, word in enumerate(words)
    )
    box = (
        f'<rect x="{x - width / 2:.0f}" y="{y - height / 2:.0f}" width="{width:.0f}" height="{height:.0f}" '
        'rx="4" class="plate"/>'
    )
    return curve, box + lines


def _words(link: dict[str, Any]) -> list[str]:
    """What is declared of a link, line by line: rate, delay with jitter, loss."""
    words = [] if link["bandwidth_bps"] is None else [f"{link['bandwidth_bps'] / 1e6:g} Mbit/s"]
    if link["delay_s"]:
        jitter = f" ± {link['jitter_s'] * 1e3:g}" if link["jitter_s"] else ""
        words.append(f"{link['delay_s'] * 1e3:g}{jitter} ms")
    if link["loss_ratio"]:
        words.append(f"{link['loss_ratio'] * 100:g} % loss")
    return words


def _node(node: dict[str, Any], at: tuple[float, float], colours: dict[str, str]) -> str:
    x, y = at
    colour = colours.get(node.get("slice", ""), "#5b6673")
    kind = f"{node['service']} app" if node["kind"] == "app" else _KINDS.get(node["kind"], node["kind"])
    if node["kind"] == "partition":
        kind = kind if node["isolated"] else "plain VM"
        kind = kind if node["vnf"] == "none" else f"{node['vnf']} {kind}"
    count = f" \N{MULTIPLICATION SIGN} {node['count']}" if node["kind"] == "ue" and node["count"] > 1 else ""
    tasks = f", {len(node['tasks'])} task{'s' if len(node['tasks']) > 1 else ''}" if node.get("tasks") else ""
    limit = f", {node['cpu_millicores']:g} m" if node.get("cpu_millicores") and not tasks else ""
    border = 3.2 if node.get("critical") else 1.6
    tint = f"{colour}1f" if node.get("slice") else "#f3f5f7"
    radius = _HEIGHT / 2 if node["kind"] == "ue" else 6
    return (
        f'<g class="node"><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="{radius}" '
        f'fill="#fff"/><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="{radius}" '
        f'fill="{tint}" stroke="{colour}" stroke-width="{border}"/>'
        f'<text x="{x + _WIDTH / 2}" y="{y + 21}" class="name">{html.escape(node["name"])}{count}</text>'
        f'<text x="{x + _WIDTH / 2}" y="{y + 38}" class="kind">{html.escape(kind + tasks + limit)}</text></g>'
    )
