"""``vmanctl`` (also ``vmactl``): the commands of NANCY D3.4 §3.2.1 from a shell, and :class:`Client` for programs.

vmanctl create-partition -cores 1 -memsize 0.125 -secure false
vmanctl deploy -kernel Image -dtb board.dtb 1
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from twin.emulation.partitions.protocol import COMMANDS, Field
from twin.journal import default_folder

DEFAULT_NAME = "default"
_FORMAT = "a text to read, or one JSON object (default: text)"
NO_DAEMON = 3
"""Exit code of ``vmanctl`` when no daemon answers."""


class VmanError(Exception):
    """The daemon refused: errno name ``kind``, one line, and the facts of its answer."""

    def __init__(self, kind: str, desc: str, facts: Mapping[str, Any]) -> None:
        super().__init__(desc)
        self.kind = kind
        self.facts = facts


class NoDaemonError(Exception):
    """No daemon answers on the socket. One line."""


def state_folder(name: str = DEFAULT_NAME) -> Path:
    """Folder of a daemon: socket, ``state.json``, a folder for each partition."""
    return default_folder().parent / "vmand" / name


def socket_path(name: str = DEFAULT_NAME) -> Path:
    """Where a daemon listens by default."""
    return state_folder(name) / "vmand.sock"


class Client:
    """A connection to a daemon; use under ``with``. One request at a time."""

    def __init__(self, path: Path | None = None, *, timeout_s: float = 660.0) -> None:
        path = socket_path() if path is None else path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            what = "run vmanctl as root" if isinstance(error, PermissionError) else "start one with: vmand --detach"
            raise NoDaemonError(f"no vmand answers on {path}: {error.strerror or error}; {what}") from None
        self._file = self._socket.makefile("rb")

    def call(self, command: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Carry out one command; its ``return`` object. Raises VmanError, and NoDaemonError when it goes away."""
        try:
            self._socket.sendall(json.dumps({"command": command, "args": dict(args or {})}).encode() + b"\n")
            line = self._file.readline()
        except OSError as error:
            raise NoDaemonError(f"vmand went away: {error.strerror or error}") from None
        if not line:
            raise NoDaemonError("vmand went away before it answered")
        answer = json.loads(line)
        if "error" in answer:
            facts = dict(answer["error"])
            raise VmanError(facts.pop("class"), facts.pop("desc"), facts)
        found: dict[str, Any] = answer["return"]
        return found

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmanctl",
        description="Manage the partitions of a vmand (start one with: vmand --detach).",
        epilog="A partition's life: create-partition -cores 1 -memsize 0.125, deploy ID, info ID, suspend ID, "
        "restore ID, shutdown ID, destroy-partition ID. vmanctl COMMAND --help lists the arguments of a command.",
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--daemon", default=DEFAULT_NAME, help="name of the daemon (default: %(default)s)")
    which.add_argument("--socket", type=Path, help="socket of the daemon")
    parser.add_argument("--format", choices=("text", "json"), default="text", help=_FORMAT)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        sub = commands.add_parser(command.name, help=command.help, description=command.help, allow_abbrev=False)
        for field in command.fields:
            if field.name == "id":
                sub.add_argument("id", type=_converter(field), nargs=None if field.required else "?", help=field.help)
                continue
            spellings = [f"{dashes}{name.replace('_', '-')}" for name in field.names for dashes in ("-", "--")]
            metavar, text = _described(field)
            sub.add_argument(*spellings, dest=field.name, type=_converter(field), metavar=metavar, help=text)
        sub.add_argument("--format", choices=("text", "json"), default=argparse.SUPPRESS, help=_FORMAT)
    return parser


def _described(field: Field) -> tuple[str, str]:
    """What stands for the value, and the help with what is allowed: as the field itself refuses everything else."""
    allowed = ""
    try:
        field.check(object())
    except ValueError as error:
        allowed = str(error).removeprefix("must be ")
    kinds = {"an integer": "N", "a number": "NUMBER", "true or": "true|false", "a path": "FILE"}
    metavar = next((word for start, word in kinds.items() if allowed.startswith(start)), "TEXT")
    facts = [allowed] if metavar in ("N", "NUMBER") else []
    if field.required:
        facts.append("required")
    elif field.default is not None and "default" not in field.help:
        facts.append(f"default: {_word(field.default)}")
    return metavar, f"{field.help} ({'; '.join(facts)})" if facts else field.help


def _converter(field: Field) -> Any:
    def convert(word: str) -> Any:
        if field.kind == "path":
            return str(Path(word).absolute())
        if field.kind == "text":
            return word
        try:
            return json.loads(word)
        except ValueError:
            return word  # the daemon's refusal says what is allowed

    return convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0, 1 with one line on stderr when refused, 3 when no daemon answers."""
    options = _parser().parse_args(arguments)
    fields = COMMANDS[options.command].fields
    args = {field.name: getattr(options, field.name) for field in fields if getattr(options, field.name) is not None}
    try:
        with Client(options.socket or socket_path(options.daemon)) as client:
            answer = client.call(options.command, args)
    except VmanError as error:
        if options.format == "json":
            print(json.dumps({"error": {"class": error.kind, "desc": str(error), **error.facts}}))
        else:
            print(f"vmanctl: {error.kind}: {error}", file=sys.stderr)
        return 1
    except NoDaemonError as error:
        print(f"vmanctl: {error}", file=sys.stderr)
        return NO_DAEMON
    print(json.dumps(answer) if options.format == "json" else _text(options.command, answer))
    return 0


def _text(command: str, answer: Mapping[str, Any]) -> str:
    if command == "list":
        columns = ("id", "name", "state", "cores", "memory_mib", "secure", "address", "isolation")
        rows = [columns, *([_word(one[column]) for column in columns] for one in answer["partitions"])]
        widths = [max(len(row[place]) for row in rows) for place in range(len(columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
    if command == "info":
        return "\n".join(f"{key}: {_word(value)}" for key, value in answer.items())
    return f"partition {answer['id']}"


def _word(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return json.dumps(value)


if __name__ == "__main__":
    sys.exit(main())
