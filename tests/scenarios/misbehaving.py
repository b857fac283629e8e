"""Controllers that break the rules, for the tests of the engine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from controllers.base import ControllerContext
from twin.types import Action, Observation


class Good:
    """Raises the CPU of every slice in its scope by ``step`` at each decision."""

    def __init__(self, context: ControllerContext, step: float = 10.0, knob: str = "cpu_millicores") -> None:
        if step == 0:
            raise ValueError("step must not be 0, got 0")
        self.context, self.step, self.knob = context, step, knob
        self.seen: list[float] = []
        self.value = 500.0

    def observe(self, observation: Observation) -> None:
        self.seen.append(observation.time_s)

    def act(self) -> Sequence[Action]:
        self.value += self.step
        return [Action(entity, self.knob, self.value) for entity in self.context.scope]


class SeesAll(Good):
    """Refuses to work unless it was shown every interval."""

    def act(self) -> Sequence[Action]:
        assert self.seen == [float(k + 1) for k in range(len(self.seen))]
        return [Action(self.context.scope[0], "cpu_millicores", 100.0 + len(self.seen))]


class Raises(Good):
    """Acts well the first time, then raises."""

    def act(self) -> Sequence[Action]:
        if self.value > 500:
            raise RuntimeError("no idea")
        return super().act()


class ObserveRaises(Good):
    """Cannot stand to look."""

    def observe(self, observation: Observation) -> None:
        raise KeyError(f"at {observation.time_s:g}")


class Hangs(Good):
    """Acts well the first time, then spins and ignores everything."""

    def act(self) -> Sequence[Action]:
        while self.value > 500:
            pass
        return super().act()


class Exits(Good):
    """Takes its process with it."""

    def act(self) -> Sequence[Action]:
        os._exit(3)


class Says(Good):
    """Returns whatever ``answer`` names."""

    def __init__(self, context: ControllerContext, answer: str) -> None:
        super().__init__(context)
        self.answer = answer

    def act(self) -> Sequence[Action]:
        entity = self.context.scope[0]
        answers: dict[str, object] = {
            "none": None,
            "text": "cpu_millicores",
            "tuple": [(entity, "cpu_millicores", 5.0)],
            "nan": [Action(entity, "cpu_millicores", float("nan"))],
            "bool": [Action(entity, "cpu_millicores", True)],
            "list": [Action(entity, "cpu_millicores", [1])],  # type: ignore[arg-type]
            "unknown knob": [Action(entity, "cpu", 5.0)],
            "surrogate": [Action(entity, "path", "\ud800")],
            "too many": [Action(entity, "cpu_millicores", 500.0)] * 1001,
            "out of range": [Action(entity, "cpu_millicores", -5.0)],
            "out of scope": [Action("slice:other", "cpu_millicores", 500.0)],
        }
        return answers[self.answer]  # type: ignore[return-value]


class Prints(Good):
    """Talks on standard output, where the command line prints its JSON."""

    def act(self) -> Sequence[Action]:
        print("hello from a controller", flush=True)
        os.write(1, b"hello from its file descriptor\n")
        return super().act()


class Slow(Good):
    """Takes 0.3 s a decision."""

    def act(self) -> Sequence[Action]:
        time.sleep(0.3)
        return super().act()


class NeverReady(Good):
    """Raises an odd error when it is made."""

    def __init__(self, context: ControllerContext) -> None:
        raise OSError(f"no model file for {context.scope[0]}")


class RaisesLines(Good):
    """Raises an error of several lines, with bytes of a file name that is not UTF-8."""

    def act(self) -> Sequence[Action]:
        raise OSError("no file \udcff\nhere")


class Forks(Good):
    """Leaves a process behind, whose id it writes down."""

    def __init__(self, context: ControllerContext, note: str) -> None:
        super().__init__(context)
        self.note = note

    def act(self) -> Sequence[Action]:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        with Path(self.note).open("a", encoding="ascii") as stream:
            stream.write(f"{child}\n")
        return super().act()


class Forges(Good):
    """Writes a decision into the channel itself that the engine must not believe."""

    def act(self) -> Sequence[Action]:
        body = b'{"kind": "decision", "actions": [["slice:embb", "cpu_millicores", [1]]], "faults": []}'
        os.write(int(sys.argv[1]), len(body).to_bytes(4) + body)
        return ()


class Scribbles(Good):
    """Writes nonsense into the channel to the engine."""

    def act(self) -> Sequence[Action]:
        os.write(int(sys.argv[1]), b"\0\0\0\3abc" if self.value == 500 else b"\xff" * 9)
        return super().act()


class WrongPaths:
    """Sends every flow of its scope over a path that it lacks, then one with a path that is no number."""

    def __init__(self, context: ControllerContext) -> None:
        self.flows = [entity for entity in context.scope if entity.startswith("flow:")]

    def observe(self, observation: Observation) -> None: ...

    def act(self) -> Sequence[Action]:
        return [*(Action(flow, "path_index", 99) for flow in self.flows), Action(self.flows[0], "path_index", "best")]


class Prepared(Good):
    """Decides only when it was prepared first."""

    ready = False

    def prepare(self) -> None:
        assert self.seen == []
        self.ready = True

    def act(self) -> Sequence[Action]:
        assert self.ready
        return super().act()
