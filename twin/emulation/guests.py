"""The partitions of a running emulation: guests of an edge server of the run's own, each behind a link of the topology.

A partition is a network namespace with the ends of its links, and the TAP of its guest. The guest has the address;
the namespace forwards, and answers for the whole network when the guest asks who has an address (proxy ARP), so that
a guest needs no routes, and a user's own system only the address.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from topologies.model import Partition
from twin.deadline.reservation import asked_for
from twin.emulation import programs as specs
from twin.emulation.cgroups import Cgroup
from twin.emulation.errors import EmulationError
from twin.emulation.partitions.daemon import SUBNET
from twin.emulation.partitions.edge import Edge
from twin.emulation.partitions.images import GuestImageError, load
from twin.emulation.partitions.isolation import RESERVED_PERIOD_US, RESERVED_RUNTIME_US, Reservation
from twin.emulation.partitions.machine import PROGRAM
from twin.emulation.partitions.partition import DEPLOYED, READY, EdgeServer
from twin.emulation.partitions.partition import Partition as Managed
from twin.emulation.partitions.protocol import MOST_ATTACK_S, RequestError
from twin.emulation.plan import Plan
from twin.journal import Journal

METRICS_MS = 200
ECHO_PORT = 5007
_BOOT_LIMIT_S = 60.0  # several at once on few processors
Report = tuple[float, Mapping[str, Any]]
"""Monotonic time of arrival, and a metrics line of the VNF runtime."""


class Guests:
    """Owns the edge server. ``node_of`` gives the façade's namespace host of a partition."""

    def __init__(
        self, plan: Plan, *, run_id: str, folder: Path, journal: Journal, node_of: Callable[[str], Any]
    ) -> None:
        """EmulationError when the host lacks QEMU or the guest image."""
        self.partitions = {node.name: node for node in plan.topology.of_kind(Partition)}
        self._plan = plan
        self._node_of = node_of
        if shutil.which(PROGRAM) is None:
            raise EmulationError(f"partitions need {PROGRAM}: apt install qemu-system-arm")
        try:
            self.recipe = load().recipe
        except GuestImageError as error:
            raise EmulationError(str(error)) from None
        edge = plan.topology.edge
        server = EdgeServer(run_id, edge.cores, edge.memory_mib, "auto", IPv4Network(SUBNET))
        self._edge = Edge(server, folder, journal)
        self._edge.manager.reported = self._take
        self._reports: dict[str, list[Report]] = defaultdict(list)
        self._lock = threading.Lock()
        self._booting: dict[str, Future[dict[str, Any]]] = {}
        self._dl_period_us: dict[str, int] = {}
        self._work_us = {
            name: [round(task.work_s * 1e6) for task in node.tasks] for name, node in self.partitions.items()
        }
        self._vcpus: dict[str, tuple[int | None, tuple[int, ...]]] = {}
        self._stale: set[str] = set()

    # --- life ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make all partitions and begin to boot their guests; EmulationError when one cannot be made."""
        try:
            self._edge.open()
            made = {name: self._create(node) for name, node in self.partitions.items()}
            for name, future in made.items():
                future.result()
                limit = self.partitions[name].cpu_millicores
                if limit is not None:
                    self.limit(name, cpu_millicores=limit)
        except (RequestError, OSError) as error:
            raise EmulationError(f"edge server: {error}") from None
        for name in self.partitions:
            self._booting[name] = self._deploy(name)

    def wait(self) -> None:
        """Wait until all guests run; EmulationError with the end of the console of one that does not."""
        for name, future in self._booting.items():
            try:
                future.result()
            except RequestError as error:
                raise EmulationError(f"partition {name}: {error}") from None

    def close(self) -> None:
        """End all guests; may be called twice."""
        self._edge.close()

    def _create(self, node: Partition) -> Future[dict[str, Any]]:
        return self._edge.submit(
            "create-partition",
            name=node.name,
            cores=node.cores,
            memory_mib=int(node.memory_mib or 0),
            secure=node.critical,
            isolated=node.isolated,
            address=f"{specs.partition_address(self._plan, node.name)}/8",
            netns=f"/proc/{os.getpid()}/fd/{self._node_of(node.name).netns}",
        )

    def _deploy(self, name: str) -> Future[dict[str, Any]]:
        node = self.partitions[name]
        load_text = self._load(name)
        self._stale.discard(name)
        return self._edge.submit(
            "deploy",
            id=self.managed(name).id,
            kernel=node.kernel,
            rootfs=node.rootfs,
            dtb=node.dtb,
            http_port=specs.REQUEST_PORT if node.vnf == "request" else 0,
            echo_port=ECHO_PORT,
            stream=node.vnf == "stream",
            metrics_ms=METRICS_MS,
            timeout_s=_BOOT_LIMIT_S,
            **({"load": load_text} if load_text else {}),
        )

    def _load(self, name: str) -> str:
        """Tasks as the VNF runtime wants them: at least 1 µs of work."""
        periods = [round(task.period_s * 1e6) for task in self.partitions[name].tasks]
        return ",".join(f"{max(1, work)}/{period}" for work, period in zip(self._work_us[name], periods, strict=True))

    # --- what knobs change ---------------------------------------------------------------------------

    def managed(self, name: str) -> Managed:
        """What the vManager knows of a partition."""
        try:
            return self._edge.manager.registry.named(name)
        except KeyError:
            raise EmulationError(f"partition {name} was destroyed by somebody else") from None

    def set_state(self, name: str, wanted: str) -> None:
        """``ready``, ``deployed`` or ``suspended``, by the vManager's transitions; EmulationError when it refuses."""
        partition = self.managed(name)
        if partition.state.lower() == wanted:
            return
        if wanted == "deployed" and partition.state == READY:
            self._boot(name)
            return
        command = {"ready": "shutdown", "suspended": "suspend", "deployed": "restore"}[wanted]
        self._call(name, command)
        if command == "restore" and name in self._stale:
            self._call(name, "configure", load=self._load(name))
            self._stale.discard(name)

    def _boot(self, name: str) -> None:
        """Deploy; in force when the processors run. The guest answers when it has booted."""
        future = self._booting[name] = self._deploy(name)
        while not future.done() and self.managed(name).state == READY:
            threading.Event().wait(0.002)
        if future.done() and (error := future.exception()) is not None:
            raise EmulationError(f"partition {name}: {error}")

    def limit(self, name: str, **values: float | int) -> None:
        """CPU limit or reservation by the vManager; EmulationError when it refuses."""
        self._call(name, "limit", **values)

    def set_dl_period(self, name: str, period_us: int) -> None:
        """Period of the next reservation."""
        self._dl_period_us[name] = period_us

    def set_dl_runtime(self, name: str, runtime_us: int) -> None:
        """Reserve for every vCPU, in every period; 0 gives the reservation back."""
        if not runtime_us:
            self.limit(name, dl_runtime_us=0)
            return
        period_us = self._dl_period_us.get(name)
        try:
            asked_for(runtime_us, period_us)
        except ValueError as error:
            raise EmulationError(str(error)) from None
        self.limit(name, dl_runtime_us=runtime_us, dl_period_us=period_us or 0)

    def restart_tasks(self) -> None:
        """Let the tasks of all guests begin anew, without what is late from before."""
        for name, node in self.partitions.items():
            if node.tasks and self.managed(name).state == DEPLOYED:
                self._call(name, "configure", load=self._load(name))

    def set_work(self, task: str, work_us: float) -> None:
        """Work of a job of one task; all tasks of the guest begin anew."""
        name, _, number = task.rpartition(".")
        works = self._work_us[name]
        period_us = round(self.partitions[name].tasks[int(number) - 1].period_s * 1e6)
        if work_us > period_us:
            raise EmulationError(f"must be at most the period in a guest, {period_us}, got {work_us:g}")
        before, works[int(number) - 1] = works[int(number) - 1], round(work_us)
        if self.managed(name).state != DEPLOYED:
            self._stale.add(name)  # told when it is restored; a deployment has it anyway
            return
        try:
            self._call(name, "configure", load=self._load(name))
        except EmulationError:
            works[int(number) - 1] = before
            raise

    def stream(self, name: str, action: str, **args: Any) -> dict[str, Any]:
        """Tell a guest's stream server; EmulationError when it refuses."""
        return self._call(name, "stream", action=action, **args)

    def streams(self, name: str) -> dict[str, Any] | None:
        """What a guest's stream server has sent, as that of a container reports it; None while none is there."""
        if self.managed(name).state != DEPLOYED:
            return None
        try:
            rows = self.stream(name, "flows")["flows"]
        except EmulationError:  # it boots, or ends at this moment
            return None
        return {"flows": {row["flow"]: row for row in rows}}

    def attack(self, name: str, kind: str) -> None:
        """Deny service to a guest until ``none``, or for ten minutes."""
        self._call(name, "attack", kind=kind, seconds=MOST_ATTACK_S)

    def _call(self, name: str, command: str, **args: Any) -> dict[str, Any]:
        number = self.managed(name).id
        try:
            return self._edge.call(command, id=number, **args)
        except RequestError as error:
            raise EmulationError(str(error).replace(f"partition {number} ", f"partition {name} ")) from None

    # --- what is seen --------------------------------------------------------------------------------

    def faults(self) -> Iterator[tuple[str, str]]:
        """What befell partitions since the last call that nobody asked for: a guest ended, a reservation was taken."""
        for name in self.partitions:
            mishaps = self.managed(name).mishaps
            while mishaps:
                yield name, f"partition {name}: {mishaps.popleft()}"

    def is_deployed(self, name: str) -> bool:
        """Whether a guest is there, running or suspended."""
        return self.managed(name).state != READY

    def group(self, name: str) -> Cgroup:
        """The control group of a partition."""
        group = self.managed(name).group
        assert group is not None
        return group

    def reservation(self, name: str) -> Reservation | None:
        """What each vCPU of a running guest has reserved now."""
        partition = self.managed(name)
        if partition.state == READY:
            return None
        if partition.critical and (partition.isolation or "").startswith("SCHED_DEADLINE"):
            return Reservation(RESERVED_RUNTIME_US, RESERVED_PERIOD_US)
        return partition.reservation

    def vcpus(self, name: str) -> tuple[int, ...]:
        """Thread ids of the vCPUs on the host; none while no guest is there."""
        partition = self.managed(name)
        machine, pid = partition.machine, partition.pid
        known = self._vcpus.get(name)
        if known is not None and known[0] == pid:
            return known[1]
        threads: tuple[int, ...] = ()
        if machine is not None:
            try:
                threads = tuple(self._edge.begin(machine.vcpu_threads).result())
            except RequestError:  # it is ending at this moment
                return ()
        self._vcpus[name] = (pid, threads)
        return threads

    def reports(self, name: str) -> list[Report]:
        """The metrics lines of a guest since the last call, oldest first."""
        with self._lock:
            return self._reports.pop(name, [])

    def _take(self, name: str, report: Mapping[str, Any]) -> None:
        with self._lock:
            self._reports[name].append((time.monotonic(), report))

    @property
    def details(self) -> Mapping[str, object]:
        """For the manifest: the guest image, and how each partition is kept apart."""
        return {
            "guest_image": self.recipe,
            "partitions": {
                one.name: {"isolation": one.isolation, "state": one.state, "note": one.note}
                for one in self._edge.manager.registry.partitions.values()
            },
        }

    def ip_commands(self, name: str) -> Iterator[str]:
        """What ``ip`` must be told in the namespace beside the routes of the plan."""
        partition = self.managed(name)
        address = specs.partition_address(self._plan, name)
        yield f"route replace {address}/32 dev {partition.tap}"
        yield f"neigh replace {address} lladdr {partition.mac} dev {partition.tap} nud permanent"
