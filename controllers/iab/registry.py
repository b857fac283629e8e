"""Path controllers by name: those here, and those under the entry point group ``twinbed.path_controllers``.

An entry point is a function of a problem and of a policy file, or None, that gives a solver for this
problem; learning and loading are done there, so that a decision is timed without them.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from controllers.iab.brute_force import brute_force
from controllers.iab.local_search import local_search
from controllers.iab.optimal import optimal
from controllers.iab.problem import PathProblem, SolveError, Solver
from controllers.iab.random_paths import random_paths
from controllers.iab.subset_sum import subset_sum

SOLVERS: dict[str, Solver] = {
    "subset_sum": subset_sum,
    "random": random_paths,
    "brute_force": brute_force,
    "optimal": optimal,
    "local_search": local_search,
}

GROUP = "twinbed.path_controllers"
BEST = "best"
# What ``best`` means: the first of these that is installed.
_STRONGEST = ("prior_search", "local_search")


@functools.cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in (*SOLVERS, BEST)}


def solver_names() -> tuple[str, ...]:
    """Every known name; ``best`` and those of the entry points last."""
    return (*SOLVERS, BEST, *sorted(_points()))


def make_solver(name: str, problem: PathProblem, policy: Path | None = None) -> Solver:
    """The controller ``name``, ready for a problem; ``policy`` is what it learned, for those that learn.

    SolveError on an unknown name, a policy for a controller without one, or a missing package.
    """
    if name == BEST:
        name = next(one for one in _STRONGEST if one in (*SOLVERS, *_points()))
    if name in SOLVERS:
        if policy is not None:
            raise SolveError(f"policy: {name} does not learn, so it takes none")
        return SOLVERS[name]
    if name not in _points():
        raise SolveError(f"controller: must be one of {', '.join(solver_names())}, got {name!r}")
    try:
        make = _points()[name].load()
    except (ImportError, AttributeError) as error:
        raise SolveError(f"controller {name} cannot be imported: {error}") from None
    made: Solver = make(problem, policy)
    return made
