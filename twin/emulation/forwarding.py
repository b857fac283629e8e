"""The forwarding rules of a running emulation: explicit paths, moved make-before-break."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

from topologies.model import Link
from topologies.paths import Route
from twin.emulation.plan import Pair, Plan, reroute

RULE_PRIORITY = 100
VERSIONS = 1 << 16  # the part of the cookie that tells an old path's rules from the new one's
PATH_DRAIN_S = 0.1


class Forwarding:
    """Owns the rules of all pairs of a plan on the switches of ``net``.

    ``port_of`` gives the OpenFlow port of a link, ``delay_s`` its one-way delay now. ``later`` runs
    what may wait: rules of a path left behind go when what was on its way has arrived.
    """

    def __init__(
        self, plan: Plan, net: Any, later: Executor, *, port_of: Callable[[Link], int], delay_s: Callable[[Link], float]
    ) -> None:
        self._plan = plan
        self._net = net
        self._later = later
        self._port_of = port_of
        self._delay_s = delay_s
        self._pairs = {(pair.a.node, pair.b.node): pair for pair in plan.pairs}
        self._cookies: dict[tuple[str, str], int] = {}
        self._versions: dict[tuple[str, str], int] = {}

    def install(self) -> None:
        """Rules of all pairs, one transaction for each switch: nothing is sent yet."""
        by_switch: dict[str, list[str]] = {}
        for pair in self._pairs.values():
            for switch, rule in self._rules(pair, version=0):
                by_switch.setdefault(switch, []).append(rule)
        for switch, rules in by_switch.items():
            self._net.switch_ofctl(self._net.get(switch), rules)

    def _rules(self, pair: Pair, *, version: int) -> Iterator[tuple[str, str]]:
        """(switch, rule) of a pair, last switch of each direction first, so that a path works once it begins."""
        cookie = self._cookies.setdefault((pair.a.node, pair.b.node), len(self._cookies) + 1) * VERSIONS + version
        for source, target, hop in pair.hops():
            port = self._port_of(self._plan.topology.link_named(hop.out_link))
            yield (
                hop.switch,
                f"cookie={cookie},priority={RULE_PRIORITY},"
                f"dl_src={source.mac},dl_dst={target.mac},actions=output:{port}",
            )

    def _remove(self, pair: Pair, version: int) -> None:
        """Remove the rules of a path that is used no more, when what was on its way has arrived."""
        links = [self._plan.topology.link_named(f"{a}-{b}") for a, b in itertools.pairwise(pair.route)]
        time.sleep(PATH_DRAIN_S + sum(self._delay_s(link) for link in links))
        cookie = self._cookies[pair.a.node, pair.b.node] * VERSIONS + version
        for switch in dict.fromkeys(pair.route[1:-1]):
            self._net.get(switch).dpctl("del-flows", f"cookie={cookie:#x}/-1")

    def move(self, slice_name: str, routes: Sequence[Route]) -> None:
        """Move the N3 traffic of a slice, make before break; one route for each gNB of the slice."""
        current = [pair for pair in self._pairs.values() if pair.slice == slice_name]
        moved = [reroute(self._plan, pair, route) for pair, route in zip(current, routes, strict=True)]
        for old, new in zip(current, moved, strict=True):
            if old.route == new.route:
                continue
            key = (old.a.node, old.b.node)
            version = self._versions.get(key, 0)
            self._versions[key] = (version + 1) % VERSIONS
            # On a switch of both paths the new rule takes the place of the old one; elsewhere the old stays for now.
            for switch, rule in self._rules(new, version=self._versions[key]):
                self._net.switch_ofctl(self._net.get(switch), [rule])
            self._later.submit(self._remove, old, version)
            self._pairs[key] = new
