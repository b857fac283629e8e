"""Rows for ``twin list``: one function per thing that can be listed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]


def scenarios() -> Rows:
    """Library scenarios with their descriptions."""
    from scenarios.registry import LIBRARY, SUFFIX, library_names
    from scenarios.source import read_source

    rows = []
    for name in library_names():
        path = LIBRARY / f"{name}{SUFFIX}"
        text = read_source(path).data.get("description", "")
        rows.append({"name": name, "description": " ".join(str(text).split()), "file": str(path)})
    return rows


def controllers() -> Rows:
    """Registered controllers with the first line of their documentation."""
    from scenarios.registry import MissingPartError, controller_class, controller_names

    rows = []
    for name in controller_names():
        try:
            found = controller_class(name)
        except MissingPartError as error:
            rows.append({"name": name, "description": str(error), "parameters": []})
            continue
        parameters = [item for item in inspect.signature(found).parameters.values() if item.name != "context"]
        rows.append(
            {
                "name": name,
                "description": (inspect.getdoc(found) or "").partition("\n")[0].replace("``", ""),
                "parameters": [
                    item.name if item.default is item.empty else f"{item.name}={item.default}" for item in parameters
                ],
            }
        )
    return rows


def knobs() -> Rows:
    """Knobs with unit, scope and range."""
    from twin.knobs import KNOBS

    return [
        {
            "name": spec.name,
            "unit": spec.unit,
            "scopes": list(spec.scopes),
            "allowed": spec.allowed,
            "meaning": spec.meaning,
        }
        for spec in KNOBS.values()
    ]


def kpis() -> Rows:
    """KPIs with unit, scopes, provenance and 3GPP name."""
    from twin.kpis import KPIS

    return [
        {
            "name": spec.name,
            "unit": spec.unit,
            "scopes": list(spec.scopes),
            "provenance": spec.provenance,
            "3gpp_name": spec.gpp_name,
            "cumulative": spec.cumulative,
            "meaning": spec.meaning,
        }
        for spec in KPIS.values()
    ]


def topologies() -> Rows:
    """Topology builders with the keys that a file may give them."""
    from scenarios.network import builder_keys
    from topologies.registry import BUILDERS

    return [
        {"name": builder.name, "description": builder.summary, "keys": list(builder_keys(builder))}
        for builder in BUILDERS.values()
    ]


def profiles() -> Rows:
    """Demand profiles with their parameters."""
    from traces.profiles import PROFILES

    return [
        {
            "name": profile.name,
            "description": profile.summary,
            "parameters": [
                f"{item.name}: {item.type}" + ("" if item.required else f" = {item.default}")
                for item in profile.parameters
            ],
        }
        for profile in PROFILES.values()
    ]


LISTINGS: dict[str, Callable[[], Rows]] = {
    "scenarios": scenarios,
    "controllers": controllers,
    "knobs": knobs,
    "kpis": kpis,
    "topologies": topologies,
    "profiles": profiles,
}
