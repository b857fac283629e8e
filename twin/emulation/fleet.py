"""The data plane programs of a running emulation: started, asked, watched, stopped."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import twin
from twin.emulation.cgroups import Cgroup
from twin.emulation.client import ProgramClient, ProgramDownError
from twin.emulation.errors import EmulationError
from twin.emulation.process import Process
from twin.emulation.programs import ProgramSpec

GUEST_ROOT = "/opt/twinbed"
HOST_ROOT = str(Path(twin.__file__).parents[1])
READY_TIMEOUT_S = 10.0
NO_PYTHON = "node {node}: image {image} has no python3; TwinBed's programs need Python 3.9 or later in the image"


@dataclass
class _Program:
    spec: ProgramSpec
    process: Process
    client: ProgramClient


class Fleet:
    """Owns the programs. ``node`` gives the façade's node of a name; ``groups`` the control groups of the
    programs that have one; ``runtime`` is the folder that all containers share with the host."""

    def __init__(self, *, node: Callable[[str], Any], groups: Mapping[str, Cgroup], runtime: Path, logs: Path) -> None:
        self._node = node
        self._groups = groups
        self._runtime = runtime
        self._logs = logs
        self._programs: dict[str, _Program] = {}

    def __contains__(self, program: str) -> bool:
        return program in self._programs

    def start(self, wanted: Sequence[ProgramSpec]) -> None:
        """Launch programs together, then wait until each is ready."""
        for spec in wanted:
            socket_path = self._runtime / f"{spec.name}.sock"
            config_path = self._runtime / f"{spec.name}.json"
            config_path.write_text(json.dumps(spec.config))
            node = self._node(spec.node)
            # A namespace host has the files of this machine; a container has Python and TwinBed's code.
            on_host = not hasattr(node, "dimage")
            argv = [sys.executable, "-S"] if on_host else ["python3"]
            argv += ["-m", f"twin.emulation.dataplane.{spec.module}"]
            argv += ["--config", str(config_path), "--control", str(socket_path)]
            process = node.launch(
                argv,
                cgroup=self._groups.get(spec.name),
                log=self._logs / f"{spec.name}.log",
                env={"PYTHONPATH": HOST_ROOT if on_host else GUEST_ROOT, "PYTHONDONTWRITEBYTECODE": "1"},
            )
            self._programs[spec.name] = _Program(spec, process, ProgramClient(spec.name, socket_path))
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        for spec in wanted:
            self._wait_ready(self._programs[spec.name], deadline_s)

    def _wait_ready(self, program: _Program, deadline_s: float) -> None:
        while True:
            try:
                program.client.wait_ready(time.monotonic() + 0.05)
                return
            except ProgramDownError:
                if program.process.poll() is not None or time.monotonic() > deadline_s:
                    raise EmulationError(self._obituary(program)) from None

    def _obituary(self, program: _Program) -> str:
        """Why a program is not there, in one line."""
        spec = program.spec
        code = program.process.poll()
        log = self._logs / f"{spec.name}.log"
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        last = lines[-1][:200] if lines else "nothing"
        if code in (126, 127) or ("python3" in last and "No such file" in last):
            image = getattr(self._node(spec.node), "dimage", "none")
            return NO_PYTHON.format(node=spec.node, image=image)
        state = "does not answer" if code is None else f"ended with exit code {code}"
        return f"program {spec.name} on node {spec.node} {state}; its last words: {last} (log: {log})"

    def client(self, program: str) -> ProgramClient:
        """The control connection of a running program; ProgramDownError when it is down."""
        try:
            return self._programs[program].client
        except KeyError:
            raise ProgramDownError(f"{program}: is down") from None

    def pid(self, program: str) -> int:
        """Process id on the host of a running program; ProgramDownError when it is down."""
        try:
            return self._programs[program].process.pid
        except KeyError:
            raise ProgramDownError(f"{program}: is down") from None

    def stats(self) -> Iterator[tuple[ProgramSpec, dict[str, Any]]]:
        """Statistics of every program that answers."""
        for program in list(self._programs.values()):
            with contextlib.suppress(ProgramDownError):
                yield program.spec, program.client.call("stats")

    def check_alive(self) -> None:
        """EmulationError when something that should run has died by itself."""
        for program in self._programs.values():
            if program.process.poll() is not None:
                raise EmulationError(self._obituary(program))

    def set_epoch(self, time_ns: int) -> None:
        """Run time 0 in monotonic nanoseconds, for channels and scripts."""
        for program in self._programs.values():
            if program.spec.module in ("gnb", "tasks"):
                program.client.call("epoch", time_ns=time_ns)

    def stop_on(self, node: str) -> None:
        """End the programs of one node."""
        for program in [program for program in self._programs.values() if program.spec.node == node]:
            self._stop(program)

    def close(self) -> None:
        """End all programs; may be called twice."""
        for program in list(self._programs.values()):
            self._stop(program)

    def _stop(self, program: _Program) -> None:
        program.client.close()
        program.process.kill()
        del self._programs[program.spec.name]
