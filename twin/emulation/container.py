"""A Docker container as a host of the façade: its life, limits, programs and faults."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors
from mininet.log import warn
from mininet.node import Host

from twin.emulation import cgroups
from twin.emulation.cgroups import Cgroup
from twin.emulation.images import BASE_COMMAND, BASE_REPOSITORY, ImageError
from twin.emulation.netlink import delete_all
from twin.emulation.netns import in_netns
from twin.emulation.nodes import ContainerError, NetworkNode
from twin.emulation.process import start_in_container
from twin.journal import start_ticks

if TYPE_CHECKING:
    from twin.emulation.containernet import Containernet


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
