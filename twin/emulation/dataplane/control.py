"""The control socket of every program: one JSON object per line in, one per line out.

Runs in the program's event loop and never waits for a client, so it cannot hold up packets.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping
from typing import Any

from twin.emulation.dataplane.loop import ConfigError, Loop

MAX_LINE_BYTES = 1 << 20
MAX_CLIENTS = 32
MAX_BACKLOG_BYTES = 64 << 20

Reply = dict[str, Any]
Answer = Callable[[Reply], None]
Handler = Callable[[dict[str, Any]], Reply]
LaterHandler = Callable[[dict[str, Any], Answer], None]


class Refused(ValueError):
    """A request that cannot be carried out; the message goes to the client as ``error``."""


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.closing = False


class ControlServer:
    """Listens on a Unix socket; ``ops`` answer at once, ``later_ops`` call the given function when done."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        *,
        node: str,
        program: str,
        ops: Mapping[str, Handler],
        later_ops: Mapping[str, LaterHandler],
    ) -> None:
        self._loop = loop
        self._path = path
        self._ops = dict(ops)
        self._later_ops = later_ops
        identity = {"node": node, "program": program, "pid": os.getpid()}
        self._ops["ping"] = lambda _request: {**identity, "time_ns": time.monotonic_ns()}
        self._clients: dict[int, _Client] = {}
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        try:
            try:
                if stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116  pathlib costs start-up time
                    os.unlink(path)  # noqa: PTH108
            except FileNotFoundError:
                pass
            self._sock.bind(path)
            self._sock.listen(MAX_CLIENTS)
        except OSError as error:
            self._sock.close()
            raise ConfigError(f"control socket {path}: {error.strerror or error}") from None
        loop.add_reader(self._sock.fileno(), self._accept)

    def close(self) -> None:
        """Disconnect everybody and remove the socket."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        try:
            os.unlink(self._path)  # noqa: PTH108
        except FileNotFoundError:
            return

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        if len(self._clients) >= MAX_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        client = _Client(sock)
        self._clients[client.fd] = client
        self._loop.add_reader(client.fd, lambda: self._read(client))

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.fd, None) is not None:
            self._loop.remove(client.fd)
            client.sock.close()

    def _read(self, client: _Client) -> None:
        try:
            chunk = client.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._drop(client)
            return
        if client.closing:
            return
        client.incoming += chunk
        while True:
            line, newline, rest = client.incoming.partition(b"\n")
            if len(line) > MAX_LINE_BYTES:
                client.closing = True
                self._send(client, {"ok": False, "error": f"a request has at most {MAX_LINE_BYTES} bytes"})
                return
            if not newline:
                return
            client.incoming = rest
            if line.strip():
                self._handle(client, bytes(line))
            if client.fd not in self._clients:
                return

    def _handle(self, client: _Client, line: bytes) -> None:
        identity: dict[str, Any] = {}

        def answer(reply: Reply) -> None:
            self._send(client, {"ok": True, **reply, **identity})

        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            answer({"ok": False, "error": f"not a JSON object: {error}"})
            return
        if not isinstance(request, dict):
            answer({"ok": False, "error": f"not a JSON object: {type(request).__name__}"})
            return
        if "id" in request:
            identity = {"id": request.pop("id")}
        op = request.pop("op", None)
        try:
            if isinstance(op, str) and op in self._ops:
                answer(self._ops[op](request))
            elif isinstance(op, str) and op in self._later_ops:
                self._later_ops[op](request, answer)
            else:
                known = ", ".join(sorted([*self._ops, *self._later_ops]))
                raise Refused(f"op: no operation {op!r}; operations: {known}")
        except KeyError as error:
            answer({"ok": False, "error": f"{op}: argument {error} is missing"})
        except (Refused, ConfigError) as error:
            answer({"ok": False, "error": str(error)})
        except OSError as error:
            answer({"ok": False, "error": f"{op}: {error}"})

    def _send(self, client: _Client, reply: Reply) -> None:
        if client.fd not in self._clients or self._clients[client.fd] is not client:
            return  # it left before the answer was known
        client.outgoing += json.dumps(reply, separators=(",", ":")).encode() + b"\n"
        if len(client.outgoing) > MAX_BACKLOG_BYTES:
            self._drop(client)
            return
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            while client.outgoing:
                sent = client.sock.send(client.outgoing)
                del client.outgoing[:sent]
        except BlockingIOError:
            self._loop.add_writer(client.fd, lambda: self._flush(client))
            return
        except OSError:
            self._drop(client)
            return
        self._loop.remove_writer(client.fd)
        if client.closing:
            self._drop(client)


def no_more(request: dict[str, Any], *known: str) -> None:
    """Refuse arguments that nobody would read."""
    extra = sorted(set(request) - set(known))
    if extra:
        raise Refused(f"argument {extra[0]!r} is unknown; arguments: {', '.join(known) or 'none'}")
