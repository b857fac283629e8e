"""``microopt``: the controller of a run: predict the users, optimise on the model, apply, learn from what came.

Every interval the traffic of each slice is forecast with its uncertainty, MicroOpt finds the cheapest
allocation that keeps E[beta] below the threshold, and CPU and bandwidth of the slice are set to it.

Beyond the paper, which misses the threshold in two of nine settings for want of it (section VI-E), the measured beta is
fed back:

- the promise is an account: aim beta_thresh of the users may be degraded, what was degraded is taken off, and what is
  left or owed is spread over the users of the next ``recovery_s`` seconds: the beta that the optimiser gets is
  aim beta_thresh + (account - reserve) / users expected in that time, within TARGETS times aim beta_thresh. The reserve
  is the most users that the model knows, since users are degraded many at a time. Debts stay until they are paid;
  credit lapses beyond the reserve and what ``recovery_s`` seconds at aim beta_thresh are worth;
- a margin m on the QoS threshold, q_thresh (1 + m), follows what is wrong with the model, as in adaptive conformal
  inference (Gibbs and Candes, 2021): after every observation m <- m + gain w (degraded - beta that was asked for),
  with w the users in parts of their mean. The sum of the steps is m itself, which is bounded, so that in the long run
  as many users are degraded as were asked for, whatever the model says;
- while beta since the start exceeds its threshold, no resource goes below the last allocation under which an interval
  kept it, as "OnSlicing" switches to a safe one.

Thresholds are those of the SLA in force (KPIs ``q_thresh_bps``, ``beta_thresh``), so that they may change while the
network runs; nothing is trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controllers.base import ControllerContext
from controllers.params import number, numbers
from twin.knobs import KNOBS
from twin.types import Action, Observation

if TYPE_CHECKING:
    from controllers.microopt.forecast import Forecaster
    from controllers.microopt.slice_model import SliceModel
    from controllers.microopt.traffic import Traffic

SETTABLE = ("cpu_millicores", "bandwidth_mbps", "prb_share")
FORECASTERS = ("quantile", "recent")
DEFAULT_MODEL = Path(__file__).parent / "data" / "testbed.pt"
MARGIN_LOW, MARGIN_HIGH = -0.6, 1.5
TARGETS = (0.1, 2.0)
_CHANGE = 0.003


@dataclass
class _Slice:
    """What is known of one slice: thresholds in force, the margin, what was measured since the last decision."""

    name: str
    q_thresh_mbps: float
    beta_thresh: float
    forecaster: Forecaster | None = None
    margin: float = 0.0
    account: float = 0.0
    """User intervals that may still be degraded; negative: owed."""
    target: float = 0.0
    """E[beta] that the last decision asked for."""
    beta: float = 0.0
    users: float = 0.0
    degraded: float = 0.0
    all_users: float = 0.0
    observations: int = 0
    current: dict[str, float] = field(default_factory=dict)
    safe: dict[str, float] = field(default_factory=dict)


class MicroOpt:
    """Predicts, optimises and applies the allocation of every slice in scope that has both thresholds.

    ``model`` (or ``policy``): a slice model file, fitted on resources that a slice can be given (twin slice-model fit);
    default: the one of the scenario microopt. ``q_thresh_mbps``, ``beta_thresh``: instead of the SLA's at the start.
    ``eta``: cost per unit of each resource, default 1 / the largest that the model knows. ``capacity``: what the
    slices share. ``forecaster``: quantile or recent. ``aim``: part of beta_thresh that is aimed at; ``gain``: how
    fast the margin follows; ``recovery_s``: in what time the account is to be levelled, 0 for no account.
    ``fall_back``: whether the safe allocation is kept. gain 0, recovery_s 0, fall_back false: the paper's open loop.
    """

    def __init__(
        self,
        context: ControllerContext,
        model: str | None = None,
        policy: str | None = None,
        q_thresh_mbps: float | None = None,
        beta_thresh: float | None = None,
        eta: Mapping[str, float] | None = None,
        capacity: Mapping[str, float] | None = None,
        forecaster: str = "quantile",
        aim: float = 0.8,
        gain: float = 0.03,
        recovery_s: float = 20.0,
        fall_back: bool = True,
    ) -> None:
        try:
            import torch

            # Loaded before the run starts, not in its first decision.
            from controllers.microopt import forecast as _  # noqa: F401
            from controllers.microopt.slice_model import load
        except ModuleNotFoundError as error:
            raise ValueError(f"microopt: no package {error.name}: needs pip install 'twinbed[learning]'") from None
        torch.set_num_threads(1)
        if model is not None and policy is not None:
            raise ValueError("give model or policy, not both: they are the same file")
        given = model if model is not None else policy
        if given is not None and not isinstance(given, str):
            raise ValueError(f"model must be the path of a slice model, got {given!r}")
        path = DEFAULT_MODEL if given is None else Path(given)
        if given is None and not path.is_file():
            raise ValueError("model is missing: the file of a slice model (twin slice-model fit)")
        self._model: SliceModel = load(path)
        self._resources = tuple(resource.name for resource in self._model.resources)
        for name in self._resources:
            if name not in SETTABLE:
                raise ValueError(f"model {path}: fitted on {name}; a slice has knobs {', '.join(SETTABLE)}")
        highest = {resource.name: resource.high for resource in self._model.resources}
        self._aim = number("aim", aim, 0.05, 1)
        self._gain = number("gain", gain, 0, 1)
        self._recovery_s = number("recovery_s", recovery_s, 0)
        if not isinstance(fall_back, bool):
            raise ValueError(f"fall_back must be true or false, got {fall_back!r}")
        self._fall_back = fall_back
        if forecaster not in FORECASTERS:
            raise ValueError(f"forecaster must be one of {', '.join(FORECASTERS)}, got {forecaster!r}")
        if q_thresh_mbps is not None:
            number("q_thresh_mbps", q_thresh_mbps, 1e-6)
        if beta_thresh is not None:
            number("beta_thresh", beta_thresh, 1e-6, 1 - 1e-6)
        self._forecaster = forecaster
        self._slices: list[_Slice] = []
        for slice_ in context.topology.slices:
            if f"slice:{slice_.name}" not in context.scope:
                continue
            quality = slice_.sla.q_thresh_bps
            q = q_thresh_mbps if q_thresh_mbps is not None else None if quality is None else quality / 1e6
            beta = beta_thresh if beta_thresh is not None else slice_.sla.beta_thresh
            if q is None or beta is None or not q > 0 or not 0 < beta < 1:
                continue
            if len(self._model.slices) > 1 and slice_.name not in self._model.slices:
                known = ", ".join(self._model.slices)
                raise ValueError(f"model {path}: knows slices {known}, not {slice_.name}")
            self._slices.append(_Slice(slice_.name, q, beta, target=self._aim * beta))
        if not self._slices:
            raise ValueError("no slice in scope has q_thresh and a beta_thresh between 0 and 1; give both")
        count = len(self._slices)
        self._eta = {name: 1 / high for name, high in highest.items()} | numbers("eta", eta, self._resources, 1e-12)
        self._capacity = {name: count * high for name, high in highest.items()} | numbers(
            "capacity", capacity, self._resources, 1e-9
        )
        # A change of a threshold by an event is seen in the KPIs; parameters stay what they are.
        self._fixed = (q_thresh_mbps is not None, beta_thresh is not None)
        self._rng = np.random.default_rng(context.seed)
        self._interval_s = context.interval_s
        self._last_s = 0.0
        self._warm: Any = None
        # Capacities that cannot hold the least allocation are found before the run starts.
        self._solve([self._demand(item, None) for item in self._slices])

    def observe(self, observation: Observation) -> None:
        length_s = max(observation.time_s - self._last_s, 1e-9)
        self._last_s = observation.time_s
        for item in self._slices:
            entity = f"slice:{item.name}"
            if item.forecaster is None:
                item.forecaster = self._new_forecaster(max(1, round(self._interval_s / length_s)))
            before = item.q_thresh_mbps, item.beta_thresh
            if not self._fixed[0]:
                q_bps = observation.get(entity, "q_thresh_bps", 0.0)
                item.q_thresh_mbps = q_bps / 1e6 if q_bps > 0 else item.q_thresh_mbps
            if not self._fixed[1]:
                beta = observation.get(entity, "beta_thresh", 0.0)
                item.beta_thresh = beta if 0 < beta < 1 else item.beta_thresh
            if (item.q_thresh_mbps, item.beta_thresh) != before:
                item.account = 0.0
                item.target = self._aim * item.beta_thresh
            users = observation.get(entity, "active_ues", 0.0)
            item.forecaster.observe(users)
            item.beta = observation.get(entity, "qos_degradation_ratio", item.beta)
            quality = observation.get(entity, "qos_bps", -1.0)
            if users <= 0 or quality < 0:
                continue
            degraded = quality / 1e6 <= item.q_thresh_mbps
            item.users += users
            item.degraded += users * degraded
            item.all_users += users
            item.observations += 1
            weight = users * item.observations / item.all_users
            step = self._gain * weight * (float(degraded) - item.target)
            item.margin = min(MARGIN_HIGH, max(MARGIN_LOW, item.margin + step))
            self._book(item, users, degraded, length_s)

    def act(self) -> Sequence[Action]:
        from controllers.microopt.problem import Problem, SliceDemand

        actions: list[Action] = []
        chosen: list[_Slice] = []
        demands: list[SliceDemand] = []
        for item in self._slices:
            if item.users > 0 and item.current and item.degraded <= item.beta_thresh * item.users:
                item.safe = dict(item.current)
            traffic = None if item.forecaster is None else item.forecaster.forecast()
            if traffic is None:
                item.users = item.degraded = 0.0
                continue
            chosen.append(item)
            demands.append(self._demand(item, self._with_peak(traffic, item.observations)))
        if not demands:
            return actions
        problem, found = self._solve(demands)
        assert isinstance(problem, Problem)
        for item, part in zip(chosen, found.slices, strict=True):
            wanted = dict(part.allocation)
            over = item.beta > item.beta_thresh
            if self._fall_back and over and item.safe:
                wanted = {name: max(value, item.safe[name]) for name, value in wanted.items()}
            for name, value in wanted.items():
                value = min(KNOBS[name].high, max(KNOBS[name].low, round(value, 4)))
                before = item.current.get(name)
                if before is None or abs(value - before) > _CHANGE * before:
                    actions.append(Action(f"slice:{item.name}", name, value))
                    item.current[name] = value
            item.users = item.degraded = 0.0
        # What shrinks makes room for what grows.
        return actions

    def _book(self, item: _Slice, users: float, degraded: bool, length_s: float) -> None:
        """Enter an observation into the account and set the E[beta] to ask for next."""
        aimed = self._aim * item.beta_thresh
        item.account += users * (aimed - degraded)
        planned = item.all_users / item.observations * self._recovery_s / length_s
        if planned <= 0:  # no account is kept
            return
        # Users are degraded many at a time: what one observation of the most users costs is kept in hand.
        reserve = self._model.traffic_range[1]
        item.account = min(item.account, planned * aimed + reserve)
        low, high = (factor * aimed for factor in TARGETS)
        item.target = min(high, max(low, aimed + (item.account - reserve) / planned), 1 - 1e-6)

    def _with_peak(self, traffic: Traffic, seen: int) -> Traffic:
        """One more value beside the ``seen`` ones: the most users that the model knows. Whoever has seen little does
        not know the largest, and what is degraded at first has to be made up for later."""
        from controllers.microopt.traffic import Traffic

        rest = 1 / (1 + max(seen, 1))
        values = np.append(traffic.values, self._model.traffic_range[1])
        return Traffic(values, np.append(traffic.weights * (1 - rest), rest), traffic.name)

    def _new_forecaster(self, horizon: int) -> Forecaster:
        from controllers.microopt.forecast import QuantileForecaster, Recent

        return Recent() if self._forecaster == "recent" else QuantileForecaster(horizon=horizon)

    def _demand(self, item: _Slice, traffic: Any) -> Any:
        from controllers.microopt.problem import SliceDemand
        from controllers.microopt.traffic import constant

        return SliceDemand(
            self._model,
            constant(self._model.traffic_range[0]) if traffic is None else traffic,
            item.q_thresh_mbps * (1 + item.margin),
            item.target,
            item.name if len(self._model.slices) > 1 else None,
        )

    def _solve(self, demands: list[Any]) -> tuple[Any, Any]:
        import torch

        from controllers.microopt.gradient import Options, solve
        from controllers.microopt.problem import Problem

        problem = Problem(tuple(demands), self._capacity, self._eta)
        warm = self._warm if self._warm is not None and self._warm.shape[0] == len(demands) else None
        if warm is None:
            options = Options(candidates=192, starts=8, outer=10, inner=5, polish=4)
        elif len(demands) == 1:
            # From the last allocation the search is one along the boundary of the feasible set.
            options = Options(candidates=64, starts=2, outer=2, inner=2, polish=4)
        else:
            options = Options(candidates=96, starts=4, outer=5, inner=4, polish=4)
        found = solve(problem, self._rng, options=options, warm=warm)
        rows = [[part.allocation[name] for name in self._resources] for part in found.slices]
        self._warm = torch.tensor(rows, dtype=torch.float32) / problem.scale
        return problem, found
