"""Talks to the control socket of a data plane program: one JSON line asked, one JSON line answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ProgramError(Exception):
    """A program refused a request; the message names the program and its reason."""


class ProgramDownError(ProgramError):
    """A program does not answer: its node was killed, or it has died."""


class ProgramClient:
    """A connection to one program. Thread-safe; requests are answered in order.

    ``path`` is the control socket on the host, at most 107 characters (the limit of AF_UNIX).
    """

    def __init__(self, name: str, path: Path, *, timeout_s: float = 2.0) -> None:
        self.name = name
        self.path = path
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._buffer = b""

    def wait_ready(self, deadline_s: float) -> None:
        """Connect as soon as the program listens; ProgramDownError after ``deadline_s`` of monotonic time."""
        while True:
            try:
                with self._lock:
                    self._connect()
                return
            except OSError as error:
                if time.monotonic() > deadline_s:
                    raise ProgramDownError(f"{self.name}: did not open its control socket ({error})") from None
                time.sleep(0.005)

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask ``op``; the reply without ``ok``. ProgramError when refused, ProgramDownError when silent or gone."""
        request = json.dumps({"op": op, **arguments}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                link = self._connect()
                link.sendall(request)
                reply = json.loads(self._line(link))
            except (OSError, ValueError) as error:
                self._drop()
                raise ProgramDownError(f"{self.name}: no answer to {op} ({error or type(error).__name__})") from None
        if not reply.pop("ok", False):
            raise ProgramError(f"{self.name}: {op} refused: {reply.get('error', 'no reason given')}")
        return dict(reply)

    def close(self) -> None:
        """Close the connection; a later call opens it again."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> socket.socket:
        if self._socket is None:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                link.settimeout(self._timeout_s)
                link.connect(str(self.path))
            except OSError:
                link.close()
                raise
            self._socket, self._buffer = link, b""
        return self._socket

    def _line(self, link: socket.socket) -> bytes:
        while b"\n" not in self._buffer:
            chunk = link.recv(262_144)
            if not chunk:
                raise ConnectionResetError("connection closed")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._buffer = b""
