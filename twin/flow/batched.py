"""Max-min fair rates for thousands of independent path allocations or networks at once.

B allocations of flows to paths over links; demands, capacities and the network itself may differ per
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

The equations are written twice: as array operations, the same for NumPy and for PyTorch tensors of any
device (:mod:`twin.flow.batched_arrays`), and row by row for Numba, whose compiled code also decides a
single allocation in microseconds (:mod:`twin.flow.batched_compiled`). ``device`` chooses: None is the
compiled code where Numba is installed and NumPy where it is not, ``"numpy"`` is NumPy, everything else
names a PyTorch device (``"cpu"``, ``"cuda"``).
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twin.flow.batched_arrays import NumpyOps, Ops, TorchOps, fill
from twin.flow.batched_tables import HUGE, HopTables, Reduced, Tables, reduced, whole

Array = NDArray[np.float64]
# A link is full when less than this part of its capacity is left.
_TOLERANCE = 1e-10
_MOST_BPS = 1e24
_LEAST_USAGE = 1e-24


def efficiency(rates_bps: Array, demand_bps: Array) -> Array:
    """Carried part of the offered load, sum_f x_f / sum_f d_f (NANCY D4.2 §4.2, equation 1).

    ``rates_bps`` has shape (..., F), ``demand_bps`` (F,) or (..., F); returns shape (...), in [0, 1].
    Where nothing is offered, everything is carried: 1.
    """
    offered = np.broadcast_to(demand_bps, rates_bps.shape).sum(axis=-1)
    found: Array = np.divide(rates_bps.sum(axis=-1), offered, out=np.ones(offered.shape), where=offered > 0)
    return found


def fairness(rates_bps: Array, flows: ArrayLike | None = None) -> Array:
    """Jain's index (sum_f x_f)^2 / (F sum_f x_f^2) (NANCY D4.2 §4.2, equation 2).

    ``rates_bps`` has shape (..., F); returns shape (...), in [1/F, 1]. ``flows`` of shape (...) is F
    where rows are padded with zeros. Where all rates are 0 they are equal: 1.
    """
    squares = (rates_bps.shape[-1] if flows is None else np.asarray(flows)) * (rates_bps**2).sum(axis=-1)
    found: Array = np.divide(rates_bps.sum(axis=-1) ** 2, squares, out=np.ones(squares.shape), where=squares > 0)
    return found


class BatchedFlows:
    """Flows that each take one of several paths over links of a network.

    ``paths[f][p]`` lists the indices of the links of path p of flow f; ``capacity_bps`` has shape
    (L,), not negative: 0 is a link that is down. ``demand_bps`` has shape (F,), not negative.
    ``usage[f][p][h]`` is what one bit/s of flow f takes of the capacity of link ``paths[f][p][h]``,
    above 0; 1 everywhere when it is None. Links with other values have capacities in units of their
    own, e.g. PRBs with 1 / (bit/s per PRB), or millicores with 1000 s of CPU time per bit. ``device``
    as above. ValueError names what does not fit, ModuleNotFoundError says that PyTorch is not installed.
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
        self._ops = _ops(device)
        self._reduced: dict[tuple[bool, bool], Reduced] = {}
        self._fillings: dict[tuple[bool, bool], _Filling] = {}

    def with_demand(self, demand_bps: ArrayLike) -> BatchedFlows:
        """The same network with other demands, shape (F,), in bit/s; tables are shared, so that it costs nothing."""
        found = copy.copy(self)
        found.demand_bps = _checked("demand_bps", demand_bps, (self.flows,))
        # What is left out of the tables may depend on the demands: those that hold for all are shared.
        found._reduced = {
            (same, demands): self.reduced(same, False) for same in (False, True) for demands in (False, True)
        }
        found._fillings = {}
        for same in (False, True):
            filling = self._filling(same, False)
            found._fillings[same, False] = filling
            found._fillings[same, True] = filling.with_demand(found.demand_bps[None])
        return found

    @classmethod
    def from_matrix(cls, usage: Array, capacity: ArrayLike, demand: ArrayLike, **more: Any) -> BatchedFlows:
        """The model of what :func:`twin.flow.maxmin.max_min` takes: one path per flow.

        ``usage`` has shape (resources, flows), not negative; the path of a flow crosses the resources
        that it uses, in their order.
        """
        paths = [[np.flatnonzero(column).tolist()] for column in usage.T]
        taken = [[column[path].tolist() for path in choices] for column, choices in zip(usage.T, paths, strict=True)]
        return cls(paths, capacity, demand, usage=taken, **more)

    def rates(
        self,
        allocations: Any,
        *,
        demand_bps: Any = None,
        capacity_bps: Any = None,
        threads: int = 1,
    ) -> Any:
        """Max-min fair rates, shape (B, F), in bit/s, of ``allocations``, shape (B, F): path indices.

        ``demand_bps`` of shape (B, F) and ``capacity_bps`` of shape (B, L) replace those of the model,
        allocation by allocation. ``threads`` share the batch on the CPU. Gives a tensor on the model's
        device when ``allocations`` is a tensor, else a NumPy array. ValueError names an allocation with
        a path that its flow does not have.
        """
        demand = None if demand_bps is None else _checked("demand_bps", demand_bps, (len(allocations), self.flows))
        capacity = (
            None if capacity_bps is None else _checked("capacity_bps", capacity_bps, (len(allocations), self.links))
        )
        return self._filling(capacity is None, demand is None).rates(None, allocations, demand, capacity, threads)

    def evaluate(
        self, allocations: ArrayLike, *, demand_bps: ArrayLike | None = None, threads: int = 1
    ) -> tuple[Array, Array]:
        """Efficiency and fairness of every allocation, shapes (B,) and (B,); ``demand_bps`` as in :meth:`rates`."""
        rates = self.rates(np.asarray(allocations), demand_bps=demand_bps, threads=threads)
        return efficiency(rates, self.demand_bps if demand_bps is None else np.asarray(demand_bps)), fairness(rates)

    @cached_property
    def whole(self) -> tuple[Ops, HopTables]:
        """Where its arrays live, and tables of all of its links."""
        tables = Tables([whole(self.paths, self.usage, self.links)], weighted=self.usage is not None)
        return self._ops or NumpyOps(), HopTables(tables)

    def _filling(self, same_capacity: bool, same_demand: bool) -> _Filling:
        key = same_capacity, same_demand
        if key not in self._fillings:
            self._fillings[key] = _Filling(
                [self.reduced(*key)],
                self.usage is not None,
                self.path_counts[None],
                self.demand_bps[None],
                self.capacity_bps[None],
                self._ops,
            )
        return self._fillings[key]

    def reduced(self, same_capacity: bool, same_demand: bool) -> Reduced:
        """Its links that matter, where capacities or demands are those of the model or differ per row."""
        key = same_capacity, same_demand
        if key not in self._reduced:
            self._reduced[key] = reduced(
                self.paths,
                self.usage,
                self.capacity_bps if same_capacity else None,
                self.demand_bps if same_demand else None,
            )
        return self._reduced[key]


