"""The emulation backend: a topology as containers, switches and programs that carry real packets."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from topologies.model import Topology, TopologyError, Ue
from twin.backend import BackendError
from twin.emulation.backhaul_meter import BackhaulMeter
from twin.emulation.capture import Capture, CaptureError
from twin.emulation.client import ProgramDownError, ProgramError
from twin.emulation.errors import EmulationError
from twin.emulation.gauges import Gauges
from twin.emulation.hostmeter import HostMeter
from twin.emulation.knobs import Actuators
from twin.emulation.meter import Readings, UserPlaneMeter
from twin.emulation.network import HOST_ERRORS, Network
from twin.emulation.plan import make_plan
from twin.emulation.proof import prove
from twin.emulation.replay import Replay
from twin.emulation.task_meter import TaskMeter
from twin.journal import Journal, JournalError
from twin.load import Flow, Load
from twin.types import Action, Kpi, Observation, Outcome, Probe

ATTACH_WAIT_S = 0.1
COLLECT_S = 0.5  # the kernel keeps some 4000 wake-ups per CPU

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    return


class EmulationBackend:
    """Brings topologies up with Mininet, Docker and Open vSwitch. Needs root; see ``twin doctor``.

    ``sdn_app``: a user's OpenFlow application (file or module) that controls the switches instead of TwinBed.
    ``run_id`` marks everything created on the host; ``folder`` is where logs and captures go;
    ``captures`` are ``NODE:INTERFACE`` names to record as pcap files; ``progress`` is told the steps
    of the bring-up.
    """

    name = "emulation"
    deterministic = False

    def __init__(
        self,
        *,
        run_id: str,
        folder: Path,
        captures: Sequence[str] = (),
        progress: Progress = _silent,
        probes: bool = True,
        sdn_app: str | None = None,
    ) -> None:
        self.sdn_app = sdn_app
        self.run_id = run_id
        self.folder = folder
        self.captures = tuple(captures)
        self._progress = progress
        self._probes = probes

    def open(self, topology: Topology, load: Load, *, seed: int) -> EmulationSession:
        """Bring the network up, probe it, attach nobody yet. Raises BackendError and leaves nothing."""
        return EmulationSession(self, topology, load, seed=seed, progress=self._progress, probe=self._probes)


class EmulationSession:
    """A running emulation. See :class:`twin.backend.Session`."""

    def __init__(
        self,
        backend: EmulationBackend,
        topology: Topology,
        load: Load,
        *,
        seed: int,
        progress: Progress,
        probe: bool,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._observed_s = 0.0
        self._last_read_s = 0.0
        self._probes: tuple[Probe, ...] = ()
        self.first_packet_s: float | None = None
        """Unix time at which a UE received the first packet of its traffic; None before."""
        try:
            plan = make_plan(topology)
            journal = self._stack.enter_context(Journal.create(backend.run_id))
            prefix = "tb" + hashlib.blake2s(backend.run_id.encode(), digest_size=2).hexdigest()
            self._network = Network(
                plan,
                run_id=backend.run_id,
                prefix=prefix,
                logs=backend.folder / "logs",
                journal=journal,
                seed=seed,
                sdn_app=backend.sdn_app,
            )
            self._stack.callback(self._network.down)
            self._network.up(progress)
            for name in backend.captures:
                self._stack.enter_context(self._capture(name, backend.folder, journal))
            if probe:
                progress("probing what was declared")
                self._probes = prove(self._network)
            self._load = load
            self._plan = plan
            self._meter = UserPlaneMeter(plan, load)
            self._backhaul = BackhaulMeter(plan.backhaul)
            self._tasks = TaskMeter()
            self._gauges = Gauges(self._network)
            self._epoch_s = time.monotonic()
            self._network.set_epoch(time.monotonic_ns())
            self._network.start_tasks()
            always = [ue_id for group in topology.of_kind(Ue) if group.always_attached for ue_id in group.ue_ids]
            self._replay = Replay(
                load, _UserPlane(self._network), always_attached=always, ues=plan.ues, clock=self.clock_s
            )
            self._stack.callback(self._replay.close)
            self._actuators = Actuators(self._network, self._replay)
            self._settle_counters()
            self._host = HostMeter()
            self._network.start_backhaul(load.backhaul)
            self._replay.start()
        except (EmulationError, TopologyError, JournalError, CaptureError, OSError, *HOST_ERRORS) as error:
            self._stack.close()
            raise BackendError(str(error)) from error
        except BaseException:
            self._stack.close()
            raise

    @property
    def probes(self) -> Sequence[Probe]:
        """What was declared and what was found."""
        return self._probes

    @property
    def details(self) -> Mapping[str, object]:
        """For the manifest: image digests, how links are impaired, wall clock of the first user packet, and why the
        periods of wake-ups are unknown if they are."""
        found = {"images": self._network.images, **self._network.features, "first_user_packet": self.first_packet_s}
        if self._network.reservations is not None and self._network.reservations.untraced:
            found["wakeup_periods"] = self._network.reservations.untraced
        return found

    def apply(self, actions: Sequence[Action]) -> Sequence[Outcome]:
        """Carry out actions on what really runs; each outcome says when the change was in force."""
        outcomes = []
        for action in actions:
            started_s = self.clock_s()
            reason = self._actuators.apply(action)
            now_s = self.clock_s()
            outcomes.append(Outcome(action, reason is None, reason or "", now_s, now_s - started_s))
        return outcomes

    def advance(self, until_s: float) -> Observation:
        """Wait until ``until_s`` and read everything. ``clock_lag_s`` says how late the readings are."""
        if until_s < self._observed_s:
            raise ValueError(f"time goes forward only: at {self._observed_s:g} s, asked for {until_s:g} s")
        while (left_s := until_s - self.clock_s()) > 0:
            time.sleep(min(left_s, COLLECT_S) if self._network.reservations else left_s)
            if self._network.reservations:
                self._network.reservations.collect()
        try:
            return self._observe(until_s)
        except (EmulationError, OSError, *HOST_ERRORS) as error:
            raise BackendError(str(error)) from error

    def _observe(self, until_s: float) -> Observation:
        self._network.watch_guests()
        # First, since it is about milliseconds.
        reserved = self._network.reservations.kpis(until_s) if self._network.reservations else []
        self._network.check_alive()
        self._replay.check()
        self._network.placement.recover()
        span_s, read_s = self._span()
        readings = self._read()
        kpis = self._meter.kpis(until_s, span_s, readings, self._replay.active_ues())
        kpis += self._backhaul.kpis(until_s, self._backhaul_stats)
        kpis += self._tasks.kpis(until_s, span_s, self._task_stats)
        kpis += reserved
        kpis += self._gauges.kpis(until_s, span_s)
        kpis += self._host.kpis(until_s)
        kpis.append(Kpi(until_s, "run", "clock_lag_s", max(0.0, read_s - until_s)))
        self._replay.reconcile(
            {ue: bool(row["attached"]) for stats in readings.ue.values() for ue, row in stats["ues"].items()}
        )
        self._note_first_packet(readings)
        self._observed_s = until_s
        return Observation(until_s, tuple(kpis), tuple(self._network.guest_faults()))

    def close(self) -> None:
        """Remove everything from the host; may be called twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def clock_s(self) -> float:
        """The run clock now, in seconds since :meth:`EmulationBackend.open` returned."""
        return time.monotonic() - self._epoch_s

    def _span(self) -> tuple[float, float]:
        """Length of the interval as read, and the run clock now."""
        now_s = self.clock_s()
        span_s = now_s - self._last_read_s
        self._last_read_s = now_s
        return max(span_s, 1e-3), now_s

    def _settle_counters(self) -> None:
        """Read everything once, so that bring-up and probes are not counted in the first interval."""
        self._last_read_s = self.clock_s()
        self._meter.kpis(0.0, 1.0, self._read(), {})
        self._backhaul.kpis(0.0, self._backhaul_stats)
        self._tasks.kpis(0.0, 1.0, self._task_stats)
        if self._network.reservations:
            self._network.reservations.kpis(0.0)
        self._gauges.kpis(0.0, 1.0)

    def _read(self) -> Readings:
        by_module: dict[str, dict[str, dict[str, Any]]] = {}
        for spec, stats in self._network.stats():
            kind = "app" if spec.module in ("app_stream", "app_telemetry", "balancer") else spec.module
            key = spec.node if kind in ("ue", "traffic", "upf", "app", "tasks") else spec.name
            by_module.setdefault(kind, {})[key] = stats
        by_module.setdefault("app", {}).update(dict(self._network.guest_streams()))
        self._task_stats = by_module.get("tasks", {})
        self._backhaul_stats = by_module.get("backhaul", {})
        return Readings(
            ue=by_module.get("ue", {}),
            traffic=by_module.get("traffic", {}),
            gnb=by_module.get("gnb", {}),
            upf=by_module.get("upf", {}),
            app=by_module.get("app", {}),
        )

    def _note_first_packet(self, readings: Readings) -> None:
        if self.first_packet_s is None:
            firsts = [
                row["first_rx_ns"]
                for stats in readings.traffic.values()
                for name, row in stats["flows"].items()
                if row["first_rx_ns"] and not name.startswith("probe:")
            ]
            if firsts:
                self.first_packet_s = time.time() - (time.monotonic_ns() - min(firsts)) / 1e9

    def _capture(self, name: str, folder: Path, journal: Journal) -> Capture:
        node, _, interface = name.partition(":")
        pid, name_there = self._network.place(node, interface)
        return Capture(pid, name_there, folder / f"{node}-{interface}.pcap", journal=journal)


class _UserPlane:
    """The replay's view of the programs."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def attach(self, ue: str) -> None:
        """Attach and wait for it, so that the first packet of a flow finds its session. A network that does not
        answer at once is left to the UE, which goes on asking."""
        client = self._network.client(ue.rpartition(".")[0])
        try:
            client.call("attach", ue=ue, timeout_s=ATTACH_WAIT_S)
        except ProgramDownError:
            raise
        except ProgramError:
            client.call("attach", ue=ue, wait=False)

    def detach(self, ue: str) -> None:
        group = ue.rpartition(".")[0]
        self._network.client(group).call("detach", ue=ue)

    def start(self, flow: Flow, rate: float) -> None:
        self._network.start_flow(flow, rate)

    def set_rate(self, flow: Flow, rate: float) -> None:
        self._traffic(flow).call("rate", flow=flow.name, rate=rate)

    def stop(self, flow: Flow) -> None:
        self._traffic(flow).call("stop", flow=flow.name)

    def _traffic(self, flow: Flow) -> Any:
        return self._network.client(f"{flow.ue.rpartition('.')[0]}.traffic")
