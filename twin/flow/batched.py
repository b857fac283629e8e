"""Max-min fair rates for thousands of independent path allocations at once, as array functions.

B allocations of the same F flows to paths over L links; capacities and demands may differ per
allocation. Every allocation is one network of its own: nothing is shared between rows.

The rates are those of :func:`twin.flow.maxmin.max_min`, but links fill side by side instead of one
after another. With n_l growing flows on link l, R_l what the stopped flows leave of its capacity, d_f
the demand and P_f the links of flow f, every round computes::

    s_l = R_l / n_l                                  fair share of link l
    m_f = min(d_f, min over l in P_f of s_l)         what flow f gets at least
    T_l = sum of m_f over the growing flows on l     never above R_l

A flow stops at m_f when m_f = d_f, or when T_l = R_l on one of its links with s_l = m_f: then all
growing flows there have the same rate and the link is full, which is what makes a link a bottleneck
in D. Bertsekas and R. Gallager, "Data Networks", section 6.5.2. Shares never fall from one round to
the next, so links far apart need not wait for each other: there are as many rounds as bottlenecks
depend on one another in a chain, not as many as there are bottlenecks.

A link may be any resource that rates use up: with w_lf of resource l per unit of the rate of flow f,
n_l is the sum of w_lf instead of a count, and T_l that of w_lf m_f. So PRBs of a cell or CPU of a node
limit rates as links do.

The same code runs on NumPy arrays and, where PyTorch is installed, on tensors of any device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

Array = NDArray[np.float64]
# A link is full when less than this part of its capacity is left.
_TOLERANCE = 1e-10
# Above every rate and every share of a link, and far from overflow when added to one of them.
_HUGE = 1e30
_MOST_BPS = 1e24
_LEAST_USAGE = 1e-24
# Numbers per array of a chunk: what is worked on at once fits the second-level cache of a core, or
# a few GB of a GPU.
_CPU_CHUNK = 1 << 16
_DEVICE_CHUNK = 1 << 26
# Repacking the allocations that go on costs about half a round.
_REPACK_BELOW = 0.6


def efficiency(rates_bps: Array, demand_bps: Array) -> Array:
    """Carried part of the offered load, sum_f x_f / sum_f d_f (NANCY D4.2 §4.2, equation 1).

    ``rates_bps`` has shape (..., F), ``demand_bps`` (F,) or (..., F); returns shape (...), in [0, 1].
    Where nothing is offered, everything is carried: 1.
    """
    offered = np.broadcast_to(demand_bps, rates_bps.shape).sum(axis=-1)
    found: Array = np.divide(rates_bps.sum(axis=-1), offered, out=np.ones(offered.shape), where=offered > 0)
    return found


def fairness(rates_bps: Array) -> Array:
    """Jain's index (sum_f x_f)^2 / (F sum_f x_f^2) (NANCY D4.2 §4.2, equation 2).

    ``rates_bps`` has shape (..., F); returns shape (...), in [1/F, 1]. Where all rates are 0 they are
    equal: 1.
    """
    squares = rates_bps.shape[-1] * (rates_bps**2).sum(axis=-1)
    found: Array = np.divide(rates_bps.sum(axis=-1) ** 2, squares, out=np.ones(squares.shape), where=squares > 0)
    return found


class BatchedFlows:
    """Flows that each take one of several paths over links of a network.

    ``paths[f][p]`` lists the indices of the links of path p of flow f; ``capacity_bps`` has shape
    (L,), above 0; ``demand_bps`` has shape (F,), not negative. ``usage[f][p][h]`` is what one bit/s of
    flow f takes of the capacity of link ``paths[f][p][h]``, above 0; 1 everywhere when it is None. Links
    with other values have capacities in units of their own, e.g. PRBs with 1 / (bit/s per PRB), or
    millicores with 1000 s of CPU time per bit. ``device`` is None for NumPy or a
    PyTorch device (``"cpu"``, ``"cuda"``). ValueError names what does not fit, ModuleNotFoundError
    says that PyTorch is not installed.
    """

    def __init__(
        self,
        paths: Sequence[Sequence[Sequence[int]]],
        capacity_bps: ArrayLike,
        demand_bps: ArrayLike,
        *,
        usage: Sequence[Sequence[Sequence[float]]] | None = None,
        device: str | None = None,
    ) -> None:
        self.capacity_bps = _checked("capacity_bps", capacity_bps, None)
        self.demand_bps = _checked("demand_bps", demand_bps, (len(paths),))
        if not (self.capacity_bps > 0).all():
            raise ValueError(f"capacity_bps: must be above 0, got {self.capacity_bps.min()}")
        self.paths = tuple(tuple(tuple(path) for path in choices) for choices in paths)
        self.links, self.flows = self.capacity_bps.size, len(self.paths)
        for flow, choices in enumerate(self.paths):
            if not choices:
                raise ValueError(f"flow {flow}: has no path")
            for number, path in enumerate(choices):
                if len(set(path)) < len(path):
                    raise ValueError(f"flow {flow}: path {number} crosses a link twice")
                if not all(0 <= link < self.links for link in path):
                    raise ValueError(f"flow {flow}: path {number} has a link outside 0..{self.links - 1}")
        self.usage = None if usage is None else _checked_usage(usage, self.paths)
        self.path_counts = np.array([len(choices) for choices in self.paths], dtype=np.int64)
        self._ops: _Ops = _NumpyOps() if device is None else _TorchOps(device)
        self._tables: dict[tuple[bool, bool], _Tables] = {}

    def rates(
        self,
        allocations: ArrayLike,
        *,
        demand_bps: ArrayLike | None = None,
        capacity_bps: ArrayLike | None = None,
        threads: int = 1,
    ) -> Array:
        """Max-min fair rates, shape (B, F), in bit/s, of ``allocations``, shape (B, F): path indices.

        ``demand_bps`` of shape (B, F) and ``capacity_bps`` of shape (B, L) replace those of the model,
        allocation by allocation. ``threads`` share the batch on the CPU. ValueError names an
        allocation with a path that its flow does not have.
        """
        chosen = self._check(allocations)
        batch = chosen.shape[0]
        demand = None if demand_bps is None else _checked("demand_bps", demand_bps, (batch, self.flows))
        capacity = None if capacity_bps is None else _checked("capacity_bps", capacity_bps, (batch, self.links))
        if capacity is not None and not (capacity > 0).all():
            raise ValueError(f"capacity_bps: must be above 0, got {capacity.min()}")
        tables = self._tables_for(capacity is None, demand is None)
        found = np.empty((batch, self.flows))

        def work(part: slice) -> None:
            # np.take lets other threads run, indexing with an array does not.
            rows = np.take(chosen[part].T, tables.order, axis=0)
            row_demand = np.take((self.demand_bps[None] if demand is None else demand[part]).T, tables.order, axis=0)
            row_capacity = (self.capacity_bps[None] if capacity is None else capacity[part])[:, tables.kept].T
            filled = _fill(self._ops, tables, rows, row_demand, row_capacity)
            found[part] = np.take(filled, tables.place_of, axis=0).T

        parts = list(self._parts(batch, tables, threads))
        if threads > 1 and len(parts) > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(work, parts))
        else:
            for part in parts:
                work(part)
        return found

    def evaluate(self, allocations: ArrayLike, *, threads: int = 1) -> tuple[Array, Array]:
        """Efficiency and fairness of every allocation, shapes (B,) and (B,)."""
        rates = self.rates(allocations, threads=threads)
        return efficiency(rates, self.demand_bps), fairness(rates)

    def _tables_for(self, same_capacity: bool, same_demand: bool) -> _Tables:
        key = same_capacity, same_demand
        if key not in self._tables:
            self._tables[key] = _Tables(
                self.paths,
                self.usage,
                self.capacity_bps if same_capacity else None,
                self.demand_bps if same_demand else None,
            )
        return self._tables[key]

    def _parts(self, batch: int, tables: _Tables, threads: int) -> Iterator[slice]:
        most = max(64, self._ops.chunk // max(1, len(tables.kept) + 1, self.flows))
        size = min(most, -(-batch // max(1, threads)))
        for start in range(0, batch, max(1, size)):
            yield slice(start, min(batch, start + size))

    def _check(self, allocations: ArrayLike) -> NDArray[np.int64]:
        array = np.asarray(allocations)
        if array.ndim != 2 or array.shape[1] != self.flows:
            raise ValueError(f"allocations: shape must be (allocations, {self.flows}), got {array.shape}")
        if array.dtype.kind not in "iu":
            raise ValueError(f"allocations: must be whole numbers, got {array.dtype}")
        if array.size and (array.min() < 0 or (array.max(axis=0) >= self.path_counts).any()):
            row, flow = np.argwhere((array < 0) | (array >= self.path_counts))[0]
            allowed = f"0..{self.path_counts[flow] - 1}"
            raise ValueError(f"allocation {row}: flow {flow}: path must be in {allowed}, got {array[row, flow]}")
        return array.astype(np.int64, copy=False)


class _Tables:
    """Lookup tables from path indices to links, without the links that can never be full.

    A link is left out when the demands of all flows that may use it fit together, and when every path
    over it also crosses another link that is always full earlier. A link that only one flow may use
    becomes an upper bound on the rate of the paths over it, ``bound``. None for the capacity or the
    demand means that they differ per allocation: nothing is left out on their account.
    """

    def __init__(
        self,
        paths: Sequence[Sequence[Sequence[int]]],
        usage: Sequence[Sequence[Sequence[float]]] | None,
        capacity_bps: Array | None,
        demand_bps: Array | None,
    ) -> None:
        out: set[int] = set()
        bound = [[_HUGE] * len(choices) for choices in paths]
        links = {link for choices in paths for path in choices for link in path}
        if capacity_bps is not None:
            # What a unit of the rate of each path takes of each link, as a part of its capacity.
            parts: dict[int, dict[tuple[int, int], float]] = {link: {} for link in links}
            for flow, choices in enumerate(paths):
                for number, path in enumerate(choices):
                    for hop, link in enumerate(path):
                        taken = 1.0 if usage is None else usage[flow][number][hop]
                        parts[link][flow, number] = taken / float(capacity_bps[link])
            for link, over in parts.items():
                most: dict[int, float] = {}
                for (flow, _), part in over.items():
                    most[flow] = max(most.get(flow, 0.0), part)
                if len(most) == 1:
                    out.add(link)
                    for (flow, number), part in over.items():
                        bound[flow][number] = min(bound[flow][number], 1.0 / part)
                elif demand_bps is not None and sum(demand_bps[flow] * part for flow, part in most.items()) <= 1:
                    out.add(link)
            for link in sorted(links):
                # One at a time, against what is still in: of two equals, one stays.
                others = links - out - {link}
                if link not in out and any(
                    all(parts[other].get(path, 0.0) >= part for path, part in parts[link].items()) for other in others
                ):
                    out.add(link)
        self.kept = sorted(links - out)
        place = {link: row for row, link in enumerate(self.kept)}
        # Absent hops of shorter paths point to one more row, a link without limit.
        nowhere = len(self.kept)
        short = [[[place[link] for link in path if link in place] for path in choices] for choices in paths]
        taken_of = [
            [
                [1.0 if usage is None else usage[flow][number][hop] for hop, link in enumerate(path) if link in place]
                for number, path in enumerate(choices)
            ]
            for flow, choices in enumerate(paths)
        ]
        hops = [max(map(len, choices)) for choices in short]
        # Flows with many hops first: those with at least h hops are then the first ones.
        self.order = np.argsort([-count for count in hops], kind="stable")
        self.place_of = np.argsort(self.order)
        self.hops = np.array([hops[flow] for flow in self.order], dtype=np.int64)
        self.with_hop = [int((self.hops > hop).sum()) for hop in range(max(hops, default=0))]
        # Path p of the flow in row f has the place f * most + p in every table.
        self.most = max(map(len, paths), default=1)
        self.bound = np.full((len(paths), self.most), _HUGE)
        self.next_link = [np.full((count, self.most), nowhere, dtype=np.int64) for count in self.with_hop]
        self.next_usage = [np.ones((count, self.most)) for count in self.with_hop]
        self.weighted = usage is not None
        for row, flow in enumerate(self.order):
            self.bound[row, : len(bound[flow])] = bound[flow]
            for number, path in enumerate(short[flow]):
                for hop, link in enumerate(path):
                    self.next_link[hop][row, number] = link
                    self.next_usage[hop][row, number] = taken_of[flow][number][hop]
        # Sums of usages of growing flows are not below this; what is left of them by rounding is.
        self.least_usage = min((float(hop.min()) for hop in self.next_usage), default=1.0)


def _fill(ops: _Ops, tables: _Tables, chosen: Any, demand: Any, capacity: Any) -> Array:
    """Rates, shape (F, B), for path indices of shape (F, B); flows in the order of the tables.

    ``demand`` has shape (F, B) or (F, 1), ``capacity`` (L, B) or (L, 1). Allocations are the last
    axis, so that every step is one pass over contiguous memory.
    """
    flows, batch = chosen.shape
    rows = capacity.shape[0] + 1
    found = ops.zeros((flows, batch))
    if not (flows and batch):
        return ops.numpy(found)
    chosen, demand, capacity = ops.array(chosen), ops.array(demand), ops.array(capacity)
    places = chosen + ops.array(tables.most * np.arange(flows)[:, None])
    limit = ops.minimum(ops.take(ops.array(tables.bound), places), demand)
    left = ops.zeros((rows, batch)) + _HUGE
    left[:-1] = capacity
    slack = _TOLERANCE * left
    links = ops.links(tables, places)
    usages = [ops.take(ops.array(hop), places[: len(hop)]) for hop in tables.next_usage] if tables.weighted else None
    total = ops.totals(tables, links, usages, rows)
    growing = ops.zeros((flows, batch)) + 1.0
    number = total(growing)
    columns = None
    for _ in range(flows):
        share = left / ops.clip_below(number, 0.5 * tables.least_usage)
        least = _least(ops, tables, limit, share, links)
        share += (left - total(growing * least) > slack) * _HUGE
        stops = (_least(ops, tables, limit, share, links) <= least) * growing
        rates = stops * least
        if columns is None:
            found += rates
        else:
            found[:, columns] += rates
        growing = growing - stops
        going = ops.positions(growing.sum(0) > 0)
        if len(going) == 0:
            return ops.numpy(found)
        # Rounding may leave a full link with less than nothing.
        left = ops.clip_below(left - total(rates), 0.0)
        number = number - total(stops)
        if len(going) < _REPACK_BELOW * growing.shape[1]:
            columns = going if columns is None else columns[going]
            links = ops.repack(links, going)
            growing, limit, number, left, slack = (
                ops.columns(array, going) for array in (growing, limit, number, left, slack)
            )
            usages = usages and [ops.columns(hop, going) for hop in usages]
            total = ops.totals(tables, links, usages, rows)
    raise ArithmeticError("max-min filling did not end: every round stops at least one flow")


def _least(ops: _Ops, tables: _Tables, limit: Any, share: Any, links: list[Any]) -> Any:
    """The limit of every flow, or the least share of its links where that is less; shape (F, B)."""
    least = ops.copy(limit)
    for count, index in zip(tables.with_hop, links, strict=True):
        least[:count] = ops.minimum(least[:count], ops.take(share, index))
    return least


def _checked(what: str, values: ArrayLike, shape: tuple[int, ...] | None) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 if shape is None else array.shape != shape:
        raise ValueError(f"{what}: shape must be {shape or '(links,)'}, got {array.shape}")
    wrong = ~((array >= 0) & (array <= _MOST_BPS))
    if wrong.any():
        raise ValueError(f"{what}: must be in 0..{_MOST_BPS:g} bit/s, got {array[wrong][0]}")
    return array


def _checked_usage(
    usage: Sequence[Sequence[Sequence[float]]], paths: Sequence[Sequence[Sequence[int]]]
) -> tuple[tuple[tuple[float, ...], ...], ...]:
    found = tuple(tuple(tuple(map(float, path)) for path in choices) for choices in usage)
    if [[len(path) for path in choices] for choices in found] != [[len(path) for path in choices] for choices in paths]:
        raise ValueError("usage: must have one number for every link of every path")
    for flow, choices in enumerate(found):
        for number, path in enumerate(choices):
            for value in path:
                if not _LEAST_USAGE <= value <= 1 / _LEAST_USAGE:
                    allowed = f"{_LEAST_USAGE:g}..{1 / _LEAST_USAGE:g}"
                    raise ValueError(f"usage: flow {flow}: path {number}: must be in {allowed}, got {value}")
    return found


# --- where the arrays live: what NumPy and PyTorch do not spell alike


class _Ops(Protocol):
    """``links`` are positions in flattened arrays of shape (rows, B), one array per hop."""

    chunk: int

    def zeros(self, shape: tuple[int, int]) -> Any: ...
    def array(self, values: Any) -> Any: ...
    def numpy(self, values: Any) -> Array: ...
    def copy(self, values: Any) -> Any: ...
    def minimum(self, one: Any, other: Any) -> Any: ...
    def clip_below(self, values: Any, least: float) -> Any: ...
    def positions(self, mask: Any) -> Any: ...
    def columns(self, values: Any, positions: Any) -> Any: ...
    def take(self, values: Any, index: Any) -> Any: ...
    def links(self, tables: _Tables, places: Any) -> list[Any]: ...
    def repack(self, links: list[Any], positions: Any) -> list[Any]: ...
    def totals(
        self, tables: _Tables, links: list[Any], usages: list[Any] | None, rows: int
    ) -> Callable[[Any], Any]: ...


class _NumpyOps:
    """Arrays in the memory of the host."""

    chunk = _CPU_CHUNK

    def zeros(self, shape: tuple[int, int]) -> Array:
        return np.zeros(shape)

    def array(self, values: Any) -> Any:
        return np.ascontiguousarray(values)

    def numpy(self, values: Array) -> Array:
        return values

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

    def take(self, values: Array, index: NDArray[np.int64]) -> Array:
        # The indices are in range; clip is the mode that looks at them only once.
        return np.take(values, index, mode="clip")

    def links(self, tables: _Tables, places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        batch = places.shape[1]
        column = np.arange(batch)
        found = []
        for count, following in zip(tables.with_hop, tables.next_link, strict=True):
            index = np.take(following * batch, places[:count], mode="clip")
            index += column
            found.append(index)
        return found

    def repack(self, links: list[NDArray[np.int64]], positions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        column = np.arange(len(positions))
        return [np.take(index, positions, axis=1) // index.shape[1] * len(positions) + column for index in links]

    def totals(
        self, tables: _Tables, links: list[NDArray[np.int64]], usages: list[Array] | None, rows: int
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


class _TorchOps:
    """Tensors on a PyTorch device."""

    chunk = _DEVICE_CHUNK

    def __init__(self, device: str) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.device = self.torch.device(device)
        if self.device.type == "cpu":
            self.chunk = _CPU_CHUNK

    def zeros(self, shape: tuple[int, int]) -> Any:
        return self.torch.zeros(shape, dtype=self.torch.float64, device=self.device)

    def array(self, values: Any) -> Any:
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

    def take(self, values: Any, index: Any) -> Any:
        return self.torch.take(values, index)

    def links(self, tables: _Tables, places: Any) -> list[Any]:
        batch = places.shape[1]
        column = self.torch.arange(batch, device=self.device)
        return [
            self.take(self.array(following * batch), places[:count]) + column
            for count, following in zip(tables.with_hop, tables.next_link, strict=True)
        ]

    def repack(self, links: list[Any], positions: Any) -> list[Any]:
        column = self.torch.arange(len(positions), device=self.device)
        return [index[:, positions] // index.shape[1] * len(positions) + column for index in links]

    def totals(
        self,
        tables: _Tables,  # noqa: ARG002 as NumPy
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
