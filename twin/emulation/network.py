"""A plan made real: containers, switches, links and programs, and the ways to change them while they run."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import twin
from topologies.model import App, Container, Host, Link, Node, Partition, Switch, Ue, Upf
from topologies.paths import Route
from twin.emulation import programs as specs
from twin.emulation.addressing import ip_commands
from twin.emulation.backhaul import SOURCE_MTU
from twin.emulation.cgroups import Cgroup, CgroupError, quota_and_period
from twin.emulation.client import ProgramClient, ProgramDownError, ProgramError
from twin.emulation.containernet import Containernet
from twin.emulation.deadline.sched import ThreadEndedError
from twin.emulation.errors import EmulationError
from twin.emulation.fleet import GUEST_ROOT, NO_PYTHON, Fleet
from twin.emulation.forwarding import Forwarding
from twin.emulation.images import ImageError
from twin.emulation.impairment import End, LinkError, LinkHandle, LinkSpec, make_links
from twin.emulation.nodes import ContainerError, SwitchError
from twin.emulation.placement import Placement
from twin.emulation.plan import Interface, Plan
from twin.emulation.process import LaunchError
from twin.emulation.programs import ProgramSpec
from twin.emulation.reservations import Reservations, threads_of
from twin.emulation.shaping import Shaper, ShapingError
from twin.emulation.source_routing import SourceRouting
from twin.journal import Journal
from twin.load import BackhaulDemand, Flow
from twin.partitions import MEMORY_STAYS

if TYPE_CHECKING:
    from twin.emulation.guests import Guests

Progress = Callable[[str], None]

RUNTIME_ROOT = Path("/run/twinbed")
DRAIN_TIMEOUT_S = 2.0
KEEP_ALIVE = ("python3", "-c", "import signal; signal.pause()")

# What can go wrong on the host, told in one line by whoever found it.
HOST_ERRORS = (ContainerError, SwitchError, ImageError, LinkError, ShapingError, CgroupError, LaunchError, ProgramError)


class Network:
    """Owns everything that an emulation makes on the host. :meth:`up` once, :meth:`down` at the end."""

    def __init__(
        self,
        plan: Plan,
        *,
        run_id: str,
        prefix: str,
        logs: Path,
        journal: Journal,
        seed: int,
        sdn_app: str | None = None,
    ) -> None:
        self.plan = plan
        self._sdn_app = sdn_app
        self._run_id = run_id
        self._prefix = prefix
        self._logs = logs
        self._journal = journal
        self._seed = seed
        self._epoch_ns = time.monotonic_ns()
        numbered = [*plan.topology.links, *plan.backhaul.links]
        self._ports = {link.name: number for number, link in enumerate(numbered, start=1)}
        self._runtime = RUNTIME_ROOT / prefix
        self._stack = contextlib.ExitStack()
        self._containers: dict[str, Any] = {}
        self._links: dict[str, LinkHandle] = {}
        self._groups: dict[str, Cgroup] = {}
        self._down: set[str] = set()
        self._replicas = {app.name: app.replicas for app in plan.topology.of_kind(App) if app.service == "request"}
        self._prb_share = {slice_.name: slice_.prb_share for slice_ in plan.topology.slices}
        self.bandwidth_bps = {slice_.name: slice_.bandwidth_bps for slice_ in plan.topology.slices}
        self._task_work_ns: dict[str, int] = {}
        self.reservations: Reservations | None = None
        self._later = ThreadPoolExecutor(max_workers=1, thread_name_prefix="later")
        self._fleet = Fleet(node=self.container, groups=self._groups, runtime=self._runtime, logs=logs)
        self.guests: Guests | None = None
        self.placement = Placement(
            plan,
            client=self.client,
            guests=lambda: self.guests,
            set_route=self._set_route,
            path_delay_s=self._path_delay_s,
            later=self._later,
        )
        self._vcpus: dict[str, tuple[int, ...]] = {}

    # --- bring-up and teardown ---------------------------------------------------------------------

    def up(self, progress: Progress) -> None:
        """Make everything. EmulationError says what could not be made; call :meth:`down` then too."""
        topology = self.plan.topology
        try:
            progress("starting containers and switches")
            self._runtime_folder()
            self._logs.mkdir(parents=True, exist_ok=True)
            self._net = Containernet(controller=None, run_id=self._run_id, journal=self._journal, prefix=self._prefix)
            self._stack.callback(self._net.stop)
            self._forwarding = Forwarding(
                self.plan,
                self._net,
                self._later,
                port_of=self._port_number,
                delay_s=lambda link: self._links[link.name].spec.delay_s,
            )
            self.routing = SourceRouting(
                self.plan,
                self._sdn_app,
                net=self._net,
                port_of=self._port_number,
                handle_of=lambda link: self._links[link.name],
                netns_pid=lambda name: int(self._containers[name].netns_pid),
            )
            self._stack.callback(self.routing.close)
            for node in topology.nodes:
                self._add_node(node)
            for name in self.plan.backhaul.by_host:
                self._containers[name] = self._net.addHost(name, ip=None)
            self._begin_guests()
            self.routing.start(runtime=self._runtime, logs=self._logs, journal=self._journal)
            for name in [name for app in self._replicas for name in self._replica_nodes(app)]:
                self._add_replica(name)
            self._net.start()
            for node in topology.nodes:
                if isinstance(node, Container):
                    self._containers[node.name].check_running()
            progress("connecting links")
            self._connect([*topology.links, *self._replica_links(), *self.plan.backhaul.links])
            for name in self._containers:
                self._configure(name)
            if self._sdn_app is None:
                self._forwarding.install()
            self._shape_slices()
            self.routing.shape(topology.links)
            self.routing.connect()
            progress("starting programs")
            self._make_groups()
            self._fleet.start(list(specs.programs(self.plan, seed=self._seed, epoch_ns=self._epoch_ns)))
            if self.guests is not None:
                progress("waiting for partitions to boot")
                self.guests.wait()
        except HOST_ERRORS as error:
            raise EmulationError(self._in_own_words(str(error))) from error

    def _in_own_words(self, text: str) -> str:
        missing = re.search(r'container (\S+) \(image (\S+)\): .*"python3": executable file not found', text)
        return NO_PYTHON.format(node=missing[1], image=missing[2]) if missing else text

    def down(self) -> None:
        """Remove everything; may be called twice and after a failed :meth:`up`."""
        self._later.shutdown(wait=True)
        if self.reservations is not None:
            self.reservations.close()
        self._fleet.close()
        for group in self._groups.values():
            group.remove()
        self._groups.clear()
        self._stack.close()

    def _runtime_folder(self) -> None:
        entry = self._journal.record("folder", path=str(self._runtime))
        self._runtime.mkdir(parents=True, exist_ok=False)

        def remove() -> None:
            for path in self._runtime.iterdir():
                path.unlink()
            self._runtime.rmdir()
            self._journal.done(entry)

        self._stack.callback(remove)

    def _begin_guests(self) -> None:
        """The guests boot while everything else is made."""
        if not any(True for _ in self.plan.topology.of_kind(Partition)):
            return
        from twin.emulation.guests import Guests  # QEMU's client library is needed for nothing else

        self.guests = Guests(
            self.plan,
            run_id=self._run_id,
            folder=RUNTIME_ROOT / f"{self._prefix}-edge",
            journal=self._journal,
            node_of=self.container,
        )
        self._stack.callback(self.guests.close)
        self.guests.begin()

    def _add_node(self, node: Node) -> None:
        if isinstance(node, Switch):
            self._net.addSwitch(node.name, failMode="secure")
        elif isinstance(node, Host | Partition):
            self._containers[node.name] = self._net.addHost(node.name, ip=None)
        else:
            self._containers[node.name] = self._net.addDocker(node.name, **self._container_options(node))

    def _container_options(self, node: Node) -> dict[str, Any]:
        code = Path(twin.__file__).parent
        options: dict[str, Any] = {
            "ip": None,
            "volumes": [f"{code}:{GUEST_ROOT}/twin:ro", f"{self._runtime}:{self._runtime}:rw"],
        }
        if node.image is not None:
            options["dimage"] = node.image
            # Not every image has a shell; one that carries a part of the user plane has Python.
            options["dcmd"] = list(KEEP_ALIVE)
        if isinstance(node, Ue | Upf):
            options["devices"] = ["/dev/net/tun"]
        if isinstance(node, Container):
            options["dcmd"] = node.command
        limited = not (isinstance(node, App) and node.name in self._replicas)
        if node.cpu_millicores is not None and limited:
            options["cpu_quota"], options["cpu_period"] = quota_and_period(node.cpu_millicores)
        if node.memory_mib is not None and limited:
            options["mem_limit"] = f"{int(node.memory_mib * 1024)}k"
        return options

    def _replica_nodes(self, app: str) -> list[str]:
        return [specs.replica_node(app, index) for index in range(1, self._replicas[app] + 1)]

    def _add_replica(self, name: str) -> None:
        app = self._app(name.rpartition("-r")[0])
        options = self._container_options(Container(name=name, image=app.image))
        if app.cpu_millicores is not None:
            options["cpu_quota"], options["cpu_period"] = quota_and_period(app.cpu_millicores)
        if app.memory_mib is not None:
            options["mem_limit"] = f"{int(app.memory_mib * 1024)}k"
        self._containers[name] = self._net.addDocker(name, **options)

    def _app(self, name: str) -> App:
        node = self.plan.topology.node(name)
        assert isinstance(node, App)
        return node

    def _replica_links(self) -> list[Link]:
        return [Link(a=app, b=name) for app in self._replicas for name in self._replica_nodes(app)]

    def _connect(self, links: Sequence[Link]) -> None:
        """Make links in one batch and plug their root ends into the switches in one transaction."""
        wanted = [
            LinkSpec(
                a=self._end(link, link.a),
                b=self._end(link, link.b),
                bandwidth_bps=link.bandwidth_bps,
                delay_s=link.delay_s,
                jitter_s=link.jitter_s,
                loss_ratio=link.loss_ratio,
                reorder=False,
                seed=self._seed,
                mtu=SOURCE_MTU if link.a in self.plan.backhaul.by_host else 1500,
            )
            for link in links
        ]
        handles = make_links(wanted, journal=self._journal, run_id=self._run_id)
        ports: list[str] = []
        for link, handle in zip(links, handles, strict=True):
            self._links[link.name] = handle
            self._stack.callback(handle.close)
            ports += self._port_commands(link)
        if ports:
            self._net.vsctl(ports)
            for link, handle in zip(links, handles, strict=True):
                self._shape_ports(link, handle)

    def _shape_ports(self, link: Link, handle: LinkHandle) -> None:
        """Open vSwitch deletes the queueing of an interface once, when it takes it as a port."""
        for node, shaper in ((link.a, handle.shaper_a), (link.b, handle.shaper_b)):
            if self._is_switch(node) and shaper.installed:
                shaper.restore()

    def _port_commands(self, link: Link) -> list[str]:
        commands = []
        for node in (link.a, link.b):
            if self._is_switch(node):
                bridge, port = self._net.get(node).bridge, self._root_name(link, node)
                commands += ["--", "--may-exist", "add-port", bridge, port]
                commands += ["--", "set", "Interface", port, f"ofport_request={self._port_number(link)}"]
        return commands

    def _is_switch(self, node: str) -> bool:
        return any(switch.name == node for switch in self.plan.topology.of_kind(Switch))

    def _port_number(self, link: Link) -> int:
        """OpenFlow port of a link on either of its switches: its place in the topology, then sources, from 1."""
        return self._ports[link.name]

    def _root_name(self, link: Link, node: str) -> str:
        return f"{self._prefix}-{self._port_number(link)}{'a' if node == link.a else 'b'}"

    def _end(self, link: Link, node: str) -> End:
        if self._is_switch(node):
            known = self.plan.interfaces.get((node, link.name))
            return End(None, self._root_name(link, node), known.mac if known else None)
        name, mac = self._own_interface(link, node)
        return End(self._containers[node].netns_pid, name, mac)

    def _own_interface(self, link: Link, node: str) -> tuple[str, str | None]:
        interface = self.plan.interfaces.get((node, link.name))
        if interface is not None:
            return interface.name, interface.mac
        if node in self.plan.backhaul.by_host:
            return "eth0", self.plan.backhaul.by_host[node].mac
        # a link between a balancer and one of its replicas, which the topology does not list
        return ("lb0" if node == link.b else f"r{link.b.rpartition('-r')[2]}"), None

    def _base_lines(self, name: str) -> list[str]:
        return list(ip_commands(self.plan, name, self._replicas, self.routing.path_index))

    def _set_route(self, name: str, line: str) -> None:
        """Change one route of a node: a line for ``ip``, or a destination, whose route is worked out anew."""
        if " " not in line:
            lines = self.placement.ip_lines(name, self._base_lines(name))
            line = next(one for one in lines if one.startswith(f"route replace {line} "))
        enter = ["nsenter", "-t", str(self._containers[name].netns_pid), "-n"]
        done = subprocess.run([*enter, "ip", *line.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            raise EmulationError(f"node {name}: route not set: {' '.join(done.stderr.split())[:200]}")

    def _path_delay_s(self, a: str, b: str) -> float:
        """One-way delay of the links between two nodes now."""
        hops = itertools.pairwise(self.plan.pair(a, b).route)
        return sum(
            self._links[self.plan.topology.link_named(f"{one}-{other}").name].spec.delay_s for one, other in hops
        )

    def _configure(self, name: str) -> None:
        """Addresses, routes and static neighbours of one node; may be repeated."""
        lines = list(self.placement.ip_lines(name, self._base_lines(name)))
        node = next((node for node in self.plan.topology.nodes if node.name == name), None)
        sysctls = {"net/ipv6/conf/all/disable_ipv6": 1}
        if isinstance(node, Upf):
            sysctls["net/ipv4/ip_forward"] = 1
        if isinstance(node, Ue | Upf):
            sysctls |= {"net/ipv4/conf/all/rp_filter": 0, "net/ipv4/conf/default/rp_filter": 0}
        if isinstance(node, Partition):
            assert self.guests is not None
            lines += self.guests.ip_commands(name)
            tap = self.guests.managed(name).tap
            names = ["all", tap, *(one.name for one in self.plan.interfaces_of(name))]
            sysctls |= {f"net/ipv4/conf/{one}/rp_filter": 0 for one in names}
            sysctls |= {"net/ipv4/ip_forward": 1, f"net/ipv4/conf/{tap}/proxy_arp": 1}
            sysctls |= {f"net/ipv4/neigh/{tap}/proxy_delay": 0}
        if name in self.plan.backhaul.sinks:
            # What a flow sends comes in by the donor of its path, also while the answers still take another.
            names = ["all", *(one.name for one in self.plan.interfaces_of(name))]
            sysctls |= {f"net/ipv4/conf/{one}/rp_filter": 0 for one in names}
        writes = "".join(f"echo {value} >/proc/sys/{key} 2>/dev/null || :; " for key, value in sysctls.items())
        done = subprocess.run(
            ["nsenter", "-t", str(self._containers[name].netns_pid), "-n", "sh", "-c", f"{writes}exec ip -batch -"],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise EmulationError(f"node {name}: addresses not set: {' '.join(done.stderr.split())[:200]}")

    def set_path(self, slice_name: str, routes: Sequence[Route]) -> None:
        """Move the N3 traffic of a slice, make before break; one route for each gNB of the slice."""
        if self._sdn_app is not None:
            raise EmulationError(
                f"the SDN application {self._sdn_app} is in charge of the switches; paths are its decision"
            )
        self._forwarding.move(slice_name, routes)

    # --- slices ------------------------------------------------------------------------------------

    def _make_groups(self) -> None:
        for spec in specs.programs(self.plan, seed=self._seed, epoch_ns=0):
            if spec.cgroup is None:
                continue
            limits = [self.plan.topology.slice_named(row["name"]).cpu_millicores for row in spec.config["slices"]]
            known = [limit for limit in limits if limit is not None]
            self._groups[spec.name] = Cgroup.create(
                self._run_id,
                spec.cgroup,
                cpu_millicores=sum(known) if len(known) == len(limits) else None,
                journal=self._journal,
            )

    def slice_shapers(self, slice_name: str) -> Iterator[tuple[Shaper, list[str]]]:
        """Shapers at the ends of the slice's N3 paths, with the addresses that tell its packets."""
        by_interface: dict[Interface, list[str]] = {}
        for pair in self.plan.slice_pairs(slice_name):
            for own, peer in ((pair.a, pair.b), (pair.b, pair.a)):
                by_interface.setdefault(own, []).append(peer.address)
        for own, peers in by_interface.items():
            handle = self._links[own.link]
            link = self.plan.topology.link_named(own.link)
            yield (handle.shaper_a if link.a == own.node else handle.shaper_b), peers

    def _shape_slices(self) -> None:
        if self.plan.topology.slicing:
            for name, bandwidth_bps in self.bandwidth_bps.items():
                if bandwidth_bps is not None and name in self.plan.slice_upfs:
                    self.set_slice_bandwidth(name, bandwidth_bps)

    def set_slice_bandwidth(self, slice_name: str, bandwidth_bps: float) -> None:
        """Transport rate of a slice in each direction: at its UPF downlink, at each gNB uplink."""
        self._need_slicing(slice_name, "bandwidth_mbps")
        for shaper, peers in self.slice_shapers(slice_name):
            if shaper.has_class(slice_name):
                shaper.set_class_rate(slice_name, bandwidth_bps)
            else:
                shaper.add_class(slice_name, bandwidth_bps=bandwidth_bps, match_dst_ip=peers)
        self.bandwidth_bps[slice_name] = bandwidth_bps

    def set_slice_cpu(self, slice_name: str, millicores: float) -> None:
        """CPU limit of the slice's part of every gNB."""
        self._need_slicing(slice_name, "cpu_millicores")
        for gnb in self.plan.slice_gnbs[slice_name]:
            self._groups[specs.gnb_program(gnb, slice_name)].set_cpu(millicores)

    def set_prb_share(self, slice_name: str, share: float) -> None:
        """PRB share of the slice on every gNB."""
        self._need_slicing(slice_name, "prb_share")
        total = share + sum(other for name, other in self._prb_share.items() if name != slice_name)
        if total > 1 + 1e-9:
            raise EmulationError(f"the shares of all slices would add up to {total:g}, allowed is at most 1")
        for gnb in self.plan.slice_gnbs[slice_name]:
            program = specs.gnb_program(gnb, slice_name)
            self.client(program).call("set_prb_share", slice=slice_name, value=share)
        self._prb_share[slice_name] = share

    def _need_slicing(self, slice_name: str, knob: str) -> None:
        if not self.plan.topology.slicing:
            raise EmulationError(f"slicing is off: slice {slice_name} has no {knob} of its own")

    # --- nodes -------------------------------------------------------------------------------------

    def set_node_cpu(self, name: str, millicores: float) -> None:
        """CPU limit of a node's container; of an application with replicas, of each of them; of a partition."""
        if self.guests is not None and name in self.guests.partitions:
            self.guests.limit(name, cpu_millicores=millicores)
            return
        self._limit(name, lambda group: group.set_cpu(millicores))

    def set_node_memory(self, name: str, mib: float) -> None:
        """Memory limit of a node's container; of an application with replicas, of each of them."""
        self._limit(name, lambda group: group.set_memory(mib))

    def _limit(self, name: str, change: Callable[[Cgroup], None]) -> None:
        if self.guests is not None and name in self.guests.partitions:
            raise EmulationError(MEMORY_STAYS)
        self._need_up(name)
        for container in self.limited(name):
            change(Cgroup.of_container(self._containers[container]))

    def limited(self, name: str) -> list[str]:
        return self._replica_nodes(name) if name in self._replicas else [name]

    def members(self, name: str) -> list[str]:
        """All containers of a node: itself and its replicas."""
        return [name, *(self._replica_nodes(name) if name in self._replicas else [])]

    def partition(self, name: str) -> Guests:
        """The guests, when a partition has this name; EmulationError otherwise."""
        if self.guests is None or name not in self.guests.partitions:
            raise EmulationError(f"node {name} is no partition")
        return self.guests

    def set_partition_state(self, name: str, wanted: str) -> None:
        """``ready``, ``deployed`` or ``suspended``; what streams from a partition must have moved before it ends."""
        guests = self.partition(name)
        if wanted == "ready":
            self.placement.need_empty(name)
        guests.set_state(name, wanted)

    def _need_up(self, name: str) -> None:
        if name in self._down:
            raise EmulationError(f"node {name} is down")

    def is_up(self, name: str) -> bool:
        """False between :meth:`kill` and :meth:`restart` of a node."""
        if self.guests is not None and name in self.guests.partitions:
            return self.guests.is_deployed(name)
        return name not in self._down

    def set_cqi(self, ue: str, cqi: int) -> None:
        """Fix the CQI of a UE."""
        plan = self.plan.ues[ue]
        part = plan.slice if self.plan.topology.slicing else specs.SHARED
        self.client(specs.gnb_program(plan.gnb, part)).call("set_cqi", ue=ue, value=cqi)

    def kill(self, name: str) -> None:
        """Kill the node's containers, as a crash would; shut a partition down."""
        if self.guests is not None and name in self.guests.partitions:
            self.set_partition_state(name, "ready")
            return
        if name in self._down:
            return
        self._down.add(name)
        for member in self.members(name):
            self._let_go(member)
            self._fleet.stop_on(member)
            self._containers[member].kill()

    def restart(self, name: str) -> None:
        """Start a killed node again: same interfaces and addresses, fresh programs; deploy a partition."""
        if self.guests is not None and name in self.guests.partitions:
            self.guests.set_state(name, "deployed")
            return
        if name not in self._down:
            return
        changed = set()
        plugged: list[Link] = []
        for member in self.members(name):
            node = self._containers[member]
            node.restart()
            changed.add(member)
            for link in (*self.plan.topology.links, *self._replica_links()):
                if member in (link.a, link.b):
                    self._links[link.name].replug("a" if member == link.a else "b", node.netns_pid)
                    changed |= {end for end in (link.a, link.b) if not self._is_switch(end)}
                    plugged.append(link)
        self._plug_again(plugged)
        self._down.discard(name)
        for other in changed:
            if other not in self._down:
                self._configure(other)
        for spec in specs.programs(self.plan, seed=self._seed, epoch_ns=self._epoch_ns):
            if spec.node in self.members(name) and spec.name not in self._fleet:
                self._fleet.start([self._current(spec)])
                if spec.module == "tasks":
                    self.client(spec.name).call("epoch", time_ns=self._epoch_ns)
                    self._hold(spec)

    def _plug_again(self, links: Sequence[Link]) -> None:
        """Make the switches take ports whose interfaces are new ones of the same name.

        Two transactions: the userspace datapath keeps reading the socket of the old interface otherwise.
        """
        ports = [self._root_name(link, node) for link in links for node in (link.a, link.b) if self._is_switch(node)]
        if ports:
            self._net.vsctl([word for port in ports for word in ("--", "--if-exists", "del-port", port)])
            self._net.vsctl([word for link in links for word in self._port_commands(link)])
            for link in links:
                self._shape_ports(link, self._links[link.name])

    def _current(self, spec: ProgramSpec) -> ProgramSpec:
        """The configuration of a program that starts late: what the knobs were set to since."""
        config = dict(spec.config)
        if spec.module == "gnb":
            config["slices"] = [row | {"prb_share": self._prb_share[row["name"]]} for row in config["slices"]]
        if spec.module == "balancer":
            count = self._replicas[spec.node]
            config["replicas"] = [
                specs.replica_endpoint(self.plan.topology, spec.node, index) for index in range(1, count + 1)
            ]
        if spec.module == "tasks":
            config["tasks"] = [
                row | {"work_ns": self._task_work_ns.get(f"{spec.node}.{number}", row["work_ns"])}
                for number, row in enumerate(config["tasks"], start=1)
            ]
        return ProgramSpec(spec.name, spec.node, spec.module, config, spec.cgroup)

    def set_replicas(self, name: str, count: int) -> None:
        """Containers behind an application's load balancer. New ones take requests when this returns;
        superfluous ones get no new requests, finish what they have and are then removed."""
        self._need_up(name)
        balancer = self.client(name)
        for index in range(self._replicas[name] + 1, count + 1):
            replica = specs.replica_node(name, index)
            self._add_replica(replica)
            self._containers[replica].wait_ready()
            self._replicas[name] = index
            self._connect([Link(a=name, b=replica)])
            self._configure(replica)
            self._configure(name)
            self._fleet.start([specs.replica_program(self._app(name), index)])
            balancer.call("add", address=specs.replica_endpoint(self.plan.topology, name, index))
        for index in range(self._replicas[name], count, -1):
            balancer.call("remove", address=specs.replica_endpoint(self.plan.topology, name, index))
            self._replicas[name] = index - 1
            self._later.submit(self._drop_replica, name, index)

    def _drop_replica(self, app: str, index: int) -> None:
        replica = specs.replica_node(app, index)
        endpoint = specs.replica_endpoint(self.plan.topology, app, index)
        deadline_s = time.monotonic() + DRAIN_TIMEOUT_S
        with contextlib.suppress(ProgramDownError):
            while time.monotonic() < deadline_s:
                row = self.client(app).call("stats")["replicas"].get(endpoint)
                if row is None or row["connections"] == 0:
                    break
                time.sleep(0.05)
        self._fleet.stop_on(replica)
        self._links.pop(f"{app}-{replica}").close()
        self._net.removeDocker(replica)
        del self._containers[replica]

    # --- periodic tasks ----------------------------------------------------------------------------

    def start_tasks(self) -> None:
        """Find the threads of the periodic tasks, which :meth:`set_epoch` has started, and watch their wake-ups."""
        wanted = [spec for spec in specs.programs(self.plan, seed=self._seed, epoch_ns=0) if spec.module == "tasks"]
        if wanted or self.guests is not None:
            self.reservations = Reservations(self._journal)
        for spec in wanted:
            self._hold(spec)
        if self.guests is not None:
            self.guests.restart_tasks()
            self.watch_guests()

    def watch_guests(self) -> None:
        """Follow the vCPUs of the partitions: a deployed guest has others than the one before."""
        if self.guests is None or self.reservations is None:
            return
        for name in self.guests.partitions:
            vcpus = self.guests.vcpus(name)
            if vcpus == self._vcpus.get(name, ()):
                continue
            self._vcpus[name] = ()
            self.reservations.let_go(f"node:{name}")
            with contextlib.suppress(ThreadEndedError):
                if vcpus:
                    self.reservations.hold(f"node:{name}", vcpus, virtual_cpus=True)
                self._vcpus[name] = vcpus

    def guest_faults(self) -> Iterator[tuple[str, str]]:
        """What befell partitions by itself since the last call: entity, and in words."""
        if self.guests is not None:
            for name, text in self.guests.faults():
                yield f"node:{name}", text

    def _hold(self, spec: ProgramSpec) -> None:
        assert self.reservations is not None
        inner = [row["pid"] for row in self.client(spec.name).call("stats")["tasks"]]
        for number, tid in enumerate(threads_of(self._fleet.pid(spec.name), inner), start=1):
            self.reservations.hold(f"task:{spec.node}.{number}", [tid])

    def _let_go(self, node: str) -> None:
        if self.reservations is not None:
            for name in self.plan.topology.tasks:
                if name.rpartition(".")[0] == node:
                    self.reservations.let_go(f"task:{name}")

    def reserved(self, entity: str) -> Reservations:
        """Where the reservation of a task is kept; EmulationError when it does not run."""
        self._need_up(entity.partition(":")[2].rpartition(".")[0])
        if self.reservations is None:
            raise EmulationError("does not run")
        return self.reservations

    def set_task_work(self, name: str, work_us: float) -> None:
        """CPU time of the jobs of a task that are released from now on; the tasks of a guest all begin anew."""
        node, _, number = name.rpartition(".")
        if self.guests is not None and node in self.guests.partitions:
            self.guests.set_work(name, work_us)
            return
        self._need_up(node)
        work_ns = round(work_us * 1e3)
        self.client(f"{node}.tasks").call("set_work", task=int(number), work_ns=work_ns)
        self._task_work_ns[name] = work_ns

    # --- links -------------------------------------------------------------------------------------

    def link(self, name: str) -> LinkHandle:
        """A running link of the topology."""
        return self._links[self.plan.topology.link_named(name).name]

    def impair(self, name: str, **changes: float) -> None:
        """Change delay, jitter, loss or rate of a link. A plain link is made anew as one that can be
        impaired, which interrupts it for some milliseconds."""
        link = self.plan.topology.link_named(name)
        handle = self._links[link.name]
        if handle.mechanism == "veth" and set(changes) - {"bandwidth_bps"}:
            handle = self._make_impairable(link, handle)
        handle.set(**changes)

    def _make_impairable(self, link: Link, old: LinkHandle) -> LinkHandle:
        old.close()
        (new,) = make_links([replace(old.spec, impairable=True)], journal=self._journal, run_id=self._run_id)
        self._links[link.name] = new
        self._stack.callback(new.close)
        self._plug_again([link])
        for node in (link.a, link.b):
            if not self._is_switch(node):
                self._configure(node)
        self._shape_slices()
        self.routing.shape([link])
        return new

    def set_link_state(self, name: str, up: bool) -> None:
        """Cut a link or mend it; nodes then know their neighbours over it again, which the kernel forgets."""
        link = self.plan.topology.link_named(name)
        self._links[link.name].set_state(up)
        for node in (link.a, link.b):
            if up and not self._is_switch(node) and node not in self._down:
                self._configure(node)

    # --- programs ----------------------------------------------------------------------------------

    def client(self, program: str) -> ProgramClient:
        """The control connection of a running program; ProgramDownError when it is down."""
        return self._fleet.client(program)

    def stats(self) -> Iterator[tuple[ProgramSpec, dict[str, Any]]]:
        """Statistics of every program that answers."""
        return self._fleet.stats()

    def guest_streams(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Statistics of the stream servers in partitions."""
        for node in self.plan.topology.of_kind(Partition):
            if self.guests is not None and node.vnf == "stream":
                stats = self.guests.streams(node.name)
                if stats is not None:
                    yield node.name, stats

    def check_alive(self) -> None:
        """EmulationError when something that should run has died by itself."""
        self.routing.check_alive()
        self._fleet.check_alive()

    def set_epoch(self, time_ns: int) -> None:
        """Run time 0 in monotonic nanoseconds, for channels and scripts."""
        self._epoch_ns = time_ns
        self._fleet.set_epoch(time_ns)

    def start_backhaul(self, demands: Sequence[BackhaulDemand]) -> None:
        """Give the sources of the backhaul flows their demand over the run; :meth:`set_epoch` comes first."""
        for demand in demands:
            steps: dict[float, float] = {}
            for activity in demand.activities:
                steps[activity.start_s] = activity.rate
                steps.setdefault(activity.stop_s, 0.0)
            host = self.plan.backhaul.flows[demand.flow].host
            self.client(host).call("schedule", epoch_ns=self._epoch_ns, steps=sorted(steps.items()))

    def start_flow(self, flow: Flow, rate: float) -> None:
        """Let a UE use an application."""
        plan = self.plan.ues[flow.ue]
        self.client(f"{plan.group}.traffic").call(
            "start",
            flow=flow.name,
            ue=flow.ue,
            address=plan.address,
            service=flow.service,
            app=[specs.app_address(self.plan, flow.app, flow.slice), specs.SERVICE_PORTS[flow.service]],
            rate=rate,
            packet_bytes=flow.packet_bytes,
            seed=self._seed,
            **self._request_of(flow.app),
        )

    def _request_of(self, app: str) -> dict[str, str]:
        """What is asked of a server, where it is not what an application understands."""
        node = self.plan.topology.node(app)
        if isinstance(node, Partition) and node.vnf == "request":
            return {"path": f"/work?us={round(node.cpu_ms_per_request * 1000)}"}
        return {}

    # --- observation -------------------------------------------------------------------------------

    @property
    def images(self) -> Mapping[str, str]:
        """Image name -> digest of every image in use."""
        found = {}
        for name in self._containers:
            node = self._containers[name]
            if hasattr(node, "dcinfo"):
                info = node.dcinfo
                found[str(info["Config"]["Image"])] = str(info["Image"])
        return found

    @property
    def features(self) -> Mapping[str, object]:
        """What the host does it with: OVS datapath, link mechanisms, cgroup version."""
        mechanisms = {name: handle.mechanism for name, handle in self._links.items()}
        guests = {} if self.guests is None else self.guests.details
        return {"ovs_datapath": self._net.datapath, "link_mechanisms": mechanisms, **self.routing.details, **guests}

    # --- captures and probes -----------------------------------------------------------------------

    def place(self, node: str, interface: str) -> tuple[int | None, str]:
        """(namespace pid or None for the root namespace, name there) of an interface.

        EmulationError names the interfaces that the node has.
        """
        known = {node_.name for node_ in self.plan.topology.nodes}
        if node not in known:
            raise EmulationError(f"no node named {node!r}; nodes: {', '.join(sorted(known))}")
        names = {one.name: one for one in self.plan.interfaces_of(node)}
        if self._is_switch(node) and interface in names:
            link = self.plan.topology.link_named(names[interface].link)
            return None, self._root_name(link, node)
        if interface in names or (isinstance(self.plan.topology.node(node), Ue) and interface == "tun0"):
            return self._containers[node].netns_pid, interface
        raise EmulationError(f"node {node}: no interface {interface!r}; interfaces: {', '.join(names)}")

    @property
    def groups(self) -> Mapping[str, Cgroup]:
        """The control groups of the gNB programs, by program."""
        return self._groups

    @property
    def apps(self) -> Iterator[App | Partition]:
        """What UEs can use."""
        return iter(self.plan.topology.services.values())

    def container(self, name: str) -> Any:
        """The façade's node."""
        return self._containers[name]