class JoinedFlows:
    """N different networks: every allocation of a batch is of one of them.

    Flows and links are padded to the most of any network, F and L: ``flow_counts`` (N,) tells how many
    are its own, ``path_counts`` (N, F) how many paths each flow has, 1 where there is no flow;
    ``demand_bps`` has shape (N, F), 0 there, and ``capacity_bps`` (N, L). ``device`` as above.
    """

    def __init__(self, models: Sequence[BatchedFlows], *, device: str | None = None) -> None:
        if not models:
            raise ValueError("models: needs at least one network, got none")
        self.models = tuple(models)
        self.networks = len(models)
        self.flow_counts = np.array([model.flows for model in models], dtype=np.int64)
        self.flows = int(self.flow_counts.max())
        self.links = max(model.links for model in models)
        self.path_counts = np.ones((self.networks, self.flows), dtype=np.int64)
        self.demand_bps = np.zeros((self.networks, self.flows))
        self.capacity_bps = np.zeros((self.networks, self.links))
        for number, model in enumerate(models):
            self.path_counts[number, : model.flows] = model.path_counts
            self.demand_bps[number, : model.flows] = model.demand_bps
            self.capacity_bps[number, : model.links] = model.capacity_bps
        self._ops = _ops(device)
        self._fillings: dict[tuple[bool, bool], _Filling] = {}

    def rates(
        self,
        networks: Any,
        allocations: Any,
        *,
        demand_bps: Any = None,
        capacity_bps: Any = None,
        threads: int = 1,
    ) -> Any:
        """Max-min fair rates, shape (B, F), in bit/s; 0 beyond the flows of a row's network.

        ``networks`` has shape (B,): the number of each row's network. ``allocations`` has shape (B, F):
        path indices, 0 beyond the flows of the network. ``demand_bps`` (B, F) and ``capacity_bps``
        (B, L) replace those of the networks; what stands beyond their flows and links is not looked at.
        Tensors as in :meth:`BatchedFlows.rates`. ValueError names what does not fit.
        """
        rows = len(allocations)
        demand = None if demand_bps is None else _checked("demand_bps", demand_bps, (rows, self.flows))
        capacity = None if capacity_bps is None else _checked("capacity_bps", capacity_bps, (rows, self.links))
        key = capacity is None, demand is None
        if key not in self._fillings:
            self._fillings[key] = _Filling(
                [model.reduced(*key) for model in self.models],
                any(model.usage is not None for model in self.models),
                self.path_counts,
                self.demand_bps,
                self.capacity_bps,
                self._ops,
            )
        return self._fillings[key].rates(networks, allocations, demand, capacity, threads)

    def evaluate(
        self, networks: ArrayLike, allocations: ArrayLike, *, demand_bps: ArrayLike | None = None, threads: int = 1
    ) -> tuple[Array, Array]:
        """Efficiency and fairness of every allocation over the flows of its network, shapes (B,) and (B,)."""
        which = np.asarray(networks)
        rates = self.rates(which, np.asarray(allocations), demand_bps=demand_bps, threads=threads)
        counts = self.flow_counts[which]
        offered = self.demand_bps[which] if demand_bps is None else np.asarray(demand_bps, dtype=np.float64)
        offered = np.where(np.arange(self.flows) < counts[:, None], offered, 0.0)
        return efficiency(rates, offered), fairness(rates, counts)


