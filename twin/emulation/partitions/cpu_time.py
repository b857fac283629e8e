"""How the host's processor time is shared out among guests: limits, reservations, and host CPUs of their own.

What the host offers for it is in :mod:`twin.emulation.partitions.isolation`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from twin.emulation.partitions import isolation
from twin.emulation.partitions.isolation import IsolationError, Reservation
from twin.emulation.partitions.machine import Machine
from twin.emulation.partitions.partition import Partition
from twin.emulation.partitions.protocol import RequestError


class CpuTime:
    """Shares it out among ``partitions``; ``critical`` is ``auto`` or one of :data:`isolation.MODES`."""

    def __init__(self, critical: str, partitions: Mapping[int, Partition]) -> None:
        self._critical = critical
        self._partitions = partitions
        self._host_cpus = sorted(os.sched_getaffinity(0))

    async def isolate(self, partition: Partition, machine: Machine) -> None:
        """Keep a new guest apart as asked, or as the host permits; RequestError when it cannot be."""
        threads = await machine.vcpu_threads()
        if not partition.critical:
            # When the host runs out of memory, it is one of these that goes.
            Path(f"/proc/{machine.pid}/oom_score_adj").write_text("500", encoding="ascii")
            if not partition.isolated:
                partition.isolation = "none: a plain virtual machine"
                self.repin()
            elif partition.reservation is not None:
                self._reserve(partition, threads, partition.reservation, reclaim=False)
                self._reserve_io(machine)
                partition.isolation = str(partition.reservation)
            else:
                partition.isolation = f"at most {partition.cpu_millicores or 1000 * partition.cores:g} millicores"
                self.repin()
            return
        modes = isolation.MODES if self._critical == "auto" else (self._critical,)
        reasons = []
        for mode in modes:
            try:
                if mode == "deadline":
                    wanted = Reservation(isolation.RESERVED_RUNTIME_US, isolation.RESERVED_PERIOD_US)
                    self._reserve(partition, threads, wanted, reclaim=True)
                    self._reserve_io(machine)
                    partition.isolation = str(wanted)
                elif mode == "reserved":
                    self._take_cpus(partition, machine)
                    partition.isolation = f"host CPUs {', '.join(map(str, partition.pinned))} reserved"
                else:
                    partition.isolation = "CPU weight 16 to 1"
                break
            except RequestError as error:
                reasons.append(f"{mode}: {error.desc}")
        else:
            raise RequestError("EPERM", f"partition {partition.id} cannot be kept apart as asked: {'; '.join(reasons)}")
        if reasons:
            partition.isolation = f"{partition.isolation} ({'; '.join(reasons)})"

    async def limit(self, partition: Partition, args: Mapping[str, Any]) -> None:
        """Carry out ``limit``. Raises RequestError, CgroupError."""
        millicores, runtime_us, period_us = args["cpu_millicores"], args["dl_runtime_us"], args["dl_period_us"]
        if partition.critical:
            raise RequestError("EPERM", f"partition {partition.id} is critical: its CPU time is never limited")
        if not partition.isolated:
            raise RequestError("EPERM", f"partition {partition.id} is a plain virtual machine: nothing limits it")
        threads = [] if partition.machine is None else await partition.machine.vcpu_threads()
        assert partition.group is not None
        if runtime_us:
            wanted = Reservation(runtime_us, period_us)
            if threads:
                self._reserve(partition, threads, wanted, reclaim=False)
                self._reserve_io(partition.guest())
                partition.isolation = str(wanted)
            partition.dl_runtime_us, partition.dl_period_us = runtime_us, period_us
        else:
            if partition.reservation is not None:
                for thread in (*threads, *([partition.machine.pid] if partition.machine else [])):
                    isolation.release(thread)
            partition.dl_runtime_us = partition.dl_period_us = None
            if millicores is not None:
                partition.group.set_cpu(millicores)
                partition.cpu_millicores = millicores
            if threads:
                partition.isolation = f"at most {partition.cpu_millicores or 1000 * partition.cores:g} millicores"

    def repin(self) -> None:
        """Keep partitions without CPUs of their own off those of the others."""
        taken = {cpu for one in self._partitions.values() for cpu in one.pinned}
        for one in self._partitions.values():
            if one.pid is not None and not one.pinned and one.reservation is None:
                with suppress(IsolationError):  # a thread with a reservation stays where it is
                    isolation.pin(one.pid, set(self._host_cpus) - taken)

    def _reserve(self, partition: Partition, threads: list[int], wanted: Reservation, *, reclaim: bool) -> None:
        """Reserve CPU time; for a critical partition others give up theirs when the host has no more."""
        squeezable = [one for one in self._partitions.values() if not one.critical and one.reservation and one.machine]
        while True:
            try:
                isolation.reserve_all(threads, wanted, reclaim=reclaim)
                return
            except IsolationError as error:
                if error.errno == errno.EBUSY and partition.critical and squeezable:
                    self._squeeze(squeezable.pop(), partition)
                    continue
                reason = {
                    errno.EBUSY: "the host's CPU time is given away",
                    errno.EPERM: "not permitted: root and all CPUs are needed",
                }.get(error.errno or 0, error.strerror)
                kind = "EBUSY" if error.errno == errno.EBUSY else "EPERM"
                raise RequestError(kind, f"{wanted}: {reason}") from None

    def _reserve_io(self, machine: Machine) -> None:
        """Some time for QEMU's own thread as well, when the host has it; without, the guest's timers may come late."""
        with suppress(IsolationError):
            isolation.reserve(machine.pid, Reservation(isolation.IO_RUNTIME_US, isolation.IO_PERIOD_US), reclaim=True)

    def _squeeze(self, other: Partition, partition: Partition) -> None:
        assert other.machine is not None
        for task in Path(f"/proc/{other.machine.pid}/task").iterdir():
            isolation.release(int(task.name))
        other.dl_runtime_us = other.dl_period_us = None
        other.isolation = f"at most {1000 * other.cores} millicores"
        other.befell(f"its reservation went to critical partition {partition.id}")

    def _take_cpus(self, partition: Partition, machine: Machine) -> None:
        taken = {cpu for one in self._partitions.values() for cpu in one.pinned}
        free = [cpu for cpu in self._host_cpus if cpu not in taken]
        if len(free) <= partition.cores:
            raise RequestError("EBUSY", f"{len(free)} host CPUs are free, one of them for the others")
        partition.pinned = free[-partition.cores :]
        try:
            isolation.pin(machine.pid, set(partition.pinned))
        except IsolationError as error:
            partition.pinned = []
            raise RequestError("EPERM", f"cannot choose host CPUs: {error.strerror}") from None
        self.repin()
