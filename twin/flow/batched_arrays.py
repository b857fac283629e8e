"""The equations of :mod:`twin.flow.batched` as array operations, on NumPy or on PyTorch.

Allocations are the last axis, so that every step is one pass over contiguous memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from twin.flow.batched_tables import HUGE, HopTables

Array = NDArray[np.float64]
# Numbers per array of a chunk: what is worked on at once fits the second-level cache of a core, or
# a few GB of a GPU.
_CPU_CHUNK = 1 << 16
_DEVICE_CHUNK = 1 << 26
# Repacking the allocations that go on costs about half a round.
_REPACK_BELOW = 0.6


def fill(ops: Ops, tables: HopTables, places: Any, demand: Any, capacity: Any, tolerance: float) -> Any:
    """Rates, shape (F, B), of paths given by their places in the tables, shape (F, B), rows as there.

    ``demand`` has shape (F, B) or (F, 1), ``capacity`` (L, B) or (L, 1).
    """
    flows, batch = places.shape
    rows = capacity.shape[0] + 1
    found = ops.zeros((flows, batch))
    if not (flows and batch):
        return found
    limit = ops.minimum(ops.take(ops.table(tables, "bound"), places), demand)
    left = ops.zeros((rows, batch)) + HUGE
    left[:-1] = capacity
    slack = tolerance * left
    links = ops.links(tables, places)
    usages = ops.usages(tables, places)
    total = ops.totals(tables, links, usages, rows)
    growing = ops.zeros((flows, batch)) + 1.0
    number = total(growing)
    columns = None
    for _ in range(flows):
        share = left / ops.clip_below(number, 0.5 * tables.least_usage)
        least = _least(ops, tables, limit, share, links)
        share += (left - total(growing * least) > slack) * HUGE
        stops = (_least(ops, tables, limit, share, links) <= least) * growing
        rates = stops * least
        if columns is None:
            found += rates
        else:
            found[:, columns] += rates
        growing = growing - stops
        going = ops.positions(growing.sum(0) > 0)
        if len(going) == 0:
            return found
        # Rounding may leave a full link with less than nothing.
        left = ops.clip_below(left - total(rates), 0.0)
        number = total(growing) if usages is not None else number - total(stops)
        if len(going) < _REPACK_BELOW * growing.shape[1]:
            columns = going if columns is None else columns[going]
            links = ops.repack(links, going)
            growing, limit, number, left, slack = (
                ops.columns(array, going) for array in (growing, limit, number, left, slack)
            )
            usages = usages and [ops.columns(hop, going) for hop in usages]
            total = ops.totals(tables, links, usages, rows)
    raise ArithmeticError("max-min filling did not end: every round stops at least one flow")


def _least(ops: Ops, tables: HopTables, limit: Any, share: Any, links: list[Any]) -> Any:
    """The limit of every flow, or the least share of its links where that is less; shape (F, B)."""
    least = ops.copy(limit)
    for count, index in zip(tables.with_hop, links, strict=True):
        least[:count] = ops.minimum(least[:count], ops.take(share, index))
    return least


class Ops(Protocol):
    """What NumPy and PyTorch do not spell alike.

    ``links`` are positions in flattened arrays of shape (rows, B), one array per hop. ``usages`` are
    None where every usage is 1.
    """

    chunk: int

    def zeros(self, shape: tuple[int, int]) -> Any: ...
    def array(self, values: Any) -> Any: ...
    def numpy(self, values: Any) -> Array: ...
    def copy(self, values: Any) -> Any: ...
    def minimum(self, one: Any, other: Any) -> Any: ...
    def clip_below(self, values: Any, least: float) -> Any: ...
    def positions(self, mask: Any) -> Any: ...
    def columns(self, values: Any, positions: Any) -> Any: ...
    def rows(self, values: Any, index: Any) -> Any: ...
    def take(self, values: Any, index: Any) -> Any: ...
    def where(self, mask: Any, one: Any, other: Any) -> Any: ...
    def exp(self, values: Any) -> Any: ...
    def add_at(self, total: Any, index: Any, values: Any) -> None: ...
    def max_at(self, most: Any, index: Any, values: Any) -> None: ...
    def table(self, owner: object, name: str) -> Any: ...
    def links(self, tables: HopTables, places: Any) -> list[Any]: ...
    def usages(self, tables: HopTables, places: Any) -> list[Any] | None: ...
    def repack(self, links: list[Any], positions: Any) -> list[Any]: ...
    def totals(
        self, tables: HopTables, links: list[Any], usages: list[Any] | None, rows: int
    ) -> Callable[[Any], Any]: ...


class NumpyOps:
    """Arrays in the memory of the host."""

    chunk = _CPU_CHUNK

    def zeros(self, shape: tuple[int, int]) -> Array:
        return np.zeros(shape)

    def array(self, values: Any) -> Any:
        return np.ascontiguousarray(values)

    def numpy(self, values: Any) -> Array:
        found: Array = values
        return found

    def copy(self, values: Array) -> Array:
        return values.copy()

    def minimum(self, one: Array, other: Array) -> Array:
        return np.minimum(one, other)

    def clip_below(self, values: Array, least: float) -> Array:
        return np.maximum(values, least)

    def positions(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.flatnonzero(mask)

    def columns(self, values: Array, positions: NDArray[np.int64]) -> Array:
        return np.take(values, positions, axis=1)

    def rows(self, values: Any, index: Any) -> Any:
        # np.take lets other threads run, indexing with an array does not.
        return np.take(values, index, axis=0) if index.ndim == 1 else np.take_along_axis(values, index, axis=0)

    def take(self, values: Array, index: NDArray[np.int64]) -> Array:
        # The indices are in range; clip is the mode that looks at them only once.
        return np.take(values, index, mode="clip")

    def where(self, mask: Any, one: Any, other: Any) -> Any:
        return np.where(mask, one, other)

    def exp(self, values: Array) -> Array:
        found: Array = np.exp(values)
        return found

    def add_at(self, total: Array, index: NDArray[np.int64], values: Array) -> None:
        total += np.bincount(index.ravel(), values.ravel(), total.size)

    def max_at(self, most: Array, index: NDArray[np.int64], values: Array) -> None:
        np.maximum.at(most, index.ravel(), values.ravel())

    def table(self, owner: object, name: str) -> Any:
        return getattr(owner, name)

    def links(self, tables: HopTables, places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        batch = places.shape[1]
        column = np.arange(batch)
        found = []
        for count, following in zip(tables.with_hop, tables.next_link, strict=True):
            index = np.take(following * batch, places[:count], mode="clip")
            index += column
            found.append(index)
        return found

    def usages(self, tables: HopTables, places: NDArray[np.int64]) -> list[Array] | None:
        if not tables.weighted:
            return None
        pairs = zip(tables.with_hop, tables.next_usage, strict=True)
        return [np.take(following, places[:count], mode="clip") for count, following in pairs]

    def repack(self, links: list[NDArray[np.int64]], positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        column = np.arange(len(positions))
        return [np.take(index, positions, axis=1) // index.shape[1] * len(positions) + column for index in links]

    def totals(
        self, tables: HopTables, links: list[NDArray[np.int64]], usages: list[Array] | None, rows: int
    ) -> Callable[[Array], Array]:
        # A sparse matrix of usages, a column per flow and allocation, its links below one another:
        # adds twice as fast as np.bincount, and without the interpreter's lock.
        if not links:
            return lambda values: np.zeros((rows, values.shape[1]))
        batch = links[0].shape[1]
        index = np.empty(int(tables.hops.sum()) * batch, dtype=np.int32)
        value = np.ones(index.size)
        done = 0
        for count in range(len(links), 0, -1):
            same = slice(*np.searchsorted(-tables.hops, (-count, -count + 1)))
            part = slice(done, done + count * batch * (same.stop - same.start))
            for hop in range(count):
                index[part].reshape(-1, batch, count)[..., hop] = links[hop][same]
                if usages is not None:
                    value[part].reshape(-1, batch, count)[..., hop] = usages[hop][same]
            done = part.stop
        ends = np.concatenate(([0], np.cumsum(np.repeat(tables.hops, batch)))).astype(np.int32)
        shape = (rows * batch, len(tables.hops) * batch)
        matrix = sparse.csc_array((value, index, ends), shape=shape)
        return lambda values: (matrix @ values.ravel()).reshape(rows, batch)


class TorchOps:
    """Tensors on a PyTorch device. ModuleNotFoundError without PyTorch."""

    chunk = _DEVICE_CHUNK

    def __init__(self, device: str) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.device = self.torch.device(device)
        if self.device.type == "cpu":
            self.chunk = _CPU_CHUNK
        self._tables: dict[tuple[int, str], tuple[object, Any]] = {}

    def zeros(self, shape: tuple[int, int]) -> Any:
        return self.torch.zeros(shape, dtype=self.torch.float64, device=self.device)

    def array(self, values: Any) -> Any:
        if self.torch.is_tensor(values):
            return values.to(self.device).contiguous()
        return self.torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def numpy(self, values: Any) -> Array:
        found: Array = values.cpu().numpy()
        return found

    def copy(self, values: Any) -> Any:
        return values.clone()

    def minimum(self, one: Any, other: Any) -> Any:
        return self.torch.minimum(one, other)

    def clip_below(self, values: Any, least: float) -> Any:
        return values.clamp(min=least)

    def positions(self, mask: Any) -> Any:
        return mask.nonzero().squeeze(1)

    def columns(self, values: Any, positions: Any) -> Any:
        return values[:, positions]

    def rows(self, values: Any, index: Any) -> Any:
        return values[index] if index.ndim == 1 else self.torch.take_along_dim(values, index, dim=0)

    def take(self, values: Any, index: Any) -> Any:
        return self.torch.take(values, index)

    def where(self, mask: Any, one: Any, other: Any) -> Any:
        return self.torch.where(mask, one, other)

    def exp(self, values: Any) -> Any:
        return self.torch.exp(values)

    def add_at(self, total: Any, index: Any, values: Any) -> None:
        total.index_add_(0, index.reshape(-1), values.reshape(-1))

    def max_at(self, most: Any, index: Any, values: Any) -> None:
        most.scatter_reduce_(0, index.reshape(-1), values.reshape(-1), "amax")

    def table(self, owner: object, name: str) -> Any:
        # Tables stay on the device; a reference to their owner keeps its id from being given away.
        key = id(owner), name
        if key not in self._tables:
            found = getattr(owner, name)
            self._tables[key] = owner, [*map(self.array, found)] if isinstance(found, list) else self.array(found)
        return self._tables[key][1]

    def links(self, tables: HopTables, places: Any) -> list[Any]:
        batch = places.shape[1]
        column = self.torch.arange(batch, device=self.device)
        pairs = zip(tables.with_hop, self.table(tables, "next_link"), strict=True)
        return [self.take(following * batch, places[:count]) + column for count, following in pairs]

    def usages(self, tables: HopTables, places: Any) -> list[Any] | None:
        if not tables.weighted:
            return None
        pairs = zip(tables.with_hop, self.table(tables, "next_usage"), strict=True)
        return [self.take(following, places[:count]) for count, following in pairs]

    def repack(self, links: list[Any], positions: Any) -> list[Any]:
        column = self.torch.arange(len(positions), device=self.device)
        return [index[:, positions] // index.shape[1] * len(positions) + column for index in links]

    def totals(
        self,
        tables: HopTables,  # noqa: ARG002 as NumPy
        links: list[Any],
        usages: list[Any] | None,
        rows: int,
    ) -> Callable[[Any], Any]:
        def total(values: Any) -> Any:
            batch = values.shape[1]
            found = self.torch.zeros(rows * batch, dtype=values.dtype, device=self.device)
            for hop, index in enumerate(links):
                part = values[: index.shape[0]]
                found.index_add_(0, index.ravel(), (part if usages is None else part * usages[hop]).ravel())
            return found.reshape(rows, batch)

        return total
