"""Names of path controllers: what ``best`` means, who takes a policy, mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controllers.iab import registry
from controllers.iab.local_search import local_search
from controllers.iab.problem import PathProblem, SolveError
from controllers.iab.registry import BEST, SOLVERS, make_solver, solver_names
from topologies.iab import generate

PROBLEM = PathProblem(generate(8, k_paths=2, seed=3))


def test_best_is_a_name_for_another_controller() -> None:
    assert BEST in solver_names() and BEST not in SOLVERS
    assert len(set(solver_names())) == len(solver_names())
    chosen = make_solver(BEST, PROBLEM)(PROBLEM, np.random.default_rng(1))
    named = make_solver("prior_search", PROBLEM)(PROBLEM, np.random.default_rng(1))
    assert chosen.steps == named.steps
    assert chosen.allocation.tolist() == named.allocation.tolist()


def test_best_without_learned_controllers_is_local_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_points", dict)
    assert make_solver(BEST, PROBLEM) is local_search
    assert solver_names() == (*SOLVERS, BEST)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(SolveError, match=r"^controller: must be one of subset_sum, .*, best, phaul, .* got 'bset'$"):
        make_solver("bset", PROBLEM)
    with pytest.raises(SolveError, match=r"^policy: optimal does not learn, so it takes none$"):
        make_solver("optimal", PROBLEM, Path("policy.npz"))
