"""Requests are checked completely before anything happens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twin.emulation.partitions.protocol import COMMANDS, RequestError, failure, parse, success


def asked(command: str, **args: Any) -> Any:
    return parse(json.dumps({"command": command, "args": args}).encode())


def refused(line: bytes | str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(line if isinstance(line, bytes) else line.encode())
    assert caught.value.kind == "EINVAL"
    assert "\n" not in caught.value.desc
    return caught.value


def test_the_papers_messages() -> None:
    created = asked("create-partition", cores=2, secure=True, memsize=0.5)
    assert (created.args["cores"], created.args["secure"], created.args["memory_mib"]) == (2, True, 512)
    figure_15 = asked("create-partition", cores=1, primary=0, secure=False, memsize=1)
    assert figure_15.args["memory_mib"] == 1024
    deployed = asked("deploy", kernel="a/Image", dtb="a/b.dtb", partition_id=3)
    assert (deployed.args["id"], deployed.args["kernel"], deployed.args["dtb"]) == (3, "a/Image", "a/b.dtb")
    for command in ("destroy-partition", "reboot", "shutdown", "suspend", "restore"):
        assert asked(command, id=4).args["id"] == 4


@pytest.mark.parametrize("command", ["deploy", "destroy-partition", "reboot", "suspend", "info", "limit", "configure"])
def test_both_spellings_of_the_id(command: str) -> None:
    rest = {"limit": {"cpu_millicores": 100}, "configure": {"load": "1/2"}}.get(command, {})
    assert asked(command, id=7, **rest) == asked(command, partition_id=7, **rest)
    with pytest.raises(RequestError, match="same argument"):
        asked(command, id=7, partition_id=7, **rest)


def test_both_spellings_of_critical_and_memory() -> None:
    assert asked("create-partition", cores=1, critical=True, memory_mib=256) == asked(
        "create-partition", cores=1, secure=True, memsize=0.25
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 60000, "nested too deeply"),
        ("[1]", "must be an object"),
        ('{"command": "list", "command": "list"}', "occurs twice"),
        ('{"command": "list", "args": {"id": NaN}}', "not a JSON number"),
        ('{"command": "list", "extra": 1}', 'also "extra"'),
        ('{"command": "supend", "args": {"id": 1}}', "did you mean suspend?"),
        ('{"command": ["list"]}', "command must be one of"),
        ('{"command": "suspend"}', "id or partition_id is missing"),
        ('{"command": "suspend", "args": {"id": null}}', "must be an integer"),
        ('{"command": "suspend", "args": {"id": true}}', "must be an integer"),
        ('{"command": "suspend", "args": {"id": 1.0}}', "must be an integer"),
        ('{"command": "suspend", "args": {"id": 1' + "0" * 5000 + "}}", "not JSON"),
        ('{"command": "suspend", "args": [1]}', "args must be an object"),
        ('{"command": "list", "args": {"id": 1}}', "there are none"),
        ('{"command": "create-partition", "args": {"cores": 1}}', "one of the two"),
        ('{"command": "create-partition", "args": {"cores": 1, "memsize": 1, "memory_mib": 1024}}', "one of the two"),
        ('{"command": "create-partition", "args": {"cores": 0, "memsize": 1}}', "cores must be an integer in"),
        ('{"command": "create-partition", "args": {"cores": 1, "memsize": "1"}}', "memsize must be a number"),
        ('{"command": "create-partition", "args": {"cores": 1, "memsize": 1, "secure": 1}}', "true or false"),
        ('{"command": "create-partition", "args": {"cores": 1, "memsize": 1, "primary": 1}}', "primary"),
        ('{"command": "create-partition", "args": {"cores": 1, "memsize": 1, "address": "10.0.0.2"}}', "prefix length"),
        ('{"command": "deploy", "args": {"id": 1, "kernel": "a,b"}}', "without commas"),
        ('{"command": "deploy", "args": {"id": 1, "relay": "udp:5004 init=/x"}}', "must be up to 8 of"),
        ('{"command": "configure", "args": {"id": 1}}', "give one or more"),
        ('{"command": "limit", "args": {"id": 1, "dl_runtime_us": 2000}}', "go together"),
        (
            '{"command": "limit", "args": {"id": 1, "dl_runtime_us": 3000, "dl_period_us": 2000}}',
            "at most dl_period_us",
        ),
    ],
)
def test_malformed(line: bytes | str, says: str) -> None:
    assert says in refused(line).desc


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_names = sorted({name for one in COMMANDS.values() for field in one.fields for name in field.names})


@settings(deadline=None)  # the host may be busy
@given(command=st.sampled_from(sorted(COMMANDS)), args=st.dictionaries(st.sampled_from(_names), _json, max_size=5))
def test_is_valid_or_refused(command: str, args: dict[str, Any]) -> None:
    line = json.dumps({"command": command, "args": args}).encode()
    try:
        request = parse(line)
    except RequestError as error:
        assert json.loads(failure(error))["error"]["class"] == "EINVAL"
        assert len(error.desc) < 600
    else:
        assert request.command == command
        assert set(request.args) == {field.name for field in COMMANDS[command].fields} - {"memsize"}


@settings(deadline=None)
@given(_json)
def test_anything_else_is_refused(message: Any) -> None:
    refused(json.dumps(message))


def test_answers_are_one_line() -> None:
    error = RequestError("EPERM", "no\nway", state="READY")
    assert failure(error).count(b"\n") == 1
    assert json.loads(failure(error)) == {"error": {"class": "EPERM", "desc": "no\nway", "state": "READY"}}
    assert json.loads(success({"id": 1})) == {"return": {"id": 1}}
