import json
from dataclasses import fields
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios import schema
from scenarios.document import dump_document
from scenarios.json_schema import SCHEMA_FILE, schema_text
from scenarios.loader import dump_scenario, load_data, load_scenario
from scenarios.registry import LIBRARY, library_names
from scenarios.source import parse_source, read_source
from topologies import model
from traces.profiles import PROFILES


def test_the_published_schema_is_what_the_code_says() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: twin schema > scenarios/twin.schema.json"


@pytest.mark.parametrize("name", library_names())
def test_every_library_scenario_validates_against_the_schema(name: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    data = read_source(LIBRARY / f"{name}.twin.yml").data
    validator.validate(data)
    data["topology"]["lnks"] = []
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(data)


@pytest.mark.parametrize("change", [{"bw": "20MBps"}, {"delay": 5}, {"delay": "5Mbps"}, {"loss": "1ms"}, {"bw": None}])
def test_the_schema_refuses_wrong_units_as_the_loader_does(change: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    data = read_source(LIBRARY / "quickstart.twin.yml").data
    data["topology"]["links"][4] |= change
    if change != {"bw": None}:  # None is what a key without value reads as: left out
        assert not validator.is_valid(data)


@pytest.mark.parametrize("kind", get_args(get_args(schema.AnyNode)[0]))
def test_a_node_of_the_file_has_the_settings_of_the_model(kind: type[schema.NodeSettings]) -> None:
    (name,) = get_args(kind.model_fields["kind"].annotation)
    classes = {
        found.kind: found for found in vars(model).values() if isinstance(found, type) and hasattr(found, "kind")
    }
    # The image of a partition has parts, which the file keeps together.
    settings_of_model = {item.name for item in fields(classes[name])} - {"name", *schema.GuestFiles.model_fields}
    assert set(kind.model_fields) - {"kind", "cpu", "memory"} == settings_of_model


@pytest.mark.parametrize("kind", get_args(get_args(schema.AnyProfile)[0]))
def test_a_profile_of_the_file_has_the_parameters_of_the_function(kind: type[schema.Strict]) -> None:
    (name,) = get_args(kind.model_fields["kind"].annotation)
    expected = {parameter.name: parameter.required for parameter in PROFILES[name].parameters}
    found = {key: info.is_required() for key, info in kind.model_fields.items() if key != "kind"}
    assert found == expected


# --- round trip: any scenario, written as YAML, loads to the same scenario

_names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)


def _spelt(low: float, high: float, unit: str) -> st.SearchStrategy[str]:
    return st.floats(low, high).map(lambda value: f"{value!r}{unit}")


_delay = st.one_of(_spelt(0, 100, "ms"), _spelt(0, 1000, "us"), st.just(0))
_bandwidth = st.one_of(_spelt(0.1, 1000, "Mbps"), st.floats(0.1, 1000), st.integers(1, 1000))
_delays = st.one_of(
    st.just({}),
    st.builds(lambda delay: {"delay": delay}, _delay),
    st.builds(lambda ms, part: {"delay": f"{ms!r}ms", "jitter": f"{ms * part!r}ms"}, st.floats(0, 99), st.floats(0, 1)),
)
_link = st.builds(
    lambda link, delays: {**link, **delays},
    st.fixed_dictionaries({}, optional={"bw": _bandwidth, "loss": st.one_of(st.floats(0, 100), _spelt(0, 100, "%"))}),
    _delays,
)
_slice = st.fixed_dictionaries(
    {"sst": st.integers(0, 84)},
    optional={
        "sd": st.from_regex(r"[0-9a-f]{6}", fullmatch=True),
        "sla": st.one_of(
            st.fixed_dictionaries({}, optional={"latency_bound": _delay}),
            st.fixed_dictionaries({"q_thresh": _spelt(0, 50, "Mbps")}, optional={"beta_thresh": st.floats(0, 1)}),
        ),
        "resources": st.fixed_dictionaries(
            {},
            optional={
                "ran": st.fixed_dictionaries(
                    {}, optional={"prb_share": st.floats(0, 0.5), "cpu": _spelt(10, 4000, "m")}
                ),
                "transport": st.fixed_dictionaries({"bandwidth": _bandwidth}),
                "core": st.fixed_dictionaries({"cpu": _spelt(0.01, 4, "cpu"), "memory": _spelt(8, 512, "MiB")}),
            },
        ),
    },
)
_profile = st.one_of(
    st.fixed_dictionaries({"kind": st.just("constant"), "value": st.floats(0, 3)}),
    st.fixed_dictionaries({"kind": st.just("on_off"), "on_s": st.floats(0.5, 9), "off_s": st.floats(0.5, 9)}),
    st.fixed_dictionaries(
        {"kind": st.just("telecom_italia_synthetic"), "peak_users": st.floats(1, 3)},
        optional={"start_hour": st.floats(0, 20), "cell": st.sampled_from([5161, 5059])},
    ),
)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Plain data of correct scenarios of one to three slices."""
    slices = draw(st.lists(_names, min_size=1, max_size=3, unique=True))
    nodes: dict[str, Any] = {
        "gnb1": {"kind": "gnb", **draw(st.fixed_dictionaries({}, optional={"queue_bytes": st.integers(1500, 10**6)}))}
    }
    nodes["s1"] = {"kind": "switch"}
    links = [{"endpoints": ["gnb1", "s1:eth9"], **draw(_link)}]
    traffic, entries = [], {}
    for number, name in enumerate(slices):
        entry = draw(_slice)
        entries[name] = {**entry, "sst": 3 * entry["sst"] + number}  # an S-NSSAI belongs to one slice
        nodes[f"ues{number}"] = {"kind": "ue", "slice": name, "count": 3, "distance_m": draw(st.floats(10, 5000))}
        nodes[f"upf{number}"] = {"kind": "upf", "slice": name}
        service = draw(st.sampled_from(["stream", "request", "telemetry"]))
        nodes[f"app{number}"] = {"kind": "app", "service": service}
        links += [{"endpoints": [f"ues{number}", "gnb1"]}, {"endpoints": ["s1", f"upf{number}"], **draw(_link)}]
        links += [{"endpoints": [f"upf{number}", f"app{number}"]}]
        rate = draw(_spelt(0.1, 9, "/s" if service == "request" else "Mbps"))
        entry = {"name": f"t{number}", "ues": f"ues{number}", "app": f"app{number}", "rate": rate}
        traffic.append({**entry, **draw(st.fixed_dictionaries({}, optional={"profile": _profile}))})
    total = sum(item.get("resources", {}).get("ran", {}).get("prb_share", 0) for item in entries.values())
    if total >= 1:
        for item in entries.values():
            item.get("resources", {}).get("ran", {}).pop("prb_share", None)
    at = st.floats(0, 9)
    events = draw(
        st.lists(
            st.one_of(
                st.builds(
                    lambda t, label: {"at": t, "link": "s1-gnb1", "do": "down", "for": "1s", "label": label}, at, _text
                ),
                st.builds(
                    lambda t, f: {"at": t, "slice": slices[0], "demand_factor": f, "for": 2}, at, st.floats(0, 9)
                ),
                st.builds(lambda t: {"at": f"{t!r}s", "ue": "ues0.2", "do": "detach"}, at),
                st.builds(lambda t: {"at": t, "slice": slices[0], "sla": {"q_thresh": "1Mbps"}}, at),
                st.builds(
                    lambda t, v: {"at": t, "entity": "node:app0", "knob": "cpu_millicores", "value": v},
                    at,
                    st.integers(10, 999),
                ),
            ),
            max_size=4,
        )
    )
    return {
        "name": draw(_names),
        "description": draw(_text),
        "topology": {"nodes": nodes, "links": links},
        "slicing": draw(st.booleans()),
        "slices": entries,
        "traffic": traffic,
        "controllers": draw(
            st.lists(st.fixed_dictionaries({"use": st.just("static"), "interval": _spelt(1, 9, "s")}), max_size=1)
        ),
        "events": events,
        "assert": [f"slice:{slices[0]} qos_bps >= 1Mbps over last 5s"],
        "seed": draw(st.integers(0, 2**32 - 1)),
        "duration": draw(_spelt(10, 50, "s")),
        "time_compression": draw(st.floats(1, 5000)),
    }


@settings(max_examples=60, deadline=None)
@given(data=documents())
def test_a_scenario_written_as_yaml_loads_to_the_same_scenario(data: dict[str, Any]) -> None:
    scenario = load_data(data, file="x.twin.yml")
    text = dump_scenario(scenario)
    again = load_data(parse_source(text, "x.twin.yml").data, file="x.twin.yml")
    assert again == scenario
    assert dump_scenario(again) == text


@pytest.mark.parametrize("name", library_names())
def test_library_scenarios_round_trip_too(name: str) -> None:
    scenario = load_scenario(LIBRARY / f"{name}.twin.yml", seed=7, duration_s=90.0)
    again = load_data(parse_source(dump_scenario(scenario), "x").data, file=scenario.source)
    assert again == scenario
    assert (again.seed, again.duration_s) == (7, 90.0)


def test_text_that_looks_like_a_number_stays_text() -> None:
    data = {"sd": ["1000e0", "0e0000", "100000", "000001", "true", "~", "null", "1.5", "on", "a: b", ""]}
    assert parse_source(dump_document(data), "x").data == data
