"""``peak_alloc``: resources for the peak of the traffic, allocated once and kept.

The baseline Peak-alloc of "MicroOpt: Model-driven Slice Resource Optimization in 5G and Beyond
Networks" (§VI-A) allocates a slice statically for its peak of 5 users and the strict QoS threshold.
Its authors find the allocation by brute force over measurements of their testbed; here it is
calculated from what each segment costs, so no search is needed. With U users of q bit/s each::

    rate         = (1 + headroom) U q
    bandwidth    = rate
    CPU          = base + 1000 rate w          w = seconds of gNB CPU per bit
    PRB share    = rate / (N_PRB 12 SCS e (1 - overhead))

e is the spectral efficiency that the worst user is expected to have (default: CQI 9 of TS 38.214
Table 5.2.2.1-2, 2.4063 bit/s/Hz), the overhead that of TS 38.306 §4.1.2 (downlink, FR1: 0.14).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controllers.base import ControllerContext
from controllers.params import choices, number, numbers
from topologies.model import Gnb
from twin.types import Action, Observation

OVERHEAD = 0.14
KNOBS = ("cpu_millicores", "bandwidth_mbps", "prb_share")


class PeakAlloc:
    """Allocates for the peak at the first decision, then does nothing.

    ``peak_users``: active UEs at the peak, one number for all slices or ``{slice: number}``.
    ``q_thresh_mbps``: throughput per user; default is each slice's own ``q_thresh``; a slice in
    scope with neither is left as it is. ``knobs``: which resources are set.
    """

    def __init__(
        self,
        context: ControllerContext,
        peak_users: float | Mapping[str, float] = 5.0,
        q_thresh_mbps: float | None = None,
        headroom: float = 0.1,
        cpu_base_millicores: float = 50.0,
        spectral_efficiency: float = 2.4063,
        knobs: Sequence[str] = ("cpu_millicores", "bandwidth_mbps"),
    ) -> None:
        topology = context.topology
        names = tuple(slice_.name for slice_ in topology.slices if f"slice:{slice_.name}" in context.scope)
        if not names:
            raise ValueError(f"scope holds no slice, got {', '.join(context.scope) or 'nothing'}")
        if isinstance(peak_users, Mapping):
            users = numbers("peak_users", peak_users, names, 0)
        else:
            users = dict.fromkeys(names, number("peak_users", peak_users, 0))
        if q_thresh_mbps is not None:
            number("q_thresh_mbps", q_thresh_mbps, 0)
        number("headroom", headroom, 0)
        number("cpu_base_millicores", cpu_base_millicores, 0)
        number("spectral_efficiency", spectral_efficiency, 0.01, 10)
        chosen = choices("knobs", knobs, KNOBS)
        gnbs = list(topology.of_kind(Gnb))
        if not gnbs:
            raise ValueError("the topology has no gNB to allocate resources at")
        # All users may meet at one gNB, so the tightest one decides.
        work_s_per_bit = max(gnb.work_ns_per_bit for gnb in gnbs) * 1e-9
        carrier_bps = min(
            gnb.prb_total * 12 * gnb.subcarrier_khz * 1e3 * spectral_efficiency * (1 - OVERHEAD) for gnb in gnbs
        )
        self._actions: list[Action] = []
        shares = {slice_.name: slice_.prb_share for slice_ in topology.slices}
        for name in names:
            quality_bps = topology.slice_named(name).sla.q_thresh_bps if q_thresh_mbps is None else q_thresh_mbps * 1e6
            if quality_bps is None or name not in users:
                continue
            rate_bps = (1 + headroom) * users[name] * quality_bps
            values = {
                "cpu_millicores": max(10.0, cpu_base_millicores + 1000 * rate_bps * work_s_per_bit),
                "bandwidth_mbps": max(0.01, rate_bps / 1e6),
                "prb_share": rate_bps / carrier_bps,
            }
            if "prb_share" in chosen:
                shares[name] = values["prb_share"]
            self._actions.extend(Action(f"slice:{name}", knob, values[knob]) for knob in chosen)
        if sum(shares.values()) > 1 + 1e-9:
            raise ValueError(
                f"peak_users: the peak needs more than all PRBs: shares add up to {sum(shares.values()):.3g}, at most 1"
            )
        # Shares that shrink make room for those that grow.
        before = {slice_.name: slice_.prb_share for slice_ in topology.slices}
        self._actions.sort(
            key=lambda action: (
                action.knob == "prb_share" and float(action.value) > before[action.entity.partition(":")[2]]
            )
        )

    def observe(self, observation: Observation) -> None:
        """The peak is known in advance; nothing is learned."""

    def act(self) -> Sequence[Action]:
        actions, self._actions = self._actions, []
        return actions
