"""Canonical bytes: each message has one form, and no other bytes are taken for it."""

import math
import struct
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.layouts import LAYOUTS
from schemas.limits import RANGES_MAX, TEXT_CHARS_MAX
from schemas.messages import Account, Decision, Event, Lane, LogLine, MetricPoint, Severity
from schemas.ranges import Ranges
from schemas.stored import Closed, LaneLedger, PartitionLedger, Reserved
from schemas.wire import Message
from tests.schemas.samples import EPOCH, EXAMPLES, messages_of_any_kind

Because = RefusedBecause


@given(messages_of_any_kind())
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    """Round trip, and the same bytes again."""
    data = wire.encode(message)
    assert wire.decode(data) == message
    assert wire.encode(wire.decode(data)) == data
    assert wire.decode_as(type(message), data) == message
    assert wire.kind_of(data) == type(message).__name__.lower()


def test_a_ledger_of_before_its_newer_fields_is_read() -> None:
    """They say their defaults, and are not written where they do: nothing else is canonical."""
    plain = PartitionLedger("hq", EPOCH, lanes=(LaneLedger("hall", "pump", EPOCH, Lane.LOGS),))
    data = wire.encode(plain)
    said = wire.encode(replace(plain, lanes=(replace(plain.lanes[0], stated_wall_ns=5),)))
    raw = msgpack.unpackb(data)
    assert len(raw[5][0]) == 12
    assert len(msgpack.unpackb(said)[5][0]) == 14
    raw[5][0] += [{}, 0]
    with pytest.raises(Refused, match="not canonical"):
        wire.decode(msgpack.packb(raw))
    assert wire.decode(data) == plain


@pytest.mark.parametrize("name", EXAMPLES)
def test_there_is_an_example_of_each_kind(name: str) -> None:
    """What golden files and the tests below stand on."""
    assert wire.decode(wire.encode(EXAMPLES[name])) == EXAMPLES[name]
    assert wire.kind_of(wire.encode(EXAMPLES[name])) == name
    kinds = {layout.cls.__name__.lower() for layout in LAYOUTS}
    assert kinds == set(EXAMPLES), "each kind, and no more"


@given(messages_of_any_kind(), st.data())
def test_nothing_but_canonical_bytes_is_read(message: Message, data: st.DataObject) -> None:
    """Whatever decodes, encodes to exactly these bytes: flipped, cut and lengthened ones too."""
    good = bytearray(wire.encode(message))
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] ^= 1 << data.draw(st.integers(0, 7))
    _refused_or_canonical(bytes(good))
    _refused_or_canonical(bytes(good[:position]))
    _refused_or_canonical(wire.encode(message) + b"\xc0")


@given(st.binary(max_size=64))
def test_noise_is_refused(noise: bytes) -> None:
    """Whatever comes, the only exception is ``Refused``."""
    _refused_or_canonical(noise)
    _refused_or_canonical(b"\x98\x02\x01" + noise)
    _refused_or_canonical(b"\x92\x22\x01" + noise)
    reason = Because.MALFORMED
    try:
        wire.unpack_plain(noise)
    except Refused as refused:
        reason = refused.reason
    assert reason is Because.MALFORMED


def _refused_or_canonical(data: bytes) -> None:
    said, written = "", data
    try:
        written = wire.encode(wire.decode(data))
    except Refused as refused:
        said = str(refused)
    assert written == data
    assert len(said) < 1000


def _event(**changes: object) -> bytes:
    fields = {
        "kind": 2,
        "version": 1,
        "wall_ns": 0,
        "mono_ns": 0,
        "name": "n",
        "severity": 5,
        "text": "t",
        "attributes": {},
    } | changes
    data: bytes = msgpack.packb(list(fields.values()))
    return data


def _raw(*fields: bytes) -> bytes:
    return bytes([0x90 + len(fields)]) + b"".join(fields)


