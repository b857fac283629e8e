"""The daemon of ``twin deadline serve``: monitor and PeriodWiz behind a small REST API of JSON objects.

====== ===================== ============================================================== =================
GET    /                     what is served
GET    /threads              the latest cycle of every watched thread                       list
POST   /threads              watch one: ``{"tid", "period_s"?, "budget_s"?}``               201, 404, 409
GET    /threads/TID          its latest cycle                                               404
DELETE /threads/TID          give its scheduling back                                       204, 404
POST   /periods              look for a period: ``{"tid", "virtual_cpu"?}``                 201, 404, 409, 501
GET    /periods/TID          ``{"tid", "period_s", "samples", "peaks", "final"}``           404
DELETE /periods/TID          stop looking                                                   204, 404
====== ===================== ============================================================== =================

Errors are ``{"error": TEXT}``. Who can connect can change the scheduling of every thread of the host: the Unix
socket is its owner's only, and TCP is bound to loopback and refuses what a web page could send.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twin.emulation.deadline.monitor import Monitor
from twin.emulation.deadline.sched import DeadlineError, HostLacksError, ThreadEndedError, check_permission
from twin.emulation.deadline.session import SessionSettings, journal_name
from twin.journal import Journal

if TYPE_CHECKING:
    from twin.emulation.deadline.periods import PeriodWizard

DEFAULT_SOCKET = Path("/run/twinbed/deadline.sock")
_MAX_BODY = 1 << 16
_MAX_DRAINED = 1 << 20
_STEP_S = 0.1
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class _RequestError(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class Daemon:
    """What the API acts on; :meth:`step` drives monitor and traces and belongs to one thread."""

    def __init__(self, journal: Journal, settings: SessionSettings, tell: Callable[[str], None]) -> None:
        self._journal = journal
        self._settings = settings
        self._tell = tell
        self._lock = threading.Lock()
        self._wizard: PeriodWizard | None = None
        self.monitor = Monitor(
            journal, cycle_s=settings.cycle_s, settings=settings.law, responses=settings.responses, tell=tell
        )

    def step(self) -> None:
        """Sleep until something is due and do it."""
        time.sleep(min(_STEP_S, self.monitor.due_s(time.monotonic())))
        self.monitor.step()
        if self._wizard is not None:
            self._wizard.collect()

    def close(self) -> None:
        """Give everything back."""
        self.monitor.close()
        if self._wizard is not None:
            self._wizard.close()

    def answer(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[HTTPStatus, Any]:
        """One request; :class:`_RequestError` with its status otherwise."""
        parts = [part for part in path.split("/") if part]
        if not parts and method == "GET":
            return HTTPStatus.OK, {"threads": len(self.monitor.tids), "paths": ["/threads", "/periods"]}
        if parts[:1] not in (["threads"], ["periods"]) or len(parts) > 2:
            raise _RequestError(HTTPStatus.NOT_FOUND, f"no {path}; there are /threads and /periods")
        handler = self._threads if parts[0] == "threads" else self._periods
        try:
            if len(parts) == 1 and method == "POST":
                return handler(method, _tid_of(body), body or {})
            if len(parts) == 1 and method == "GET" and parts[0] == "threads":
                samples = [self.monitor.last(tid) for tid in sorted(self.monitor.tids)]
                return HTTPStatus.OK, [one.to_json() for one in samples if one is not None]
            if len(parts) == 2 and method in ("GET", "DELETE"):
                return handler(method, _tid(parts[1]), {})
        except ThreadEndedError as error:
            raise _RequestError(HTTPStatus.NOT_FOUND, str(error)) from None
        except HostLacksError as error:
            raise _RequestError(HTTPStatus.NOT_IMPLEMENTED, str(error)) from None
        except DeadlineError as error:
            raise _RequestError(HTTPStatus.CONFLICT, str(error)) from None
        except KeyError:
            raise _RequestError(HTTPStatus.NOT_FOUND, f"thread {parts[-1]} is not watched; POST it first") from None
        raise _RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{method} is not possible on {path}")

    def _threads(self, method: str, tid: int, body: dict[str, Any]) -> tuple[HTTPStatus, Any]:
        if method == "DELETE":
            self.monitor.remove(tid)
            return HTTPStatus.NO_CONTENT, None
        if method == "GET":
            last = self.monitor.last(tid)
            return HTTPStatus.OK, {"tid": tid, "waiting": True} if last is None else last.to_json()
        period_s = self._settings.period_s or self._settings.first_period_s
        numbers = {"period_s": period_s, "budget_s": self._settings.budget_s}
        _check_names(body, ("tid", *numbers))
        for name in numbers:
            numbers[name] = _number(body, name, numbers[name])
        self.monitor.add(tid, **numbers)
        return HTTPStatus.CREATED, {"tid": tid, **numbers}

    def _periods(self, method: str, tid: int, body: dict[str, Any]) -> tuple[HTTPStatus, Any]:
        from twin.emulation.deadline.periods import PeriodWizard, to_json

        with self._lock:
            if self._wizard is None:
                self._wizard = PeriodWizard(self._journal)
        if method == "DELETE":
            self._wizard.remove(tid)
            return HTTPStatus.NO_CONTENT, None
        if method == "GET":
            verdict, final = self._wizard.verdict(tid)
            return HTTPStatus.OK, {**to_json(tid, verdict), "final": final}
        _check_names(body, ("tid", "virtual_cpu"))
        virtual_cpu = body.get("virtual_cpu", False)
        if not isinstance(virtual_cpu, bool):
            raise _RequestError(HTTPStatus.BAD_REQUEST, f"virtual_cpu must be true or false, got {virtual_cpu!r}")
        self._wizard.add(tid, virtual_cpu=virtual_cpu)
        return HTTPStatus.CREATED, {"tid": tid, "virtual_cpu": virtual_cpu}


def _tid(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _RequestError(HTTPStatus.BAD_REQUEST, f"tid must be a number above 0, got {text[:40]!r}")
    return int(text)


def _tid_of(body: dict[str, Any] | None) -> int:
    tid = (body or {}).get("tid")
    if isinstance(tid, bool) or not isinstance(tid, int) or not 0 < tid < 1 << 22:
        raise _RequestError(HTTPStatus.BAD_REQUEST, f"tid must be a number above 0, got {str(tid)[:40]}")
    return tid


def _number(body: dict[str, Any], name: str, usual: float) -> float:
    given = body.get(name, usual)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e6:
        raise _RequestError(
            HTTPStatus.BAD_REQUEST, f"{name} must be a number of seconds above 0, got {str(given)[:40]}"
        )
    return float(given)


def _check_names(body: dict[str, Any], allowed: tuple[str, ...]) -> None:
    for name in body:
        if name not in allowed:
            raise _RequestError(HTTPStatus.BAD_REQUEST, f"no key {name[:40]!r}; allowed are {', '.join(allowed)}")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 10

    def _serve(self) -> None:
        status: HTTPStatus
        try:
            self._refuse_web_pages()
            status, answer = self.server.daemon.answer(self.command, self.path.partition("?")[0], self._body())
        except _RequestError as error:
            status, answer = error.status, {"error": str(error)}
            self.close_connection = True  # its body may not have been read
        data = b"" if answer is None else json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve

    def _refuse_web_pages(self) -> None:
        """A page in a browser of this host can send requests to loopback; none may come from there."""
        if self.server.address_family == socket.AF_UNIX:
            return
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if self.headers.get("Origin") is not None or name not in _LOCAL_NAMES:
            raise _RequestError(HTTPStatus.FORBIDDEN, "requests of web pages are refused")

    def _body(self) -> dict[str, Any] | None:
        text = self.headers.get("Content-Length", "0")
        if not (text.isascii() and text.isdigit()) or "Transfer-Encoding" in self.headers:
            raise _RequestError(HTTPStatus.LENGTH_REQUIRED, "a body needs its Content-Length")
        if int(text) > _MAX_BODY:
            # A client that is still sending when the connection closes never sees the answer.
            self.rfile.read(min(int(text), _MAX_DRAINED))
            raise _RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {_MAX_BODY} B, got {text}")
        data = self.rfile.read(int(text))
        if not data:
            return None
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise _RequestError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
        if not isinstance(body, dict):
            raise _RequestError(HTTPStatus.BAD_REQUEST, f"the body must be an object, got {type(body).__name__}")
        return body

    def log_message(self, *_: Any) -> None:
        """No line per request."""

    def address_string(self) -> str:
        """A Unix socket has no address."""
        return "local"


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    daemon: Daemon

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of ours."""


