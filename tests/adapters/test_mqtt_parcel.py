"""Parcels: a part as the payload of one MQTT message."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.mqtt.parcel import PARCEL_HEAD_BYTES, pack, unpack
from mesh.ports import Part
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX
from schemas.messages import Lane

TOPIC = "mesh/v1/hall/pump/up/events"
DIGEST = hashlib.sha256(b"whole batch").digest()
PART = Part("hall", "pump", Lane.EVENTS, DIGEST, 6, 11, b"batch")
GOLDEN = bytes.fromhex(
    "484650"  # HFP
    "01"
    "4d0c8eda63f15a2e9530d261735c0074d0e48d7c166836b6665d4c05e26a139c"
    "00000006"
    "0000000b"
    "6261746368"
)


def refusal(topic: str, payload: bytes) -> RefusedBecause:
    """Why a message is no parcel."""
    with pytest.raises(Refused) as refused:
        unpack(topic, payload)
    return refused.value.reason


def test_the_bytes_of_a_parcel_do_not_change() -> None:
    """Version 1: magic, version, digest, offset, total, bytes; 44 bytes in front of the part."""
    assert pack(PART) == GOLDEN
    assert unpack(TOPIC, GOLDEN) == PART
    assert len(GOLDEN) - len(PART.payload) == PARCEL_HEAD_BYTES == 44


@given(
    st.sampled_from(Lane),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)
def test_what_was_packed_is_unpacked(
    lane: Lane, digest: bytes, offset: int, total: int, payload: bytes
) -> None:
    """Every field survives, the ones that no real part has too: they are judged elsewhere."""
    part = Part("hall", "pump", lane, digest, offset, total, payload)
    assert unpack(f"mesh/v1/hall/pump/up/{lane}", pack(part)) == part


@given(st.sampled_from([b"", b"HFP", b"HFP\x01"]), st.binary(max_size=100))
def test_any_bytes_are_a_part_or_refused(start: bytes, rest: bytes) -> None:
    """Nothing but ``Refused`` comes out of bytes that nobody packed; what is a part packs again."""
    try:
        part = unpack(TOPIC, start + rest)
    except Refused:
        assert not start.endswith(b"\x01") or len(start + rest) < PARCEL_HEAD_BYTES
    else:
        assert pack(part) == start + rest


@pytest.mark.parametrize("size", range(PARCEL_HEAD_BYTES))
def test_a_parcel_that_is_cut_in_its_head_is_malformed(size: int) -> None:
    """A head that is not whole is none, wherever it ends."""
    assert refusal(TOPIC, GOLDEN[:size]) is RefusedBecause.MALFORMED


def test_a_later_version_is_named() -> None:
    """A version that this program does not know is not guessed at."""
    assert refusal(TOPIC, GOLDEN[:3] + b"\x02" + GOLDEN[4:]) is RefusedBecause.BAD_VERSION


def test_a_payload_beyond_the_largest_batch_is_too_large() -> None:
    """It is refused before anything in it is read."""
    assert refusal(TOPIC, GOLDEN + bytes(BATCH_BYTES_MAX)) is RefusedBecause.TOO_LARGE


@pytest.mark.parametrize(
    "topic",
    [
        "mesh/v1/hall/pump/down/events",
        "mesh/v1/hall/pump/up/unknown",
        "mesh/v1/hall/pump/up/Events",
        "mesh/v1/hall/../up/events",
        "mesh/v1/hall/pump/up/events/more",
        "mesh/v2/hall/pump/up/events",
        "mesh.v1.hall.pump.up.events",
        "sensor",
    ],
)
def test_nothing_goes_up_on_other_topics(topic: str) -> None:
    """Site, node and lane come from the topic, so a topic that is none of ours names nobody."""
    assert refusal(topic, GOLDEN) is RefusedBecause.BAD_NAME


@pytest.mark.parametrize(
    "wrong", [PART._replace(digest=b"short"), PART._replace(offset=-1), PART._replace(total=2**32)]
)
def test_a_part_that_cannot_be_written_is_refused(wrong: Part) -> None:
    """The sender hears of it; nothing is sent."""
    with pytest.raises(Refused) as refused:
        pack(wrong)
    assert refused.value.reason is RefusedBecause.OUT_OF_RANGE
