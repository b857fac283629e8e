"""A bounded UDP flood against one partition, from the network namespace that its TAP is in."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import twin
from twin.emulation.cgroups import Cgroup
from twin.emulation.partitions.protocol import RequestError
from twin.emulation.process import LaunchError, start_in_netns
from twin.journal import Journal

PORT = 9  # discard: nobody listens, and the guest's kernel looks at every packet
CPU_MILLICORES = 500
"""Most CPU time of the flood itself: what it costs to send is not what is tested."""


class Flood:
    """A running flood. It ends after its time, also when the daemon is gone."""

    def __init__(self, group: Cgroup, process: subprocess.Popen[bytes]) -> None:
        self._group = group
        self._process = process

    @classmethod
    def start(
        cls,
        name: str,
        address: str,
        netns: Path,
        journal: Journal,
        *,
        rate_pps: float,
        payload_bytes: int,
        seconds: float,
    ) -> Flood:
        """Start it in a control group of its own. Raises RequestError."""
        group = Cgroup.create(journal.run_id, f"attack-{name}", cpu_millicores=CPU_MILLICORES, journal=journal)
        target = str(ipaddress.IPv4Interface(address).ip)
        words = [target, str(PORT), f"{rate_pps:g}", str(payload_bytes), f"{seconds:g}"]
        environment = {"PYTHONPATH": str(Path(twin.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            try:
                process = start_in_netns(
                    descriptor,
                    [sys.executable, "-S", "-m", "twin.emulation.partitions.flood", *words],
                    name=f"flood of {name}",
                    env=environment,
                    members=group.members(),
                )
            finally:
                os.close(descriptor)
        except (LaunchError, OSError) as error:
            group.remove()
            raise RequestError("EIO", f"flood of {name}: {error}") from None
        return cls(group, process)

    @property
    def running(self) -> bool:
        """False when its time is over."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it and remove what it had."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._group.remove()

    def leave(self) -> None:
        """Let it end by itself: not our child to wait for any more."""
        if self._process.poll() is None:
            self._process.returncode = 0