class _UnixServer(_Server):
    address_family = socket.AF_UNIX
    allow_reuse_address = False


def serve(
    listen: str,
    settings: SessionSettings,
    *,
    ready: Callable[[str], None],
    tell: Callable[[str], None],
    ended: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
) -> None:
    """Serve until ``ended()``; ``listen`` is the path of a Unix socket or ``HOST:PORT`` on loopback.

    ``ready`` is told the address, port 0 resolved. DeadlineError when it cannot be listened on.
    """
    check_permission()
    with Journal.create(journal_name("deadline"), folder=folder) as journal, contextlib.ExitStack() as stack:
        server, where = _listening(listen, journal, stack)
        server.daemon = Daemon(journal, settings, tell)
        stack.callback(server.daemon.close)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.shutdown)
        ready(where)
        while not ended():
            server.daemon.step()


def _listening(listen: str, journal: Journal, stack: contextlib.ExitStack) -> tuple[_Server, str]:
    if "/" in listen:
        return _on_socket(Path(listen).absolute(), journal, stack), listen
    host, _, port = listen.rpartition(":")
    try:
        if not (ipaddress.ip_address(host).is_loopback and port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ValueError
        if ipaddress.ip_address(host).version != 4:
            raise ValueError
    except ValueError:
        raise DeadlineError(
            f"--listen: allowed are the path of a Unix socket or a loopback address like 127.0.0.1:7670, got {listen}"
        ) from None
    try:
        server = stack.enter_context(_Server((host, int(port)), _Handler))
    except OSError as error:
        raise DeadlineError(f"cannot listen on {listen}: {error.strerror}") from None
    return server, f"{host}:{server.server_address[1]}"


def _on_socket(path: Path, journal: Journal, stack: contextlib.ExitStack) -> _Server:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if path.is_socket() and not _answers(path):
            path.unlink()  # of a daemon that was killed
        if path.exists():
            raise DeadlineError(
                f"cannot listen on {path}: {'a daemon does' if path.is_socket() else 'a file is there'}"
            )
        entry = journal.record("file", path=path)
        # Between bind and chmod nobody else may connect either.
        before = os.umask(0o177)
        try:
            server = stack.enter_context(_UnixServer(str(path), _Handler))  # type: ignore[arg-type] # typeshed knows TCP only
        except OSError:
            journal.done(entry)
            raise
        finally:
            os.umask(before)
    except OSError as error:
        raise DeadlineError(f"cannot listen on {path}: {error.strerror or error}") from None

    def remove() -> None:
        path.unlink(missing_ok=True)
        journal.done(entry)

    stack.callback(remove)
    return server


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
