"""The OpenFlow controller of a run: a process of its own, started, asked, watched and ended with the run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import twin
from twin.emulation.client import ProgramClient, ProgramDownError, ProgramError
from twin.emulation.errors import EmulationError
from twin.journal import Journal, start_ticks

NAME = "sdn"
START_TIMEOUT_S = 20.0
SWITCH_TIMEOUT_S = 20.0
_TAIL_LINES = 3


class SdnController:
    """Runs :mod:`twin.emulation.sdn.launch` with ``config``; EmulationError says why when it cannot.

    The process ends with its standard input, so not even a crash of ours leaves it behind.
    """

    def __init__(self, config: Mapping[str, Any], *, runtime: Path, logs: Path, journal: Journal) -> None:
        self.app = str(config.get("app", "source routing"))
        self._journal = journal
        self._log = logs / f"{NAME}.log"
        socket_path, config_path = runtime / f"{NAME}.sock", runtime / f"{NAME}.json"
        config_path.write_text(json.dumps(config))
        argv = [sys.executable, "-m", "twin.emulation.sdn.launch"]
        argv += ["--config", str(config_path), "--control", str(socket_path)]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=_environment(),
            )
        self._entry = journal.record("process", pid=self._process.pid, start_ticks=start_ticks(self._process.pid) or 0)
        self.client = ProgramClient(NAME, socket_path, timeout_s=10.0)
        self.port = 0

    def wait_ready(self) -> None:
        """Until the application runs; ``port`` is then the OpenFlow port on the loopback interface."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.client.wait_ready(time.monotonic() + 0.05)
                break
            except ProgramDownError:
                self.check_alive()
                if time.monotonic() > deadline_s:
                    raise EmulationError(
                        f"SDN application {self.app}: not running after {START_TIMEOUT_S:g} s; {self._tail()}"
                    ) from None
        self.port = int(self._ask("ping")["port"])

    def wait_for(self, op: str, switches: Sequence[str]) -> None:
        """Until op ``stats`` (connected datapaths) or ``ready`` (rules confirmed) lists all ``switches``."""
        deadline_s = time.monotonic() + SWITCH_TIMEOUT_S
        while missing := set(switches) - set(self._ask(op)["switches"]):
            self.check_alive()
            if time.monotonic() > deadline_s:
                raise EmulationError(
                    f"SDN application {self.app}: {len(missing)} of {len(switches)} switches are not under its "
                    f"control after {SWITCH_TIMEOUT_S:g} s, e.g. {min(missing)}; {self._tail()}"
                )
            time.sleep(0.02)

    def _ask(self, op: str) -> dict[str, Any]:
        try:
            return self.client.call(op)
        except ProgramDownError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
            self.check_alive()
            raise
        except ProgramError as error:
            raise EmulationError(f"SDN application {self.app}: {error}") from None

    def check_alive(self) -> None:
        """EmulationError with the end of the log when the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise EmulationError(f"SDN application {self.app} ended with exit code {code}; {self._tail()}")

    def _tail(self) -> str:
        """The end of the log in one line, the innermost place of a traceback first."""
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        last = " | ".join(line[:160] for line in lines[-_TAIL_LINES:]) or "nothing"
        return f"its last words: {last} (log: {self._log})"

    def close(self) -> None:
        """End the process; may be called twice."""
        self.client.close()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._journal.done(self._entry)


def _environment() -> dict[str, str]:
    """Ours, and TwinBed importable also when it is not installed."""

    root = str(Path(twin.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
