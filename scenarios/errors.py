"""What is wrong with a scenario: one line per problem, collected, in the order of the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One line for the user: ``FILE:LINE: what, got, allowed``; ``line`` 0 means the file as a whole."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


class ScenarioFileError(ValueError):
    """A scenario that cannot be used; ``problems`` holds one entry per mistake."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems)))
        super().__init__("\n".join(map(str, self.problems)))


_SYNONYMS = {"bandwidth": "bw"}


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` for the known name that is nearest to ``name``, or nothing."""
    known = list(known)
    # Written out, a short key is nearer to others: "bandwith" to "band".
    meant = {**{word: item for word, item in _SYNONYMS.items() if item in known}, **{item: item for item in known}}
    found = [meant[word] for word in difflib.get_close_matches(name, list(meant), n=1, cutoff=0.6)]
    if not found:
        folded = {item.lower().replace("-", "_"): item for item in known}
        found = [
            folded[match]
            for match in difflib.get_close_matches(name.lower().replace("-", "_"), list(folded), n=1, cutoff=0.6)
        ]
    if not found:
        # Short keys have no close match: "bw" for "bandwith".
        short = [item for item in known if item[:1] == name[:1] and 1 < len(item) < len(name) and _within(item, name)]
        found = short if len(short) == 1 else []
    return f" (did you mean {found[0]}?)" if found else ""


def _within(short: str, name: str) -> bool:
    """Whether the letters of ``short`` stand in ``name`` in this order."""
    letters = iter(name)
    return all(letter in letters for letter in short)


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """``no WHAT named NAME (did you mean X?); known: ...``."""
    known = list(known)
    return f"no {what} named {name!s}{nearest(str(name), known)}; known: {', '.join(known) or 'none'}"
