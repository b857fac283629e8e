"""Where stream services run, and their moves from a container to a partition and back while users watch.

Make before break: the new server has the service's address and lets questions wait; the N6 routes change; then the
old server says what its flows will be like a moment ahead and sends until then, and the new one goes on from
there with the same sequence numbers. What is on its way when the routes change arrives at the old server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Protocol

from topologies.model import Upf
from twin.emulation import programs as specs
from twin.emulation.client import ProgramClient, ProgramError
from twin.emulation.errors import EmulationError
from twin.emulation.partitions.protocol import MOST_FLOWS_AT_ONCE
from twin.emulation.plan import Plan
from twin.partitions import move_refusal, need_empty

if TYPE_CHECKING:
    from twin.emulation.guests import Guests

LEAD_S = 0.05
"""Between the hand-over and its moment: longer than telling the new server takes."""
DRAIN_S = 0.005
"""Beside the links' delay: for what was sent before the routes changed."""
Rows = list[dict[str, Any]]


class Server(Protocol):
    """A stream server that a service can move to or from."""

    def prepare(self) -> None:
        """Be there; let questions wait."""

    def release(self, at_ns: int) -> Rows:
        """Send until a time of the monotonic clock, and no more; the flows as they will be then."""

    def adopt(self, rows: Rows) -> None:
        """Go on with these flows, and answer questions."""

    def retire(self) -> None:
        """Be gone, after the last packet or when a move failed."""


class _Container:
    def __init__(self, client: ProgramClient) -> None:
        self._client = client

    def prepare(self) -> None:
        self._client.call("hold")

    def release(self, at_ns: int) -> Rows:
        rows: Rows = self._client.call("release", at_ns=at_ns)["flows"]
        return rows

    def adopt(self, rows: Rows) -> None:
        self._client.call("adopt", flows=rows)
        self._client.call("go")

    def retire(self) -> None:
        """The program stays and answers echoes."""


class _Guest:
    def __init__(self, guests: Guests, name: str, addresses: Mapping[str, str]) -> None:
        """``addresses``: of the service, by slice."""
        self._guests = guests
        self._name = name
        self._addresses = sorted(set(addresses.values()))
        self._of_slice = addresses

    def prepare(self) -> None:
        self._guests.stream(self._name, "hold", addresses=self._addresses)

    def release(self, at_ns: int) -> Rows:
        rows: Rows = self._guests.stream(self._name, "release", at_ns=at_ns, addresses=self._addresses)["flows"]
        return rows

    def adopt(self, rows: Rows) -> None:
        for start in range(0, len(rows), MOST_FLOWS_AT_ONCE):
            self._guests.stream(self._name, "adopt", flows=rows[start : start + MOST_FLOWS_AT_ONCE])
        self._guests.stream(self._name, "go", addresses=self._addresses)

    def retire(self) -> None:
        self._guests.stream(self._name, "drop", addresses=self._addresses)


