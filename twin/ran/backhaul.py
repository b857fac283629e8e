"""Capacity of wireless backhaul links between fixed sites, from 3GPP path loss and link adaptation.

TR 38.901 §7.4.1 (path loss, shadow fading) and §7.4.2 (line of sight), street canyon ("UMi") with both ends
at 10 m; SNR to CQI as :func:`twin.ran.nr.sinr_to_cqi`; CQI table 1 of TS 38.214 §5.2.2.1. With B the occupied
bandwidth, e(CQI) bits per resource element and OH the overhead of TS 38.306 §4.1.2::

    capacity = share * (1 - OH) * e(CQI(SNR)) * B

Interference-free, as in NANCY D4.2 §4.2. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from twin.ran.channel import NOISE_DBM_PER_HZ, NOISE_FIGURE_DB, los_probability, path_loss_db, shadow_fading_db
from twin.ran.nr import cqi_efficiency, sinr_to_cqi

SCENE = "umi"
HEIGHT_M = 10.0


@dataclass(frozen=True)
class BackhaulBand:
    """A carrier; ``antenna_gain_dbi`` is that of each end, ``share`` the part of time for the backhaul downlink."""

    carrier_ghz: float
    occupied_hz: float
    tx_power_dbm: float
    antenna_gain_dbi: float
    overhead: float
    share: float


BACKHAUL_BANDS = {
    # 2 carriers of 400 MHz: 264 PRBs of 120 kHz each (TS 38.101-2 Table 5.3.2-1). 16 antenna elements of 8 dBi
    # (TR 38.901 Table 7.3-1). A quarter of the time: half goes to access, and a node in half duplex does not
    # receive while it sends to its children.
    "mmwave": BackhaulBand(30.0, 2 * 264 * 12 * 120e3, 30.0, 20.0, overhead=0.18, share=0.25),
    # 80 MHz: 217 PRBs of 30 kHz (TS 38.101-1 Table 5.3.2-1). One element; three of four slots are downlink.
    "sub6": BackhaulBand(3.5, 217 * 12 * 30e3, 33.0, 8.0, overhead=0.14, share=0.75),
}


def backhaul_snr_db(band: str, distance_m: float, uniform: float, normal: float) -> float:
    """SNR in dB over the carrier; ``uniform`` in [0, 1) draws line of sight, ``normal`` the shadow fading.

    ValueError on an unknown band and outside of 10 to 5000 m.
    """
    radio = _radio(band)
    clear = uniform < los_probability(SCENE, distance_m)
    loss_db = path_loss_db(SCENE, distance_m, radio.carrier_ghz, line_of_sight=clear, ue_height_m=HEIGHT_M)
    loss_db += shadow_fading_db(SCENE, line_of_sight=clear) * normal
    noise_dbm = NOISE_DBM_PER_HZ + 10 * math.log10(radio.occupied_hz) + NOISE_FIGURE_DB
    return radio.tx_power_dbm + 2 * radio.antenna_gain_dbi - loss_db - noise_dbm


def backhaul_capacity_bps(band: str, distance_m: float, uniform: float, normal: float) -> float:
    """Capacity in bit/s of a link as :func:`backhaul_snr_db` draws it; 0 below CQI 1."""
    radio = _radio(band)
    efficiency = cqi_efficiency(sinr_to_cqi(backhaul_snr_db(band, distance_m, uniform, normal)))
    return radio.share * (1 - radio.overhead) * efficiency * radio.occupied_hz


def _radio(band: str) -> BackhaulBand:
    if band not in BACKHAUL_BANDS:
        raise ValueError(f"band must be one of {', '.join(BACKHAUL_BANDS)}, got {band!r}")
    return BACKHAUL_BANDS[band]
