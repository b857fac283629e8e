#!/usr/bin/env python3
"""Write docs/reference/*.md from the code: scenario keys, knobs, KPIs, exit codes, commands.

    python tools/generate_reference.py [--check]

``--check`` writes nothing and fails when a page is not what the code says.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from scenarios import assertions, schema, units  # noqa: E402
from scenarios.cli import app  # noqa: E402
from scenarios.exit_codes import ExitCode  # noqa: E402
from scenarios.network import builder_keys  # noqa: E402
from scenarios.registry import LIBRARY  # noqa: E402
from topologies.registry import BUILDERS  # noqa: E402
from twin.knobs import KNOBS  # noqa: E402
from twin.kpis import KPIS  # noqa: E402

OUT = ROOT / "docs" / "reference"
_NOTE = "<!-- Written by tools/generate_reference.py; change the code, not this page. -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def page(title: str, *parts: str) -> str:
    """A page of parts with blank lines between them."""
    return "\n\n".join((f"# {title}", _NOTE, *parts)) + "\n"


# --- scenario


def _words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The type of a key as the writer of a file would say it."""
    for item in metadata:
        if isinstance(item, schema.In):
            return item.quantity.allowed
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0], annotation.__metadata__)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        if annotation == get_args(schema.AnyEvent)[0]:
            return "[Events](#events)"
        models = [item for item in inner if inspect.isclass(item) and issubclass(item, BaseModel)]
        if models:
            return _link(models[0]) if len(models) == 1 else "one of the kinds below"
        return " or ".join(dict.fromkeys(_words(item) for item in inner if item is not type(None)))
    if origin is dict:
        return "mapping" if inner[1] is Any else f"name → {_words(inner[1])}"
    if origin in (tuple, list):
        entries = list(dict.fromkeys(_words(item) for item in inner if item is not Ellipsis))
        return f"list of {' and '.join(entries)}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return _link(annotation)
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, "any")


def _link(model: type[BaseModel]) -> str:
    return f"[{_heading(model)}](#{_heading(model).lower().replace(' ', '-')})"


_HEADINGS = {
    "TopologyEntry": "Topology",
    "BuilderEntry": "Builders",
    "EdgeEntry": "Edge server",
    "GuestFiles": "Image of a partition",
    "TaskEntry": "A periodic task",
    "LinkEntry": "Links",
    "SliceEntry": "Slices",
    "SlaEntry": "SLA",
    "ResourcesEntry": "Resources",
    "RanResources": "RAN resources",
    "TransportResources": "Transport resources",
    "ComputeResources": "Core and edge resources",
    "TrafficEntry": "Traffic",
    "BackhaulTraffic": "Traffic of backhaul flows",
    "BackhaulEntry": "Backhaul flows",
    "BackhaulPathEntry": "A path",
    "BackhaulPathChoice": "A choice of paths",
    "SdnEntry": "SDN controller",
    "ControllerEntry": "Controllers",
    "ScenarioFile": "The file",
}


def _heading(model: type[BaseModel]) -> str:
    return _HEADINGS.get(model.__name__, model.__name__)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "**required**"
    value = info.get_default(call_default_factory=True)
    if value is None or value in ((), {}, "") or isinstance(value, BaseModel):
        return ""
    for item in info.metadata:
        if isinstance(item, schema.In):
            return f"`{item.quantity.format(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def keys(model: type[BaseModel], without: Iterable[str] = ()) -> str:
    """The table of a model's keys."""
    rows = [
        (f"`{info.alias or name}`", _words(info.annotation, info.metadata), _default(info), info.description or "")
        for name, info in model.model_fields.items()
        if name not in without
    ]
    return table(("key", "value", "default", "meaning"), rows)


def section(model: type[BaseModel], level: int = 2, title: str = "", without: Iterable[str] = ()) -> str:
    """Heading, docstring and keys of a model."""
    return f"{'#' * level} {title or _heading(model)}\n\n{_doc(model)}\n\n{keys(model, without)}"


def _doc(thing: object) -> str:
    return (inspect.getdoc(thing) or "").replace("``", "`")


def _kind(model: type[BaseModel]) -> str:
    return f"kind: {get_args(model.model_fields['kind'].annotation)[0]}"


