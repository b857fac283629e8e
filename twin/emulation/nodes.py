"""Nodes of the façade: containers, namespace hosts, Open vSwitch bridges and controllers.

They keep Mininet's interface but start no shell until one is asked for (``cmd``), hold namespaces by a
descriptor instead of a process, and do what Mininet does by ifconfig over netlink, in batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors
from mininet.log import info, warn
from mininet.node import Controller as MininetController
from mininet.node import Host, Node, OVSSwitch

from twin.emulation import cgroups
from twin.emulation.cgroups import Cgroup
from twin.emulation.images import BASE_COMMAND, BASE_REPOSITORY, ImageError
from twin.emulation.process import LaunchError, Process, start_in_container, start_in_netns
from twin.emulation.veth import delete_all, in_netns
from twin.journal import start_ticks

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


class Docker(NetworkNode):
    """A Docker container as a host, with Containernet's parameters.

    Without ``dimage`` it is TwinBed's base image. ``network_mode`` is ``none`` unless ports are
    published. A container is created in the background: what needs it waits for it.
    """

    RESOURCES = ("cpu_quota", "cpu_period", "cpu_shares", "cpuset_cpus", "mem_limit", "memswap_limit")
    _HOST_CONFIG = (
        *("dns", "devices", "sysctls", "tmpfs", "ipc_mode", "shm_size", "storage_opt", "privileged", "port_bindings"),
        *("publish_all_ports", "extra_hosts", "ulimits", "security_opt", "runtime", "pid_mode"),
    )
    _MININET = frozenset(
        ("ip", "mac", "defaultRoute", "lo", "privateDirs", "inNamespace", "waitExited", "isSwitch", "cores")
    )

    def __init__(
        self,
        name: str,
        dimage: str | None = None,
        dcmd: str | Sequence[str] | None = None,
        build_params: Mapping[str, Any] | None = None,
        *,
        net: Containernet | None = None,
        **params: Any,
    ) -> None:
        if net is None:
            raise ContainerError(f"container {name}: make it with net.addDocker({name!r}, ...)")
        self.dimage = dimage
        self.dcmd = dcmd
        self.build_params = dict(build_params or {})
        self.dnameprefix = net.prefix or "mn"
        self.container_name = f"{net.prefix}-{name}" if net.prefix else f"mn.{name}"
        self.resources: dict[str, Any] = {key: params.pop(key, None) for key in self.RESOURCES}
        if params.get("cores") is not None and self.resources["cpuset_cpus"] is None:
            self.resources["cpuset_cpus"] = params["cores"]
        self.volumes = list(params.pop("volumes", None) or [])
        self.environment = params.pop("environment", None) or {}
        self.published = list(params.pop("ports", None) or [])
        self.network_mode = params.pop("network_mode", None)
        self.cap_add = list(params.pop("cap_add", None) or ["NET_ADMIN"])
        self._host_options = {key: params.pop(key) for key in self._HOST_CONFIG if params.get(key) is not None}
        self.port_bindings = self._host_options.get("port_bindings", {})
        unknown = sorted(set(params) - self._MININET)
        if unknown:  # as Mininet, but not silently
            warn(f"*** {name}: parameters without effect: {', '.join(unknown)}\n")
        self._container_id: str | None = None
        self._pid: int | None = None
        self._ticks: int | None = None
        self._env: dict[str, str] = {}
        self._folder = "/"
        self._members: list[Path] = []
        self._entry = 0
        self._docker_lock = threading.Lock()
        self._telling_lock = threading.Lock()
        self._telling = False
        self._told: dict[str, int] = {}
        super().__init__(name, net=net, **params)
        self._ready: Future[None] = net.submit(self._create)

    def _create(self) -> None:
        client = self.net.docker
        image = self._image()
        base = image.partition(":")[0] == BASE_REPOSITORY
        # Containernet's default keeps any image with bash alive; the base image has a lighter one
        command = self.dcmd if self.dcmd is not None else list(BASE_COMMAND) if base else "/bin/bash"
        published = (
            self.published or self._host_options.get("port_bindings") or self._host_options.get("publish_all_ports")
        )
        options = {key: value for key, value in self.resources.items() if value is not None}
        if "mem_limit" in options:
            options.setdefault("memswap_limit", options["mem_limit"])  # else Docker allows as much swap again
        quiet = base and self.dcmd is None
        labels = {"twinbed.run": self.net.run_id, "twinbed.node": self.name, "com.containernet": ""}
        with self._docker_errors(f"image {image}"):
            host_config = client.create_host_config(
                network_mode=self.network_mode or ("bridge" if published else "none"),
                binds=self.volumes or None,
                cap_add=self.cap_add,
                log_config={"Type": "none"} if quiet else {"Type": "json-file", "Config": {"max-size": "10m"}},
                **self._host_options,
                **options,
            )
            (self._entry,) = self.net.journal_container(self.container_name)
            try:
                made = client.create_container(
                    image,
                    command=command,
                    name=self.container_name,
                    hostname=re.sub(r"[^A-Za-z0-9-]", "-", self.name)[:63],
                    environment=self.environment,
                    ports=self.published or None,
                    host_config=host_config,
                    labels=labels,
                    tty=self.dcmd is None and not base,
                    stdin_open=self.dcmd is None and not base,
                )
            except docker.errors.APIError:
                self.net.journal.done(self._entry)  # not ours, or never made
                raise
            self._container_id = made["Id"]
            self._start()

    def _image(self) -> str:
        if "path" in self.build_params or "fileobj" in self.build_params:
            self.dimage = self._build()
        elif self.dimage is None:
            self.dimage = self.net.base_image()
        else:
            self.net.check_image(self.dimage)
        return self.dimage

    def _build(self) -> str:
        options = dict(self.build_params)
        tag = str(options.setdefault("tag", self.dimage or f"twinbed/{self.name.lower()}:latest"))
        try:
            for step in self.net.docker.build(decode=True, rm=True, **options):
                if "error" in step:
                    raise ImageError(f"image {tag}: build: {' '.join(step['error'].split())}")
        except (docker.errors.APIError, TypeError, OSError) as error:
            raise ImageError(f"image {tag}: build: {' '.join(str(error).split())}") from None
        return tag

    def _start(self) -> None:
        self.net.docker.start(self._container_id)
        details = self.dcinfo_now()
        state = details["State"]
        if not state["Running"]:
            raise ContainerError(self._ended_text(details))
        pid = int(state["Pid"])
        self._env = dict(one.partition("=")[::2] for one in details["Config"]["Env"] or ())
        self._env.setdefault("HOME", "/root")
        self._folder = details["Config"]["WorkingDir"] or "/"
        try:
            self._members = cgroups.procs_files(pid)
        except OSError:
            raise self._end_error() from None
        self._ticks = start_ticks(pid)
        self._pid = pid

    def check_running(self) -> None:
        """Wait until the container is up; ContainerError when it has ended, with its last words."""
        self._ready.result()
        if self._pid is None or self._ticks != start_ticks(self._pid):
            raise self._end_error()

    def _end_error(self) -> ContainerError:
        """The error of a container whose first process is gone, which Docker may not know yet."""
        with contextlib.suppress(docker.errors.APIError, OSError):
            self.net.docker.wait(self._container_id, timeout=5)
        return ContainerError(self._ended_text(self.dcinfo_now()))

    def _ended_text(self, details: Mapping[str, Any]) -> str:
        try:
            lines = self.net.docker.logs(self._container_id, tail=20).decode(errors="replace").split("\n")
        except docker.errors.APIError:
            lines = []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "none")
        return (
            f"container {self.name} (image {self.dimage}): ended at once with exit code "
            f"{details['State']['ExitCode']}, last log line: {last[:200]}"
        )

    @contextlib.contextmanager
    def _docker_errors(self, what: str) -> Any:
        try:
            yield
        except docker.errors.APIError as error:
            text = " ".join(str(error.explanation or error).split())
            raise ContainerError(f"container {self.name} ({what}): {text[:300]}") from None
        except (docker.errors.DockerException, TypeError, ValueError) as error:
            raise ContainerError(f"container {self.name} ({what}): {' '.join(str(error).split())[:300]}") from None

    def wait_ready(self) -> Docker:
        """Wait until the container runs; raises what prevented it."""
        self._ready.result()
        return self

    @property
    def container_id(self) -> str:
        """Docker's id of the container."""
        self._ready.result()
        assert self._container_id
        return self._container_id

    did = container_id

    @property
    def dc(self) -> dict[str, str]:
        """Containernet's handle of the container."""
        return {"Id": self.container_id}

    dcontainer = dc

    @property
    def dcli(self) -> Any:
        """The low-level Docker client."""
        return self.net.docker

    @property
    def dcinfo(self) -> dict[str, Any]:
        """``docker inspect`` of the container, now."""
        self._ready.result()
        return self.dcinfo_now()

    def dcinfo_now(self) -> dict[str, Any]:
        """``docker inspect`` without waiting for the start."""
        found: dict[str, Any] = self.net.docker.inspect_container(self._container_id)
        return found

    @property
    def pid(self) -> int:
        """Host pid of the container's first process; ContainerError after its end."""
        self._ready.result()
        if self._pid is None:
            raise ContainerError(f"container {self.name}: not running")
        return self._pid

    @pid.setter
    def pid(self, value: None) -> None:
        pass

    @property
    def running(self) -> bool:
        """False after :meth:`kill`."""
        self._ready.result()
        return self._pid is not None

    def open_netns(self) -> int:
        try:
            return os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._end_error() from None

    def _spawn_shell(self, argv: list[str], terminal: int) -> subprocess.Popen[bytes]:
        env = {**self._env, "TERM": "dumb"}
        with os.fdopen(os.dup(terminal), "rb") as stdio:
            return start_in_container(
                self.pid,
                argv,
                name=self.name,
                stdin=stdio,
                output=stdio,
                env=env,
                folder=self._folder,
                members=self._members,
            )

    def popen(self, *args: Any, **kwargs: Any) -> Any:
        """Mininet's popen, in all namespaces of the container."""
        self.net.flush()
        kwargs.setdefault("mncmd", ["nsenter", "-t", str(self.pid), "-a", "--"])
        return Host.popen(self, *args, **kwargs)

    def _launch(
        self, argv: Sequence[str], cgroup: Cgroup | None, output: Any, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        members = [*self._members, *(cgroup.members() if cgroup else ())]
        return start_in_container(
            self.pid,
            argv,
            name=self.name,
            output=output,
            env={**self._env, **env},
            folder=self._folder,
            members=members,
        )

    # Limits. Docker's API takes 16-20 ms; Cgroup.of_container(node) acts in 0.3 ms and tells Docker after.

    def updateCpuLimit(
        self,
        cpu_quota: int | None = None,
        cpu_period: int | None = None,
        cpu_shares: int | None = None,
        cores: str | None = None,
    ) -> None:
        """Change CPU limits of the running container; what is not given stays."""
        self.update_resources(cpu_quota=cpu_quota, cpu_period=cpu_period, cpu_shares=cpu_shares, cpuset_cpus=cores)

    def updateMemoryLimit(self, mem_limit: int | str | None = None, memswap_limit: int | str | None = None) -> None:
        """Change memory limits of the running container; -1 is no limit, what is not given stays."""
        if mem_limit is not None and memswap_limit is None and self.resources["memswap_limit"] is None:
            self.update_resources(mem_limit=mem_limit, _extra={"memswap_limit": mem_limit})
        else:
            self.update_resources(mem_limit=mem_limit, memswap_limit=memswap_limit)

    def update_resources(self, *, _extra: Mapping[str, Any] | None = None, **changes: Any) -> None:
        """Change Docker's limits of the running container."""
        changes = {key: value for key, value in changes.items() if value is not None}
        unknown = sorted(set(changes) - set(self.RESOURCES))
        if unknown:
            raise ContainerError(
                f"container {self.name}: unknown limit {unknown[0]}, known: {', '.join(self.RESOURCES)}"
            )
        wire = {**changes, **(_extra or {})}
        memory_only = set(wire) == {"memswap_limit"} and wire["memswap_limit"] == -1
        if memory_only and self.resources["mem_limit"] is None:
            wire = {}  # no limit on top of no limit, which Docker refuses to write
        if wire:
            with self._docker_errors(f"limits {', '.join(wire)}"), self._docker_lock:
                self.net.docker.update_container(self.container_id, **wire)
        for key, value in changes.items():
            self.resources[key] = None if value == -1 and key == "memswap_limit" else value
            self._given = {**getattr(self, "_given", {}), key: value}

    def __getattr__(self, name: str) -> Any:
        # d.cpu_quota, d.mem_limit ...: limits as last given
        if name in Docker.RESOURCES:
            given = self.__dict__.get("_given", {})
            return given.get(name, self.__dict__["resources"][name])
        raise AttributeError(name)

    def tell_docker(self, **limits: int) -> None:
        """Record limits with Docker in the background; the last ones given are what stays.

        Docker writes the control group too: a change made while it is told of the one before can take
        effect up to 20 ms late.
        """
        with self._telling_lock:
            idle = not self._telling
            self._telling = True
            self._told.update(limits)
        if idle:
            self.net.submit(self._tell)

    def _tell(self) -> None:
        while True:
            with self._telling_lock:
                limits, self._told = self._told, {}
                self._telling = bool(limits)
            if not limits:
                return
            try:
                with self._docker_lock:
                    self.net.docker.update_container(self._container_id, **limits)
            except docker.errors.APIError as error:
                if self._pid is not None:
                    warn(f"*** {self.name}: docker inspect will not show {limits}: {error.explanation}\n")

    # Faults

    def kill(self) -> None:
        """SIGKILL to the container's first process, and so to all of them; its interfaces vanish."""
        netns = self.open_netns()
        try:
            with self._docker_errors("kill"):
                self.net.docker.kill(self._container_id)
                self.net.docker.wait(self._container_id, timeout=10)
            # The kernel takes a dead namespace down when it finds time; until then it answers pings
            in_netns(netns, delete_all)
        finally:
            os.close(netns)
        self._pid = None
        self.close_shell()
        self.reap()
        self.net.unplugged(self)

    def restart(self) -> None:
        """Start the container again (killing it first if it runs), with the same links, addresses and ports.

        The namespace is new: what was configured by ``cmd`` is gone, programs have to be launched
        again, shaping that is not a link's own constraint has to be applied again.
        """
        if self.running:
            self.kill()
        with self._docker_errors("restart"):
            self._start()
        self.net.replug(self)

    def remove(self) -> None:
        """Remove the container; a no-op when it was never made."""
        with contextlib.suppress(Exception):
            self._ready.result()
        self._pid = None
        self.reap()
        if self._container_id is not None:
            try:
                self.net.docker.remove_container(self._container_id, force=True, v=True)
            except docker.errors.NotFound:
                pass
            except docker.errors.APIError as error:
                if "already in progress" not in str(error.explanation):
                    raise ContainerError(f"container {self.name}: remove: {error.explanation}") from None
            self._container_id = None
            self.net.journal.done(self._entry)

    def terminate(self) -> None:
        """End the shell and the programs, remove the container."""
        if self._ended:
            return
        self._ended = True
        self.remove()
        self.close_shell()
        self.reap()


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
