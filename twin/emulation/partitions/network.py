"""The network of the partitions: a namespace with a bridge, a TAP for each partition.

The namespace has a name, so that it outlives the daemon and a topology can put the end of a link into it.
What happens in it cannot reach the host: a flood in a guest stays there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from twin.emulation.netlink import Netlink
from twin.emulation.netns import in_netns
from twin.emulation.partitions.protocol import RequestError

BRIDGE = "vm0"
_Result = TypeVar("_Result")


class PartitionNetwork:
    """Namespace ``name``; its bridge has the first address of ``subnet``."""

    def __init__(self, name: str, subnet: ipaddress.IPv4Network, path: Path | None = None) -> None:
        """``path``: the file of a namespace that somebody else made and removes."""
        self.name = name
        self.subnet = subnet
        self.path = path or Path("/run/netns") / name

    @property
    def gateway(self) -> str:
        """The bridge's address."""
        return str(self.subnet.network_address + 1)

    def create(self) -> None:
        """Make namespace and bridge. Raises RequestError EIO."""
        _ip(["netns", "add", self.name])
        self._batch(
            "link set lo up",
            # No forwarding delay: a partition is reachable when it is up.
            f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0",
            f"link set {BRIDGE} up",
            f"address add {self.gateway}/{self.subnet.prefixlen} dev {BRIDGE}",
        )

    def exists(self) -> bool:
        """False after the host restarted or somebody removed it."""
        return self.path.exists()

    def remove(self) -> None:
        """Remove the namespace with all in it; fine when it is gone."""
        if self.exists():
            _ip(["netns", "delete", self.name])

    def bridges(self) -> list[str]:
        """Interfaces of the namespace that a TAP could join."""
        return [name for name in self._names() if name != "lo" and not name.startswith("tap")]

    def add_tap(self, tap: str, bridge: str | None) -> None:
        """A TAP that stays until it is removed, on a bridge of the namespace or on none."""
        try:
            self._batch(f"tuntap add dev {tap} mode tap", f"link set {tap}{f' master {bridge}' if bridge else ''} up")
        except RequestError:
            with contextlib.suppress(RequestError):
                self.remove_tap(tap)
            raise

    def take_tap(self, tap: str, bridge: str) -> None:
        """A TAP that somebody made in the host's namespace, moved onto a bridge; fine when it is there already."""
        if tap not in self._names():
            _ip(["link", "set", tap, "netns", self.name])
        self._batch(f"link set {tap} master {bridge} up")

    def remove_tap(self, tap: str) -> None:
        """Remove a TAP; fine when it is gone."""
        if self.exists() and tap in self._names():
            self._batch(f"link delete {tap}")

    def frames_from_guest(self, tap: str) -> int:
        """Frames that the guest behind a TAP has sent."""

        def read() -> int:
            with Netlink() as netlink:
                return netlink.link(tap).rx_packets

        return self._inside(read)

    def next_address(self, taken: Iterable[str]) -> str:
        """The lowest free address with its prefix length. Raises RequestError ENOMEM."""
        used = {str(ipaddress.IPv4Interface(one).ip) for one in taken} | {self.gateway}
        for address in self.subnet.hosts():
            if str(address) not in used:
                return f"{address}/{self.subnet.prefixlen}"
        raise RequestError("ENOMEM", f"no address left in {self.subnet}; give one with address")

    def _names(self) -> list[str]:
        return self._inside(lambda: [name for _, name in socket.if_nameindex()])

    def _inside(self, function: Callable[[], _Result]) -> _Result:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RequestError("EIO", f"network namespace {self.name}: {error.strerror}") from None
        try:
            return in_netns(descriptor, function)
        finally:
            os.close(descriptor)

    def _batch(self, *lines: str) -> None:
        enter = ["nsenter", f"--net={self.path}"]
        _ip(["-batch", "-"], "".join(f"{line}\n" for line in lines), enter)


def _ip(arguments: Sequence[str], text: str = "", enter: Sequence[str] = ()) -> None:
    command = [*enter, "ip", *arguments]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RequestError("EIO", f"ip {arguments[0]}: {error}") from None
    if done.returncode:
        raise RequestError("EIO", f"ip {' '.join(arguments)}: {' '.join(done.stderr.split())}")