def scenario_page() -> str:
    """Every key of a scenario file."""
    example = (LIBRARY / "quickstart.twin.yml").read_text(encoding="utf-8")
    node_keys = list(schema.NodeSettings.model_fields)
    nodes = (
        schema.UeNode,
        schema.GnbNode,
        schema.UpfNode,
        schema.AppNode,
        schema.SwitchNode,
        schema.ContainerNode,
        schema.HostNode,
    )
    profiles = (
        schema.ConstantProfile,
        schema.TelecomItaliaProfile,
        schema.TelecomItaliaSyntheticProfile,
        schema.MicrooptProfile,
        schema.PoissonProfile,
        schema.OnOffProfile,
    )
    backhaul_profiles = (
        schema.BackhaulConstant,
        schema.BackhaulRandom,
        schema.BackhaulTelecomItalia,
        schema.BackhaulTelecomItaliaSynthetic,
    )
    events = (
        (schema.LinkEvent, "link: cut or mend"),
        (schema.NodeEvent, "node: kill or restart"),
        (schema.UeEvent, "ue: attach or detach"),
        (schema.DemandEvent, "slice: demand"),
        (schema.SlaEvent, "slice: SLA"),
        (schema.KnobEvent, "entity: any knob"),
    )
    quantities = (
        units.BANDWIDTH,
        units.BIT_RATE,
        units.REQUEST_RATE,
        units.DELAY,
        units.POSITIVE_DURATION,
        units.LOSS,
        units.RATIO,
        units.CPU,
        units.MEMORY,
    )
    return page(
        "Scenario files",
        "A scenario is one `*.twin.yml` file. It is read strictly: an unknown key, a wrong unit or a name that does "
        "not exist is an error of one line, `FILE:LINE: what, got, allowed`, and all errors that can be found at once "
        "are printed together. `twin validate FILE` checks a file without running it; `twin schema` prints the JSON "
        "Schema (`scenarios/twin.schema.json`) for editors.",
        "Words are those of containerlab where it has one (`name`, `nodes`, `links`, `kind`, `image`, `endpoints`) and "
        "of Mininet for links (`bw`, `delay`, `jitter`, `loss`). The YAML rules are those of YAML 1.2: `on` and `down` "
        "are text, and so is `000001`.",
        f"The quickstart scenario, whole:\n\n```yaml\n{example}```",
        section(schema.ScenarioFile),
        "## Units\n\nA plain number is accepted only where its unit cannot be mistaken.\n\n"
        + table(("quantity", "written as"), [(item.name, item.allowed) for item in quantities]),
        section(schema.TopologyEntry),
        f"### Keys of every node\n\n{keys(schema.NodeSettings)}",
        *(section(model, 3, _kind(model), ("kind", *node_keys)) for model in nodes if len(model.model_fields) > 6),
        "### kind: switch, kind: host\n\nAn OpenFlow switch, and a bare network namespace: no further keys.",
        "### kind: iab-node, kind: iab-donor\n\nNodes of an integrated access and backhaul network ([IAB](../iab.md)), "
        "joined by links with a band: no further keys.",
        section(schema.PartitionNode, 3, _kind(schema.PartitionNode), ("kind",)),
        section(schema.GuestFiles, 3),
        section(schema.EdgeEntry, 3),
        section(schema.TaskEntry, 3),
        section(schema.LinkEntry),
        section(schema.BackhaulEntry),
        section(schema.BackhaulPathEntry, 3),
        section(schema.BackhaulPathChoice, 3),
        section(schema.BuilderEntry),
        table(
            ("builder", "makes", "keys of `with`"),
            [
                (f"`{item.name}`", item.summary, ", ".join(f"`{key}`" for key in builder_keys(item)))
                for item in BUILDERS.values()
            ],
        ),
        _builder_text(),
        *(
            section(model)
            for model in (
                schema.SliceEntry,
                schema.SlaEntry,
                schema.ResourcesEntry,
                schema.RanResources,
                schema.TransportResources,
                schema.ComputeResources,
                schema.TrafficEntry,
            )
        ),
        "### Profiles\n\nA profile says how many UEs of the group are active, over time.",
        *(section(model, 4, _kind(model), ("kind",)) for model in profiles),
        section(schema.BackhaulTraffic),
        *(section(model, 4, f"backhaul, {_kind(model)}", ("kind",)) for model in backhaul_profiles),
        section(schema.SdnEntry),
        section(schema.ControllerEntry),
        "## Events\n\nThe timeline of the run. Every event has `at` and may have `label`; events are actions on "
        "[knobs](knobs.md), like those of a controller, and take effect at the first interval boundary at or after "
        "their time. Events after the end are an error, unless `--duration` shortened the run.",
        *(section(model, 3, title, ("at", "label")) for model, title in events),
        f"## Assertions\n\n{_assertion_text()}",
    )


def _builder_text() -> str:
    """What each builder says about itself, with arguments spelt as in a file, and an example."""
    parts = []
    for builder in BUILDERS.values():
        text = _doc(builder.build)
        for key, (argument, _) in builder_keys(builder).items():
            text = text.replace(f"`{argument}`", f"`{key}`")
        text = re.sub(r":(?:class|func):`(?:[\w.]*\.)?(\w+)`", lambda match: f"kind `{match[1].lower()}`", text)
        parts.append(f"- **`{builder.name}`**: " + " ".join(text.split()))
    parts.append(
        "\nNodes and links of several builders, and those written out under `nodes` and `links`, add up; a link may "
        "name a node of another builder. `cpu` and `memory` may be given for every node in `groups`, `apps` and "
        "`settings`. From `scenarios/library/two_cells.twin.yml`:\n"
    )
    example = (LIBRARY / "two_cells.twin.yml").read_text(encoding="utf-8")
    parts.append("```yaml\n" + example[example.index("topology:") : example.index("\nslices:")] + "```")
    return "\n".join(parts)


