"""Path controllers by name."""

from __future__ import annotations

from controllers.iab.brute_force import brute_force
from controllers.iab.local_search import local_search
from controllers.iab.optimal import optimal
from controllers.iab.problem import Solver
from controllers.iab.random_paths import random_paths
from controllers.iab.subset_sum import subset_sum

SOLVERS: dict[str, Solver] = {
    "subset_sum": subset_sum,
    "random": random_paths,
    "brute_force": brute_force,
    "optimal": optimal,
    "local_search": local_search,
    "best": local_search,
}
