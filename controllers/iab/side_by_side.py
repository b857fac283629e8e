"""Path controllers that decide many traffic matrices of a network at once, several times faster than one by one."""

from __future__ import annotations

from controllers.iab.local_search import local_search_many
from controllers.iab.problem import ManySolver
from controllers.iab.subset_sum import subset_sum_many

MANY_SOLVERS: dict[str, ManySolver] = {
    "subset_sum": subset_sum_many,
    "local_search": local_search_many,
}
