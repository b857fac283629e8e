"""From plain data to a checked :class:`ScenarioFile`; pydantic's errors become one-line problems."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, Tag, ValidationError

from scenarios.errors import Problem, ScenarioFileError, nearest, unknown
from scenarios.schema import ScenarioFile
from scenarios.source import Location, Source, dotted

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
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


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
        return location, f"got {_shown(given)}, allowed {', '.join(known)}{nearest(str(given), known)}"
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
    for part in location:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if inside:
            data = data[part]
            found.append(part)
    return tuple(found)


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The keys that a file may have at ``location`` (with pydantic's union tags)."""
    candidates: list[tuple[Any, str | None]] = [(ScenarioFile, None)]
    for part in location:
        step: list[tuple[Any, str | None]] = []
        for member, tag in _members(candidates):
            if isinstance(member, type) and issubclass(member, BaseModel):
                if part == tag or part in _kinds(member):
                    step.append((member, None))
                step += [
                    (field.annotation, None)
                    for name, field in member.model_fields.items()
                    if part in (name, field.alias)
                ]
            elif get_origin(member) is dict:
                step.append((get_args(member)[1], None))
            elif get_origin(member) is tuple and isinstance(part, int):
                step.append((get_args(member)[0], None))
        candidates = step
    keys: dict[str, None] = {}
    for member, _ in _members(candidates):
        if isinstance(member, type) and issubclass(member, BaseModel):
            keys |= dict.fromkeys(field.alias or name for name, field in member.model_fields.items())
    return list(keys)


def _members(candidates: list[tuple[Any, str | None]]) -> Iterator[tuple[Any, str | None]]:
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
