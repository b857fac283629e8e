"""GTP-U: what is encoded decodes, with our own code and with scapy; malformed octets are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.emulation.dataplane import gtpu


@given(
    teid=st.integers(0, 2**32 - 1), qfi=st.integers(0, 63), pdu_type=st.sampled_from([0, 1]), size=st.integers(20, 1500)
)
def test_user_packets_round_trip(teid: int, qfi: int, pdu_type: int, size: int) -> None:
    packet = bytes([0x45]) + bytes(size - 1)
    data = gtpu.Encapsulation(teid, qfi, pdu_type).header(size) + packet
    assert gtpu.decode(data) == gtpu.Message(gtpu.G_PDU, teid, None, gtpu.HEADER_BYTES, pdu_type, qfi)
    assert data[gtpu.HEADER_BYTES :] == packet


def test_scapy_reads_the_same() -> None:
    from scapy.contrib.gtp import GTP_U_Header, GTPPDUSessionContainer

    packet = bytes.fromhex("45000014000100004011f96a0a4000020a010102")
    decoded = GTP_U_Header(gtpu.Encapsulation(0xABCD0001, 9, gtpu.PDU_UPLINK).header(len(packet)) + packet)
    assert (decoded.teid, decoded.gtp_type, decoded.length) == (0xABCD0001, 255, 28)
    container = decoded[GTPPDUSessionContainer]
    assert (container.type, container.QFI) == (1, 9)
    assert bytes(container.payload) == packet


def test_path_management_round_trips() -> None:
    request = gtpu.decode(gtpu.echo_request(7))
    assert (request.kind, request.teid, request.sequence) == (gtpu.ECHO_REQUEST, 0, 7)
    response = gtpu.decode(gtpu.echo_response(7))
    assert (response.kind, response.sequence) == (gtpu.ECHO_RESPONSE, 7)
    data = gtpu.error_indication(0x1234, bytes([10, 1, 0, 2]))
    message = gtpu.decode(data)
    assert message.kind == gtpu.ERROR_INDICATION
    assert gtpu.error_indication_teid(data, message.payload_at) == 0x1234
    assert gtpu.decode(gtpu.end_marker(5)).kind == gtpu.END_MARKER


def test_headers_without_options_and_with_unknown_extensions_are_understood() -> None:
    plain = bytes.fromhex("30ff000400000001") + b"abcd"
    assert gtpu.decode(plain).payload_at == 8
    # an unknown extension (0xc0, one unit) in front of the PDU session container
    both = bytes.fromhex("34ff0010 00000001 000000c0 01aabb85 01100900 61626364".replace(" ", ""))
    message = gtpu.decode(both)
    assert (message.pdu_type, message.qfi, both[message.payload_at :]) == (1, 9, b"abcd")


@given(st.binary(max_size=64))
def test_any_octets_decode_or_are_refused(data: bytes) -> None:
    try:
        message = gtpu.decode(data)
    except gtpu.GtpError:
        return
    assert message.payload_at <= len(data)


@pytest.mark.parametrize(
    "octets", ["", "30ff0004", "50ff000400000001", "30ff00ff00000001", "32ff000000000001", "34ff000400000001000000c0"]
)
def test_malformed_octets_are_refused(octets: str) -> None:
    with pytest.raises(gtpu.GtpError):
        gtpu.decode(bytes.fromhex(octets))


def test_error_indication_without_its_element_is_refused() -> None:
    with pytest.raises(gtpu.GtpError):
        gtpu.error_indication_teid(bytes(12), 12)