_HEAD = (b"\x02", b"\x01", b"\x00", b"\x00", b"\xa1n", b"\x05", b"\xa1t")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_event() + b"\x00", Because.MALFORMED),
        (b"", Because.MALFORMED),
        (b"\xc1", Because.MALFORMED),
        (_event(kind=99), Because.BAD_VERSION),
        (_event(kind=True), Because.BAD_VERSION),
        (_event(kind=2.0), Because.BAD_VERSION),
        (_event(kind=[[1]]), Because.BAD_VERSION),
        (_event(version=2), Because.BAD_VERSION),
        (_event(version=True), Because.BAD_VERSION),
        (_event(wall_ns=0.0), Because.WRONG_TYPE),
        (_event(wall_ns=False), Because.WRONG_TYPE),
        (_event(wall_ns="0"), Because.WRONG_TYPE),
        (_event(wall_ns=None), Because.WRONG_TYPE),
        (_event(wall_ns=2**63), Because.OUT_OF_RANGE),
        (_event(name=b"n"), Because.WRONG_TYPE),
        (_event(name="n" * 257), Because.TOO_LARGE),
        (_event(text="t" * (TEXT_CHARS_MAX + 1)), Because.TOO_LARGE),
        (_event(severity=99), Because.OUT_OF_RANGE),
        (_event(severity=5.0), Because.MALFORMED),
        (_event(severity=[5]), Because.OUT_OF_RANGE),
        (_event(attributes=[]), Because.WRONG_TYPE),
        (_event(attributes={"a": 1}), Because.WRONG_TYPE),
        (_event(attributes={1: "a"}), Because.MALFORMED),
        (_event(attributes={b"a": "a"}), Because.WRONG_TYPE),
        (_event(attributes={str(n): "" for n in range(65)}), Because.TOO_LARGE),
        (_event(attributes={"b": "", "a": ""}), Because.MALFORMED),
        (_event(more=1), Because.WRONG_TYPE),
        (_event()[:-1], Because.MALFORMED),
        (_raw(*_HEAD, b"\x82\xa1a\xa0\xa1a\xa0"), Because.MALFORMED),
        (_raw(*_HEAD[:6], b"\xa1\xff", b"\x80"), Because.MALFORMED),
        (_raw(*_HEAD[:6], b"\xa3\xed\xa0\x80", b"\x80"), Because.MALFORMED),
        (_raw(*_HEAD[:6], b"\xd9\x01t", b"\x80"), Because.MALFORMED),
        (_raw(*_HEAD[:2], b"\xcc\x00", *_HEAD[3:], b"\x80"), Because.MALFORMED),
        (_raw(*_HEAD[:6], b"\xd4\x05x", b"\x80"), Because.MALFORMED),
        (_raw(*_HEAD[:6], b"\xd6\xff\0\0\0\0", b"\x80"), Because.WRONG_TYPE),
        (_raw(*_HEAD[:6], b"\xdb\xff\xff\xff\xff", b"\x80"), Because.MALFORMED),
        (b"\xdc\x00\x08" + _event()[1:], Because.MALFORMED),
        (b"\xdd\xff\xff\xff\xff" + _event()[1:], Because.MALFORMED),
        (b"\x91" * 10_000, Because.MALFORMED),
        (b"\x92" + b"\x91" * 400 + b"\xc0\x01", Because.BAD_VERSION),
        (b"\x81\xa1a\x01", Because.WRONG_TYPE),
        (b"\x91\x02", Because.WRONG_TYPE),
    ],
)
def test_what_encode_would_not_write_is_refused(data: bytes, reason: RefusedBecause) -> None:
    """Refusal 30: types, bounds, repeated keys, extensions, long forms, depth, length, leavings."""
    with pytest.raises(Refused) as refused:
        wire.decode(data)
    assert refused.value.reason is reason, str(refused.value)
    assert len(str(refused.value)) < 500


def _metric(packed_value: bytes) -> bytes:
    return _raw(b"\x04", b"\x01", b"\x00", b"\x00", b"\xa1n", packed_value, b"\x80")


