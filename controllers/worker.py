"""The process in which one controller lives: ``python -P -m controllers.worker FD``.

It reads pickled requests from the socket FD and answers with JSON, both with a 4-byte length before
them, so that nothing a controller returns is executed in the engine. Whatever the controller
prints goes to the file that the engine gave as standard output.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from numbers import Real
from typing import Any

from controllers.base import Controller, ControllerContext
from twin.knobs import KNOBS
from twin.types import Action, Kpi, Observation

GROUP = "twinbed.controllers"
# Each action is carried out before the next interval: many more than there are knobs would stop the run clock.
MAX_ACTIONS = 1000
MAX_TEXT = 500
_PR_SET_PDEATHSIG = 1


class Nonsense(Exception):
    """What a controller returned is no sequence of actions."""


def find_controller(name: str) -> type[Controller]:
    """The class behind an entry point name or ``module:Class``; ValueError when there is none."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(import_module(module), attribute)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            raise ValueError(f"controller {name!r} cannot be loaded: {error}") from error
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        raise ValueError(f"no controller named {name!r}; controllers: {', '.join(sorted(found)) or 'none'}")
    return found[name].load()  # type: ignore[no-any-return]


def one_line(text: str) -> str:
    """``text`` as one line of at most :data:`MAX_TEXT` characters that every file and terminal can take."""
    return " ".join(text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode().split())


def checked(answer: object) -> list[tuple[str, str, float | str]]:
    """The answer of ``act`` as plain values; :class:`Nonsense` naming the first part that is wrong."""
    if isinstance(answer, str) or not isinstance(answer, Sequence):
        raise Nonsense(f"act() must return a sequence of Action, got {type(answer).__name__}")
    if len(answer) > MAX_ACTIONS:
        raise Nonsense(f"act() may return at most {MAX_ACTIONS} actions, got {len(answer)}")
    plain: list[tuple[str, str, float | str]] = []
    for action in answer:
        if not isinstance(action, Action):
            raise Nonsense(f"act() must return a sequence of Action, got one with {type(action).__name__}")
        value: object = action.value
        where = f"{action.entity!s} {action.knob!s}"
        if not (isinstance(action.entity, str) and isinstance(action.knob, str)):
            raise Nonsense(f"{where}: entity and knob must be text")
        for text in (action.entity, value):
            if isinstance(text, str) and not (text.isprintable() and len(text) <= MAX_TEXT):
                raise Nonsense(f"{where}: text must be printable and at most {MAX_TEXT} characters, got {text[:40]!a}")
        if action.knob not in KNOBS:
            raise Nonsense(f"no knob named {action.knob!r}; knobs: {', '.join(KNOBS)}")
        if isinstance(value, bool) or not isinstance(value, str | Real):
            raise Nonsense(f"{where}: value must be a number or text, got {type(value).__name__}")
        if not isinstance(value, str):
            value = float(value)
            if not math.isfinite(value):
                raise Nonsense(f"{where}: value must be finite, got {value}")
        plain.append((action.entity, action.knob, value))
    return plain


def serve(channel: socket.socket) -> None:
    """Answer requests until the engine closes its end."""
    with channel.makefile("rb") as reader:
        controller: Controller | None = None
        while (request := _read(reader)) is not None:
            if controller is None:
                try:
                    name, context, params = request
                    controller = _make(name, context, params)
                    reply: dict[str, object] = {"kind": "ready"}
                except Exception as error:  # noqa: BLE001 whatever a plug-in raises must reach the user as one line
                    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                    reply = {"kind": "unusable", "text": one_line(text)}
            else:
                reply = _decide(controller, *request)
            try:
                body = json.dumps(reply).encode()
                channel.sendall(len(body).to_bytes(4) + body)
            except BrokenPipeError:
                return


def _make(name: str, context: ControllerContext, params: dict[str, Any]) -> Controller:
    cls: Any = find_controller(name)
    controller = cls(context, **params)
    for method in ("observe", "act"):
        if not callable(getattr(controller, method, None)):
            raise ValueError(f"controller {name!r} has no method {method}()")
    prepare = getattr(controller, "prepare", None)
    if callable(prepare):
        prepare()
    return controller  # type: ignore[no-any-return]


def _decide(controller: Controller, columns: list[Any], ask: bool) -> dict[str, object]:
    faults: list[str] = []
    for time_s, times, entities, names, values in columns:
        kpis = tuple(map(Kpi, times, entities, names, values))
        try:
            controller.observe(Observation(time_s, kpis))
        except Exception as error:  # noqa: BLE001 see above
            faults.append(one_line(f"observe() raised {type(error).__name__}: {error}"))
    reply: dict[str, object] = {"kind": "decision", "actions": [], "decision_time_s": 0.0, "faults": faults}
    if ask:
        start = time.perf_counter()
        try:
            reply["actions"] = checked(controller.act())
        except Nonsense as error:
            faults.append(one_line(str(error)))
        except Exception as error:  # noqa: BLE001 see above
            faults.append(one_line(f"act() raised {type(error).__name__}: {error}"))
        reply["decision_time_s"] = time.perf_counter() - start
    return reply


def _read(reader: Any) -> Any:
    head = reader.read(4)
    if len(head) < 4:
        return None
    body = reader.read(int.from_bytes(head))
    return pickle.loads(body)


def end_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process when the process that started it ends, however that comes about."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before
        os._exit(1)


def main(argv: Sequence[str]) -> int:
    """Serve the socket whose file descriptor is the first argument; the second is the engine's pid."""
    # A controller that spins does not notice that the engine was killed.
    end_with_parent(int(argv[1]))
    with socket.socket(fileno=int(argv[0])) as channel:
        serve(channel)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
