"""The slice model: the distribution of a user's QoS, given slice traffic and resource allocation.

Source: "MicroOpt: Model-Driven Slice Resource Optimization in 5G and Beyond Networks", section IV-A: a neural
network maps (users, allocation) to the parameters of a QoS distribution (equation 3) from which samples
are drawn so that their gradient with respect to the allocation exists (equation 5).

Shapes: ``traffic`` is any shape (...); ``allocation`` is (..., K) with K resources in the order of
``SliceModel.resources``; both broadcast over the leading axes, so (B, 1, K) and (B, T) give (B, T). A
distribution has ``components`` M as the last axis: 1 for a Gaussian, more for a mixture.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from controllers.microopt.slice_data import DELAY as DELAY
from controllers.microopt.slice_data import THROUGHPUT as THROUGHPUT
from controllers.microopt.slice_data import SliceModelError as SliceModelError

FORMAT = "twinbed.slice-model"
VERSION = 1
Kind = Literal["paper", "gaussian", "mdn"]
_SQRT2 = math.sqrt(2.0)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_HULL_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Resource:
    """One resource of the allocation. ``name`` carries the unit; ``low`` and ``high`` are the least and
    largest value in the data the model was fitted on: outside, the model extrapolates."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class QosDistribution:
    """A mixture of M normals per point, in the unit of the QoS: tensors of shape (..., M); M = 1 is a Gaussian."""

    weights: Tensor
    means: Tensor
    stds: Tensor

    @property
    def components(self) -> int:
        return self.means.shape[-1]

    def mean(self) -> Tensor:
        """Shape (...)."""
        return (self.weights * self.means).sum(-1)

    def std(self) -> Tensor:
        """Shape (...)."""
        square = (self.weights * (self.stds**2 + (self.means - self.mean().unsqueeze(-1)) ** 2)).sum(-1)
        return square.sqrt()

    def cdf(self, value: Tensor | float) -> Tensor:
        """P(QoS <= value), exact and differentiable; ``value`` is a number or broadcasts against (...)."""
        value = torch.as_tensor(value, dtype=self.means.dtype).unsqueeze(-1)
        return (self.weights * _normal_cdf((value - self.means) / self.stds)).sum(-1)

    def log_prob(self, value: Tensor | float) -> Tensor:
        """Log density at ``value`` (equation 3 for a Gaussian); ``value`` broadcasts against (...)."""
        value = torch.as_tensor(value, dtype=self.means.dtype).unsqueeze(-1)
        single = -0.5 * ((value - self.means) / self.stds) ** 2 - self.stds.log() - _LOG_SQRT_2PI
        if self.components == 1:
            return single.squeeze(-1)
        return torch.logsumexp(single + self.weights.clamp_min(1e-30).log(), dim=-1)

    def quantile(self, level: float) -> Tensor:
        """The value that the QoS stays below with probability ``level`` in (0, 1); shape (...), no gradient."""
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must lie between 0 and 1, got {level:g}")
        with torch.no_grad():
            # A quantile of a mixture lies between those of its components.
            each = self.means + self.stds * math.sqrt(2.0) * torch.erfinv(torch.tensor(2.0 * level - 1.0))
            low, high = each.amin(-1), each.amax(-1)
            for _ in range(0 if self.components == 1 else 40):
                middle = (low + high) / 2
                below = self.cdf(middle) < level
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            return (low + high) / 2

    def sample(self, normal: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Reparameterised draws, one for each element of ``normal`` (standard normal draws whose shape
        broadcasts against (...), e.g. (S, ...)).

        A Gaussian gives mean + std * normal (equation 5). A mixture needs ``uniform`` draws in [0, 1) of
        the same shape as well, which choose the component; the gradient is that of the implicit
        reparameterisation, dq/dθ = -(dF/dθ)/p at the drawn q, exact for the mixture as a whole
        ("Stochastic Backpropagation through Mixture Density Distributions", Graves 2016).
        The same draws for every allocation make common random numbers.
        """
        if self.components == 1:
            return self.means.squeeze(-1) + self.stds.squeeze(-1) * normal
        if uniform is None:
            raise ValueError("a mixture needs uniform draws to choose its components")
        with torch.no_grad():
            chosen = (self.weights.cumsum(-1)[..., :-1] < uniform.unsqueeze(-1)).sum(-1, keepdim=True)
            shape = chosen.shape[:-1]
            means = self.means.expand(*shape, self.components).gather(-1, chosen).squeeze(-1)
            stds = self.stds.expand(*shape, self.components).gather(-1, chosen).squeeze(-1)
            drawn = means + stds * normal
            density = self.log_prob(drawn).exp().clamp_min(1e-12)
        level = self.cdf(drawn)
        return drawn - (level - level.detach()) / density


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a network is made of; saved with it. ``shared`` and ``head`` are layer widths (the paper:
    three of 16, one of 16), ``components`` the normals per member, ``members`` the ensemble size.

    ``features`` is ``raw`` (the paper: users and resources as they are) or ``limits`` (what each user gets when
    one resource is scarce, the least of these, and the users, on logarithmic scales; see ``slice_limits``).
    ``link`` says whether the mean head gives the mean or its logarithm, ``base`` that it gives the
    logarithm of the factor by which the mean differs from the least share. ``smooth``: SiLU, else ReLU.
    """

    kind: Kind
    resources: int
    shared: tuple[int, ...] = (16, 16, 16)
    head: tuple[int, ...] = (16,)
    components: int = 1
    members: int = 1
    features: Literal["raw", "limits"] = "limits"
    smooth: bool = False
    link: Literal["linear", "log"] = "log"
    base: bool = True


class QosNetwork(nn.Module):
    """Parameters of the distribution of one QoS of one slice, by an ensemble of equal networks.

    The input is scaled to zero mean and unit variance with statistics of the training data, saved here;
    so is the QoS. A Gaussian ensemble is reduced to one Gaussian of the same mean and variance.
    """

    input_mean: Tensor
    input_std: Tensor
    qos_mean: Tensor
    qos_std: Tensor
    std_floor: Tensor
    least_traffic: Tensor
    slope: Tensor
    offset: Tensor
    cap: Tensor
    sharpness: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = _feature_count(architecture)
        for name, value in (("input_mean", torch.zeros(width)), ("input_std", torch.ones(width))):
            self.register_buffer(name, value)
        for name, number in (("qos_mean", 0.0), ("qos_std", 1.0), ("std_floor", 0.0), ("least_traffic", 1.0)):
            self.register_buffer(name, torch.tensor(number))
        if architecture.features == "limits":
            for name, value in (
                ("slope", torch.ones(architecture.resources)),
                ("offset", torch.zeros(architecture.resources)),
            ):
                self.register_buffer(name, value)
            for name, number in (("cap", 0.0), ("sharpness", 8.0)):
                self.register_buffer(name, torch.tensor(number))
        members = architecture.members
        self.shared = _stack(members, (width, *architecture.shared))
        last = architecture.shared[-1]
        self.heads = nn.ModuleDict(
            {
                name: _stack(members, (last, *architecture.head, architecture.components))
                for name in (("mean", "std") if architecture.components == 1 else ("mean", "std", "weight"))
            }
        )

    def features(self, traffic: Tensor, allocation: Tensor) -> Tensor:
        """What the first layer sees before scaling, shape (..., F)."""
        users = traffic.unsqueeze(-1)
        if self.architecture.features == "raw":
            return torch.cat((allocation, users), dim=-1)
        # Fewer users than the data ever had share with nobody else: the least traffic seen stands for them.
        users = users.clamp_min(self.least_traffic)
        share = self.limits(allocation).log() - users.log()
        return torch.cat((share, self.bottleneck(share), users.log()), dim=-1)

    def limits(self, allocation: Tensor) -> Tensor:
        """What all users together get when only one resource is scarce: affine in each resource, shape (..., K)."""
        return self.slope * torch.maximum(allocation - self.offset, 0.05 * allocation).clamp_min(1e-9)

    def bottleneck(self, share: Tensor) -> Tensor:
        """Logarithm of the smooth minimum of a user's share of every resource and of a single user's best."""
        parts = torch.cat((share, self.cap.expand(*share.shape[:-1], 1)), dim=-1)
        return -torch.logsumexp(-self.sharpness * parts, dim=-1, keepdim=True) / self.sharpness

    def forward(self, traffic: Tensor, allocation: Tensor) -> QosDistribution:
        members = self.member_distributions(traffic, allocation)  # (E, ..., M)
        if self.architecture.members == 1:
            return QosDistribution(members.weights[0], members.means[0], members.stds[0])
        if self.architecture.components == 1:
            mean = members.means.mean(0)
            variance = (members.stds**2 + (members.means - mean) ** 2).mean(0)
            return QosDistribution(members.weights[0], mean, variance.sqrt())
        joined = [part.movedim(0, -2).flatten(-2) for part in (members.weights, members.means, members.stds)]
        return QosDistribution(joined[0] / self.architecture.members, joined[1], joined[2])

    def member_distributions(self, traffic: Tensor, allocation: Tensor) -> QosDistribution:
        """One distribution per member, shape (E, ..., M)."""
        traffic, allocation = _broadcast(traffic, allocation)
        shape = traffic.shape
        features = self.features(traffic, allocation)
        scaled = (features - self.input_mean) / self.input_std
        hidden = scaled.reshape(1, -1, scaled.shape[-1]).expand(self.architecture.members, -1, -1)
        activation = functional.silu if self.architecture.smooth else functional.relu
        for layer in self.shared:
            hidden = activation(layer(hidden))
        out = {}
        for name, layers in self.heads.items():
            value = hidden
            for index, layer in enumerate(layers):  # type: ignore[arg-type]
                value = layer(value if index == 0 else activation(value))
            out[name] = value.reshape(self.architecture.members, *shape, self.architecture.components)
        if self.architecture.link == "log":
            logs = out["mean"] * self.qos_std + self.qos_mean
            if self.architecture.features == "limits" and self.architecture.base:
                logs = logs + features[..., -2:-1]
            means = logs.exp()
            stds = means * functional.softplus(out["std"]) + self.std_floor
        else:
            means = out["mean"] * self.qos_std + self.qos_mean
            stds = functional.softplus(out["std"]) * self.qos_std + self.std_floor
        weights = torch.softmax(out["weight"], dim=-1) if "weight" in out else torch.ones_like(means)
        return QosDistribution(weights, means, stds)


class SliceModel:
    """Slice models of one testbed: for every slice and QoS a :class:`QosNetwork`, and what they were fitted on.

    ``resources``: names with units and the range of the data; ``qos_names``: ``throughput_mbps`` (more is
    better) and, where measured, ``delay_s`` (less is better); ``slices``: at least one name;
    ``traffic_range``: least and largest number of users in the data; ``provenance``: plain JSON values.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        resources: Sequence[Resource],
        traffic_range: tuple[float, float],
        hull: Tensor,
        networks: Mapping[tuple[str, str], QosNetwork],
        provenance: Mapping[str, Any],
    ) -> None:
        self.kind = kind
        self.resources = tuple(resources)
        self.traffic_range = traffic_range
        self.networks = dict(networks)
        self.provenance = dict(provenance)
        self.slices = tuple(dict.fromkeys(slice_name for slice_name, _ in self.networks))
        self.qos_names = tuple(dict.fromkeys(qos for _, qos in self.networks))
        self._hull = hull
        for network in self.networks.values():
            network.eval().requires_grad_(False)

    def distribution(
        self, traffic: Tensor | float, allocation: Tensor, *, slice_name: str | None = None, qos: str = THROUGHPUT
    ) -> QosDistribution:
        """The QoS of each user when ``traffic`` users (...) share ``allocation`` (..., K); differentiable in both.

        ``slice_name`` may be left out when the model has one slice. SliceModelError for an unknown slice or QoS.
        """
        network = self.network(slice_name, qos)
        result: QosDistribution = network(torch.as_tensor(traffic, dtype=torch.float32), allocation)
        return result

    def network(self, slice_name: str | None = None, qos: str = THROUGHPUT) -> QosNetwork:
        """The network of one slice and QoS."""
        if slice_name is None:
            if len(self.slices) > 1:
                raise SliceModelError(f"slice model: name the slice; slices: {', '.join(self.slices)}")
            slice_name = self.slices[0]
        if (slice_name, qos) not in self.networks:
            known = ", ".join(f"{name} {metric}" for name, metric in self.networks)
            raise SliceModelError(f"slice model: no QoS {qos!r} of slice {slice_name!r}; known: {known}")
        return self.networks[slice_name, qos]

    @property
    def low(self) -> Tensor:
        """Least value of each resource in the data, shape (K,)."""
        return torch.tensor([resource.low for resource in self.resources])

    @property
    def high(self) -> Tensor:
        """Largest value of each resource in the data, shape (K,)."""
        return torch.tensor([resource.high for resource in self.resources])

    def hull(self) -> Tensor:
        """Half-spaces (H, K + 1) whose intersection is the convex hull of the data's allocations: rows (a, b)
        with a·x + b <= 0 for x scaled to [0, 1] by ``low`` and ``high``."""
        return self._hull

    def in_hull(self, allocation: Tensor, traffic: Tensor | float | None = None) -> Tensor:
        """Whether the data surrounds an allocation (..., K), boolean (...); False marks extrapolation.

        With ``traffic`` also whether it lies within ``traffic_range``.
        """
        span = (self.high - self.low).clamp_min(1e-12)
        scaled = (allocation - self.low) / span
        inside = ((scaled @ self._hull[:, :-1].T + self._hull[:, -1]) <= _HULL_TOLERANCE).all(-1)
        if traffic is not None:
            users = torch.as_tensor(traffic)
            inside = inside & (users >= self.traffic_range[0]) & (users <= self.traffic_range[1])
        return inside


def save(model: SliceModel, path: Path) -> None:
    """Write a model file: tensors and plain values only, so that loading runs no code. Written, then renamed."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kind": model.kind,
        "meta": json.dumps(
            {
                "resources": [asdict(resource) for resource in model.resources],
                "traffic_range": list(model.traffic_range),
                "networks": [
                    {"slice": slice_name, "qos": qos, "architecture": asdict(network.architecture)}
                    for (slice_name, qos), network in model.networks.items()
                ],
                "provenance": model.provenance,
            }
        ),
        "hull": model.hull(),
        "states": [network.state_dict() for network in model.networks.values()],
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(content, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else "the folder does not exist or is not writable"
        raise SliceModelError(f"{path}: cannot be written: {reason}") from None


def load(path: Path) -> SliceModel:
    """Read a model file. SliceModelError when it is none, is damaged, or is of a later version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SliceModelError(f"{path}: cannot be read: {error.strerror}") from None
    except (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError):
        raise SliceModelError(f"{path}: not a slice model (twin slice-model fit writes one)") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SliceModelError(f"{path}: not a slice model (twin slice-model fit writes one)")
    if content.get("version") != VERSION:
        raise SliceModelError(f"{path}: slice model version {content.get('version')}, this program reads {VERSION}")
    try:
        meta = json.loads(content["meta"])
        networks = {}
        for entry, state in zip(meta["networks"], content["states"], strict=True):
            fields = entry["architecture"]
            fields |= {"shared": tuple(fields["shared"]), "head": tuple(fields["head"])}
            network = QosNetwork(Architecture(**fields))
            network.load_state_dict(state)
            networks[entry["slice"], entry["qos"]] = network
        return SliceModel(
            kind=content["kind"],
            resources=[Resource(**fields) for fields in meta["resources"]],
            traffic_range=(float(meta["traffic_range"][0]), float(meta["traffic_range"][1])),
            hull=content["hull"],
            networks=networks,
            provenance=meta["provenance"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SliceModelError(f"{path}: damaged slice model: {reason}") from None


class _Linear(nn.Module):
    """One linear layer per member of an ensemble: (E, N, in) to (E, N, out)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, value: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, value, self.weight)


def _stack(members: int, widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(_Linear(members, a, b) for a, b in itertools.pairwise(widths))


def _feature_count(architecture: Architecture) -> int:
    return architecture.resources + (1 if architecture.features == "raw" else 2)


def _broadcast(traffic: Tensor, allocation: Tensor) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(traffic.shape, allocation.shape[:-1])  # type: ignore[no-untyped-call]
    return traffic.expand(shape), allocation.expand(*shape, allocation.shape[-1])


def _normal_cdf(value: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-value / _SQRT2)
