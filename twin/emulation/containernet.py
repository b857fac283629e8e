"""Containernet's Python interface on Debian's Mininet: networks of Docker containers, hosts and switches.

``from twin.emulation.containernet import Containernet, Docker`` is all that changes in a script written
for Containernet (M. Peuster et al., "MeDICINE: Rapid prototyping of production-ready network services
in multi-PoP environments", IEEE NFV-SDN 2016). Behind it, containers are created by a few threads while
the script goes on, links are made in batches and shells are started when first used; a link whose
declared delay or loss cannot be applied is an error; what is made on the host is journalled before.
Bring-up and removal figures: ``benchmarks/bring_up.py``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import re
import resource
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import docker
from mininet.link import TCLink
from mininet.log import info, output
from mininet.net import Mininet
from mininet.node import Controller as MininetController
from mininet.node import DefaultController, Host, Node, OVSBridge, OVSController, OVSSwitch
from mininet.topolib import TreeTopo

from twin.emulation import images
from twin.emulation.cgroups import Cgroup
from twin.emulation.container import Docker
from twin.emulation.impairment import LinkError, make_links
from twin.emulation.links import Interface, VirtualLink, host_name
from twin.emulation.netlink import (
    Netlink,
    Request,
    VethEnd,
    add_veth,
    delete_group,
    delete_link,
    new_namespaces,
    offloads_off,
)
from twin.emulation.netns import CLONE_NEWNET, in_netns, in_thread, libc_call
from twin.emulation.nodes import ContainerError, LazyShell, NamespaceHost, NetworkNode, SwitchError
from twin.emulation.process import LaunchError, Reaper
from twin.emulation.switches import Controller, Switch, datapath_id
from twin.journal import Journal

__all__ = [
    "CONTAINER_THREADS",
    "ContainerError",
    "Containernet",
    "Controller",
    "Docker",
    "LaunchError",
    "LinkError",
    "NamespaceHost",
    "Switch",
    "SwitchError",
    "TCLink",
    "TreeContainerNet",
]

CONTAINER_THREADS = 4
"""More do not help: starting a container is runc's work, and dockerd serialises part of it."""
_CONTROLLER_WAIT_S = 3.0
_NAMESPACE_BATCH = 16
_Result = TypeVar("_Result")


