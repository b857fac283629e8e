"""``random``: a path per flow by lot (baseline of NANCY D4.2 §4.2)."""

from __future__ import annotations

import numpy as np

from controllers.iab.problem import Decision, PathProblem


def random_paths(problem: PathProblem, rng: np.random.Generator) -> Decision:
    """Every path of a flow equally likely; nothing is evaluated."""
    return Decision(problem.random(1, rng)[0], steps=0)
