"""What the façade's nodes share, and namespace hosts.

They keep Mininet's interface but start no shell until one is asked for (``cmd``), hold namespaces by a
descriptor instead of a process, and do what Mininet does by ifconfig over netlink, in batches.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mininet.node import Host, Node

from twin.emulation.cgroups import Cgroup
from twin.emulation.process import LaunchError, Process, start_in_netns

if TYPE_CHECKING:
    from twin.emulation.containernet import Containernet

_PROMPT = chr(127)
_SHELL_DEADLINE_S = 10.0


class ContainerError(Exception):
    """A container that cannot start, ended at once, or does not obey. One line."""


class SwitchError(Exception):
    """Open vSwitch refused a bridge, a port or a flow. One line."""


class LazyShell:
    """Mininet's shell of a node, started when first used.

    Mixed in before a Mininet node class; ``_spawn_shell`` says how the shell is started.
    """

    name: str
    net: Containernet
    master: int | None
    slave: int | None

    _shell: subprocess.Popen[bytes] | None = None
    _shell_io: Any = None
    _shell_poll: Any = None
    _ended = False

    def startShell(self, mnopts: str | None = None) -> None:  # noqa: ARG002 - Mininet's name
        """Nothing: the shell starts with the first command."""
        self._shell_lock = threading.RLock()

    def _spawn_shell(self, argv: list[str], terminal: int) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    @property
    def shell(self) -> subprocess.Popen[bytes] | None:
        """The control shell, started now if it was not."""
        if self._shell is None and not self._ended:
            self._open_shell()
        return self._shell

    @shell.setter
    def shell(self, value: None) -> None:
        self._shell = value

    @property
    def stdout(self) -> Any:
        """The terminal of the control shell."""
        return self._shell_io if self.shell else None

    @stdout.setter
    def stdout(self, value: Any) -> None:
        self._shell_io = value

    stdin = stdout

    @property
    def pollOut(self) -> Any:
        """A poll object on the shell's terminal."""
        return self._shell_poll if self.shell else None

    @pollOut.setter
    def pollOut(self, value: Any) -> None:
        self._shell_poll = value

    def _open_shell(self) -> None:
        with self._shell_lock:
            if self._shell is not None:
                return
            self.net.flush()
            self._start_shell()

    def _start_shell(self) -> None:
        master, slave = pty.openpty()
        # Opening the terminal again makes it the controlling one of the new session, so that
        # sendInt() reaches the running command.
        script = f"exec env PS1=$'\\177' bash --norc --noediting -is mininet:{self.name} 0<>/proc/self/fd/0 1>&0 2>&0"
        try:
            shell = self._spawn_shell(["bash", "-c", script], slave)
        except BaseException:
            os.close(master)
            os.close(slave)
            raise
        self.net.reaper.watch(shell)
        self.master, self.slave = master, slave
        self._shell_io = os.fdopen(master, "r")
        self._shell_poll = select.poll()
        self._shell_poll.register(self._shell_io)
        Node.outToNode[master] = self
        Node.inToNode[master] = self
        self.execed, self.lastCmd, self.lastPid, self.readbuf, self.waiting = False, None, None, "", False
        deadline = time.monotonic() + _SHELL_DEADLINE_S
        greeting = b""
        while not greeting.endswith(_PROMPT.encode()):
            if not self._shell_poll.poll(100):
                if shell.poll() is not None or time.monotonic() > deadline:
                    break
                continue
            try:
                greeting += os.read(master, 1024)
            except OSError:  # the terminal closes when the shell ends
                break
        else:
            self._shell = shell
            self.cmd("unset HISTFILE; stty -echo; set +m")  # type: ignore[attr-defined]
            return
        shell.kill()
        shell.wait()
        self._close_terminal()
        said = " ".join(greeting.decode(errors="replace").split())
        raise LaunchError(f"{self.name}: no shell for cmd(): {said or f'exit code {shell.returncode}'}")

    def _close_terminal(self) -> None:
        if self._shell_io is not None:
            Node.outToNode.pop(self.master, None)
            Node.inToNode.pop(self.master, None)
            self._shell_io.close()
            os.close(self.slave)  # type: ignore[arg-type]
            self._shell_io = self._shell_poll = None

    def hang_up(self) -> None:
        """Tell the shell and its jobs to end, without waiting."""
        if self._shell is not None and self._shell.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._shell.pid, signal.SIGHUP)

    def close_shell(self) -> None:
        """End the shell and its jobs; a later ``cmd`` starts another, unless the node has ended."""
        self.hang_up()
        if self._shell is not None:
            try:
                self._shell.wait(1)
            except subprocess.TimeoutExpired:  # a job of the shell keeps it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._shell.pid, signal.SIGKILL)
                self._shell.wait()
        self._close_terminal()
        self._shell = None

    def cleanup(self) -> None:
        """Mininet's hook at the end of ``terminate``."""
        self.close_shell()


