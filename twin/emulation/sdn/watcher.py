"""Knows which switches are connected, whatever application is in charge of them."""

from __future__ import annotations

from typing import Any

from os_ken.base import app_manager
from os_ken.controller import ofp_event
from os_ken.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls

CONNECTED: dict[int, Any] = {}
"""Datapath by id; written by os-ken's thread, read by the control socket's."""


class Watcher(app_manager.OSKenApp):  # type: ignore[misc]
    """Follows the switches' connections and sends nothing."""

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])  # type: ignore[untyped-decorator]
    def state_changed(self, event: Any) -> None:
        """A switch finished its handshake, or its connection ended."""
        datapath, dpid = event.datapath, event.datapath.id
        if event.state == MAIN_DISPATCHER:
            CONNECTED[dpid] = datapath
        elif CONNECTED.get(dpid) is datapath:
            del CONNECTED[dpid]
