"""The program that runs an OpenFlow application: TwinBed's source routing or a user's own.

``python -m twin.emulation.sdn.launch --config FILE --control SOCKET`` with a JSON file

- ``{"network": {...}}``: :mod:`twin.emulation.sdn.routing` with that network, or
- ``{"app": "my_app.py"}`` or ``{"app": "package.module"}``: an application for os-ken or Ryu.

OpenFlow is served on a free port of the loopback interface. The control socket appears when the application
runs; one JSON object per line, as for the programs of the data plane (``dataplane/README.md``):
``ping`` (with ``port``), ``stats`` (``switches``: datapath ids that are connected), and, of the source
routing, ``ready`` and ``path``. The program ends when its standard input does, and so with whoever started it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twin.emulation.sdn import ryu_alias

Op = Callable[[dict[str, Any]], dict[str, Any]]


def main() -> None:
    """Run until standard input ends; a broken application ends the program with code 1 and its traceback."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--control", type=Path, required=True)
    arguments = parser.parse_args()
    threading.Thread(target=_end_with_owner, name="owner", daemon=True).start()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = json.loads(arguments.config.read_text(encoding="utf-8"))
    try:
        _run(config, arguments.control)
    except BaseException as error:
        # Threads of os-ken would keep the program alive without its application.
        logging.getLogger("twinbed").critical("the application ended", exc_info=error)
        sys.stderr.flush()
        os._exit(1)


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _run(config: Mapping[str, Any], control: Path) -> None:
    ryu_alias.install()
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    _serve_on(listener)
    from os_ken.base.app_manager import AppManager

    ops: dict[str, Op] = {"ping": lambda _: {"pid": os.getpid(), "port": listener.getsockname()[1]}, "stats": _stats}
    manager = AppManager.get_instance()
    module = "twin.emulation.sdn.routing" if "network" in config else _import_app(str(config["app"]))
    manager.load_apps([module])
    if module not in manager.applications_cls:
        raise ImportError(f"{config.get('app', module)} has no application: a subclass of RyuApp or OSKenApp")
    manager.load_apps(["twin.emulation.sdn.watcher"])
    if "network" in config:
        from twin.emulation.sdn import routing

        routing.NETWORK = config["network"]
        ops |= {"path": routing.path, "ready": routing.ready}
    threads = manager.instantiate_apps(**manager.create_contexts())
    _listen(control, ops)
    for thread in threads:
        thread.join()
    while True:
        time.sleep(3600)


def _import_app(name: str) -> str:
    """Import a user's application by file or by module name; the name under which it was imported."""
    if not name.endswith(".py"):
        importlib.import_module(name)
        return name
    path = Path(name).resolve()
    sys.path.insert(0, str(path.parent))  # what lies beside it can be imported, as when a script is run
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return path.stem


def _serve_on(listener: socket.socket) -> None:
    """Make os-ken accept switches on a socket that is bound already, so that its port is known and free."""
    from os_ken.base import app_manager  # noqa: F401 - first: the two import each other
    from os_ken.controller import controller

    class Server(controller.StreamServer):  # type: ignore[misc]
        def __init__(self, _: Any, handle: Any) -> None:
            self.server, self.handle = listener, handle

    controller.StreamServer = Server
    # With a port given, os-ken does not open the second, historical one.
    controller.CONF.ofp_tcp_listen_port = listener.getsockname()[1]


def _stats(_: dict[str, Any]) -> dict[str, Any]:
    from twin.emulation.sdn.watcher import CONNECTED

    return {"switches": sorted(f"{dpid:016x}" for dpid in list(CONNECTED))}


# --- control socket -------------------------------------------------------------------------------


def _listen(path: Path, ops: Mapping[str, Op]) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(json.dumps(_answer(line, ops)).encode() + b"\n")

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    server = Server(str(path), Handler)
    threading.Thread(target=server.serve_forever, name="control", daemon=True).start()


def _answer(line: bytes, ops: Mapping[str, Op]) -> dict[str, Any]:
    try:
        request = json.loads(line)
        if not isinstance(request, dict) or request.get("op") not in ops:
            raise ValueError(f"op: must be one of {', '.join(sorted(ops))}")
        return {"ok": True, **ops[request.pop("op")](request)}
    except KeyError as error:
        return {"ok": False, "error": f"argument {error} is missing"}
    except ValueError as error:
        return {"ok": False, "error": str(error)}


if __name__ == "__main__":
    main()
