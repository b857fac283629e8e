"""NR tables and transport block sizes: how many bits a slot carries.

3GPP TS 38.214: MCS index table 1 for PDSCH (Table 5.1.3.1-1), 4-bit CQI table 1 (Table 5.2.2.1-2), transport block
size (§5.1.3.2, Table 5.1.3.2-1). 3GPP TS 38.306 §4.1.2: maximum data rate. Standard library only:
the programs in the containers use it too.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cache, lru_cache

# (modulation order Qm, code rate × 1024), TS 38.214 Table 5.1.3.1-1
MCS_TABLE_1: tuple[tuple[int, int], ...] = (
    *((2, rate) for rate in (120, 157, 193, 251, 308, 379, 449, 526, 602, 679)),
    *((4, rate) for rate in (340, 378, 434, 490, 553, 616, 658)),
    *((6, rate) for rate in (438, 466, 517, 567, 616, 666, 719, 772, 822, 873, 910, 948)),
)
# (modulation order, code rate × 1024) of CQI 1 to 15, TS 38.214 Table 5.2.2.1-2; CQI 0 is "out of range"
CQI_TABLE_1: tuple[tuple[int, int], ...] = (
    *((2, rate) for rate in (78, 120, 193, 308, 449, 602)),
    *((4, rate) for rate in (378, 490, 616)),
    *((6, rate) for rate in (466, 567, 666, 772, 873, 948)),
)
# TS 38.214 Table 5.1.3.2-1: TBS for N_info <= 3824
TBS_TABLE: tuple[int, ...] = (
    *range(24, 193, 8),
    *range(208, 385, 16),
    *range(408, 577, 24),
    *range(608, 769, 32),
    *range(808, 929, 40),
    *(984, 1032, 1064, 1128, 1160, 1192, 1224, 1256, 1288, 1320, 1352, 1416, 1480, 1544, 1608, 1672, 1736, 1800),
    *(1864, 1928, 2024, 2088, 2152, 2216, 2280, 2408, 2472, 2536, 2600, 2664, 2728, 2792, 2856, 2976, 3104, 3240),
    *(3368, 3496, 3624, 3752, 3824),
)
SUBCARRIERS_PER_PRB = 12
SYMBOLS_PER_SLOT = 14
DATA_SYMBOLS = 13  # the first symbol carries PDCCH
DMRS_RE_PER_PRB = 12  # one DMRS symbol, type 1, no data on it
MAX_CQI = 15
SINR_GAP = -math.log(5 * 5e-5) / 1.5  # Γ for a bit error rate of 5e-5


def tbs_bits(
    prbs: int,
    mcs: int,
    *,
    symbols: int = DATA_SYMBOLS,
    dmrs: int = DMRS_RE_PER_PRB,
    overhead: int = 0,
    layers: int = 1,
) -> int:
    """Transport block size in bits of ``prbs`` PRBs in one slot, TS 38.214 §5.1.3.2.

    The defaults leave 144 of 168 resource elements, the 14 % overhead of TS 38.306 §4.1.2.
    ``dmrs`` and ``overhead`` are resource elements per PRB; ``mcs`` is 0 to 28 of table 1.
    ValueError outside the ranges of the clause.
    """
    if not 0 <= prbs <= 275:
        raise ValueError(f"prbs must be in [0, 275], got {prbs}")
    if not 0 <= mcs < len(MCS_TABLE_1):
        raise ValueError(f"mcs must be in [0, {len(MCS_TABLE_1) - 1}], got {mcs}")
    if not 1 <= symbols <= 14:
        raise ValueError(f"symbols must be in [1, 14], got {symbols}")
    if not 1 <= layers <= 4:
        raise ValueError(f"layers must be in [1, 4] for one code word, got {layers}")
    elements = SUBCARRIERS_PER_PRB * symbols - dmrs - overhead
    if elements <= 0:
        raise ValueError(f"dmrs {dmrs} and overhead {overhead} leave no resource elements in {symbols} symbols")
    if prbs == 0:
        return 0
    order, rate = MCS_TABLE_1[mcs]
    # Everything below is exact in integers: N_info is kept in units of 1/1024 bit.
    info_1024 = min(156, elements) * prbs * rate * order * layers
    if info_1024 <= 3824 * 1024:
        info = info_1024 // 1024
        shift = max(3, info.bit_length() - 7)
        quantised = max(24, info >> shift << shift)
        return TBS_TABLE[bisect_left(TBS_TABLE, quantised)]
    excess_1024 = info_1024 - 24 * 1024
    shift = (excess_1024 // 1024).bit_length() - 6
    step_1024 = 1024 << shift
    # round() of the clause: ties to the next larger integer
    quantised = max(3840, ((2 * excess_1024 + step_1024) // (2 * step_1024)) << shift)
    if 4 * rate <= 1024:
        blocks = -(-(quantised + 24) // 3816)
    elif quantised > 8424:
        blocks = -(-(quantised + 24) // 8424)
    else:
        blocks = 1
    return 8 * blocks * -(-(quantised + 24) // (8 * blocks)) - 24


def spectral_efficiency(mcs: int) -> float:
    """Information bits per resource element of an MCS of table 1."""
    order, rate = MCS_TABLE_1[mcs]
    return order * rate / 1024


def cqi_efficiency(cqi: int) -> float:
    """Information bits per resource element of a CQI of table 1; 0 for CQI 0."""
    if not 0 <= cqi <= MAX_CQI:
        raise ValueError(f"cqi must be in [0, {MAX_CQI}], got {cqi}")
    if cqi == 0:
        return 0.0
    order, rate = CQI_TABLE_1[cqi - 1]
    return order * rate / 1024


@cache
def cqi_to_mcs(cqi: int) -> int | None:
    """The highest MCS whose efficiency does not exceed that of the CQI; None for CQI 0.

    CQI 1 (0.15 bit/RE) lies below MCS 0 (0.23): it gets MCS 0, the lowest there is.
    """
    efficiency = cqi_efficiency(cqi)
    if cqi == 0:
        return None
    return max((mcs for mcs in range(len(MCS_TABLE_1)) if spectral_efficiency(mcs) <= efficiency + 1e-9), default=0)


def slots_per_ms(subcarrier_khz: int) -> int:
    """NR slots in a millisecond: 2^µ, TS 38.211 Table 4.3.2-1."""
    try:
        return {15: 1, 30: 2, 60: 4}[subcarrier_khz]
    except KeyError:
        raise ValueError(f"subcarrier_khz must be one of 15, 30, 60, got {subcarrier_khz}") from None


@lru_cache(maxsize=16384)
def bits_per_slot(cqi: int, prbs: int, *, subcarrier_khz: int = 30, layers: int = 1) -> int:
    """Bits that ``prbs`` PRBs carry at ``cqi`` in one MAC slot of 1 ms (2^µ transport blocks); 0 for CQI 0."""
    mcs = cqi_to_mcs(cqi)
    if mcs is None:
        return 0
    return slots_per_ms(subcarrier_khz) * tbs_bits(prbs, mcs, layers=layers)


def rate_bps(cqi: int, prbs: int, *, subcarrier_khz: int = 30, layers: int = 1) -> float:
    """Steady rate in bit/s of ``prbs`` PRBs in every slot."""
    return 1000.0 * bits_per_slot(cqi, prbs, subcarrier_khz=subcarrier_khz, layers=layers)


def max_data_rate_bps(
    prbs: int,
    *,
    subcarrier_khz: int = 30,
    layers: int = 1,
    modulation_order: int = 6,
    scaling: float = 1.0,
    overhead: float = 0.14,
) -> float:
    """Maximum data rate of one carrier, TS 38.306 §4.1.2, in bit/s.

    v·Qm·f·Rmax·(12·N_PRB / T_symbol)·(1 − OH), Rmax = 948/1024; OH 0.14 is FR1 downlink, 0.08 FR1 uplink.
    """
    symbol_s = 1e-3 / (SYMBOLS_PER_SLOT * slots_per_ms(subcarrier_khz))
    return layers * modulation_order * scaling * 948 / 1024 * (12 * prbs / symbol_s) * (1 - overhead)


def sinr_to_cqi(sinr_db: float) -> int:
    """The highest CQI whose efficiency log2(1 + SINR/Γ) reaches; Γ = −ln(5·BER)/1.5, BER 5e-5.

    The mapping of G. Piro, N. Baldo, M. Miozzo: An LTE Module for the ns-3 Network Simulator (2011), §3.2,
    with the NR table.
    """
    efficiency = math.log2(1 + 10 ** (sinr_db / 10) / SINR_GAP)
    return bisect_left(_CQI_EFFICIENCIES, efficiency + 1e-12)


_CQI_EFFICIENCIES = tuple(cqi_efficiency(cqi) for cqi in range(1, MAX_CQI + 1))