class NetworkNode(LazyShell, Host):  # type: ignore[misc]
    """What containers and namespace hosts share."""

    def __init__(self, name: str, *, net: Containernet, **params: Any) -> None:
        self.net = net
        self.processes: list[Process] = []
        super().__init__(name, **params)

    @property
    def netns_pid(self) -> int:
        """Host pid of a process that holds the node's network namespace."""
        return self.pid

    @property
    def pid(self) -> int:
        """Host pid of the node's first process."""
        raise NotImplementedError

    @pid.setter
    def pid(self, value: None) -> None:
        """Mininet's constructor clears it; there is nothing to clear."""

    def open_netns(self) -> int:
        """A new descriptor of the node's network namespace; the caller closes it."""
        raise NotImplementedError

    def config(
        self,
        mac: str | None = None,
        ip: str | None = None,
        defaultRoute: str | None = None,
        lo: str = "up",
        **params: Any,  # noqa: ARG002 - Mininet passes all parameters of the node
    ) -> dict[str, Any]:
        """Mininet's parameters of the first interface; applied together with what else waits."""
        first = self.defaultIntf() if self.intfs else None
        if first is not None:
            if mac:
                first.setMAC(mac)
            if ip:
                first.setIP(ip, self.net.prefixLen)
            if defaultRoute:
                self.setDefaultRoute(defaultRoute)
        if lo != "up":
            self.cmd("ip link set lo", lo)
        return {}

    def setDefaultRoute(self, intf: Any = None) -> None:
        """Default route by interface, ``via GATEWAY`` or ``dev IF via GATEWAY``."""
        text = str(intf if intf is not None else self.defaultIntf())
        match = re.fullmatch(r"(?:dev\s+)?(?:(?!via\b)(\S+))?\s*(?:via\s+(\S+))?\s*", text)
        if not match or not any(match.groups()):
            self.cmd(f"ip route replace default {text}")
            return
        through = self.intf(match[1])
        if through is None:
            raise LaunchError(f"{self.name}: default route {text!r}: the node has no interface")
        through.route = (through.name if match[1] or not match[2] else None, match[2])
        if through.made:
            self.net.apply(through)

    def popen(self, *args: Any, **kwargs: Any) -> Any:
        """Mininet's popen; waiting links are made first."""
        self.net.flush()
        return super().popen(*args, **kwargs)

    def launch(
        self, argv: Sequence[str], *, cgroup: Cgroup | None = None, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a program in the node; output is appended to ``log`` on the host.

        ``cgroup`` puts it under the limits of that group instead of the CPU and memory limits of the node.
        It ends with the node at the latest. Raises LaunchError.
        """
        self.net.flush()
        with log.open("ab") as output:
            popen = self._launch(argv, cgroup, output, env or {})
        self.net.reaper.watch(popen)
        process = Process(f"{self.name}: {argv[0]}", popen, log)
        self.processes = [one for one in self.processes if one.poll() is None]
        self.processes.append(process)
        return process

    def _launch(
        self, argv: Sequence[str], cgroup: Cgroup | None, output: Any, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        raise NotImplementedError

    def reap(self) -> None:
        """Collect programs that ended with the node."""
        for process in self.processes:
            process.kill()
        self.processes = []

    def deleteIntfs(self, checkName: bool = True) -> None:  # noqa: ARG002 - Mininet's names
        """Remove all links of the node from the host."""
        self.net.unmake([end.link for end in self.intfs.values() if end.link is not None])


class NamespaceHost(NetworkNode):
    """A host in a network namespace of its own, which vanishes with this process at the latest."""

    def __init__(self, name: str, *, net: Containernet, **params: Any) -> None:
        self._netns: int | None = None
        self._private = not params.get("inNamespace", True)
        super().__init__(name, net=net, **params)

    @property
    def netns(self) -> int | None:
        """Descriptor of the namespace; None for a host in the root namespace."""
        if self._private:
            return None
        if self._netns is None:
            self._netns = self.net.take_namespace()
        return self._netns

    def open_netns(self) -> int:
        return os.dup(self.netns) if self.netns is not None else os.open("/proc/self/ns/net", os.O_RDONLY)

    @property
    def pid(self) -> int:
        """Host pid of the host's shell (started now if it was not), as in Mininet."""
        if self.shell is None:
            raise LaunchError(f"{self.name}: has ended")
        return self.shell.pid

    @pid.setter
    def pid(self, value: None) -> None:
        pass

    def _spawn_shell(self, argv: list[str], terminal: int) -> subprocess.Popen[bytes]:
        # A mount namespace with its own /sys, so that /sys/class/net shows the host's interfaces
        inner = ["unshare", "-m", "--propagation", "private", "sh", "-c", 'mount -t sysfs sysfs /sys; exec "$@"', "sh"]
        argv = argv if self._private else inner + argv
        with os.fdopen(os.dup(terminal), "rb") as stdio:
            return start_in_netns(
                self.netns, argv, name=self.name, stdin=stdio, output=stdio, members=self.net.host_members()
            )

    def _launch(
        self, argv: Sequence[str], cgroup: Cgroup | None, output: Any, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        members = cgroup.members() if cgroup else self.net.host_members()
        return start_in_netns(
            self.netns, argv, name=self.name, output=output, env={**os.environ, **env}, members=members
        )

    def terminate(self) -> None:
        """End the shell and the programs, release the namespace."""
        if self._ended:
            return
        if self._shell is not None:
            self.unmountPrivateDirs()
        self._ended = True
        self.reap()
        self.close_shell()
        if self._netns is not None:
            os.close(self._netns)
            self._netns = None
