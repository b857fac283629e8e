"""Commands of ``twin`` that come by entry point, of this package or of others.

A name in the group ``twinbed.commands`` is a command: a function for typer, or a ``typer.Typer`` with
commands of its own. It is imported when it is called or listed, never before.
"""

from __future__ import annotations

import functools
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

GROUP = "twinbed.commands"


@functools.cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _loaded(point: EntryPoint) -> Any:
    """The click command of an entry point; one that explains itself when it cannot be imported."""
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        reason = f"command {point.name} cannot be imported: {error}"

        def found() -> None:
            from scenarios.registry import MissingPartError

            raise MissingPartError(reason)

        found.__doc__ = f"Not usable here: {error}."
    if not isinstance(found, typer.Typer):
        single = typer.Typer(rich_markup_mode=None, add_completion=False)
        single.command(point.name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = point.name
    return command


class PluginGroup(TyperGroup):
    """The commands of a typer application and those of the entry points; its own win."""

    def list_commands(self, ctx: Any) -> list[str]:
        own: list[str] = super().list_commands(ctx)
        return own + sorted(set(_points()) - set(own))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in _points():
            self.commands[cmd_name] = _loaded(_points()[cmd_name])
        return super().get_command(ctx, cmd_name)
