"""PUBLISH and PUBACK as bytes: every cut of the stream gives the same messages."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adapters.mqtt.packet import PacketReader, TopicWriter, encode_pubacks
from mesh.ports import Delivery
from schemas.errors import Refused
from schemas.messages import Instant

NOW = Instant(1, 2)
TOPICS = st.sampled_from(["a", "plant/pump-1/flow", "ä/ö", "x" * 300])
MESSAGES = st.lists(
    st.tuples(TOPICS, st.binary(max_size=300), st.integers(0, 0xFFFF), st.booleans(), st.booleans())
)
VERSIONS = st.sampled_from([4, 5])
PINGRESP = b"\xd0\x00"


def feed(reader: PacketReader, data: bytes, cuts: list[int]) -> list[Delivery]:
    """Feeds the bytes in pieces."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [
        delivery
        for start, stop in pairwise(places)
        for delivery in reader.feed(data[start:stop], NOW)
    ]


@given(VERSIONS, MESSAGES, st.lists(st.integers(0, 10_000), max_size=8))
def test_what_was_written_is_read_however_it_is_cut(
    version: int, messages: list[tuple[str, bytes, int, bool, bool]], cuts: list[int]
) -> None:
    """Order, fields and other packets survive; nothing is left over."""
    writer, reader = TopicWriter(version), PacketReader(version, 1 << 20, 3)
    data = b""
    for topic, payload, packet_id, retain, duplicate in messages:
        data += writer.encode(topic, payload, packet_id, retain, duplicate=duplicate) + PINGRESP
    seen = feed(reader, data, cuts)
    assert seen == [
        Delivery(
            topic,
            payload,
            int(packet_id > 0),
            retain,
            duplicate and packet_id > 0,
            NOW,
            3 << 16 | packet_id if packet_id else None,
        )
        for topic, payload, packet_id, retain, duplicate in messages
    ]
    assert bytes(reader.others) == PINGRESP * len(messages)
    assert not reader.refused


@given(st.lists(st.integers(1, 0xFFFF)), st.lists(st.integers(0, 10_000), max_size=4))
def test_acknowledgements_are_read_however_they_are_cut(ids: list[int], cuts: list[int]) -> None:
    """Each PUBACK comes out once, in order, as a success."""
    reader = PacketReader(4, 1 << 20, 0)
    assert feed(reader, encode_pubacks(ids), cuts) == []
    assert reader.acknowledged == [(packet_id, 0) for packet_id in ids]


def test_an_acknowledgement_of_mqtt_5_can_say_no() -> None:
    """A reason code from 0x80 on means that the broker did not take the message."""
    reader = PacketReader(5, 1 << 20, 0)
    reader.feed(b"\x40\x03\x00\x07\x87" + b"\x40\x03\x00\x08\x10" + b"\x40\x02\x00\x09", NOW)
    assert reader.acknowledged == [(7, 0x87), (8, 0x10), (9, 0)]


def test_properties_of_mqtt_5_are_passed_over() -> None:
    """Nothing in them is needed, whatever their length."""
    properties = b"\x26" + b"\x00\x01k" + b"\x00\xc8" + b"v" * 200
    body = b"\x00\x01a" + b"\xce\x01" + properties + b"payload"
    assert len(properties) == 206
    data = b"\x30" + bytes((len(body) & 0x7F | 0x80, len(body) >> 7)) + body
    (delivery,) = PacketReader(5, 1 << 20, 0).feed(data, NOW)
    assert delivery.payload == b"payload"


@given(st.lists(st.integers(0, 400_000), max_size=6), st.booleans())
def test_a_packet_beyond_the_bound_streams_by(cuts: list[int], qos: bool) -> None:  # noqa: FBT001, hypothesis passes by position
    """It is counted once, acknowledged if it must be, and its neighbours are read."""
    writer, reader = TopicWriter(4), PacketReader(4, 150_000, 0)
    before, after = (writer.encode("a", text, 0, retain=False) for text in (b"1", b"2"))
    large = writer.encode("a", bytes(300_000), 7 if qos else 0, retain=False)
    seen = feed(reader, before + large + after, cuts)
    # A packet that came in one piece took no memory worth saving, and is handed over.
    whole = [d for d in seen if len(d.payload) > 1]
    assert [d.payload for d in seen if len(d.payload) == 1] == [b"1", b"2"]
    assert reader.refused + len(whole) == 1
    assert reader.unreadable == ([7] if qos and not whole else [])


@pytest.mark.parametrize(
    "data",
    [
        b"\x30\xff\xff\xff\xff\x01",  # a length of five bytes
        b"\x30\x03\x00\x05a",  # the topic is longer than the packet
        b"\x32\x03\x00\x01a",  # no room for the packet id
        b"\x36\x05\x00\x01a\x00\x01",  # QoS 3
        b"\x40\x01\x00",  # half a packet id
        b"\x20\xff\xff\x7f",  # an answer of 2 MiB
    ],
)
def test_a_breach_of_the_framing_is_refused(data: bytes) -> None:
    """After it no byte can be trusted."""
    with pytest.raises(Refused):
        PacketReader(4, 1 << 20, 0).feed(data + b"\x30\x03\x00\x01a"[:2], NOW)


@given(st.binary(max_size=200), VERSIONS)
def test_any_bytes_are_read_or_refused(data: bytes, version: int) -> None:
    """A stranger's bytes raise nothing but ``Refused``."""
    reader = PacketReader(version, 1 << 20, 0)
    try:
        for delivery in reader.feed(data, NOW):
            assert delivery.topic
    except Refused:
        pass


def test_a_topic_is_checked_before_it_is_written() -> None:
    """Wildcards and control characters never reach the broker."""
    for topic in ("", "a/+", "#", "a\0", "x" * 2000):
        with pytest.raises(Refused):
            TopicWriter(4).encode(topic, b"", 0, retain=False)
        with pytest.raises(Refused):
            TopicWriter(4).check(topic)
