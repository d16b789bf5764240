"""Records of numbers for tests: readings and metric points with whatever floats may hold."""

import struct
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from mesh.spool.frame import CHAIN_START, FrameHeader, pack
from schemas import wire
from schemas.messages import Lane, MetricPoint, Reading
from tests.spool.frames import AT, OWNER

__all__ = ["BITS", "RECORDS", "TIMES", "float_of", "framed", "metric", "reading"]

START_NS = 1_767_225_600_000_000_000


def float_of(bits: int) -> float:
    """The float that has these bits: a NaN keeps its payload."""
    found: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return found


def reading(
    number: int, values: Mapping[str, float], topic: str = "hall/pump-1", step_ns: int = 10**9
) -> bytes:
    """The canonical bytes of a reading, a second after the one before."""
    wall = START_NS + number * step_ns
    return wire.encode(Reading(wall, wall - 10**18, topic, values))


def metric(number: int, name: str, value: float, labels: Mapping[str, str]) -> bytes:
    """The canonical bytes of a metric point."""
    wall = START_NS + number * 10**9
    return wire.encode(MetricPoint(wall, wall - 10**18, name, value, labels))


def framed(
    records: Sequence[bytes], frame_records: int, lane: Lane, first: int = 1
) -> tuple[list[FrameHeader], list[bytes]]:
    """Records in consecutive frames of one lane: their headers, their bodies."""
    headers, bodies, before = [], [], CHAIN_START
    for start in range(0, len(records), frame_records):
        part = records[start : start + frame_records]
        bodies.append(b"".join(part))
        _, header = pack(OWNER, 1, lane, first, len(part), bodies[-1], before, AT)
        headers.append(header)
        first, before = header.stop, header.chain_after
    return headers, bodies


_ODD = [0x7FF8000000000001, 0xFFF0000000000000, 0x8000000000000000, 1, 0x7FEFFFFFFFFFFFFF, 0]
BITS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.sampled_from(_ODD),
    st.decimals(-10_000, 10_000, places=3).map(
        lambda it: struct.unpack("<Q", struct.pack("<d", float(it)))[0]
    ),
)
"""Bits of floats: any, odd ones, and what a sensor prints."""
_FLOATS = BITS.map(float_of)
TIMES = st.one_of(
    st.integers(START_NS, START_NS + 10**10),
    st.just(START_NS),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 300),
)
_READING = st.builds(
    Reading,
    wall_ns=TIMES,
    mono_ns=TIMES,
    topic=st.sampled_from(["a", "hall/pump-1", "hall/pump-2"]),
    values=st.dictionaries(st.sampled_from("abc"), _FLOATS, max_size=3),
)
_POINT = st.builds(
    MetricPoint,
    wall_ns=TIMES,
    mono_ns=TIMES,
    name=st.sampled_from(["up", "cpu_seconds_total"]),
    value=_FLOATS,
    labels=st.dictionaries(st.sampled_from("xy"), st.sampled_from(["", "1", "2"]), max_size=2),
)
RECORDS = st.lists(st.one_of(_READING, _POINT).map(wire.encode), min_size=1, max_size=120)
"""Canonical bytes of readings and metric points in any order."""
