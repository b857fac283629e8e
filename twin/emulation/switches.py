"""Open vSwitch bridges and OpenFlow controllers of the façade."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mininet.log import info
from mininet.node import Controller as MininetController
from mininet.node import Node, OVSSwitch

from twin.emulation.nodes import LazyShell, SwitchError
from twin.emulation.process import LaunchError, Process, start_in_netns

if TYPE_CHECKING:
    from twin.emulation.containernet import Containernet


class Switch(LazyShell, OVSSwitch):  # type: ignore[misc]
    """An Open vSwitch bridge. ``name`` is the logical name, ``bridge`` the one on the host.

    ``failMode`` left out is ``secure`` with a controller and ``standalone`` (a learning switch) without.
    """

    def __init__(
        self,
        name: str,
        *,
        net: Containernet,
        dpid: str | None = None,
        failMode: str | None = None,
        datapath: str | None = None,
        inband: bool = False,
        protocols: str | None = None,
        reconnectms: int = 1000,
        stp: bool = False,
        opts: str = "",
        listenPort: int | None = None,
        batch: bool = False,  # noqa: ARG002 - all switches are started in one batch
        **params: Any,
    ) -> None:
        params["inNamespace"] = False
        self.net = net
        self.bridge = net.bridge_name(name)
        self.started = False
        Node.__init__(self, name, **params)
        self.dpid = net.datapath_id(name, dpid)
        self.failMode, self.inband, self.protocols, self.stp = failMode, inband, protocols, stp
        self.datapath = datapath or net.datapath
        self.reconnectms, self.opts, self.listenPort = reconnectms, opts, listenPort
        self.controlIntf = None
        self.entry = 0

    pid = 0

    def _spawn_shell(self, argv: list[str], terminal: int) -> subprocess.Popen[bytes]:
        with os.fdopen(os.dup(terminal), "rb") as stdio:
            return start_in_netns(
                None, argv, name=self.name, stdin=stdio, output=stdio, members=self.net.host_members()
            )

    def ports_text(self) -> list[str]:
        """``ovs-vsctl`` commands that add all ports made so far."""
        return [part for end in self.intfs.values() if end.made for part in self.port_text(end)]

    def port_text(self, end: Any) -> list[str]:
        """``ovs-vsctl`` commands that add one port, with the number Mininet gives it."""
        add = ["--", "--may-exist", "add-port", self.bridge, end.name]
        return [*add, "--", "set", "Interface", end.name, f"ofport_request={self.ports[end]}"]

    def start_text(self, controllers: Sequence[Any], run_id: str) -> list[str]:
        """``ovs-vsctl`` commands that make the bridge."""
        targets = [f"{one.protocol}:{one.IP()}:{one.port}" for one in controllers]
        mode = self.failMode or ("secure" if targets else "standalone")
        if self.listenPort:
            targets.append(f"ptcp:{self.listenPort}")
        settings = [
            f"fail_mode={mode}",
            f"other_config:datapath-id={self.dpid}",
            f"other_config:disable-in-band={'false' if self.inband else 'true'}",
            f"other_config:dp-desc={self.name}",
            f"external_ids:twinbed-run={run_id}",
            f"datapath_type={'netdev' if self.datapath == 'user' else 'system'}",
        ]
        if self.protocols:
            settings.append(f"protocols={self.protocols}")
        if self.stp:
            settings.append("stp_enable=true")
        text = ["--", "add-br", self.bridge, "--", "set", "Bridge", self.bridge, *settings]
        if targets:
            text += ["--", "set-controller", self.bridge, *targets]
            text += ["--", "set", "controller", self.bridge, f"max_backoff={self.reconnectms or 1000}"]
        return text

    def start(self, controllers: Sequence[Any]) -> None:
        """Make the bridge and its ports."""
        self.net.start_switches([self], controllers)

    def stop(self, deleteIntfs: bool = True) -> None:
        """Remove the bridge, and its interfaces."""
        self.net.stop_switches([self])
        if deleteIntfs:
            self.net.unmake([end.link for end in self.intfs.values() if end.link is not None])

    def attach(self, intf: Any) -> None:
        """Add an interface as a port."""
        self.net.vsctl(self.port_text(intf))

    def detach(self, intf: Any) -> None:
        """Take a port away."""
        self.net.vsctl(["--", "--if-exists", "del-port", self.bridge, str(intf)])

    def dpctl(self, *args: str) -> str:
        """Run ``ovs-ofctl COMMAND BRIDGE ...``."""
        done = subprocess.run(
            ["ovs-ofctl", *args[0].split(), self.bridge, *args[1:]], capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def vsctl(self, *args: Any, **_: Any) -> str:
        """Run ``ovs-vsctl``."""
        return self.net.vsctl(" ".join(map(str, args)).split())

    def connected(self) -> bool:
        """Connected to a controller, or needing none."""
        if self.failMode == "standalone":
            return True
        mine = self.net.vsctl(["--bare", "--columns=controller", "list", "Bridge", self.bridge]).split()
        return bool(mine) and "true" in self.net.vsctl(
            ["--bare", "--columns=is_connected", "list", "Controller", *mine]
        )

    def defaultIntf(self) -> Any:
        """The first port, None without any."""
        return self.intfs[min(self.intfs)] if self.intfs else None

    def terminate(self) -> None:
        """End the switch's shell, if it had one."""
        self._ended = True
        self.close_shell()

    def __str__(self) -> str:
        return self.bridge

    def __repr__(self) -> str:
        return f"<Switch {self.name}: bridge {self.bridge}, ports {','.join(self.intfNames())}>"


