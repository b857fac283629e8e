"""YAML with line numbers: plain data, and for every path in it the line where it stands.

The scalar rules are those of YAML 1.2 (``on`` and ``down`` are text, ``000001`` is text, no
sexagesimal numbers), so that names and slice differentiators mean what they look like. Duplicate keys
are errors. Size, depth and the number of values after resolving aliases are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scenarios.errors import Problem, ScenarioFileError

MAX_BYTES = 1_000_000
MAX_VALUES = 50_000
MAX_DEPTH = 40

Location = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_MAX_DIGITS = 300
# What the composer finds by itself, and "!" for text. Any other tag was written into the file.
_TAGS = ("null", "bool", "int", "float", "str", "timestamp", "merge", "value", "!")


@dataclass(frozen=True)
class Source:
    """Plain data of one file and where each part of it stands.

    ``lines`` maps a path to the line of its key (or of the list entry), ``origins`` a path that the
    command line replaced to what replaced it (``--seed``).
    """

    file: str
    data: dict[str, Any]
    lines: Mapping[Location, int]
    origins: Mapping[Location, str] = field(default_factory=dict)

    def problem(self, location: Location, text: str) -> Problem:
        """A problem at ``location``, or at the nearest part around it that has a line."""
        parts = [location[:end] for end in range(len(location), -1, -1)]
        for part in parts:
            if part in self.origins:
                return Problem(self.origins[part], 0, text)
        for part in parts:
            if part in self.lines:
                return Problem(self.file, self.lines[part], text)
        return Problem(self.file, 1, text)

    def with_values(self, values: Mapping[Location, tuple[str, Any]]) -> Source:
        """A copy in which each path has a new value; the text says where it came from."""
        data: dict[str, Any] = dict(self.data)
        origins = dict(self.origins)
        for location, (origin, value) in values.items():
            _replace(data, location, value, origin)
            origins[location] = origin
        return Source(self.file, data, self.lines, origins)


def _replace(container: Any, location: Location, value: Any, origin: str) -> None:
    """Set a value deep in ``container``, copying what is on the way (the original stays as it was)."""
    key: Any = location[0]
    if isinstance(container, list):
        if key not in range(len(container)):
            raise ScenarioFileError([Problem(origin, 0, f"no entry {key}, allowed 0 to {len(container) - 1}")])
    elif not isinstance(container, dict):
        raise ScenarioFileError([Problem(origin, 0, f"cannot go into {key!r}: got {container!r} there, not a mapping")])
    if len(location) == 1:
        container[key] = value
        return
    inner = container[key] if isinstance(container, list) else container.get(key, {})
    inner = list(inner) if isinstance(inner, list) else dict(inner) if isinstance(inner, dict) else inner
    container[key] = inner
    _replace(inner, location[1:], value, origin)


def read_source(path: Path) -> Source:
    """The data of a YAML file; :class:`ScenarioFileError` when it cannot be read or is no mapping."""
    file = str(path)

    def fail(text: str, line: int = 0) -> ScenarioFileError:
        return ScenarioFileError([Problem(file, line, text)])

    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise fail("no such file") from None
    except OSError as error:
        raise fail(f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise fail(f"the file is larger than {MAX_BYTES} bytes, which a scenario never is")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise fail(f"not UTF-8 text: byte 0x{raw[error.start]:02x}", line) from None
    return parse_source(text, file)


def parse_source(text: str, file: str) -> Source:
    """The data of YAML text; ``file`` is the name for messages."""
    _check_depth(text, file)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ScenarioFileError([Problem(file, line, f"not valid YAML: {what}")]) from None
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        line = 0
        if isinstance(error, yaml.reader.ReaderError):
            what = f"{error.reason} (character {error.character!r})"
            line = text.count("\n", 0, error.position) + 1
        raise ScenarioFileError([Problem(file, line, f"not valid YAML: {what}")]) from None
    if root is None:
        raise ScenarioFileError([Problem(file, 0, "the file is empty; a scenario needs at least name and topology")])
    reader = _Reader(file)
    data = reader.value(root, ())
    if not isinstance(data, dict):
        line = root.start_mark.line + 1
        got = "a list" if isinstance(data, list) else "nothing" if data is None else f"only {str(data)[:60]!r}"
        raise ScenarioFileError([Problem(file, line, f"a scenario is a mapping of keys, got {got}")])
    if reader.problems:
        raise ScenarioFileError(reader.problems)
    return Source(file, data, reader.lines)


def _check_depth(text: str, file: str) -> None:
    """Refuse deep nesting before the composer recurses into it."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else 0
                    raise ScenarioFileError([Problem(file, line, f"nested deeper than {MAX_DEPTH} levels")])
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError:
        return  # the composer meets the same error and reports it


class _Reader:
    """Turns composed nodes into data, counting values so that aliases cannot explode."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Location, int] = {}
        self.problems: list[Problem] = []
        self._count = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, location: Location) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(location, line)
        self._count += 1
        if self._count > MAX_VALUES:
            raise ScenarioFileError(
                [Problem(self.file, line, f"more than {MAX_VALUES} values after resolving aliases")]
            )
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        if id(node) in self._open:
            raise ScenarioFileError([Problem(self.file, line, "an alias refers to the value that contains it")])
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)
            return self._mapping(node, location)
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(self.file, line, "a key must be text, got a list or mapping"))
                continue
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge":
                text = "merge keys (<<) are not part of YAML 1.2 and not supported; write the keys out"
                self.problems.append(Problem(self.file, line, text))
                continue
            if key in result:
                first = self.lines[(*location, key)]
                where = dotted(location) or "the scenario"
                self.problems.append(
                    Problem(self.file, line, f"{where}: duplicate name {key!r}, first used in line {first}")
                )
                continue
            self.lines[(*location, key)] = line
            result[key] = self.value(value_node, (*location, key))
        return result

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        text: str = node.value
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            self.problems.append(Problem(self.file, line, f"YAML tag {node.tag} is not allowed"))
        return text if node.style in ("'", '"', "|", ">") else plain_scalar(text)


def plain_scalar(text: str) -> str | int | float | bool | None:
    """What ``text`` means where it stands without quotes."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text)
    if _FLOAT.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return float(text)
    return text


def dotted(location: Location) -> str:
    """``topology.links[0].delay``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
