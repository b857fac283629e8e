"""``static``: sets given values once, at its first decision, and then leaves them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controllers.base import ControllerContext
from twin.knobs import refusal
from twin.types import Action, Observation


class Static:
    """Holds ``values``, a mapping ``{entity: {knob: value}}``; without it nothing is touched."""

    def __init__(
        self, context: ControllerContext, values: Mapping[str, Mapping[str, float | str]] | None = None
    ) -> None:
        self._actions: list[Action] = []
        for entity, knobs in _mapping("values", values or {}).items():
            if entity not in context.scope:
                raise ValueError(f"values: {entity} is outside the scope: {', '.join(context.scope)}")
            for knob, value in _mapping(f"values.{entity}", knobs).items():
                action = Action(entity, knob, value)  # type: ignore[arg-type]
                if (reason := refusal(action)) is not None:
                    raise ValueError(f"values: {reason}")
                self._actions.append(action)

    def observe(self, observation: Observation) -> None:
        """Nothing is learned."""

    def act(self) -> Sequence[Action]:
        actions, self._actions = self._actions, []
        return actions


def _mapping(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a mapping, got {value!r}")
    return value