class Containernet(Mininet):  # type: ignore[misc]
    """A network of containers, namespace hosts, Open vSwitch bridges and links.

    Mininet's arguments, and:

    :param run_id: marks everything made on the host (labels, control groups, journal).
    :param journal: an open journal; without one the network keeps its own.
    :param prefix: put before the names of containers, bridges and switch interfaces on the host, so
        that networks with the same node names run side by side (at most 8 characters).

    Use it as a context manager, or call :meth:`stop`; a script that ends without either is cleaned up
    after at its end, a killed one by ``twin gc``. Unlike Mininet it leaves the host's sysctls alone.
    """

    inited = True  # Mininet's own initialisation exits without root and changes sysctls for good

    def __init__(
        self,
        topo: Any = None,
        switch: Any = Switch,
        host: Any = NamespaceHost,
        controller: Any = DefaultController,
        *,
        run_id: str | None = None,
        journal: Journal | None = None,
        prefix: str = "",
        build: bool = True,
        **params: Any,
    ) -> None:
        if prefix and not re.fullmatch(r"[a-z][a-z0-9]{0,7}", prefix):
            raise ValueError(f"prefix must match [a-z][a-z0-9]{{0,7}}, got {prefix!r}")
        if os.geteuid() != 0:
            raise ContainerError("a network of containers needs root: run it with sudo")
        _raise_file_limit()
        self.prefix = prefix
        self.run_id = run_id or f"net-{os.getpid()}-{secrets.token_hex(3)}"
        self._own_journal = journal is None
        self.journal = journal if journal is not None else Journal.create(self.run_id)
        self._pool = ThreadPoolExecutor(CONTAINER_THREADS, "twinbed-docker")
        self._lock = threading.RLock()
        # Apart from _lock, which flush() holds while it waits for containers that need Docker
        self._docker_lock = threading.Lock()
        self._docker: docker.APIClient | None = None
        self._datapath: str | None = None
        self._base: str | None = None
        self._checked: set[str] = set()
        self._waiting: list[VirtualLink] = []
        self._spare: list[int] = []
        self._host_group: Cgroup | None = None
        # Interfaces of the root namespace share a group, so that all go in one kernel call
        self._group = random.SystemRandom().randrange(1 << 20, 1 << 31)
        self._names: dict[str, str] = {}
        self._started = False
        self._stopped = False
        atexit.register(self.stop)
        try:
            self.reaper = Reaper()
            self._root_netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            super().__init__(topo, switch=switch, host=host, controller=controller, build=build, **params)
        except BaseException:
            self.stop()
            raise

    # Nodes

    def addDocker(self, name: str, cls: Any = Docker, **params: Any) -> Docker:
        """Add a container; returns at once, the container comes up in the background.

        Parameters: see :class:`Docker`. Raises ImageError when the image is not on this host.
        """
        node: Docker = self.addHost(name, cls=cls, **params)
        return node

    def addHost(self, name: str, cls: Any = None, **params: Any) -> Any:
        """Add a host in a network namespace, or of another Mininet host class."""
        self._check_name(name)
        cls = NamespaceHost if cls in (None, Host, Node) and self.host in (Host, Node) else cls or self.host
        if cls in (Host, Node):
            cls = NamespaceHost
        if isinstance(cls, type) and issubclass(cls, NetworkNode):
            if issubclass(cls, Docker) and params.get("dimage") and not params.get("build_params"):
                self.check_image(params["dimage"])
            params["net"] = self
        return super().addHost(name, cls=cls, **params)

    def addSwitch(self, name: str, cls: Any = None, **params: Any) -> Any:
        """Add a switch. Mininet's OVS classes become :class:`Switch`; others are used as they are."""
        self._check_name(name)
        cls = cls or self.switch
        if cls is OVSBridge:
            params.setdefault("failMode", "standalone")
        if cls in (OVSSwitch, OVSBridge):
            cls = Switch
        if isinstance(cls, type) and issubclass(cls, Switch):
            params["net"] = self
        switch = super().addSwitch(name, cls=cls, **params)
        if self._started and isinstance(switch, Switch):
            self.start_switches([switch], self.controllers)
        return switch

    def addController(self, name: Any = "c0", controller: Any = None, **params: Any) -> Any:
        """Add an OpenFlow controller. Mininet's default classes become :class:`Controller`."""
        cls = controller or self.controller
        if not isinstance(name, MininetController) and cls in (MininetController, OVSController, DefaultController):
            cls = Controller
        if isinstance(cls, type) and issubclass(cls, Controller):
            params["net"] = self
        return super().addController(name, controller=cls, **params)

    def removeDocker(self, node: Docker | str, **_: Any) -> bool:
        """Remove a container and its links from the running network."""
        target = self[node] if isinstance(node, str) else node
        self._drop([link for link in self.links if link.touches(target)])
        target.terminate()
        self.hosts.remove(target)
        del self.nameToNode[target.name]
        return True

    def delNode(self, node: Any, nodes: Any = None) -> None:
        """Remove a node and its links."""
        self._drop([link for link in self.links if isinstance(link, VirtualLink) and link.touches(node)])
        super().delNode(node, nodes)

    def _check_name(self, name: str) -> None:
        if name in self.nameToNode:
            raise ValueError(f"node {name}: added twice")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise ValueError(f"node name must match [A-Za-z0-9][A-Za-z0-9_.-]*, got {name!r}")

    # Links

    def addLink(
        self,
        node1: Any,
        node2: Any,
        port1: int | None = None,
        port2: int | None = None,
        cls: Any = None,  # noqa: ARG002 - every link is made the same way, TCLink included
        **params: Any,
    ) -> Any:
        """Add a link; on a running network it works at once.

        ``bw`` (Mbit/s), ``delay`` and ``jitter`` (``"10ms"``), ``loss`` (percent) and ``max_queue_size``
        hold in each direction and are applied with any ``cls``; LinkError when they cannot be.
        """
        first = self[node1] if isinstance(node1, str) else node1
        second = self[node2] if isinstance(node2, str) else node2
        options = {key: value for key, value in params.items() if key not in ("intf", "cls1", "cls2", "fast")}
        options.update({key: port for key, port in (("port1", port1), ("port2", port2)) if port is not None})
        link = VirtualLink(self, first, second, options)
        self.links.append(link)
        with self._lock:
            self._waiting.append(link)
        own = all(isinstance(node, LazyShell) for node in (first, second))
        if self.built or not own:
            if self.built:
                self._address_first_interfaces([first, second])
            self.flush()
        return link

    def removeLink(self, link: Any = None, node1: Any = None, node2: Any = None) -> None:
        """Remove a link, or all links between two nodes (objects or names)."""
        if link is None:
            ends = [self[node] if isinstance(node, str) else node for node in (node1, node2)]
            self._drop(self.linksBetween(*ends))
        else:
            self._drop([link])

    def delLink(self, link: Any) -> None:
        """Remove a link."""
        self._drop([link])

    def _drop(self, links: Sequence[VirtualLink]) -> None:
        self.unmake(links)
        for link in links:
            for end in link.ends:
                end.node.delIntf(end)
                for name in [name for name, one in end.node.nameToIntf.items() if one is end]:
                    del end.node.nameToIntf[name]
                end.link = None
            self.links.remove(link)

    def flush(self) -> None:
        """Make all links that were added and not yet made, in one batch."""
        with self._lock:
            links, self._waiting = self._waiting, []
            if links:
                self._make(links)

    def _make(self, links: Sequence[VirtualLink]) -> None:
        for node in {end.node for link in links for end in link.ends}:
            if isinstance(node, Docker):
                node.wait_ready()
        self._make_plain([link for link in links if not link.constrained])
        shaped = [link for link in links if link.constrained]
        if shaped:
            specs = [link.spec() for link in shaped]
            for link, handle in zip(shaped, make_links(specs, journal=self.journal, run_id=self.run_id), strict=True):
                link.handle, link.made = handle, True
        self._configure(links)
        self._attach(links)

    def _make_plain(self, links: Sequence[VirtualLink]) -> None:
        """Make veth pairs, journalled first: ends in namespaces go with them, ends on the host do not."""
        things = []
        for link in links:
            things += [
                ("interface", {"name": one.name, "mac": one.mac}) for one in link.ends if self._in_root(one.node)
            ]
            for end in link.ends:
                if self._in_root(end.node) and Path("/sys/class/net", end.name).exists():
                    raise LinkError(
                        f"link {link}: interface {end.name} is on the host already; remove it with: twin gc"
                    )
        if not links:
            return
        numbers = iter(self.journal.record_many(things))
        opened: dict[Any, int] = {}
        try:
            messages = []
            for link in links:
                wire = []
                for end in link.ends:
                    if self._in_root(end.node):
                        link.journal_entries.append(next(numbers))
                        wire.append(VethEnd(end.name, end.mac, group=self._group))
                    else:
                        if end.node not in opened:
                            opened[end.node] = self._open_netns(end.node)
                        wire.append(VethEnd(end.name, end.mac, opened[end.node]))
                messages.append(add_veth(*wire, up=True))
            with Netlink() as netlink:
                netlink.send(messages)
        except OSError as problem:
            raise LinkError(f"making links: {problem.strerror}") from None
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        for link in links:
            link.made = True

    def _configure(self, links: Iterable[VirtualLink]) -> None:
        """Addresses, routes and offloads of new interfaces, each namespace entered once."""
        by_node: dict[Any, list[Interface]] = {}
        for link in links:
            for end in link.ends:
                by_node.setdefault(end.node, []).append(end)
        opened = {node: self._open_netns(node) for node in by_node}
        off = self.datapath == "user"

        def body() -> None:
            for node, ends in by_node.items():
                libc_call("setns", opened[node], CLONE_NEWNET)
                with Netlink() as netlink:
                    netlink.send([message for end in ends for message in end.messages()])
                if off:
                    offloads_off([end.name for end in ends if not end.link.constrained], segmentation=False)

        try:
            in_thread(body)
        except OSError as problem:
            raise LinkError(f"configuring links: {problem.strerror}") from None
        finally:
            for descriptor in opened.values():
                os.close(descriptor)

    def unmake(self, links: Iterable[VirtualLink]) -> None:
        """Take links off the host; the nodes keep them until they are dropped."""
        with self._lock:
            links = list(links)
            self._waiting = [one for one in self._waiting if one not in links]
            links = [one for one in links if one.made]
            self._vsctl_if([part for link in links for end in link.ends for part in self._detach_text(end)])
            for link in links:
                link.made = False
                if link.handle is not None:
                    link.handle.close()
                    link.handle = None
                    continue
                at_root = [end for end in link.ends if self._in_root(end.node)]
                alive = [end for end in link.ends if not (isinstance(end.node, Docker) and not end.node.running)]
                for end in (at_root or alive)[:1]:
                    self._delete_end(end)
                self.journal.done(*link.journal_entries)
                link.journal_entries = []

    def _delete_end(self, end: Interface) -> None:
        self.in_node(end.node, lambda: [delete_link(end.name, missing_ok=True)])

    def unplugged(self, node: Docker) -> None:
        """A container died and its interfaces with it: take the other ends away from their switches."""
        with self._lock:
            mine = [link for link in self.links if link.touches(node)]
            for link in mine:
                if link.handle is None and link.made:
                    link.made = False
                    self.journal.done(*link.journal_entries)
                    link.journal_entries = []
            self._vsctl_if([part for link in mine for end in link.ends for part in self._detach_text(end)])

    def replug(self, node: Docker) -> None:
        """Give a restarted container its interfaces back, with their names, MAC and IP addresses and ports."""
        with self._lock:
            mine = [
                link
                for link in self.links
                if link.touches(node)
                and link not in self._waiting
                and all(end.node.running for end in link.ends if isinstance(end.node, Docker))
            ]
            self._make_plain([link for link in mine if link.handle is None])
            for link in mine:
                if link.handle is not None:
                    side: Literal["a", "b"] = "a" if link.intf1.node is node else "b"
                    link.handle.replug(side, node.pid)
            self._configure(mine)
            self._attach(mine)

    def _attach(self, links: Sequence[VirtualLink]) -> None:
        self._vsctl_if([part for link in links for end in link.ends for part in self._attach_text(end)])
        for link in links:
            for end in link.ends:
                if link.handle is not None and isinstance(end.node, Switch) and end.node.started:
                    self.restore_shaping(link, end)

    def restore_shaping(self, link: VirtualLink, end: Interface) -> None:
        """Open vSwitch deletes the queueing of an interface once, when it takes it as a port."""
        assert link.handle is not None
        shaper = link.handle.shaper_a if end is link.intf1 else link.handle.shaper_b
        if shaper.installed:
            shaper.restore()

    def _vsctl_if(self, arguments: Sequence[str]) -> None:
        if arguments:
            self.vsctl(arguments)

    def apply(self, end: Interface) -> None:
        """Apply an interface's address and route again."""
        self.in_node(end.node, end.messages)

    def _address_first_interfaces(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            if isinstance(node, NetworkNode) and node.intfs:
                first = node.defaultIntf()
                if first.ip is None and node.params.get("ip"):
                    first.setIP(node.params["ip"], self.prefixLen)

    # Namespaces

    def _in_root(self, node: Any) -> bool:
        return not getattr(node, "inNamespace", True)

    def _open_netns(self, node: Any) -> int:
        if self._in_root(node):
            return os.dup(self._root_netns)
        if isinstance(node, NetworkNode):
            return node.open_netns()
        return os.open(f"/proc/{node.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def netns_pid(self, node: Any) -> int | None:
        """Host pid of a process in the node's network namespace; None for the root namespace."""
        return None if self._in_root(node) else int(node.pid)

    def inside(self, node: Any, function: Callable[[], _Result]) -> _Result:
        """Run a function in the network namespace of a node."""
        descriptor = self._open_netns(node)
        try:
            return in_netns(descriptor, function)
        finally:
            os.close(descriptor)

    def in_node(self, node: Any, messages: Callable[[], Sequence[Request]]) -> None:
        """Send netlink messages in the network namespace of a node."""

        def body() -> None:
            with Netlink() as netlink:
                netlink.send(messages())

        try:
            self.inside(node, body)
        except OSError as problem:
            raise LinkError(f"{node.name}: {problem.strerror}") from None

    def take_namespace(self) -> int:
        """A fresh network namespace, from a stock made in batches."""
        with self._lock:
            if not self._spare:
                self._spare = new_namespaces(_NAMESPACE_BATCH)
            return self._spare.pop()

    def interface_name(self, node: Any, logical: str) -> str:
        """The name of an interface on the host or in the node: prefixed in the root namespace, 15 characters."""
        name = host_name(self.prefix if self._in_root(node) else "", logical)
        if self._in_root(node) and self._names.setdefault(name, logical) != logical:
            raise LinkError(f"interface {logical}: its name on the host, {name}, is that of {self._names[name]} too")
        return name

    def bridge_name(self, name: str) -> str:
        """The name of a switch's bridge on the host."""
        return host_name(self.prefix, name)

    def datapath_id(self, name: str, dpid: str | None) -> str:
        """A switch's OpenFlow id, unique among runs when the network has a prefix."""
        return datapath_id(self.run_id if self.prefix else "", name, dpid)

    def host_members(self) -> list[Path]:
        """Control group files for programs of ours outside containers, so that a crash leaves none unknown."""
        with self._lock:
            if self._host_group is None:
                self._host_group = Cgroup.create(self.run_id, "_host", journal=self.journal)
            return self._host_group.members()

    # Docker

    @property
    def docker(self) -> docker.APIClient:
        """The low-level Docker client, shared by the threads."""
        with self._docker_lock:
            if self._docker is None:
                self._docker = images.docker_client(CONTAINER_THREADS + 2)
            return self._docker

    def submit(self, function: Callable[[], None]) -> Future[None]:
        """Run a function in one of the Docker threads."""
        return self._pool.submit(function)

    def base_image(self) -> str:
        """Name of the base image, built when it is not there."""
        if self._base is None:
            self._base = images.ensure_base_image()
        return self._base

    def check_image(self, name: str) -> None:
        """ImageError when an image is not on this host."""
        if name not in self._checked:
            images.check_image(name)
            self._checked.add(name)

    def journal_container(self, name: str) -> list[int]:
        """Journal a container before it is made."""
        return self.journal.record_many([("container", {"name": name, "run": self.run_id})])

    # Switches

    @property
    def datapath(self) -> str:
        """``kernel`` where Open vSwitch has its kernel module, else ``user``."""
        if self._datapath is None:
            found = subprocess.run(["ovs-dpctl", "dump-dps"], capture_output=True, check=False)
            self._datapath = "kernel" if found.returncode == 0 else "user"
        return self._datapath

    def vsctl(self, arguments: Sequence[str]) -> str:
        """Run ``ovs-vsctl`` once with any number of commands; SwitchError when it refuses."""
        try:
            done = subprocess.run(
                ["ovs-vsctl", "--timeout=30", *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise SwitchError("Open vSwitch is not installed: apt-get install openvswitch-switch") from None
        if done.returncode != 0:
            raise SwitchError(f"Open vSwitch: {' '.join(done.stderr.split())[:300]}")
        return done.stdout

    def switch_ofctl(self, switch: Any, lines: Iterable[str]) -> None:
        """Change OpenFlow flows of a switch in one transaction.

        Lines as for ``ovs-ofctl add-flows``: a flow, or ``add``, ``modify``, ``delete`` ... before one.
        Either all take effect or none; SwitchError names what was refused.
        """
        target = self[switch] if isinstance(switch, str) else switch
        text = "".join(f"{line}\n" for line in lines)
        done = subprocess.run(
            ["ovs-ofctl", "-O", "OpenFlow14", "--bundle", "add-flows", target.bridge, "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SwitchError(f"switch {target.name}: {' '.join(done.stderr.split())[:300]}")

    def _attach_text(self, end: Interface) -> list[str]:
        if isinstance(end.node, Switch) and end.node.started:
            return end.node.port_text(end)
        return []

    def _detach_text(self, end: Interface) -> list[str]:
        if isinstance(end.node, Switch) and end.node.started:
            return ["--", "--if-exists", "del-port", end.node.bridge, end.name]
        return []

    def start_switches(self, switches: Sequence[Switch], controllers: Iterable[Any]) -> None:
        """Make bridges and their ports in one transaction."""
        fresh = [switch for switch in switches if not switch.started]
        if not fresh:
            return
        self.flush()
        there = set(self.vsctl(["list-br"]).split())
        for switch in fresh:
            if switch.bridge in there:
                raise SwitchError(f"switch {switch.name}: bridge {switch.bridge} exists; remove it with: twin gc")
        things = [("bridge", {"name": switch.bridge, "run": self.run_id}) for switch in fresh]
        reachable = [one for one in controllers if getattr(one, "available", True)]
        text: list[str] = []
        for switch, entry in zip(fresh, self.journal.record_many(things), strict=True):
            switch.entry = entry
            text += [*switch.start_text(reachable, self.run_id), *switch.ports_text()]
        self.vsctl(text)
        for switch in fresh:
            switch.started = True
        for end in [end for switch in fresh for end in switch.intfs.values()]:
            if end.link.handle is not None:
                self.restore_shaping(end.link, end)
        if reachable:
            self._wait_for_controllers(fresh, reachable)

    def _wait_for_controllers(self, switches: Sequence[Switch], controllers: Sequence[Any]) -> None:
        """Until the switches reached the controllers on this host, so that the first packets find a rule.

        Not by ``is_connected``, which Open vSwitch refreshes every few seconds.
        """
        ports = {one.port for one in controllers if one.IP() == "127.0.0.1"}
        deadline = time.monotonic() + _CONTROLLER_WAIT_S
        while time.monotonic() < deadline:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            reached = [int(row[2].partition(":")[2], 16) for row in rows if row[3] == "01"]
            if all(reached.count(port) >= len(switches) for port in ports):
                return
            time.sleep(0.01)

    def stop_switches(self, switches: Sequence[Switch]) -> None:
        """Remove bridges in one transaction.

        The userspace datapath needs 10-30 ms in the kernel to close each port; nobody waits for that:
        the bridge's own device is taken away here, and the configuration no longer has the bridge.
        """
        gone = [switch for switch in switches if switch.started]
        if not gone:
            return
        user = all(switch.datapath == "user" for switch in gone)
        text = [part for switch in gone for part in ("--", "--if-exists", "del-br", switch.bridge)]
        self.vsctl(["--no-wait", *text] if user else text)
        if user:
            with Netlink() as netlink:
                netlink.send([delete_link(switch.bridge, missing_ok=True) for switch in gone])
        for switch in gone:
            switch.started = False
            self.journal.done(switch.entry)

    # Life

    def configHosts(self) -> None:
        """Configure all hosts: ours in one batch, of other classes as Mininet does."""
        info(" ".join(host.name for host in self.hosts) + "\n")
        ours = [host for host in self.hosts if isinstance(host, NetworkNode)]
        for host in ours:
            if host.intfs:
                host.configDefault()
            else:
                host.configDefault(ip=None, mac=None)
        self.flush()
        for host in self.hosts:
            if host not in ours:
                if host.defaultIntf():
                    host.configDefault()
                else:
                    host.configDefault(ip=None, mac=None)

    def start(self) -> None:
        """Make everything that was added, start controllers and switches."""
        try:
            if not self.built:
                self.build()
            self.flush()
            self._check_containers()
            for controller in self.controllers:
                controller.start()
            self.start_switches([one for one in self.switches if isinstance(one, Switch)], self.controllers)
            for switch in self.switches:
                if not isinstance(switch, Switch):
                    switch.start(self.controllers)
            self._check_containers()
            self._started = True
            if self.waitConn:
                self.waitConnected(self.waitConn)
        except BaseException:
            self.stop()
            raise

    def _check_containers(self) -> None:
        """Has a container ended already?"""
        for node in self.hosts:
            if isinstance(node, Docker):
                node.check_running()

    def stop(self) -> None:
        """Remove everything this network made; may be called twice."""
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        problems: list[Exception] = []

        def attempt(step: Callable[[], Any]) -> None:
            try:
                step()
            except Exception as problem:  # noqa: BLE001 - the other steps must still be taken
                problems.append(problem)

        hosts = getattr(self, "hosts", [])
        containers = [host for host in hosts if isinstance(host, Docker)]
        for host in hosts:
            if isinstance(host, LazyShell):
                host.hang_up()
        removals: list[Future[None]] = []
        with contextlib.suppress(RuntimeError):  # at the end of the interpreter there are no new threads
            removals = [self._pool.submit(container.remove) for container in containers]
        for controller in getattr(self, "controllers", []):
            attempt(controller.stop)
        switches = getattr(self, "switches", [])
        # Interfaces first: closing a port whose device is gone spares Open vSwitch a wait in the kernel
        attempt(self._unmake_all)
        attempt(lambda: self.stop_switches([one for one in switches if isinstance(one, Switch)]))
        for switch in switches:
            if not isinstance(switch, Switch):
                attempt(switch.stop)
            attempt(switch.terminate)
        for host in hosts:
            if host not in containers:
                attempt(host.terminate)
        for removal in removals:
            attempt(removal.result)
        for container in containers:
            attempt(container.terminate)
        self._pool.shutdown()
        attempt(self._release)
        if problems:
            raise problems[0]

    def _unmake_all(self) -> None:
        self._waiting = []
        made = [link for link in getattr(self, "links", []) if isinstance(link, VirtualLink) and link.made]
        for link in made:
            link.made = False
            if link.handle is not None:
                link.handle.close()
                link.handle = None
        with Netlink() as netlink:
            netlink.send([delete_group(self._group)])
        for link in made:
            self.journal.done(*link.journal_entries)
            link.journal_entries = []

    def _release(self) -> None:
        for descriptor in (*self._spare, self._root_netns):
            os.close(descriptor)
        self._spare = []
        if self._docker is not None:
            self._docker.close()
        if self._host_group is not None:
            self._host_group.remove()
        self.reaper.close()
        if self._own_journal:
            self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Measurements

    def ping(
        self, hosts: Sequence[Any] | None = None, timeout: str | float | None = None, manualdestip: str | None = None
    ) -> float:
        """Ping between all pairs, or from each host to ``manualdestip``; the loss in percent."""
        results = self._pings(hosts, timeout, manualdestip, self._parsePing)
        sent = sum(one[0] for _, _, one in results)
        received = sum(one[1] for _, _, one in results)
        if not sent:
            output("*** Warning: No packets sent\n")
            return 0.0
        loss: float = 100.0 * (sent - received) / sent
        output(f"*** Results: {loss:.0f}% dropped ({received}/{sent} received)\n")
        return loss

    def pingFull(
        self, hosts: Sequence[Any] | None = None, timeout: str | float | None = None, manualdestip: str | None = None
    ) -> list[tuple[Any, Any, tuple[float, ...]]]:
        """As :meth:`ping`: source, destination, (sent, received, min, avg, max, deviation in ms)."""
        results = self._pings(hosts, timeout, manualdestip, self._parsePingFull)
        output("*** Results:\n")
        for source, destination, values in results:
            output(f" {source.name}->{destination}: {values[0]}/{values[1]}, ")
            output("rtt min/avg/max/mdev {:.3f}/{:.3f}/{:.3f}/{:.3f} ms\n".format(*values[2:]))
        return results

    def _pings(self, hosts: Any, timeout: Any, manualdestip: str | None, parse: Any) -> list[tuple[Any, Any, Any]]:
        hosts = list(hosts or self.hosts)
        options = f"-W {timeout} " if timeout else ""
        results = []
        output("*** Ping: testing ping reachability\n")
        for source in hosts:
            output(f"{source.name} -> ")
            targets = [manualdestip] if manualdestip else [one for one in hosts if one is not source and one.intfs]
            for target in targets:
                address = target if isinstance(target, str) else target.IP()
                result = parse(source.cmd(f"ping -c1 {options}{address}"))
                results.append((source, target, result))
                output(f"{target} " if result[1] else "X ")
            output("\n")
        return results

    def iperf(
        self,
        hosts: Sequence[Any] | None = None,
        l4Type: str = "TCP",
        udpBw: str = "10M",
        fmt: str | None = None,  # noqa: ARG002 - one format
        seconds: float = 5,
        port: int = 5201,
    ) -> list[str]:
        """Throughput between two hosts with iperf3: [server, client] as Mininet prints it, UDP after its rate.

        Mininet's own runs ``killall iperf``, which in a namespace host would end iperf on the whole machine.
        """
        client, server = hosts or (self.hosts[0], self.hosts[-1])
        if l4Type not in ("TCP", "UDP"):
            raise ValueError(f"l4Type must be TCP or UDP, got {l4Type!r}")
        output(f"*** Iperf: testing {l4Type} bandwidth between {client.name} and {server.name}\n")
        listener = server.popen(["iperf3", "-s", "-1", "-p", str(port), "--forceflush"])
        try:
            ready = next((line for line in listener.stdout if b"listening" in line), b"")
            command = ["iperf3", "-J", "-c", server.IP(), "-p", str(port), "-t", f"{seconds:g}"]
            if l4Type == "UDP":
                command += ["-u", "-b", udpBw]
            run = client.popen(command)
            try:
                text, problem = run.communicate(timeout=seconds + 20)
            except subprocess.TimeoutExpired:
                run.kill()
                run.communicate()
                raise LaunchError(f"iperf3 {client.name}: no answer from {server.name}") from None
            report = json.loads(text or b"{}")
            if run.returncode != 0 or not ready:
                raise LaunchError(f"iperf3 {client.name}: {report.get('error') or problem.decode().strip()}")
        finally:
            listener.kill()
            listener.communicate()
        end = report["end"]
        if l4Type == "TCP":
            rates = [end["sum_received"]["bits_per_second"], end["sum_sent"]["bits_per_second"]]
        else:
            total = end["sum"]
            sent = total["bits_per_second"]
            rates = [sent * (1 - total["lost_percent"] / 100), sent]
        result = [_rate(rate) for rate in rates]
        if l4Type == "UDP":
            result.insert(0, udpBw)
        output(f"*** Results: {result}\n")
        return result


def _raise_file_limit() -> None:
    """Descriptors for many namespaces and terminals: up to the hard limit of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _rate(bits_per_second: float) -> str:
    for factor, unit in ((1e9, "Gbits/sec"), (1e6, "Mbits/sec"), (1e3, "Kbits/sec")):
        if bits_per_second >= factor:
            return f"{bits_per_second / factor:.3g} {unit}"
    return f"{bits_per_second:.3g} bits/sec"


class _ContainerTree(TreeTopo):  # type: ignore[misc]
    """Mininet's tree with containers ``d1`` ... as leaves."""

    def __init__(self, depth: int, fanout: int, leaf: dict[str, Any]) -> None:
        self._leaf = leaf
        super().__init__(depth=depth, fanout=fanout)

    def addHost(self, name: str, **options: Any) -> str:
        return str(super().addHost(f"d{name.removeprefix('h')}", cls=Docker, **self._leaf, **options))


def TreeContainerNet(
    depth: int = 1, fanout: int = 2, dimage: str | None = None, dcmd: str | None = None, **params: Any
) -> Containernet:
    """A tree of switches with ``fanout`` ** ``depth`` containers as leaves."""
    leaf = {key: value for key, value in (("dimage", dimage), ("dcmd", dcmd)) if value is not None}
    return Containernet(topo=_ContainerTree(depth, fanout, leaf), **params)
