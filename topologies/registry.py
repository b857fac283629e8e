"""The topology builders that a scenario file may name under ``builders: - use: NAME``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from topologies import backhaul_builder, containers, core, edge, ran, transport
from topologies.fragment import Fragment


@dataclass(frozen=True)
class Builder:
    """A function with keyword arguments only that returns a :class:`Fragment`."""

    name: str
    build: Callable[..., Fragment]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0].replace("``", "")

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Keyword arguments by name."""
        return dict(inspect.signature(self.build).parameters)


BUILDERS: dict[str, Builder] = {
    builder.name: builder
    for builder in (
        Builder("ran_cell", ran.cell),
        Builder("transport_chain", transport.chain),
        Builder("transport_ring", transport.ring),
        Builder("transport_redundant", transport.redundant),
        Builder("core", core.core),
        Builder("edge", edge.edge),
        Builder("iab", backhaul_builder.network),
        Builder("containers_linear", containers.linear),
        Builder("containers_tree", containers.tree),
    )
}
