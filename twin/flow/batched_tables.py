"""What the batched flow model looks up: the links of every path, without those that can never be full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Paths = Sequence[Sequence[Sequence[int]]]
Usages = Sequence[Sequence[Sequence[float]]]
# Above every rate and every share of a link, and far from overflow when added to one of them.
HUGE = 1e30
_NOTHING = 1e-100


@dataclass(frozen=True)
class Reduced:
    """One network without the links that do not matter.

    ``kept``: the links that do. ``hops[f][p]``: their places in ``kept`` along path p of flow f, and
    ``usages[f][p]`` what a bit/s takes of each; ``bound[f][p]``: bit/s that the other links allow.
    """

    kept: list[int]
    hops: list[list[list[int]]]
    usages: list[list[list[float]]]
    bound: list[list[float]]


def reduced(paths: Paths, usage: Usages | None, capacity: Array | None, demand: Array | None) -> Reduced:
    """Leave out links that change no rate.

    Those are: a link that holds the demands of all flows that may use it, and one whose every path also
    crosses another link that is always full earlier. A link that only one flow may use becomes an upper
    bound on the rate of the paths over it. None for the capacity or the demand means that they differ
    per allocation: nothing is left out on their account.
    """
    out: set[int] = set()
    bound = [[HUGE] * len(choices) for choices in paths]
    links = {link for choices in paths for path in choices for link in path}
    if capacity is not None:
        # What a unit of the rate of each path takes of each link, as a part of its capacity.
        parts: dict[int, dict[tuple[int, int], float]] = {link: {} for link in links}
        for flow, choices in enumerate(paths):
            for number, path in enumerate(choices):
                for hop, link in enumerate(path):
                    taken = 1.0 if usage is None else usage[flow][number][hop]
                    # A link without capacity is a part of next to nothing: a division by 0 is no number.
                    parts[link][flow, number] = taken / max(float(capacity[link]), _NOTHING)
        for link, over in parts.items():
            most: dict[int, float] = {}
            for (flow, _), part in over.items():
                most[flow] = max(most.get(flow, 0.0), part)
            if len(most) == 1:
                out.add(link)
                for (flow, number), part in over.items():
                    bound[flow][number] = min(bound[flow][number], 1.0 / part if capacity[link] > 0 else 0.0)
            elif demand is not None and sum(demand[flow] * part for flow, part in most.items()) <= 1:
                out.add(link)
        for link in sorted(links):
            # One at a time, against what is still in: of two equals, one stays.
            others = links - out - {link}
            if link not in out and any(
                all(parts[other].get(path, 0.0) >= part for path, part in parts[link].items()) for other in others
            ):
                out.add(link)
    kept = sorted(links - out)
    place = {link: row for row, link in enumerate(kept)}
    return Reduced(
        kept,
        [[[place[link] for link in path if link in place] for path in choices] for choices in paths],
        [
            [
                [1.0 if usage is None else usage[flow][number][hop] for hop, link in enumerate(path) if link in place]
                for number, path in enumerate(choices)
            ]
            for flow, choices in enumerate(paths)
        ],
        bound,
    )


def whole(paths: Paths, usage: Usages | None, links: int) -> Reduced:
    """One network with all of its links."""
    return Reduced(
        list(range(links)),
        [[list(path) for path in choices] for choices in paths],
        [[[1.0] * len(path) for path in choices] for choices in paths]
        if usage is None
        else [[list(path) for path in choices] for choices in usage],
        [[HUGE] * len(choices) for choices in paths],
    )


class Tables:
    """Tables of N networks, padded to the most flows F, paths per flow P and kept links L of any of them.

    Path p of flow f of network n has the number (n F + f) P + p. ``kept`` has shape (N, L), -1 beyond
    ``kept_counts``. ``bound`` has shape (N F P,); the hops of path number q are
    ``hop_links[hop_first[q] : hop_first[q + 1]]``, places in ``kept``, and what a bit/s takes there
    ``hop_usages`` of the same slice.
    """

    def __init__(self, networks: Sequence[Reduced], *, weighted: bool) -> None:
        self.networks = len(networks)
        self.flow_counts = np.array([len(network.hops) for network in networks], dtype=np.int64)
        self.flows = int(self.flow_counts.max(initial=0))
        self.most = max((len(choices) for network in networks for choices in network.hops), default=1)
        self.kept_counts = np.array([len(network.kept) for network in networks], dtype=np.int64)
        self.rows = int(self.kept_counts.max(initial=0))
        self.weighted = weighted
        self.kept = np.full((self.networks, self.rows), -1, dtype=np.int64)
        # Flows that a network does not have get nothing, whatever demand a row gives them.
        self.bound = np.zeros((self.networks, self.flows, self.most))
        counts = np.zeros((self.networks, self.flows, self.most), dtype=np.int64)
        links: list[int] = []
        usages: list[float] = []
        for number, network in enumerate(networks):
            self.kept[number, : len(network.kept)] = network.kept
            for flow, choices in enumerate(network.hops):
                self.bound[number, flow, : len(choices)] = network.bound[flow]
                counts[number, flow, : len(choices)] = [len(path) for path in choices]
                for path, taken in zip(choices, network.usages[flow], strict=True):
                    links += path
                    usages += taken
        self.hop_first = np.concatenate(([0], np.cumsum(counts.ravel())))
        self.hop_links = np.array(links, dtype=np.int64)
        self.hop_usages = np.array(usages, dtype=np.float64)
        self.hop_counts = counts


class HopTables:
    """The same as one table per hop, flows with many hops first: those with at least h hops are then the first.

    Row r of network n is flow ``order[n, r]``; flow f is row ``place_of[n, f]``; both have shape (N, F).
    Path p of row r has the place (n F + r) P + p in ``bound``, ``next_link[h]`` and ``next_usage[h]``.
    ``hops``: most hops of each row, shape (F,); ``with_hop[h]``: rows with more than h hops. Absent hops
    of shorter paths point to row L, a link without limit.
    """

    def __init__(self, tables: Tables) -> None:
        nets, flows, most = tables.networks, tables.flows, tables.most
        longest = tables.hop_counts.max(axis=2, initial=0)
        self.order = np.argsort(-longest, axis=1, kind="stable")
        self.place_of = np.argsort(self.order, axis=1)
        self.weighted, self.rows, self.most = tables.weighted, tables.rows, tables.most
        self.hops = np.take_along_axis(longest, self.order, axis=1).max(axis=0, initial=0)
        depth = int(self.hops.max(initial=0))
        self.with_hop = [int((self.hops > hop).sum()) for hop in range(depth)]
        self.bound = np.take_along_axis(tables.bound, self.order[:, :, None], axis=1).ravel()
        link = np.full((depth, nets, flows, most), tables.rows, dtype=np.int64)
        usage = np.ones((depth, nets, flows, most))
        path = np.repeat(np.arange(nets * flows * most), tables.hop_counts.ravel())
        hop = np.arange(path.size) - tables.hop_first[path]
        network, flow, choice = np.unravel_index(path, (nets, flows, most)) if path.size else (path, path, path)
        row = self.place_of[network, flow]
        link[hop, network, row, choice] = tables.hop_links
        usage[hop, network, row, choice] = tables.hop_usages
        self.next_link = [table.ravel() for table in link]
        self.next_usage = [table.ravel() for table in usage]
        # Sums of usages of growing flows are not below this; what is left of them by rounding is.
        self.least_usage = float(usage.min(initial=1.0))
