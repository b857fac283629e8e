"""From plain data to a checked :class:`ScenarioFile`; pydantic's errors become one-line problems."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError

from scenarios.errors import Problem, ScenarioFileError, nearest, unknown
from scenarios.schema import ScenarioFile
from scenarios.source import Location, Source, dotted, plain_scalar

# What may stand at a place of the file: an annotation, and the tag that pydantic gives it in a union.
_Candidate = tuple[object, str | None]
_ROOT: _Candidate = (ScenarioFile, None)

_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of names",
    "tuple_type": "a list",
    "finite_number": "a finite number",
}


def check_document(source: Source) -> ScenarioFile:
    """The validated file; :class:`ScenarioFileError` with every problem that pydantic finds."""
    try:
        return ScenarioFile.model_validate(source.data)
    except ValidationError as error:
        problems: dict[Location, Problem] = {}
        details = cast(list[dict[str, Any]], error.errors(include_url=False))
        misspelt = {_meant(detail) for detail in details if detail["type"] == "extra_forbidden"}
        for detail in details:
            if detail["type"] == "missing" and detail["loc"] in misspelt:
                continue  # one mistake, one line
            location, text = _explain(source, detail)
            # The members of a union report one error each for the same place; the first will do.
            problems.setdefault(location, source.problem(location, f"{dotted(location)}: {text}"))
        raise ScenarioFileError(problems.values()) from None


def document_data(document: ScenarioFile) -> dict[str, Any]:
    """The file as plain data again: what was set, quantities as text with units."""
    return document.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)


def dump_document(data: object) -> str:
    """YAML text of plain data, keys in order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes the text that :mod:`scenarios.source` would read as a number (the slice differentiator 1000e0)."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(plain_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)


def _explain(source: Source, detail: dict[str, Any]) -> tuple[Location, str]:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    location = _in_data(source.data, detail["loc"])
    if kind == "extra_forbidden":
        key = str(detail["loc"][-1])
        known = _keys_at(detail["loc"][:-1])
        return location, f"unknown key {key}{nearest(key, known)}; allowed: {', '.join(known)}"
    if kind == "missing":
        return (*location, str(detail["loc"][-1])), "missing"
    if kind == "value_error":
        return location, str(context["error"])
    if kind == "union_tag_invalid":
        tags = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
        return (*location, "kind"), unknown("kind", context["tag"], tags)
    if kind == "union_tag_not_found":
        return location, "kind is missing; it says which keys are allowed"
    if kind == "event_form":
        keys = list(given) if isinstance(given, dict) else []
        hints = [
            f"{key}{hint}" for key in keys if (hint := nearest(str(key), ("link", "node", "ue", "slice", "entity")))
        ]
        return location, f"{detail['msg']}; got {', '.join(hints or map(str, keys)) or _shown(given)}"
    if kind == "literal_error":
        known = [word.strip("' ") for word in context["expected"].replace(" or ", ", ").split(",")]
        hint = nearest(given, known) if isinstance(given, str) else ""
        return location, f"got {_shown(given)}, allowed {', '.join(known)}{hint}"
    if kind == "knob_value":
        return location, f"got {_shown(given)}, allowed {context['allowed']}"
    if kind in _TYPES:
        return location, f"got {_shown(given)}, allowed {_TYPES[kind]}"
    return location, f"got {_shown(given)}, {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _meant(detail: dict[str, Any]) -> tuple[str | int, ...]:
    """Where the key that is nearest to an unknown one would stand."""
    *parent, key = detail["loc"]
    near = nearest(str(key), _keys_at(tuple(parent)))
    return (*parent, near.removeprefix(" (did you mean ").removesuffix("?)"))


def _shown(given: object) -> str:
    if given is None:
        return "nothing"
    if isinstance(given, dict):
        return "a mapping"
    if isinstance(given, list | tuple):
        return "a list"
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_data(data: Any, location: tuple[str | int, ...]) -> Location:
    """``location`` without the tags that pydantic adds for members of unions."""
    found: list[str | int] = []
    candidates = [_ROOT]
    after_tag = False
    for part in location:
        chosen = [] if after_tag else _tagged(candidates, part)
        after_tag = bool(chosen)
        if chosen:
            # A tag may also be a key of the same mapping (an event with ``link``): it is no step into the data.
            candidates = chosen
            continue
        candidates = _below(candidates, part)
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            data = data[part]
            found.append(part)
    return tuple(found)


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The keys that a file may have at ``location`` (with pydantic's union tags)."""
    candidates = [_ROOT]
    for part in location:
        candidates = _tagged(candidates, part) + _below(candidates, part)
    keys: dict[str, None] = {}
    for member, _ in _members(candidates):
        if isinstance(member, type) and issubclass(member, BaseModel):
            keys |= dict.fromkeys(field.alias or name for name, field in member.model_fields.items())
    return list(keys)


def _tagged(candidates: list[_Candidate], tag: str | int) -> list[_Candidate]:
    """The members of a union at this place that pydantic calls ``tag``."""
    return [
        (member, None)
        for member, own in _members(candidates)
        if isinstance(member, type) and issubclass(member, BaseModel) and (tag == own or tag in _kinds(member))
    ]


def _below(candidates: list[_Candidate], key: str | int) -> list[_Candidate]:
    """What may stand under ``key``."""
    found: list[_Candidate] = []
    for member, _ in _members(candidates):
        if isinstance(member, type) and issubclass(member, BaseModel):
            found += [
                (field.annotation, None) for name, field in member.model_fields.items() if key in (name, field.alias)
            ]
        elif get_origin(member) is dict:
            found.append((get_args(member)[1], None))
        elif get_origin(member) is tuple and isinstance(key, int):
            found.append((get_args(member)[0], None))
    return found


def _members(candidates: list[_Candidate]) -> Iterator[_Candidate]:
    for annotation, tag in candidates:
        origin = get_origin(annotation)
        if origin is Annotated:
            inner, *metadata = get_args(annotation)
            tags = [item.tag for item in metadata if isinstance(item, Tag)]
            yield from _members([(inner, tags[0] if tags else tag)])
        elif origin in (Union, types.UnionType):
            yield from _members([(member, tag) for member in get_args(annotation)])
        else:
            yield annotation, tag


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
