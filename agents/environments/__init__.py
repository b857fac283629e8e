"""Environments for reinforcement learning, on running networks and on arrays.

Gymnasium: ``twinbed/SliceScaling-v0`` and ``twinbed/IabPath-v0``, registered when this package (or
``agents``) is imported. PettingZoo: :mod:`agents.environments.slice_scaling_v0`.
"""

from __future__ import annotations

try:
    import gymnasium
except ModuleNotFoundError as error:
    if error.name != "gymnasium":
        raise
    raise ModuleNotFoundError(
        "agents.environments needs pip install 'twinbed[learning]': gymnasium is not installed", name="gymnasium"
    ) from None

gymnasium.register(id="twinbed/SliceScaling-v0", entry_point="agents.environments.slice_scaling:SliceScalingEnv")
gymnasium.register(
    id="twinbed/IabPath-v0",
    entry_point="agents.environments.iab_path:IabPathEnv",
    vector_entry_point="agents.environments.iab_path:IabPathVectorEnv",
)
