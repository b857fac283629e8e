"""Solvers by name: ``SOLVERS[name](problem, rng) -> Solution``; ``BATCHED[name](problems, rngs)``: many at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from controllers.microopt import bayesian, exhaustive, gradient, interior_point
from controllers.microopt.problem import Problem, Solution
from controllers.microopt.stack import BatchSolver

Solver = Callable[[Problem, np.random.Generator], Solution]


def _microopt_0sigma(problem: Problem, rng: np.random.Generator) -> Solution:
    return gradient.microopt_sigmas(problem, rng, 0.0, "microopt_0sigma")


def _microopt_2sigma(problem: Problem, rng: np.random.Generator) -> Solution:
    return gradient.microopt_sigmas(problem, rng, 2.0, "microopt_2sigma")


SOLVERS: dict[str, Solver] = {
    "microopt": gradient.solve,
    "grid": exhaustive.grid,
    "peak_alloc": exhaustive.peak_alloc,
    "atlas": bayesian.atlas,
    "atlas_plus": bayesian.atlas_plus,
    "cadrl": interior_point.cadrl,
    "cadrl_plus": interior_point.cadrl_plus,
    "microopt_0sigma": _microopt_0sigma,
    "microopt_2sigma": _microopt_2sigma,
}

BATCHED: dict[str, BatchSolver] = {
    "atlas": bayesian.atlas_batch,
    "atlas_plus": bayesian.atlas_plus_batch,
    "cadrl": interior_point.cadrl_batch,
    "cadrl_plus": interior_point.cadrl_plus_batch,
}
"""Those whose cost is calls rather than arithmetic."""