class Controller(LazyShell, MininetController):  # type: ignore[misc]
    """An OpenFlow controller program in the root namespace: the one of Open vSwitch, or ``command``.

    Port 6653 when it is free, else any free one. Without any controller program the switches learn by
    themselves (``available`` is False), as with ``mn``.
    """

    PROGRAMS = ("ovs-testcontroller", "ovs-controller", "test-controller", "controller")

    def __init__(
        self,
        name: str,
        *,
        net: Containernet,
        command: str | None = None,
        cargs: str = "ptcp:%d:127.0.0.1",
        ip: str = "127.0.0.1",
        port: int | None = None,
        protocol: str = "tcp",
        verbose: bool = False,
        **params: Any,
    ) -> None:
        self.net = net
        self.command = command or next((one for one in self.PROGRAMS if shutil.which(one)), None)
        self.available = bool(self.command and shutil.which(self.command))
        self.cargs = f"-v {cargs}" if verbose else cargs
        self.ip, self.protocol, self.cdir = ip, protocol, params.pop("cdir", None)
        self._given_port = port
        self.port = port or 6653
        self._program: Process | None = None
        params.pop("inNamespace", None)
        Node.__init__(self, name, inNamespace=False, ip=ip, **params)
        if command and not self.available:
            raise LaunchError(f"controller {name}: program {command} not found")

    pid = 0

    def checkListening(self) -> None:
        """The port is chosen at the start; a port that was asked for must be free."""

    def _spawn_shell(self, argv: list[str], terminal: int) -> subprocess.Popen[bytes]:
        with os.fdopen(os.dup(terminal), "rb") as stdio:
            return start_in_netns(
                None, argv, name=self.name, stdin=stdio, output=stdio, members=self.net.host_members()
            )

    def start(self) -> None:
        """Start the program and wait until it listens."""
        if not self.available:
            info(f"*** {self.name}: no OpenFlow controller program found, switches learn by themselves\n")
            return
        if self._program is not None:
            return
        if self._given_port is None:
            self.port = self.port if _free(self.port) else _free_port()
        elif not _free(self.port):
            raise LaunchError(f"controller {self.name}: port {self.port} is in use; stop what listens there")
        argv = [str(self.command), *(self.cargs % self.port).split()]
        popen = start_in_netns(None, argv, name=self.name, env=dict(os.environ), members=self.net.host_members())
        self._program = Process(f"{self.name}: {self.command}", popen, None)
        deadline = time.monotonic() + 5
        while _free(self.port):
            if self._program.poll() is not None or time.monotonic() > deadline:
                raise LaunchError(f"controller {self.name}: {self.command} does not listen on port {self.port}")
            time.sleep(0.005)

    def stop(self, *_: Any, **__: Any) -> None:
        """End the program."""
        if self._program is not None:
            self._program.terminate()
            self._program = None
        self.terminate()

    def terminate(self) -> None:
        """End the shell."""
        self._ended = True
        self.close_shell()

    @classmethod
    def isAvailable(cls) -> str | None:
        """Path of a controller program, None without any."""
        return next((path for path in map(shutil.which, cls.PROGRAMS) if path), None)


def datapath_id(run: str, name: str, dpid: str | None) -> str:
    """16 hex digits: as given, ``s1`` → 1 in a network without prefix, else unique for run and name."""
    if dpid:
        digits = dpid.replace(":", "")
        if not re.fullmatch(r"[0-9a-fA-F]{1,16}", digits):
            raise SwitchError(f"switch {name}: dpid must be at most 16 hex digits, got {dpid!r}")
        return digits.zfill(16)
    number = re.search(r"\d+", name)
    if number and not run:
        return f"{int(number[0]):016x}"
    return hashlib.blake2s(f"{run}/{name}".encode(), digest_size=8).hexdigest()


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