def test_floats_are_always_eight_bytes() -> None:
    """An integer or a float32 where a float belongs is another writer's form."""
    assert wire.decode(_metric(b"\xcb" + struct.pack(">d", 1.0))) == MetricPoint(0, 0, "n", 1.0)
    with pytest.raises(Refused) as refused:
        wire.decode(_metric(b"\x01"))
    assert refused.value.reason is Because.WRONG_TYPE
    with pytest.raises(Refused) as refused:
        wire.decode(_metric(b"\xca" + struct.pack(">f", 1.0)))
    assert refused.value.reason is Because.MALFORMED
    assert wire.decode(wire.encode(MetricPoint(0, 0, "n", 1))) == MetricPoint(0, 0, "n", 1.0), (
        "an integer value is written as a float"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_confidence_is_finite_and_a_metric_may_not_be(value: float) -> None:
    """NaN where a finite number belongs is refused; a metric may be NaN or infinite."""
    example = EXAMPLES["decision"]
    assert isinstance(example, Decision)
    fields = msgpack.unpackb(wire.encode(example))
    fields[7] = value
    with pytest.raises(Refused) as refused:
        wire.decode(msgpack.packb(fields))
    assert refused.value.reason is Because.NOT_A_NUMBER
    kept = wire.decode_as(MetricPoint, wire.encode(MetricPoint(0, 0, "n", value))).value
    assert math.isnan(kept) == math.isnan(value)


@pytest.mark.parametrize(
    "bounds",
    [[0], [3, 3], [4, 3], [0, 2, 2, 3], [5, 6, 0, 1], [-1, 1], [0, 2**63], [0, True], [0.0, 1]],
)
def test_sets_of_numbers_are_sorted_and_disjoint(bounds: list[object]) -> None:
    """Any other form of the same set would be another statement."""
    account = EXAMPLES["account"]
    fields = msgpack.unpackb(wire.encode(account))
    fields[8] = {"void": bounds}
    with pytest.raises(Refused):
        wire.decode(msgpack.packb(fields))


def test_too_many_ranges_are_refused() -> None:
    """A bound on what one statement costs."""
    spans = tuple((2 * n, 2 * n + 1) for n in range(RANGES_MAX + 1))
    account = Account(0, 0, Lane.LOGS, EPOCH, 1, 1, {"void": Ranges(spans)})
    with pytest.raises(Refused) as refused:
        wire.decode(wire.encode(account))
    assert refused.value.reason is Because.TOO_LARGE


@pytest.mark.parametrize(
    "message",
    [
        LogLine(0, 0, Severity.ERROR, "mesh", "\ud800"),
        LogLine(2**64, 0, Severity.ERROR, "mesh", ""),
        Event(0, 0, "n", Severity.NOTICE, "", {"a": object()}),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_written_is_refused(message: Message) -> None:
    """A lone surrogate, a number out of range, something else: never another exception."""
    with pytest.raises(Refused) as refused:
        wire.encode(message)
    assert refused.value.reason is Because.MALFORMED


def test_another_class_than_wanted_is_refused() -> None:
    """A closed journal is not a reservation."""
    with pytest.raises(Refused) as refused:
        wire.decode_as(Reserved, wire.encode(Closed({})))
    assert refused.value.reason is Because.WRONG_TYPE


def test_order_of_insertion_does_not_change_the_bytes() -> None:
    """Mappings are sorted by their keys."""
    one = Event(0, 0, "n", Severity.NOTICE, "", {"a": "1", "b": "2"})
    other = Event(0, 0, "n", Severity.NOTICE, "", {"b": "2", "a": "1"})
    assert wire.encode(one) == wire.encode(other)
    lanes = {Lane.LOGS: 1, Lane.ACCOUNT: 2}
    assert wire.encode(Reserved(lanes)) == wire.encode(Reserved(dict(reversed(lanes.items()))))


@given(st.lists(messages_of_any_kind().map(wire.encode), min_size=1, max_size=5))
def test_a_body_is_cut_where_its_records_end(records: list[bytes]) -> None:
    """And only when there are exactly as many as said."""
    body = b"".join(records)
    assert wire.split(body, len(records)) == records
    for count in (len(records) - 1, len(records) + 1):
        with pytest.raises(Refused):
            wire.split(body, count)
    with pytest.raises(Refused):
        wire.split(body[:-1], len(records))


@pytest.mark.parametrize(
    "body", [b"\xc1", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff"]
)
def test_a_broken_body_is_refused(body: bytes) -> None:
    """Depth and huge lengths too."""
    with pytest.raises(Refused):
        wire.split(body, 1)


@pytest.mark.parametrize(
    "data", [b"", b"\x93", b"\xdc", b"\xdc\0\x14", b"\x93\x63\x01", b"\x80\x02"]
)
def test_a_kind_that_cannot_be_told_is_unknown(data: bytes) -> None:
    """Reads two bytes, and never fails."""
    assert wire.kind_of(data) == "unknown"


def _nested(depth: int, core: bytes) -> bytes:
    return b"\x91" * depth + core


@pytest.mark.parametrize(
    "data",
    [
        b"\xd6\xff\0\0\0\0",
        b"\x81\xa1a\xd6\xff\0\0\0\0",
        _nested(1000, b"\xd6\xff\0\0\0\0"),
        _nested(100_000, b"\xc0"),
        b"\xd4\x05x",
        b"\x82\xa1a\x01\xa1a\x01",
        b"\x81\x01\x01",
        b"\x01\x01",
    ],
)
def test_foreign_values_are_read_as_strictly(data: bytes) -> None:
    """A sensor's message: no extension, no timestamp, no repeated key, no depth breaks it."""
    for read in (wire.unpack_plain, wire.decode):
        with pytest.raises(Refused):
            read(data)


def test_foreign_values_are_told_in_plain_words() -> None:
    """Also where bytes look like the head of a timestamp and are none."""
    value = {"a": [1, 2.5, None, True, b"\xd6\xff", "\u00e4"], "b": {"c": -1}}
    assert wire.unpack_plain(msgpack.packb(value)) == value
    deep = wire.unpack_plain(_nested(500, b"\xc4\x02\xd6\xff"))
    for _ in range(500):
        assert isinstance(deep, list)
        (deep,) = deep
    assert deep == b"\xd6\xff"
