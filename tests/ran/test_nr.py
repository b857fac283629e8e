"""Tables and transport block sizes against a second source: the reference channels of TS 38.104 Annex A."""

from __future__ import annotations

import pytest

from twin.ran.nr import (
    CQI_TABLE_1,
    MCS_TABLE_1,
    TBS_TABLE,
    bits_per_slot,
    cqi_efficiency,
    cqi_to_mcs,
    max_data_rate_bps,
    rate_bps,
    sinr_to_cqi,
    spectral_efficiency,
    tbs_bits,
)


@pytest.mark.parametrize(
    ("mcs", "prbs", "payload_bits"),
    [
        # TS 38.104 Table A.1-1, QPSK 1/3 (308/1024): 12 data symbols, two DMRS symbols
        *((4, prbs, bits) for prbs, bits in ((25, 2152), (11, 984), (106, 9224), (51, 4352), (24, 2088))),
        # TS 38.104 Table A.2-1, 16QAM 2/3 (658/1024)
        *((16, prbs, bits) for prbs, bits in ((25, 9224), (11, 4032), (106, 38936), (51, 18960), (24, 8968))),
    ],
)
def test_transport_block_sizes_of_the_reference_channels(mcs: int, prbs: int, payload_bits: int) -> None:
    assert tbs_bits(prbs, mcs, symbols=14, dmrs=24) == payload_bits


def test_transport_block_size_of_a_recorded_network() -> None:
    # 273 PRBs, 16QAM 616/1024, 13 symbols, 24 DMRS elements, 4 layers: 43,047 octets
    assert tbs_bits(273, 15, symbols=13, dmrs=24, layers=4) == 344_376


def test_low_rate_segmentation_uses_the_3816_rule() -> None:
    # 273 PRBs, 4 layers, QPSK 120/1024: N_info 36854.4, step 1024 -> 36864, C = 10
    assert tbs_bits(273, 0, symbols=14, dmrs=24, layers=4) == 8 * 10 * 462 - 24


def test_tables_have_the_published_ends_and_grow() -> None:
    assert len(TBS_TABLE) == 93 and sorted(set(TBS_TABLE)) == list(TBS_TABLE)
    assert len(MCS_TABLE_1) == 29 and len(CQI_TABLE_1) == 15
    published = (0.1523, 0.2344, 1.1758, 1.4766, 2.4063, 2.7305, 5.5547)
    assert [cqi_efficiency(cqi) for cqi in (1, 2, 6, 7, 9, 10, 15)] == pytest.approx(published, abs=6e-5)
    assert round(spectral_efficiency(28), 4) == 5.5547
    # The published table falls once: MCS 17 (64QAM) lies just below MCS 16 (16QAM).
    falls = [mcs for mcs in range(1, 29) if spectral_efficiency(mcs) < spectral_efficiency(mcs - 1)]
    assert falls == [17]


def test_cqi_to_mcs_never_exceeds_the_reported_efficiency() -> None:
    assert cqi_to_mcs(0) is None
    assert cqi_to_mcs(1) == 0
    assert cqi_to_mcs(15) == 28
    for cqi in range(2, 16):
        mcs = cqi_to_mcs(cqi)
        assert mcs is not None
        assert spectral_efficiency(mcs) <= cqi_efficiency(cqi) + 1e-9


def test_rate_is_close_to_the_maximum_data_rate() -> None:
    # 144 of 168 resource elements against an overhead of 14 %, and the steps of the TBS
    for prbs in (25, 51, 106, 273):
        assert rate_bps(15, prbs) == pytest.approx(max_data_rate_bps(prbs), rel=0.02)


def test_maximum_data_rate_of_the_clause() -> None:
    # The usual example: 273 PRBs, 30 kHz, 4 layers, 256QAM, FR1 downlink: 2.337 Gbit/s
    assert max_data_rate_bps(273, layers=4, modulation_order=8) == pytest.approx(2.337e9, rel=1e-3)


def test_bits_per_slot_grows_with_prbs_and_cqi() -> None:
    assert bits_per_slot(0, 106) == 0 and bits_per_slot(15, 0) == 0
    for cqi in range(1, 16):
        assert all(bits_per_slot(cqi, prbs) <= bits_per_slot(cqi, prbs + 1) for prbs in range(0, 106))
    assert all(bits_per_slot(cqi, 50) < bits_per_slot(cqi + 1, 50) for cqi in range(2, 15))


def test_sinr_to_cqi_is_monotone_and_covers_the_range() -> None:
    found = [sinr_to_cqi(sinr / 10) for sinr in range(-200, 400)]
    assert found == sorted(found)
    assert set(found) == set(range(16))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prbs": 276, "mcs": 0}, "prbs must be in [0, 275], got 276"),
        ({"prbs": 1, "mcs": 29}, "mcs must be in [0, 28], got 29"),
        ({"prbs": 1, "mcs": 0, "symbols": 15}, "symbols"),
        ({"prbs": 1, "mcs": 0, "layers": 5}, "layers"),
        ({"prbs": 1, "mcs": 0, "symbols": 1}, "leave no resource elements"),
    ],
)
def test_values_outside_the_clause_are_refused(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("[", r"\[").replace("]", r"\]")):
        tbs_bits(**arguments)
