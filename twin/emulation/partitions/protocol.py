"""What clients and ``vmand`` say to each other: NANCY D3.4 §3.2.1 as JSON lines on a Unix socket.

A request is one line, ``{"command": NAME, "args": {...}}``; the answer is one line, ``{"return": {...}}`` or
``{"error": {"class": ERRNO NAME, "desc": TEXT}}``. Both spellings of the paper hold (``id`` and
``partition_id``, ``secure`` and ``critical``, ``memsize`` in GB and ``memory_mib``).
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

MAX_LINE_BYTES = 64 * 1024
CLASSES = ("EPERM", "ENOENT", "EBUSY", "EEXIST", "EINVAL", "ENOMEM", "EIO", "ETIMEDOUT", "EMSGSIZE")
MAX_CORES = 8
MIN_MEMORY_MIB, MAX_MEMORY_MIB = 64, 65536
_RELAY = r"(udp|tcp):\d{1,5}:\d{1,3}(\.\d{1,3}){3}:\d{1,5}"
_LOAD = r"\d{1,8}/\d{1,8}"


class RequestError(Exception):
    """A refused request: the errno name, one line, and facts for programs (``state``, ``required``)."""

    def __init__(self, kind: str, desc: str, **facts: Any) -> None:
        super().__init__(desc)
        self.kind = kind
        self.desc = desc
        self.facts = facts


@dataclass(frozen=True, slots=True)
class Field:
    """One argument: ``check`` returns the value as the daemon uses it or raises ValueError saying what is allowed."""

    name: str
    check: Callable[[Any], Any]
    help: str
    aliases: tuple[str, ...] = ()
    required: bool = False
    default: Any = None
    kind: Literal["value", "text", "path"] = "value"
    """How a command line word becomes the value: a number or true/false, itself, or an absolute path."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its other spellings."""
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Command:
    """One command of the API."""

    name: str
    help: str
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A valid request: every field of the command is in ``args``."""

    command: str
    args: Mapping[str, Any]


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be an integer in [{low}, {high}]")
        return value

    return check


def _number(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"must be a number in [{low:g}, {high:g}]")
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _pattern(pattern: str, allowed: str, most: int = 1024) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or not re.fullmatch(pattern, value):
            raise ValueError(f"must be {allowed}")
        return value

    return check


def _interface(value: Any) -> str:
    try:
        if not isinstance(value, str) or "/" not in value:
            raise ValueError
        return str(ipaddress.IPv4Interface(value))
    except ValueError:
        raise ValueError("must be an IPv4 address with its prefix length, as 10.0.0.2/24") from None


def _address(value: Any) -> str:
    try:
        if not isinstance(value, str):
            raise ValueError
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise ValueError("must be an IPv4 address") from None


FLOW_FIELDS = (
    *("flow", "local", "peer", "port", "rate", "packet_bytes", "started_ns", "sequence", "due_ns"),
    *("tx_packets", "tx_bytes", "send_errors"),
)
"""A flow of a stream server as one hands it to another: see ``dataplane/README.md``."""
MOST_FLOWS_AT_ONCE = 100


def _flows(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MOST_FLOWS_AT_ONCE:
        raise ValueError(f"must be a list of at most {MOST_FLOWS_AT_ONCE} flows")
    for row in value:
        if not isinstance(row, dict) or set(row) != set(FLOW_FIELDS):
            raise ValueError(f"must be objects with {', '.join(FLOW_FIELDS)}")
        if not isinstance(row["flow"], str) or not 0 < len(row["flow"].encode()) <= 200:
            raise ValueError("must have names of at most 200 octets")
        _address(row["local"])
        _address(row["peer"])
        _number(0, 10e9)(row["rate"])
        for name in FLOW_FIELDS[3:]:
            if name != "rate":
                _integer(0, 2**63)(row[name])
    return value


def _addresses(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > 16:
        raise ValueError("must be a list of at most 16 IPv4 addresses")
    return [_address(one) for one in value]


def _choice(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return check


STREAM_ACTIONS = ("go", "hold", "adopt", "release", "drop", "flows", "off")
ATTACKS = ("none", "cpu", "memory", "network")
MOST_ATTACK_S, MOST_FLOOD_PPS = 600.0, 50_000.0
_path = _pattern(r"[^\0\n,]+", "a path without commas and line ends")  # a comma would end QEMU's option
_name = _pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", "a name of at most 32 letters, digits, dots and dashes")
_id = Field("id", _integer(1, 2**31), "the partition", ("partition_id",), required=True)
_vnf = (
    Field(
        "relay",
        _pattern(f"({_RELAY}(,{_RELAY}){{0,7}})?", "up to 8 of udp:PORT:ADDRESS:PORT or tcp:…"),
        "stream relays of the guest, udp:PORT:ADDRESS:PORT or tcp:…, joined by commas",
        kind="text",
    ),
    Field(
        "load",
        _pattern(f"({_LOAD}(,{_LOAD}){{0,15}})?", "up to 16 of RUNTIME_US/PERIOD_US"),
        "periodic CPU load of the guest, RUNTIME_US/PERIOD_US, joined by commas",
        kind="text",
    ),
    Field("metrics_ms", _integer(20, 60000), "how often the guest reports its metrics"),
)

COMMANDS: Mapping[str, Command] = {
    one.name: one
    for one in (
        Command(
            "create-partition",
            "assign cores and memory to a new partition, which is then READY",
            (
                Field("cores", _integer(1, MAX_CORES), "processors", required=True),
                Field("memsize", _number(MIN_MEMORY_MIB / 1024, MAX_MEMORY_MIB / 1024), "memory in GB (of 1024 MiB)"),
                Field("memory_mib", _integer(MIN_MEMORY_MIB, MAX_MEMORY_MIB), "memory in MiB, instead of memsize"),
                Field("secure", _flag, "a critical partition has priority", ("critical",), default=False),
                Field("primary", _integer(0, 0), "0: the primary partition is the host itself", default=0),
                Field("name", _name, "a name for listings (default: partition-ID)", kind="text"),
                Field(
                    "address",
                    _interface,
                    "IPv4 address with prefix length (default: the next of vmand's subnet)",
                    kind="text",
                ),
                Field(
                    "gateway",
                    _address,
                    "IPv4 gateway (default: vmand's bridge when it assigned the address)",
                    kind="text",
                ),
                Field(
                    "bridge",
                    _pattern(r"[\w.-]{1,15}", "an interface name"),
                    "bridge (default: vmand's own)",
                    kind="text",
                ),
                Field(
                    "netns",
                    _path,
                    "file of the network namespace of its TAP, which joins no bridge then (default: vmand's own)",
                    kind="path",
                ),
                Field(
                    "isolated",
                    _flag,
                    "false: a plain virtual machine, without limits of its own, for comparison",
                    default=True,
                ),
            ),
        ),
        Command(
            "deploy",
            "run a kernel in a READY partition, which is then DEPLOYED",
            (
                _id,
                Field("kernel", _path, "arm64 kernel image (default: TwinBed's guest image)", kind="path"),
                Field("dtb", _path, "device tree blob (default: one is generated)", kind="path"),
                Field("rootfs", _path, "initramfs (cpio), or disk image (ext4) to go over to", kind="path"),
                Field(
                    "cmdline",
                    _pattern(r"[\x20-\x7e]*", "printable ASCII"),
                    "added to the kernel command line",
                    kind="text",
                ),
                Field("http_port", _integer(0, 65535), "port of the guest's HTTP responder, 0: none", default=80),
                Field("echo_port", _integer(0, 65535), "port of the guest's UDP echo, 0: none", default=0),
                Field("stream", _flag, "start the stream server (UDP 5001, echo 5007)", default=False),
                *_vnf,
                Field("wait", _flag, "answer when the guest runs, not before", default=True),
                Field("timeout_s", _number(0.1, 600), "time limit for the guest to boot", default=30.0),
            ),
        ),
        Command("destroy-partition", "release the cores and memory of a READY partition", (_id,)),
        Command(
            "reboot",
            "end and start again what a DEPLOYED partition runs",
            (
                _id,
                Field("wait", _flag, "answer when the guest runs, not before", default=True),
                Field("timeout_s", _number(0.1, 600), "time limit for the guest to boot", default=30.0),
            ),
        ),
        Command("shutdown", "end what a DEPLOYED partition runs; it is READY and keeps its cores and memory", (_id,)),
        Command("suspend", "stop the processors of a DEPLOYED partition, which is then SUSPENDED", (_id,)),
        Command("restore", "let a SUSPENDED partition go on, which is then DEPLOYED", (_id,)),
        Command("list", "all partitions"),
        Command("info", "one partition, or without id the edge server", (replace(_id, required=False),)),
        Command("configure", "change what the VNF runtime of a DEPLOYED partition does", (_id, *_vnf)),
        Command(
            "stream",
            "the stream server of a DEPLOYED partition, and the flows that it takes over and hands over",
            (
                _id,
                Field(
                    "action",
                    _choice(*STREAM_ACTIONS),
                    "go: answer questions to the guest's own address, or to those; hold: take addresses, questions to "
                    "them wait; adopt: go on with these flows; release: send until at_ns, then another server goes on; "
                    "drop: let go of addresses; flows: show them; off",
                    required=True,
                    kind="text",
                ),
                Field("addresses", _addresses, "of the service where it was before, as a list"),
                Field("flows", _flows, "with adopt: flows as release and flows show them"),
                Field("at_ns", _integer(0, 2**63), "with release: nanoseconds of the host's CLOCK_MONOTONIC"),
            ),
        ),
        Command(
            "attack",
            "deny service to a DEPLOYED partition, to see what the others notice of it; ends by itself",
            (
                _id,
                Field(
                    "kind",
                    _choice(*ATTACKS),
                    "cpu, memory: within the guest; network: a UDP flood in its network namespace; none: end it",
                    required=True,
                    kind="text",
                ),
                Field("seconds", _number(1, MOST_ATTACK_S), "how long", default=30.0),
                Field("rate_pps", _number(1, MOST_FLOOD_PPS), "packets per second of the flood", default=20_000.0),
                Field("payload_bytes", _integer(0, 1472), "payload of a packet of the flood", default=200),
            ),
        ),
        Command(
            "limit",
            "limit the CPU time of a partition that is not critical, or reserve some (SCHED_DEADLINE)",
            (
                _id,
                Field("cpu_millicores", _number(1, 1000 * MAX_CORES), "most CPU time it gets"),
                Field(
                    "dl_runtime_us",
                    _integer(0, 2**22),
                    "CPU time reserved for each vCPU in every period; 0 gives the reservation back",
                ),
                Field("dl_period_us", _integer(100, 2**22), "the period"),
            ),
        ),
    )
}


def parse(line: bytes) -> Request:
    """A request from one line; RequestError EINVAL says what, got, allowed."""
    try:
        message = json.loads(line.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise RequestError("EINVAL", "not JSON: not UTF-8 text") from None
    except RecursionError:
        raise RequestError("EINVAL", "not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise RequestError("EINVAL", f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise RequestError("EINVAL", f'a request must be an object with "command" and "args", got {_shown(message)}')
    unknown = sorted(set(message) - {"command", "args"})
    if unknown:
        raise RequestError("EINVAL", f'a request has "command" and "args", got also {_shown(unknown[0])}')
    return validated(message.get("command"), message.get("args", {}))


def validated(name: Any, args: Any) -> Request:
    """A request with the arguments checked, renamed and completed; RequestError EINVAL otherwise."""
    if not isinstance(name, str) or name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1) if isinstance(name, str) and len(name) < 64 else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RequestError("EINVAL", f"command must be one of {', '.join(COMMANDS)}, got {_shown(name)}{hint}")
    command = COMMANDS[name]
    if not isinstance(args, dict):
        raise RequestError("EINVAL", f"{name}: args must be an object, got {_shown(args)}")
    known = {spelling: field for field in command.fields for spelling in field.names}
    checked: dict[str, Any] = {}
    for key, value in args.items():
        field = known.get(key)
        if field is None:
            allowed = ", ".join(one.name for one in command.fields) or "none"
            raise RequestError("EINVAL", f"{name}: unknown argument {_shown(key)}; there are {allowed}")
        if field.name in checked:
            raise RequestError("EINVAL", f"{name}: {' and '.join(field.names)} are the same argument; give one")
        if value is None and not field.required:
            continue
        try:
            checked[field.name] = field.check(value)
        except ValueError as error:
            raise RequestError("EINVAL", f"{name}: {key} {error}, got {_shown(value)}") from None
    for field in command.fields:
        if field.name not in checked:
            if field.required:
                raise RequestError("EINVAL", f"{name}: {' or '.join(field.names)} is missing")
            checked[field.name] = field.default
    if name in _RULES:
        _RULES[name](checked)
    return Request(name, checked)


def _create_rule(args: dict[str, Any]) -> None:
    memsize = args.pop("memsize")
    if (memsize is None) == (args["memory_mib"] is None):
        raise RequestError("EINVAL", "create-partition: give memsize or memory_mib, one of the two")
    if memsize is not None:
        args["memory_mib"] = math.floor(memsize * 1024)
    if args["secure"] and not args["isolated"]:
        raise RequestError("EINVAL", "create-partition: a critical partition is isolated")
    if args["netns"] is not None and (args["bridge"] is not None or args["address"] is None):
        raise RequestError("EINVAL", "create-partition: with netns give an address, and no bridge")


def _limit_rule(args: dict[str, Any]) -> None:
    runtime_us, period_us = args["dl_runtime_us"], args["dl_period_us"]
    if (runtime_us is None) != (period_us is None) and runtime_us != 0:
        raise RequestError("EINVAL", "limit: dl_runtime_us and dl_period_us go together")
    if (runtime_us is None) == (args["cpu_millicores"] is None):
        raise RequestError("EINVAL", "limit: give cpu_millicores, or dl_runtime_us and dl_period_us")
    if runtime_us and runtime_us > period_us:
        raise RequestError("EINVAL", f"limit: dl_runtime_us must be at most dl_period_us {period_us}, got {runtime_us}")


def _configure_rule(args: dict[str, Any]) -> None:
    if all(args[field.name] is None for field in _vnf):
        raise RequestError("EINVAL", f"configure: give one or more of {', '.join(field.name for field in _vnf)}")


def _stream_rule(args: dict[str, Any]) -> None:
    for name, needed, also in (
        ("addresses", ["hold", "release", "drop"], ["go"]),
        ("flows", ["adopt"], []),
        ("at_ns", ["release"], []),
    ):
        if args["action"] in needed and (args[name] is None or (name == "addresses" and not args[name])):
            raise RequestError("EINVAL", f"stream: {args['action']} needs {name}")
        if args[name] is not None and args["action"] not in needed + also:
            allowed = ", ".join(needed + also)
            raise RequestError("EINVAL", f"stream: {name} goes with {allowed}, got {args['action']}")


_RULES: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "create-partition": _create_rule,
    "limit": _limit_rule,
    "configure": _configure_rule,
    "stream": _stream_rule,
}


def success(data: Mapping[str, Any]) -> bytes:
    """The answer line of a carried-out request."""
    return json.dumps({"return": data}).encode() + b"\n"


def failure(error: RequestError) -> bytes:
    """The answer line of a refused request."""
    return json.dumps({"error": {"class": error.kind, "desc": error.desc, **error.facts}}).encode() + b"\n"


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
