"""Messages between the ``ue`` and ``gnb`` programs: UDP datagrams over the link that stands for the radio.

Four octets: type, zero, UE index in its container (16 bits). DATA is followed by an IP packet, the
others by JSON or nothing.
"""

from __future__ import annotations

import json
import struct
from typing import Any

DATA, ATTACH, ACCEPT, REJECT, DETACH, HELLO, HELLO_ACK, RELEASE = range(8)
HEADER_BYTES = 4


def header(kind: int, index: int) -> bytes:
    """The four octets."""
    return struct.pack("!BBH", kind, 0, index)


def message(kind: int, index: int, **fields: Any) -> bytes:
    """A message with JSON fields."""
    return header(kind, index) + json.dumps(fields, separators=(",", ":")).encode()


def fields(data: bytes) -> dict[str, Any]:
    """The JSON fields of a message; ValueError when there are none."""
    try:
        found = json.loads(data[HEADER_BYTES:])
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("a JSON object expected")
    return found