@cache
def _fill_rows() -> Callable[..., int] | None:
    """The compiled code, or None where Numba is not installed."""
    try:
        from twin.flow.batched_compiled import fill_rows
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        return None
    return fill_rows


def _ops(device: str | None) -> Ops | None:
    """None is the compiled code."""
    if device is None:
        return None if _fill_rows() is not None else NumpyOps()
    return NumpyOps() if device == "numpy" else TorchOps(device)


class _Filling:
    """Networks, joined in tables, and who fills them."""

    def __init__(
        self,
        networks: list[Reduced],
        weighted: bool,
        path_counts: NDArray[np.int64],
        demand_bps: Array,
        capacity_bps: Array,
        ops: Ops | None,
    ) -> None:
        self._tables = Tables(networks, weighted=weighted)
        self._path_counts, self._demand = path_counts, demand_bps
        self._absent = self._tables.kept < 0
        self._kept = np.where(self._absent, 0, self._tables.kept)
        self._capacity = np.where(self._absent, HUGE, np.take_along_axis(capacity_bps, self._kept, axis=1))
        self._ops = ops
        self._hops = None if ops is None else HopTables(self._tables)
        self._bound = self._tables.bound.ravel()

    def with_demand(self, demand_bps: Array) -> _Filling:
        """The same tables with other demands, shape (N, F)."""
        found = copy.copy(self)
        found._demand = demand_bps
        return found

    def rates(self, networks: Any, allocations: Any, demand: Array | None, capacity: Array | None, threads: int) -> Any:
        tables = self._tables
        chosen = whole_numbers("allocations", allocations)
        if chosen.ndim != 2 or chosen.shape[1] != tables.flows:
            raise ValueError(f"allocations: shape must be (allocations, {tables.flows}), got {tuple(chosen.shape)}")
        which = None
        if networks is not None:
            which = whole_numbers("networks", networks)
            if which.shape != chosen.shape[:1]:
                raise ValueError(f"networks: shape must be ({chosen.shape[0]},), got {tuple(which.shape)}")
            if len(which) and not 0 <= int(which.min()) <= int(which.max()) < tables.networks:
                raise ValueError(
                    f"networks: must be in 0..{tables.networks - 1}, got {int(which.min())}..{int(which.max())}"
                )
        limits = None
        if capacity is not None:
            if which is None:
                limits = np.ascontiguousarray(capacity[:, self._kept[0]])
            else:
                index = np.asarray(which.cpu()) if hasattr(which, "cpu") else which
                kept = np.take_along_axis(capacity, self._kept[index], axis=1)
                limits = np.ascontiguousarray(np.where(self._absent[index], HUGE, kept))
        if self._ops is None:
            return self._by_rows(which, np.asarray(chosen), demand, limits, threads)
        return self._by_arrays(self._ops, which, chosen, demand, limits, threads)

    def _by_rows(
        self, which: Any, chosen: NDArray[np.int64], demand: Array | None, capacity: Array | None, threads: int
    ) -> Array:
        tables, compiled = self._tables, _fill_rows()
        assert compiled is not None
        batch = chosen.shape[0]
        networks = np.zeros(batch, dtype=np.int64) if which is None else np.asarray(which)
        found = np.empty((batch, tables.flows))

        def work(part: slice) -> None:
            wrong = compiled(
                tables.hop_first, tables.hop_links, tables.hop_usages, self._bound,
                self._path_counts, tables.flow_counts, tables.kept_counts, networks[part], chosen[part],
                self._demand if demand is None else demand[part], demand is not None,
                self._capacity if capacity is None else capacity[part], capacity is not None,
                tables.flows, tables.most, _TOLERANCE, found[part],
            )  # fmt: skip
            if wrong >= 0:
                row, flow = divmod(wrong, tables.flows)
                self._refuse(part.start + row, flow, which, chosen)

        _share(work, _parts(batch, -(-batch // max(1, threads))), threads)
        return found

    def _by_arrays(
        self, ops: Ops, which: Any, allocations: Any, demand: Array | None, capacity: Array | None, threads: int
    ) -> Any:
        tables, hops = self._tables, self._hops
        assert hops is not None
        chosen, networks = ops.array(allocations), None if which is None else ops.array(which)
        counts = ops.table(self, "_path_counts")
        wrong = (chosen < 0) | (chosen >= (counts if networks is None else counts[networks]))
        if bool(wrong.any()):
            row, flow = divmod(int(ops.positions(wrong.reshape(-1))[0]), tables.flows)
            self._refuse(row, flow, which, allocations)
        batch = chosen.shape[0]
        found = ops.zeros((batch, tables.flows))
        steps = ops.array(tables.most * np.arange(tables.flows)[:, None])

        def of_rows(name: str, part: slice) -> Any:
            table = ops.table(self, name)
            return table if networks is None else table[networks[part]]

        def work(part: slice) -> None:
            order, place_of = (ops.table(hops, name) for name in ("order", "place_of"))
            places = steps
            if networks is None:
                order, place_of = order[0], place_of[0]
            else:
                order, place_of = order[networks[part]].T, place_of[networks[part]].T
                places = steps + tables.flows * tables.most * networks[part]
            row_demand = of_rows("_demand", part) if demand is None else ops.array(demand[part])
            row_capacity = of_rows("_capacity", part) if capacity is None else ops.array(capacity[part])
            places = ops.rows(chosen[part].T, order) + places
            filled = fill(ops, hops, places, ops.rows(row_demand.T, order), row_capacity.T, _TOLERANCE)
            found[part] = ops.rows(filled, place_of).T

        most = max(64, ops.chunk // max(1, tables.rows + 1, tables.flows))
        _share(work, _parts(batch, min(most, -(-batch // max(1, threads)))), threads)
        return found if isinstance(found, type(allocations)) else ops.numpy(found)

    def _refuse(self, row: int, flow: int, which: Any, chosen: Any) -> None:
        allowed = int(self._path_counts[0 if which is None else int(which[row]), flow]) - 1
        raise ValueError(f"allocation {row}: flow {flow}: path must be in 0..{allowed}, got {int(chosen[row, flow])}")


def _share(work: Callable[[slice], None], parts: Iterator[slice], threads: int) -> None:
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, parts))
    else:
        for part in parts:
            work(part)


def _parts(batch: int, size: int) -> Iterator[slice]:
    for start in range(0, batch, max(1, size)):
        yield slice(start, min(batch, start + size))


def whole_numbers(what: str, values: Any) -> Any:
    """An array or tensor of int64, rows one after another."""
    if hasattr(values, "is_floating_point"):
        torch = importlib.import_module("torch")
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"{what}: must be whole numbers, got {values.dtype}")
        return values.to(torch.int64).contiguous()
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{what}: must be whole numbers, got {array.dtype}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _checked(what: str, values: Any, shape: tuple[int, ...] | None) -> Array:
    array = np.ascontiguousarray(values.cpu() if hasattr(values, "cpu") else values, dtype=np.float64)
    if array.ndim != 1 if shape is None else array.shape != shape:
        raise ValueError(f"{what}: shape must be {shape or '(links,)'}, got {array.shape}")
    # Written so that NaN is refused too.
    if array.size and not (array.min() >= 0 and array.max() <= _MOST_BPS):
        wrong = array[~((array >= 0) & (array <= _MOST_BPS))][0]
        raise ValueError(f"{what}: must be in 0..{_MOST_BPS:g} bit/s, got {wrong}")
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
