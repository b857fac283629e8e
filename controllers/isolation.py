"""Controllers in processes of their own, so that none of them can stop a run.

A controller that raises or returns nonsense is reported as a fault; one that exits or takes longer
than its time limit is killed and started again as a new instance, at most :data:`MAX_RESTARTS`
times in a run. What it had set before stays in force, since only its new actions are discarded.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from controllers.base import ControllerContext
from controllers.worker import Nonsense, checked, one_line
from twin.types import Action, Observation

MAX_RESTARTS = 3
START_LIMIT_S = 30.0
MAX_REPLY_BYTES = 1 << 20
_STOP_GRACE_S = 0.5

State = Literal["starting", "idle", "busy", "given up"]


class ControllerError(Exception):
    """A controller that cannot be started; the run does not start. One line."""


@dataclass(frozen=True)
class Decision:
    """What one controller answered. ``asked_s`` is the run clock of the last observation it saw.

    ``faults`` says in words what went wrong; ``arrived_s`` is on the monotonic clock.
    """

    name: str
    asked_s: float
    arrived_s: float
    actions: tuple[Action, ...] = ()
    decision_time_s: float | None = None
    faults: tuple[str, ...] = ()


class Worker:
    """One controller in one process, one request at a time. Never blocks; :meth:`close` ends it."""

    def __init__(
        self,
        name: str,
        controller: str,
        context: ControllerContext,
        params: Mapping[str, object],
        *,
        limit_s: float,
        log: Path,
    ) -> None:
        self.name = name
        self.interval_s = context.interval_s
        self.limit_s = limit_s
        self.state: State = "starting"
        self.deadline_s = 0.0
        self.asked_s = 0.0
        self.next_act_s = 0.0
        self.restarts = 0
        self.waiting: list[Observation] = []
        self._asked = False
        self._first = (controller, context, dict(params))
        self._log = log
        self._in = bytearray()
        self._out = bytearray()
        self._start()

    def _start(self) -> None:
        # Not inherited by default; only the end that is passed on reaches the child.
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "controllers.worker", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the engine, which then ends its workers
            )
        self._in.clear()
        self._out.clear()
        self.state = "starting"
        self.deadline_s = time.monotonic() + START_LIMIT_S
        self._queue(self._first)

    def _queue(self, request: object) -> None:
        body = pickle.dumps(request, protocol=pickle.HIGHEST_PROTOCOL)
        self._out += len(body).to_bytes(4) + body
        self.flush()

    def send(self, ask: bool) -> None:
        """Send the waiting observations, and ask for a decision or not."""
        columns = [
            (
                observation.time_s,
                [kpi.time_s for kpi in observation.kpis],
                [kpi.entity for kpi in observation.kpis],
                [kpi.name for kpi in observation.kpis],
                [kpi.value for kpi in observation.kpis],
            )
            for observation in self.waiting
        ]
        self.asked_s = self.waiting[-1].time_s if self.waiting else self.asked_s
        self.waiting.clear()
        self.state = "busy"
        self._asked = ask
        self.deadline_s = time.monotonic() + self.limit_s
        self._queue((columns, ask))

    @property
    def has_output(self) -> bool:
        """Whether bytes wait until the process reads."""
        return bool(self._out)

    def flush(self) -> None:
        """Send what the socket takes now."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._out:
                del self._out[: self.channel.send(self._out)]

    def receive(self) -> Decision | None:
        """What has arrived, if it is complete; a dead or confused process is restarted and reported."""
        try:
            data = self.channel.recv(1 << 16)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if not data:
            return self._fail(self._exit_text())
        self._in += data
        size = int.from_bytes(self._in[:4])
        if len(self._in) >= 4 and size > MAX_REPLY_BYTES:
            return self._fail(f"answer of {size} bytes, at most {MAX_REPLY_BYTES} allowed")
        if len(self._in) < 4 + size:
            return None
        body = bytes(self._in[4 : 4 + size])
        del self._in[: 4 + size]
        try:
            return self._understand(json.loads(body))
        except (ValueError, KeyError, TypeError, Nonsense) as error:
            # Only a controller that writes into the channel itself gets here.
            return self._fail(f"answer is not understood: {type(error).__name__}: {error}")

    def _understand(self, reply: dict[str, object]) -> Decision | None:
        if reply["kind"] == "ready":
            self.state = "idle"
            return None
        if reply["kind"] == "unusable":
            text = one_line(str(reply["text"]))
            if self.restarts == 0:
                raise ControllerError(f"controller {self.name}: {text}")
            return self._fail(text)
        self.state = "idle"
        raw: list[tuple[str, str, float | str]] = reply["actions"]  # type: ignore[assignment]
        faults: list[object] = reply["faults"]  # type: ignore[assignment]
        # Checked here again: a controller may write into the channel itself.
        actions = checked([Action(*item) for item in raw])
        return Decision(
            self.name,
            self.asked_s,
            time.monotonic(),
            tuple(Action(*item) for item in actions),
            float(reply["decision_time_s"]) if self._asked else None,  # type: ignore[arg-type]
            tuple(one_line(str(fault)) for fault in faults),
        )

    def expire(self) -> Decision | None:
        """Deal with a deadline that has passed: kill, start again, report."""
        if self.state == "starting":
            text = f"not ready within {START_LIMIT_S:g} s"
            if self.restarts == 0:
                raise ControllerError(f"controller {self.name}: {text}")
            return self._fail(text)
        return self._fail(f"no decision within {self.limit_s:g} s")

    def _fail(self, text: str) -> Decision:
        if self.state == "starting" and self.restarts == 0:
            raise ControllerError(f"controller {self.name}: {text}; its output is in {self._log}")
        self._kill()
        if self.restarts < MAX_RESTARTS:
            self.restarts += 1
            self._start()
            text += f"; started again ({self.restarts} of {MAX_RESTARTS})"
        else:
            self.state = "given up"
            text += f"; given up after {MAX_RESTARTS} restarts"
        return Decision(self.name, self.asked_s, time.monotonic(), faults=(text,))

    def _exit_text(self) -> str:
        # The socket closes a moment before the process is gone.
        ended = self._ended(1.0)
        if ended is None:
            return "process closed its channel"
        if ended.si_code == os.CLD_EXITED:
            return f"process exited with code {ended.si_status}"
        return f"process ended by signal {ended.si_status}"

    def _ended(self, limit_s: float) -> os.waitid_result | None:
        """How the process ended, waiting at most ``limit_s``. It stays a zombie, which keeps its group id taken."""
        if self._process.returncode is not None:
            return None
        descriptor = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(1000 * limit_s)
        finally:
            os.close(descriptor)
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)

    def _kill(self) -> None:
        if self._process.returncode is None:
            # Also what the controller forked, and also when it has ended itself.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.channel.close()

    def ask_to_end(self) -> None:
        """Close the channel, upon which a healthy worker exits."""
        self.channel.close()

    def close(self, grace_s: float = 0.0) -> None:
        """End the process; may be called twice."""
        self.channel.close()
        self._ended(grace_s)
        self._kill()
        self.state = "given up"


