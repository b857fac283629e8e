"""Random streams by name, all spawned from the seed of the run.

A stream depends on the seed and its own name only, so that adding a concern, or asking in another
order, changes no other stream.
"""

from __future__ import annotations

import hashlib

import numpy as np


def named_stream(seed: int, name: str) -> np.random.Generator:
    """The stream of one concern (``"realise/video"``); ``seed`` is a whole number, at least 0."""
    digest = hashlib.sha256(name.encode()).digest()
    key = tuple(int.from_bytes(digest[start : start + 4], "big") for start in (0, 4, 8, 12))
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
