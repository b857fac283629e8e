"""The equations of :mod:`twin.flow.batched` compiled for one core of the host, row after row, with Numba.

Importing this module compiles once per host (about 3 s) and reads the compiled code from Numba's cache
from then on. ModuleNotFoundError without Numba, which the extra ``learning`` installs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from twin.flow.batched_tables import HUGE

_ROWS = "int64[::1]"
_TABLE = "int64[:,::1]"
_VALUES = "float64[::1]"
_GRID = "float64[:,::1]"
# hop_first, hop_links, hop_usages, bound, path_counts, flow_counts, kept_counts, networks, chosen,
# demand, demand_by_row, capacity, capacity_by_row, flows, most, tolerance, found
_SIGNATURE = (
    f"int64({_ROWS}, {_ROWS}, {_VALUES}, {_VALUES}, {_TABLE}, {_ROWS}, {_ROWS}, {_ROWS}, {_TABLE}, "
    f"{_GRID}, boolean, {_GRID}, boolean, int64, int64, float64, {_GRID})"
)


def _fill_rows(
    hop_first: Any,
    hop_links: Any,
    hop_usages: Any,
    bound: Any,
    path_counts: Any,
    flow_counts: Any,
    kept_counts: Any,
    networks: Any,
    chosen: Any,
    demand: Any,
    demand_by_row: Any,
    capacity: Any,
    capacity_by_row: Any,
    flows: Any,
    most: Any,
    tolerance: Any,
    found: Any,
) -> Any:
    """Write the rates of every row of ``chosen``, shape (B, F), into ``found``; see Tables for the tables.

    ``networks`` has shape (B,); ``demand`` (B or N, F) and ``capacity`` (B or N, L). Returns -1, or the
    place row * F + flow of the first path index that its flow does not have.
    """
    links = capacity.shape[1]
    left = np.empty(links)
    slack = np.empty(links)
    weight = np.empty(links)
    share = np.empty(links)
    total = np.empty(links)
    growing = np.empty(flows, dtype=np.int64)
    place = np.empty(flows, dtype=np.int64)
    limit = np.empty(flows)
    least = np.empty(flows)
    for row in range(chosen.shape[0]):
        network = networks[row]
        kept = kept_counts[network]
        offered = row if demand_by_row else network
        limits = row if capacity_by_row else network
        for link in range(kept):
            left[link] = capacity[limits, link]
            slack[link] = tolerance * left[link]
            weight[link] = 0.0
        count = 0
        for flow in range(flows):
            path = chosen[row, flow]
            if path < 0 or path >= path_counts[network, flow]:
                return row * flows + flow
            found[row, flow] = 0.0
            number = (network * flows + flow) * most + path
            most_bps = min(bound[number], demand[offered, flow])
            if flow < flow_counts[network] and most_bps > 0.0:
                place[flow], limit[flow] = number, most_bps
                growing[count] = flow
                count += 1
                for hop in range(hop_first[number], hop_first[number + 1]):
                    weight[hop_links[hop]] += hop_usages[hop]
        while count > 0:
            for link in range(kept):
                share[link] = left[link] / weight[link] if weight[link] > 0.0 else HUGE
                total[link] = 0.0
            for spot in range(count):
                flow = growing[spot]
                rate = limit[flow]
                begin, end = hop_first[place[flow]], hop_first[place[flow] + 1]
                for hop in range(begin, end):
                    rate = min(rate, share[hop_links[hop]])
                least[flow] = rate
                for hop in range(begin, end):
                    total[hop_links[hop]] += rate * hop_usages[hop]
            for link in range(kept):
                if left[link] - total[link] > slack[link]:
                    share[link] = HUGE
                weight[link] = 0.0
            still = 0
            for spot in range(count):
                flow = growing[spot]
                rate = limit[flow]
                begin, end = hop_first[place[flow]], hop_first[place[flow] + 1]
                for hop in range(begin, end):
                    rate = min(rate, share[hop_links[hop]])
                if rate <= least[flow]:
                    found[row, flow] = least[flow]
                    for hop in range(begin, end):
                        link = hop_links[hop]
                        # Rounding may leave a full link with less than nothing.
                        left[link] = max(0.0, left[link] - least[flow] * hop_usages[hop])
                else:
                    for hop in range(begin, end):
                        weight[hop_links[hop]] += hop_usages[hop]
                    growing[still] = flow
                    still += 1
            count = still
    return -1


def _compiled() -> Callable[..., int]:
    try:
        made = numba.njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")(_fill_rows)
    except RuntimeError:  # no folder that its cache could be written to
        made = numba.njit(_SIGNATURE, nogil=True, error_model="numpy")(_fill_rows)
    found: Callable[..., int] = made
    return found


fill_rows = _compiled()