class ControllerPool:
    """All controllers of a run. ``patient`` waits for every decision (runs without a wall clock).

    The processes start at once and in parallel; :meth:`wait_ready` raises :class:`ControllerError`
    when one of them cannot be used.
    """

    def __init__(self, *, patient: bool) -> None:
        self._patient = patient
        self._workers: list[Worker] = []

    def add(self, worker: Worker) -> None:
        """Take in a worker that was just started."""
        self._workers.append(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_ready(self) -> None:
        """Wait until all controllers are made."""
        for _ in self._pump(self._workers_in("starting"), None):
            pass

    def offer(self, observation: Observation) -> None:
        """Show an observation to all controllers; those whose time has come are asked.

        The first decision is due after the first observation, the next ones every ``interval_s``.
        A patient pool delivers observations together with the next question.
        """
        for worker in self._workers:
            if worker.state == "given up":
                continue
            worker.waiting.append(observation)
            due = observation.time_s >= worker.next_act_s - 1e-9
            if worker.state == "idle" and (due or not self._patient):
                self._send(worker, due)

    def _send(self, worker: Worker, due: bool) -> None:
        if due:
            time_s = worker.waiting[-1].time_s
            if worker.next_act_s == 0:
                worker.next_act_s = time_s
            while worker.next_act_s <= time_s + 1e-9:
                worker.next_act_s += worker.interval_s
        worker.send(due)

    def collect(self, until_s: float | None = None) -> Iterator[Decision]:
        """Decisions and faults as they arrive, until ``until_s`` of the monotonic clock.

        Without a limit of its own a patient pool waits for all; 0 takes what is there.
        """
        yield from self._pump(self._workers_in("starting", "busy"), until_s)

    def _workers_in(self, *states: State) -> list[Worker]:
        return [worker for worker in self._workers if worker.state in states]

    def _pump(self, workers: Sequence[Worker], until_s: float | None) -> Iterator[Decision]:
        pending = list(workers)
        while pending:
            now = time.monotonic()
            limit = min(worker.deadline_s for worker in pending)
            limit = limit if until_s is None else min(limit, until_s)
            with selectors.DefaultSelector() as selector:
                for worker in pending:
                    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.has_output else 0)
                    selector.register(worker.channel, wanted, worker)
                ready = selector.select(max(0.0, limit - now))
            decisions: list[Decision | None] = []
            for key, events in ready:
                worker = key.data
                if events & selectors.EVENT_WRITE:
                    worker.flush()
                if events & selectors.EVENT_READ:
                    decisions.append(worker.receive())
            now = time.monotonic()
            decisions.extend(
                worker.expire()
                for worker in pending
                if worker.state in ("starting", "busy") and worker.deadline_s <= now
            )
            yield from (decision for decision in decisions if decision is not None)
            pending = [worker for worker in pending if worker.state in ("starting", "busy")]
            if until_s is not None and time.monotonic() >= until_s and not ready:
                return

    def close(self) -> None:
        """End all processes; may be called twice."""
        for worker in self._workers:
            worker.ask_to_end()
        limit_s = time.monotonic() + _STOP_GRACE_S
        for worker in self._workers:
            worker.close(max(0.0, limit_s - time.monotonic()))
        self._workers.clear()
