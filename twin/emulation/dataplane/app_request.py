"""Request/response application: HTTP ``POST /predict``, a fixed CPU cost per request, one worker.

Requests wait in one queue and are served one after the other, so response time grows with load as that of an
M/D/1 queue does, and with a smaller CPU limit. Sockets and the UDP echo are looked at every millisecond of work.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from twin.emulation.dataplane import probe
from twin.emulation.dataplane.control import ControlServer, Reply, no_more
from twin.emulation.dataplane.histogram import Histogram
from twin.emulation.dataplane.loop import ConfigError, Loop, burn, main, number, value

PIECE_NS = 1_000_000
MAX_CONNECTIONS = 4000
MAX_HEAD_BYTES = 16_384
MAX_BODY_BYTES = 16 << 20
IDLE_NS = 30_000_000_000


class Connection:
    """A client: one request, one response."""

    __slots__ = ("arrived_ns", "body_at", "incoming", "left_ns", "length", "outgoing", "since_ns", "sock", "state")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.state = "reading"
        self.incoming = bytearray()
        self.body_at = 0
        self.length = 0
        self.since_ns = time.monotonic_ns()
        self.arrived_ns = 0
        self.left_ns = 0
        self.outgoing = memoryview(b"")


class RequestApp:
    """The running program."""

    def __init__(self, loop: Loop, config: dict[str, Any], control: str) -> None:
        self._loop = loop
        self.node = value(config, "node", str)
        bind = value(config, "bind", str, "0.0.0.0")
        self._cpu_ms = number(config, "cpu_ms_per_request", 0, 10_000, 2.0)
        self._answer = _response(200, int(number(config, "response_bytes", 1, 10_000_000, 2000)))
        self._started_ns = time.monotonic_ns()
        self._connections: dict[int, Connection] = {}
        self._queue: deque[Connection] = deque()
        self._requests = self._failures = self._busy_ns = 0
        self._service = Histogram()
        self._sock = listen(bind, int(number(config, "port", 1, 65535, 8000)))
        self._echo = probe.EchoServer(loop, bind, int(number(config, "echo_port", 1, 65535, probe.ECHO_PORT)))
        loop.add_reader(self._sock.fileno(), self._accept)
        loop.every(5_000_000_000, self._sweep)
        loop.work = self._work
        ops = {"stats": self._stats, "set_cpu_ms": self._set_cpu_ms}
        self._control = ControlServer(loop, control, node=self.node, program="app_request", ops=ops, later_ops={})

    def close(self) -> None:
        """Release all sockets."""
        self._control.close()
        self._echo.close()
        self._sock.close()
        for connection in self._connections.values():
            connection.sock.close()

    def _accept(self) -> None:
        for sock in accepted(self._sock):
            if len(self._connections) >= MAX_CONNECTIONS:
                sock.close()
                self._failures += 1
                continue
            connection = Connection(sock)
            self._connections[sock.fileno()] = connection
            self._loop.add_reader(sock.fileno(), lambda connection=connection: self._read(connection))  # type: ignore[misc]

    def _drop(self, connection: Connection) -> None:
        if connection.state != "gone":
            connection.state = "gone"
            fd = connection.sock.fileno()
            self._loop.remove(fd)
            del self._connections[fd]
            connection.sock.close()

    def _fail(self, connection: Connection) -> None:
        self._failures += 1
        self._drop(connection)

    def _read(self, connection: Connection) -> None:
        try:
            chunk = connection.sock.recv(probe.READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            # A connection that never asked (a health check) is not a failure.
            if connection.state == "reading" and not connection.incoming:
                self._drop(connection)
            else:
                self._fail(connection)
            return
        if connection.state != "reading":
            return
        connection.incoming += chunk
        if not connection.body_at:
            end = connection.incoming.find(b"\r\n\r\n")
            if end < 0:
                if len(connection.incoming) > MAX_HEAD_BYTES:
                    self._refuse(connection, 431)
                return
            connection.body_at = end + 4
            head = bytes(connection.incoming[:end])
            if not head.startswith(b"POST /predict HTTP/1."):
                self._refuse(connection, 404)
                return
            length = content_length(head)
            if length is None or length > MAX_BODY_BYTES:
                self._refuse(connection, 411 if length is None else 413)
                return
            connection.length = length
        if len(connection.incoming) - connection.body_at >= connection.length:
            connection.state = "queued"
            connection.incoming.clear()
            connection.arrived_ns = time.monotonic_ns()
            connection.left_ns = int(self._cpu_ms * 1e6)
            self._queue.append(connection)

    def _refuse(self, connection: Connection, status: int) -> None:
        self._failures += 1
        connection.state = "refused"
        self._send(connection, _response(status, 0))

    def _work(self) -> bool:
        while self._queue and self._queue[0].state != "queued":
            self._queue.popleft()
        if not self._queue:
            return False
        connection = self._queue[0]
        start_ns = time.thread_time_ns()
        burn(start_ns + min(connection.left_ns, PIECE_NS))
        spent_ns = time.thread_time_ns() - start_ns
        connection.left_ns -= spent_ns
        self._busy_ns += spent_ns
        if connection.left_ns <= 0:
            self._queue.popleft()
            connection.state = "answering"
            self._send(connection, self._answer)
        return bool(self._queue)

    def _send(self, connection: Connection, data: bytes) -> None:
        connection.outgoing = memoryview(data)
        self._write(connection)

    def _write(self, connection: Connection) -> None:
        try:
            while connection.outgoing:
                connection.outgoing = connection.outgoing[connection.sock.send(connection.outgoing) :]
        except BlockingIOError:
            self._loop.add_writer(connection.sock.fileno(), lambda: self._write(connection))
            return
        except OSError:
            if connection.state == "answering":
                self._failures += 1
            self._drop(connection)
            return
        if connection.state == "answering":
            self._requests += 1
            self._service.add((time.monotonic_ns() - connection.arrived_ns) / 1e3)
        self._drop(connection)

    def _sweep(self) -> None:
        limit_ns = time.monotonic_ns() - IDLE_NS
        for connection in list(self._connections.values()):
            if connection.state in ("reading", "refused", "answering") and connection.since_ns < limit_ns:
                self._fail(connection)

    def _set_cpu_ms(self, request: dict[str, Any]) -> Reply:
        no_more(request, "value")
        self._cpu_ms = number(request, "value", 0, 10_000)
        return {}

    def _stats(self, request: dict[str, Any]) -> Reply:
        no_more(request)
        return {
            "time_ns": time.monotonic_ns(),
            "started_ns": self._started_ns,
            "requests": self._requests,
            "failures": self._failures,
            "queued": sum(connection.state == "queued" for connection in self._queue),
            "connections": len(self._connections),
            "busy_ns": self._busy_ns,
            "cpu_ms_per_request": self._cpu_ms,
            "service": self._service.take(),
        }


def content_length(head: bytes) -> int | None:
    """The value of Content-Length; None when it is absent or not a number."""
    for line in head.split(b"\r\n")[1:]:
        name, _, text = line.partition(b":")
        if name.strip().lower() == b"content-length" and text.strip().isdigit():
            return int(text)
    return None


_REASONS = {200: "OK", 404: "Not Found", 411: "Length Required", 413: "Content Too Large"}


def _response(status: int, body_bytes: int) -> bytes:
    reason = _REASONS.get(status, "Request Header Fields Too Large")
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {body_bytes}\r\nConnection: close\r\n\r\n".encode() + bytes(
        body_bytes
    )


def listen(bind: str, port: int) -> socket.socket:
    """A non-blocking listening TCP socket; ConfigError says what is wrong with the address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((bind, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigError(f"TCP {bind}:{port}: {error.strerror or error}") from None
    return sock


def accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The clients that wait, as non-blocking sockets; not so many that other work would wait."""
    for _ in range(probe.BATCH):
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        yield sock


if __name__ == "__main__":
    main("app_request", RequestApp)