class Placement:
    """``client`` and ``guests`` reach the servers, ``set_route`` changes one route of a node at once, ``later`` runs
    what may wait."""

    def __init__(
        self,
        plan: Plan,
        *,
        client: Callable[[str], ProgramClient],
        guests: Callable[[], Guests | None],
        set_route: Callable[[str, str], None],
        path_delay_s: Callable[[str, str], float],
        later: Executor,
    ) -> None:
        self._plan = plan
        self._client = client
        self._guests = guests
        self._set_route = set_route
        self._path_delay_s = path_delay_s
        self._later = later
        self._at: dict[str, str] = {}

    def where(self, app: str) -> str:
        """The node that an application's stream service runs on."""
        return self._at.get(app, app)

    def move(self, app: str, target: str) -> None:
        """Move a service. EmulationError when it cannot be; it then runs where it was."""
        self._check(app, target)
        source = self.where(app)
        if source == target:
            return
        old, new = self._server(app, source), self._server(app, target)
        new.prepare()
        try:
            self._put(app, target)
            time.sleep(DRAIN_S + max(self._path_delay_s(upf, source) for upf in self._upfs(app).values()))
            at_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
            rows = self._with_addresses(app, old.release(at_ns))
            try:
                new.adopt(rows)
            except (EmulationError, ProgramError):
                old.prepare()
                old.adopt(rows)
                raise
        except (EmulationError, ProgramError):
            self._put(app, source)
            self._later.submit(self._retire, new, 0)
            raise
        self._later.submit(self._retire, old, at_ns)

    def recover(self) -> None:
        """Where a guest has ended by itself, the container takes the service back; its flows begin anew."""
        guests = self._guests()
        for app, node in list(self._at.items()):
            if guests is not None and not guests.is_deployed(node):
                self._put(app, app)
                server = self._server(app, app)
                server.prepare()
                server.adopt([])

    def need_empty(self, partition: str) -> None:
        """EmulationError while a service runs in a partition that is to be shut down."""
        if (reason := need_empty(partition, self._at)) is not None:
            raise EmulationError(reason)

    def ip_lines(self, node: str, lines: Sequence[str]) -> Iterator[str]:
        """What ``ip`` is told in a node, with the routes of services that have moved."""
        moved = dict(self._routes(node))
        for line in lines:
            words = line.split()
            yield moved.get(words[2], line) if words[:2] == ["route", "replace"] else line

    def _check(self, app: str, target: str) -> None:
        guests = self._guests()
        there = guests is not None and target in guests.partitions and guests.is_deployed(target)
        if (reason := move_refusal(self._plan.topology, app, target, deployed=there)) is not None:
            raise EmulationError(reason)

    def _upfs(self, app: str) -> dict[str, str]:
        """Slice -> UPF, of the slices whose UEs can reach an application."""
        found = {}
        for slice_name, upf in self._plan.slice_upfs.items():
            try:
                self._plan.pair(upf, app)
            except KeyError:
                continue
            found[slice_name] = upf
        return found

    def _addresses(self, app: str) -> dict[str, str]:
        return {name: specs.app_address(self._plan, app, name) for name in self._upfs(app)}

    def _server(self, app: str, node: str) -> Server:
        if node == app:
            return _Container(self._client(app))
        guests = self._guests()
        assert guests is not None
        return _Guest(guests, node, self._addresses(app))

    def _with_addresses(self, app: str, rows: Rows) -> Rows:
        """Flows with the address at which their users know the service."""
        addresses = self._addresses(app)
        slices = {ue.address: ue.slice for ue in self._plan.ues.values()}
        first = next(iter(addresses.values()))
        return [row | {"local": addresses.get(slices.get(row["peer"], ""), first)} for row in rows]

    def _routes(self, node: str) -> Iterator[tuple[str, str]]:
        """(destination, line for ``ip``) of the services that have moved, in a UPF or a partition's namespace."""
        kind = self._plan.topology.node(node) if any(one.name == node for one in self._plan.topology.nodes) else None
        for app, target in self._at.items():
            for slice_name, address in self._addresses(app).items():
                if isinstance(kind, Upf) and self._upfs(app)[slice_name] == node:
                    pair = self._plan.pair(node, target)
                    own, other = (pair.a, pair.b) if pair.a.node == node else (pair.b, pair.a)
                    line = f"route replace {address}/32 via {other.address} dev {own.name} src {own.address} onlink"
                    yield f"{address}/32", line
                elif node == target:
                    guests = self._guests()
                    assert guests is not None
                    hop = specs.partition_address(self._plan, node)
                    yield f"{address}/32", f"route replace {address}/32 via {hop} dev {guests.managed(node).tap} onlink"

    def _put(self, app: str, node: str) -> None:
        """Lead the users of a service to a node: routes in the partition first, then those that lead there."""
        if node == app:
            self._at.pop(app, None)
        else:
            self._at[app] = node
        addresses = set(self._addresses(app).values())
        if self.where(app) != app:
            for address, line in self._routes(self.where(app)):
                if address.removesuffix("/32") in addresses:
                    self._set_route(self.where(app), line)
        for upf in dict.fromkeys(self._upfs(app).values()):
            for address in addresses:
                self._set_route(upf, f"{address}/32")

    def _retire(self, server: Server, at_ns: int) -> None:
        time.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9) + LEAD_S)
        try:
            server.retire()
        except EmulationError:  # its guest has ended meanwhile, and let go of everything
            return
