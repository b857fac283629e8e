"""GTP-U (3GPP TS 29.281) with the PDU session container (3GPP TS 38.415).

A G-PDU here is 16 octets and the IP packet: flags 0x34 (version 1, GTP, extension header present),
type 255, length, TEID, sequence number and N-PDU number (present because E is set, zero), next
extension header 0x85, then the container: length 1 (times 4 octets), PDU type in the upper four bits
(0 downlink, 1 uplink), QFI in the lower six of the next octet, next extension header 0.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PORT = 2152
ECHO_REQUEST, ECHO_RESPONSE, ERROR_INDICATION, END_MARKER, G_PDU = 1, 2, 26, 254, 255
EXT_PDU_SESSION = 0x85
PDU_DOWNLINK, PDU_UPLINK = 0, 1
HEADER_BYTES = 16
_IE_RECOVERY, _IE_TEID, _IE_PEER_ADDRESS = 14, 16, 133


class GtpError(ValueError):
    """Octets that are not GTP-U as TS 29.281 has it."""


class Message(NamedTuple):
    """A decoded header; ``payload_at`` is the offset of what follows header and extension headers."""

    kind: int
    teid: int
    sequence: int | None
    payload_at: int
    pdu_type: int | None = None
    qfi: int | None = None


class Encapsulation:
    """Makes the header of one tunnel direction quickly: everything but the length is constant."""

    __slots__ = ("_headers", "_tail", "teid")

    def __init__(self, teid: int, qfi: int, pdu_type: int) -> None:
        if not 0 <= qfi <= 63:
            raise GtpError(f"QFI must be in [0, 63], got {qfi}")
        self.teid = teid
        self._tail = struct.pack("!IHBBBBBB", teid, 0, 0, EXT_PDU_SESSION, 1, pdu_type << 4, qfi, 0)
        self._headers: dict[int, bytes] = {}

    def header(self, packet_bytes: int) -> bytes:
        """The 16 octets in front of an IP packet of this length."""
        found = self._headers.get(packet_bytes)
        if found is None:
            # The length counts what follows the first eight octets.
            found = struct.pack("!BBH", 0x34, G_PDU, packet_bytes + HEADER_BYTES - 8) + self._tail
            self._headers[packet_bytes] = found
        return found


def decode(data: bytes) -> Message:
    """The header of any GTP-U message; GtpError when it is malformed or truncated."""
    if len(data) < 8:
        raise GtpError(f"a header has at least 8 octets, got {len(data)}")
    flags, kind, length, teid = struct.unpack_from("!BBHI", data)
    if flags >> 5 != 1 or not flags & 0x10:
        raise GtpError(f"version 1 and protocol type 1 expected, got flags {flags:#04x}")
    end = 8 + length
    if end > len(data):
        raise GtpError(f"length says {length} octets after the header, got {len(data) - 8}")
    if not flags & 0x07:
        return Message(kind, teid, None, 8)
    if end < 12:
        raise GtpError("optional fields are announced but missing")
    sequence, _, extension = struct.unpack_from("!HBB", data, 8)
    if not flags & 0x04:
        extension = 0
    at = 12
    pdu_type = qfi = None
    while extension:
        if at >= end or not data[at] or at + 4 * data[at] > end:
            raise GtpError(f"extension header {extension:#04x} is truncated or has length 0")
        if extension == EXT_PDU_SESSION:
            pdu_type, qfi = data[at + 1] >> 4, data[at + 2] & 0x3F
        size = 4 * data[at]
        extension = data[at + size - 1]
        at += size
    return Message(kind, teid, sequence if flags & 0x02 else None, at, pdu_type, qfi)


def echo_request(sequence: int) -> bytes:
    """Echo Request, TS 29.281 §7.2.1 (sequence number mandatory, TEID 0)."""
    return struct.pack("!BBHIHBB", 0x32, ECHO_REQUEST, 4, 0, sequence & 0xFFFF, 0, 0)


def echo_response(sequence: int) -> bytes:
    """Echo Response, §7.2.2; the Recovery IE is mandatory and its counter is zero (§8.2)."""
    return struct.pack("!BBHIHBBBB", 0x32, ECHO_RESPONSE, 6, 0, sequence & 0xFFFF, 0, 0, _IE_RECOVERY, 0)


def error_indication(teid: int, own_address: bytes, sequence: int = 0) -> bytes:
    """Error Indication, §7.3.1: ``teid`` of the G-PDU that fits no session, and the address it was sent to."""
    body = struct.pack("!BI", _IE_TEID, teid) + struct.pack("!BH", _IE_PEER_ADDRESS, 4) + own_address
    return struct.pack("!BBHIHBB", 0x32, ERROR_INDICATION, 4 + len(body), 0, sequence & 0xFFFF, 0, 0) + body


def error_indication_teid(data: bytes, payload_at: int) -> int:
    """The TEID that an Error Indication is about; GtpError when the IE is missing."""
    if len(data) < payload_at + 5 or data[payload_at] != _IE_TEID:
        raise GtpError("Error Indication without TEID Data I")
    return int.from_bytes(data[payload_at + 1 : payload_at + 5], "big")


def end_marker(teid: int) -> bytes:
    """End Marker, §7.3.2: nothing more will come through this tunnel."""
    return struct.pack("!BBHI", 0x30, END_MARKER, 0, teid)
