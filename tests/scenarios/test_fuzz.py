"""Whatever a file says, the loader answers with a scenario or with lines for the user."""

import copy
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios.errors import ScenarioFileError
from scenarios.loader import resolve
from scenarios.registry import LIBRARY
from scenarios.source import Location, Source, parse_source, read_source

QUICKSTART = read_source(LIBRARY / "quickstart.twin.yml")
TEXT = (LIBRARY / "quickstart.twin.yml").read_text(encoding="utf-8")


def locations(data: Any, location: Location = ()) -> list[Location]:
    """Every path in plain data."""
    found = [location] if location else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += locations(value, (*location, key))
    return found


_junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["embb", "slice:embb", "10ms", "-1Mbps", "s1", "1e999s", "5/s", "50%", "traces:x", "a:b:c", "..", "1"]
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(locations(QUICKSTART.data)), st.sampled_from(["set", "drop", "add"]), _junk),
        min_size=1,
        max_size=3,
    )
)
def test_changed_values_and_keys(changes: list[tuple[Location, str, Any]]) -> None:
    data = copy.deepcopy(QUICKSTART.data)
    for location, how, value in changes:
        container: Any = data
        try:
            for part in location[:-1]:
                container = container[part]
            if how == "drop":
                del container[location[-1]]
            elif how == "add" and isinstance(container, dict):
                container[str(value)[:8]] = value
            else:
                container[location[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took this part away
    check(Source(QUICKSTART.file, data, QUICKSTART.lines))


@settings(max_examples=150, deadline=None)
@given(start=st.integers(0, len(TEXT)), length=st.integers(0, 40), put=st.text(max_size=6))
def test_changed_text(start: int, length: int, put: str) -> None:
    try:
        source = parse_source(TEXT[:start] + put + TEXT[start + length :], QUICKSTART.file)
    except ScenarioFileError as error:
        assert_lines(error)
        return
    check(source)


def check(source: Source) -> None:
    try:
        scenario = resolve(source)
    except ScenarioFileError as error:
        assert_lines(error)
    else:
        assert yaml.safe_load(yaml.safe_dump(dict(scenario.document))) is not None


def assert_lines(error: ScenarioFileError) -> None:
    assert error.problems
    for problem in error.problems:
        assert "\n" not in str(problem)
        assert str(problem).startswith(QUICKSTART.file)
