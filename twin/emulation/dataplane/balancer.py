"""TCP load balancer in front of the replicas of an application.

One client connection, one replica connection. A replica that does not accept within a second is left out
for two seconds and the client gets another one. Removing a replica lets its connections drain.
"""

from __future__ import annotations

import errno
import itertools
import socket
import time
from typing import Any

from twin.emulation.dataplane import probe
from twin.emulation.dataplane.app_request import accepted, listen
from twin.emulation.dataplane.control import ControlServer, Refused, Reply, no_more
from twin.emulation.dataplane.histogram import Histogram
from twin.emulation.dataplane.loop import ConfigError, Loop, Timer, main, number, value

POLICIES = ("round_robin", "least_connections")
CONNECT_NS = 1_000_000_000
SUSPECT_NS = 2_000_000_000
MAX_CONNECTIONS = 4000
MAX_BUFFER_BYTES = 256 << 10
MAX_REPLICAS = 256


class Replica:
    """One server behind the balancer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.peer = probe.address_pair(name, "replica")
        self.draining = False
        self.connections = self.total = self.failures = 0
        self.suspect_until_ns = 0


class Side:
    """One of the two sockets of a connection, with the bytes on their way out of it."""

    __slots__ = ("ended", "out", "shut", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out = bytearray()
        self.ended = False  # it will send nothing more
        self.shut = False  # it was told that nothing more comes


class Relay:
    """A client and its replica."""

    def __init__(self, balancer: Balancer, client: socket.socket) -> None:
        self._balancer = balancer
        self._loop = balancer.loop
        self._client = Side(client)
        self._server: Side | None = None
        self._replica: Replica | None = None
        self._tried: set[str] = set()
        self._timer: Timer | None = None
        self._accepted_ns = time.monotonic_ns()
        self._answered = False

    def start(self) -> None:
        """Look for a replica."""
        self._connect_next()

    def _connect_next(self) -> None:
        replica = self._balancer.choose(self._tried)
        if replica is None:
            self.end()
            return
        self._tried.add(replica.name)
        self._replica = replica
        replica.connections += 1
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        self._server = Side(sock)
        code = sock.connect_ex(replica.peer)
        if code not in (0, errno.EINPROGRESS):
            self._refused()
            return
        self._timer = self._loop.call_after(CONNECT_NS, self._refused)
        self._loop.add_writer(sock.fileno(), self._connected)

    def _refused(self) -> None:
        assert self._replica is not None
        self._replica.failures += 1
        self._replica.suspect_until_ns = time.monotonic_ns() + SUSPECT_NS
        self._release_server()
        self._connect_next()

    def _release_server(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._server is not None:
            self._loop.remove(self._server.sock.fileno())
            self._server.sock.close()
            self._server = None
        if self._replica is not None:
            self._replica.connections -= 1
            self._balancer.drained(self._replica)
            self._replica = None

    def _connected(self) -> None:
        server = self._server
        assert server is not None and self._replica is not None
        if server.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._refused()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._replica.total += 1
        self._loop.remove_writer(server.sock.fileno())
        self._watch(self._client, server)
        self._watch(server, self._client)

    def _watch(self, source: Side, target: Side) -> None:
        self._loop.add_reader(source.sock.fileno(), lambda: self._move(source, target))

    def _move(self, source: Side, target: Side) -> None:
        try:
            chunk = source.sock.recv(probe.READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.end()
            return
        if chunk:
            self._answered |= source is self._server
            target.out += chunk
        else:
            source.ended = True
            self._loop.remove_reader(source.sock.fileno())
        self._flush(source, target)

    def _flush(self, source: Side, target: Side) -> None:
        """Write what came from ``source`` to ``target``."""
        try:
            while target.out:
                del target.out[: target.sock.send(target.out)]
        except BlockingIOError:
            self._loop.add_writer(target.sock.fileno(), lambda: self._flush(source, target))
            if len(target.out) > MAX_BUFFER_BYTES:
                self._loop.remove_reader(source.sock.fileno())
            return
        except OSError:
            self.end()
            return
        self._loop.remove_writer(target.sock.fileno())
        if not source.ended:
            self._watch(source, target)
            return
        if not target.shut:
            target.shut = True
            try:
                target.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.end()
                return
        if target.ended or source is self._server:
            self.end()

    def end(self) -> None:
        """Close both sides and count the outcome."""
        self._release_server()
        if self._client.sock.fileno() >= 0:
            self._loop.remove(self._client.sock.fileno())
            self._client.sock.close()
            self._balancer.finished(self, self._answered, time.monotonic_ns() - self._accepted_ns)


class Balancer:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self.loop = loop
        self.node = value(config, "node", str)
        bind = value(config, "bind", str, "0.0.0.0")
        self._policy = value(config, "policy", str, "round_robin")
        if self._policy not in POLICIES:
            raise ConfigError(f"policy: must be one of {', '.join(POLICIES)}, got {self._policy!r}")
        self._started_ns = time.monotonic_ns()
        self._replicas: dict[str, Replica] = {}
        for name in value(config, "replicas", list, []):
            self._add_replica(name)
        self._turn = itertools.count()
        self._relays: set[Relay] = set()
        self._requests = self._failures = 0
        self._response = Histogram()
        self._sock = listen(bind, int(number(config, "port", 1, 65535, 8000)))
        self._echo = probe.EchoServer(loop, bind, int(number(config, "echo_port", 1, 65535, probe.ECHO_PORT)))
        loop.add_reader(self._sock.fileno(), self._accept)
        ops = {"stats": self._stats, "add": self._op_add, "remove": self._op_remove}
        self._control = ControlServer(loop, control, node=self.node, program="balancer", ops=ops, later_ops={})

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        self._echo.close()
        self._sock.close()
        for relay in list(self._relays):
            relay.end()

    def _add_replica(self, name: object) -> None:
        replica = Replica(name)  # type: ignore[arg-type]
        if len(self._replicas) >= MAX_REPLICAS:
            raise ConfigError(f"replicas: at most {MAX_REPLICAS}")
        self._replicas[replica.name] = replica

    def choose(self, tried: set[str]) -> Replica | None:
        """The next replica by the policy, not one of ``tried``; suspects only when there is nobody else."""
        now_ns = time.monotonic_ns()
        usable = [replica for replica in self._replicas.values() if not replica.draining and replica.name not in tried]
        trusted = [replica for replica in usable if replica.suspect_until_ns <= now_ns] or usable
        if not trusted:
            return None
        turn = next(self._turn) % len(trusted)
        if self._policy == "round_robin":
            return trusted[turn]
        # Ties go round, or the first replica would get all requests that find the others idle.
        return min(trusted[turn:] + trusted[:turn], key=lambda replica: replica.connections)

    def drained(self, replica: Replica) -> None:
        """A connection of a replica ended: forget the replica when it was the last of a removed one."""
        if replica.draining and not replica.connections:
            self._replicas.pop(replica.name, None)

    def finished(self, relay: Relay, answered: bool, lasted_ns: int) -> None:
        """A client connection ended."""
        self._relays.discard(relay)
        if answered:
            self._requests += 1
            self._response.add(lasted_ns / 1e3)
        else:
            self._failures += 1

    def _accept(self) -> None:
        for sock in accepted(self._sock):
            if len(self._relays) >= MAX_CONNECTIONS:
                sock.close()
                self._failures += 1
                continue
            relay = Relay(self, sock)
            self._relays.add(relay)
            relay.start()

    def _op_add(self, request: dict[str, Any]) -> Reply:
        no_more(request, "address")
        name = value(request, "address", str)
        known = self._replicas.get(name)
        if known is not None and not known.draining:
            raise Refused(f"replica {name}: is there already")
        if known is not None:
            known.draining = False
        else:
            self._add_replica(name)
        return {"replicas": len(self._replicas)}

    def _op_remove(self, request: dict[str, Any]) -> Reply:
        no_more(request, "address")
        name = value(request, "address", str)
        replica = self._replicas.get(name)
        if replica is None or replica.draining:
            raise Refused(f"replica {name}: not there; replicas: {', '.join(self._replicas) or 'none'}")
        replica.draining = True
        self.drained(replica)
        return {"connections": replica.connections}

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        return {
            "time_ns": time.monotonic_ns(),
            "started_ns": self._started_ns,
            "requests": self._requests,
            "failures": self._failures,
            "connections": len(self._relays),
            "response": self._response.take(),
            "replicas": {
                replica.name: {
                    "state": "draining" if replica.draining else "active",
                    "connections": replica.connections,
                    "total": replica.total,
                    "failures": replica.failures,
                }
                for replica in self._replicas.values()
            },
        }


if __name__ == "__main__":
    main("balancer", Balancer)