def _assertion_text() -> str:
    """The grammar, from the documentation of the module that reads it; indented parts become code."""
    lines = (inspect.getdoc(assertions) or "").splitlines()[2:]
    out, inside = [], False
    for line in lines:
        if line.startswith("    ") != inside and line:
            inside = not inside
            out.append("```")
        out.append(line.removeprefix("    ").replace("``", "" if inside else "`"))
    return "\n".join(out + ["```"] * inside).replace("::", ":")


# --- the other pages


def knobs_page() -> str:
    """Every knob."""
    rows = [(f"`{k.name}`", k.unit, ", ".join(k.scopes), k.allowed, k.meaning) for k in KNOBS.values()]
    return page(
        "Knobs",
        "Everything that controllers and events can change while a network runs (`twin list knobs`). A value out of "
        "range, an unknown knob and an entity of another scope are refused with a reason and logged; nothing is "
        "clamped.",
        table(("knob", "unit", "scope", "allowed", "what it changes"), rows),
    )


def kpis_page() -> str:
    """Every KPI."""
    rows = [(f"`{k.name}`", k.unit, ", ".join(k.scopes), k.provenance, k.gpp_name, k.meaning) for k in KPIS.values()]
    return page(
        "KPIs",
        "What a run records, every interval (`twin list kpis`). Provenance is that of an emulation run; the flow "
        "fidelity reports the same names as modelled, unless they are derived in both. 3GPP names are those of "
        "TS 28.552 and TS 28.554. What is counted *since the start* is judged by its last value, the rest by the mean.",
        table(("KPI", "unit", "scope", "provenance", "3GPP name", "meaning"), rows),
    )


def exit_codes_page() -> str:
    """Every exit code."""
    rows = [(str(int(code)), code.name, code.meaning) for code in ExitCode]
    return page("Exit codes", "What the exit code of `twin` says.", table(("code", "name", "meaning"), rows))


def _metavar(hint: Any) -> str:
    """What stands behind an option: the choices of an enumeration, or the kind of value."""
    kinds = [item for item in (hint, *get_args(hint)) if inspect.isclass(item)]
    for kind in kinds:
        if issubclass(kind, Enum):
            return "|".join(str(member.value) for member in kind)
    names = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "DIR"}
    return next((names[kind] for kind in kinds if kind in names), "")


def _commands(group: Any, before: str = "") -> list[tuple[str, Any]]:
    """Commands with their full names, those of groups in place of the group."""
    found = []
    for name in group.list_commands(None):
        full, command = f"{before}{name}", group.get_command(None, name)
        found += _commands(command, f"{full} ") if hasattr(command, "commands") else [(full, command)]
    return found


def cli_page() -> str:
    """Every command with its arguments and options."""
    root: Any = typer.main.get_command(app)
    parts = [
        "Results go to stdout, as a table or (`--format json`) as exactly one JSON object; progress and errors go to "
        "stderr. Errors are one line; `twin --debug COMMAND` shows the traceback. See also [exit codes](exit-codes.md)."
    ]
    for name, command in _commands(root):
        rows = []
        arguments = []
        hints = get_type_hints(command.callback)
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                arguments.append(parameter.metavar or _metavar(hints[parameter.name]))
                rows.append((f"`{arguments[-1]}`", parameter.help or ""))
            else:
                metavar = parameter.metavar or _metavar(hints[parameter.name])
                spelling = parameter.opts[0] + ("" if parameter.is_flag or not metavar else f" {metavar}")
                rows.append((f"`{spelling}`", parameter.help or ""))
        usage = f"twin {' '.join([name, *arguments])} [OPTIONS]"
        listing = table(("argument or option", "meaning"), rows) if rows else ""
        parts.append(f"## twin {name}\n\n{_doc(command.callback)}\n\n```\n{usage}\n```\n\n{listing}".rstrip())
    return page("Commands", *parts)


PAGES: dict[str, Callable[[], str]] = {
    "scenario.md": scenario_page,
    "knobs.md": knobs_page,
    "kpis.md": kpis_page,
    "exit-codes.md": exit_codes_page,
    "cli.md": cli_page,
}


def outdated(folder: Path = OUT) -> list[str]:
    """Names of the pages under ``folder`` that are not what the code says."""
    return [
        name
        for name, make in PAGES.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != make()
    ]


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description="Write docs/reference from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    if parser.parse_args().check:
        old = outdated()
        for name in old:
            print(f"docs/reference/{name} is out of date: run tools/generate_reference.py", file=sys.stderr)
        return 1 if old else 0
    OUT.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (OUT / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
