"""Decoding: strict, alone and in groups."""

import json

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.edge.decode import Decoder, Layout
from schemas.errors import RefusedBecause
from schemas.limits import READING_BYTES_MAX

AB = Layout(("a", "b"), ("a", "b"))
GOOD = b'{"a":1,"b":2.5}'

BAD = [
    (b"", RefusedBecause.MALFORMED, "not JSON"),
    (b"hello", RefusedBecause.MALFORMED, "not JSON"),
    (b'{"a":1,"b":2', RefusedBecause.MALFORMED, "not JSON"),
    (b'{"a":1,"b":2}{}', RefusedBecause.MALFORMED, "not JSON"),
    (b"\xff\xfe", RefusedBecause.MALFORMED, "not JSON"),
    (b"[1,2]", RefusedBecause.WRONG_TYPE, "an array where an object"),
    (b"null", RefusedBecause.WRONG_TYPE, "null where an object"),
    (b'{"a":"1","b":2}', RefusedBecause.WRONG_TYPE, "'a': text where a number"),
    (b'{"a":true,"b":2}', RefusedBecause.WRONG_TYPE, "'a': a boolean where a number"),
    (b'{"a":1,"b":null}', RefusedBecause.WRONG_TYPE, "'b': null where a number"),
    (b'{"a":1,"b":[2]}', RefusedBecause.WRONG_TYPE, "'b': an array where a number"),
    (b'{"a":1}', RefusedBecause.MISSING_FIELD, "'b' is missing; there is 'a'"),
    (b"{}", RefusedBecause.MISSING_FIELD, "there is nothing"),
    (b'{"a":NaN,"b":2}', RefusedBecause.NOT_A_NUMBER, "no such number"),
    (b'{"a":1,"b":-Infinity}', RefusedBecause.NOT_A_NUMBER, "no such number"),
    (b'{"a":1,"b":1e999}', RefusedBecause.NOT_A_NUMBER, "no such number"),
    (b'{"a":1,"b":1e300}', RefusedBecause.OUT_OF_RANGE, "float32"),
    (b'{"a":1,"b":2,"replay":1}', RefusedBecause.WRONG_TYPE, "true or false"),
    (b"x" * 10_000_000, RefusedBecause.TOO_LARGE, f"at most {READING_BYTES_MAX}"),
]


@pytest.mark.parametrize(("payload", "reason", "detail"), BAD, ids=range(len(BAD)))
def test_bad_payload_is_refused_alone_with_its_reason(
    payload: bytes, reason: RefusedBecause, detail: str
) -> None:
    """A bad payload gets its reason and a detail; its neighbours in the group are decoded."""
    decoded = Decoder(AB).decode([GOOD, payload, GOOD])
    assert list(decoded.kept) == [0, 2]
    assert decoded.rows.tolist() == [[1.0, 2.5], [1.0, 2.5]]
    assert [place for place, _ in decoded.refused] == [1]
    refusal = decoded.refused[0][1]
    assert refusal.reason is reason
    assert detail in refusal.detail
    alone = Decoder(AB).decode([payload])
    assert [item.reason for _, item in alone.refused] == [reason]
    assert alone.rows.shape == (0, 2)


def test_payloads_cannot_reach_each_other() -> None:
    """Pieces of JSON that would fit together across payloads are refused one by one."""
    for pieces in ([b"1,2", b"3"], [b'{"a":1', b'"b":2}'], [b"[", b"]"]):
        decoded = Decoder(AB).decode([GOOD, *pieces, GOOD])
        assert list(decoded.kept) == [0, 3], pieces
        assert len(decoded.refused) == 2


def test_fields_come_in_the_models_order_from_their_keys() -> None:
    """A field stands where its key says; dots descend; other keys are passed over."""
    decoder = Decoder(Layout(("x", "y"), ("deep.er.x", "Y"), time_key="t"))
    decoded = decoder.decode([b'{"Y":2,"z":"?","t":1790000000123,"deep":{"er":{"x":1}}}'])
    assert decoded.rows.tolist() == [[1.0, 2.0]]
    assert decoded.times_ms == [1790000000123.0]
    missing = decoder.decode([b'{"Y":2,"t":1,"deep":{"er":3}}'])
    assert missing.refused[0][1].reason is RefusedBecause.MISSING_FIELD
    timeless = decoder.decode([b'{"Y":2,"deep":{"er":{"x":1}}}'])
    assert "'t' is missing" in timeless.refused[0][1].detail


def test_replay_is_told() -> None:
    """Only ``"replay": true`` makes a replay."""
    decoded = Decoder(AB).decode([GOOD, b'{"a":1,"b":2,"replay":true}'])
    assert list(decoded.replays) == [False, True]


def test_bare_numbers() -> None:
    """A bare number is one field; anything else is refused."""
    decoder = Decoder(Layout(("a",), ("a",), "number"))
    decoded = decoder.decode([b"21.5", b" -3\n", b"21,5", b'"4"', b"true", b"NaN", b"[1]"])
    assert decoded.rows.tolist() == [[21.5], [-3.0]]
    assert [item.reason for _, item in decoded.refused] == [
        RefusedBecause.MALFORMED,
        RefusedBecause.WRONG_TYPE,
        RefusedBecause.WRONG_TYPE,
        RefusedBecause.NOT_A_NUMBER,
        RefusedBecause.WRONG_TYPE,
    ]


def test_msgpack_is_strict() -> None:
    """Repeated keys, extension types, timestamps, NaN and other types are refused."""
    decoder = Decoder(Layout(("a", "b"), ("a", "b"), "msgpack"))
    bad = [
        (b"\x82\xa1a\x01\xa1a\x02", RefusedBecause.MALFORMED),
        (msgpack.packb({"a": 1, "b": 2, "c": msgpack.ExtType(1, b"x")}), RefusedBecause.MALFORMED),
        (msgpack.packb({"a": 1, "b": 2, "c": msgpack.Timestamp(1)}), RefusedBecause.MALFORMED),
        (msgpack.packb({"a": 1, "b": 2}) + b"\x00", RefusedBecause.MALFORMED),
        (msgpack.packb({"a": 1, "b": float("nan")}), RefusedBecause.NOT_A_NUMBER),
        (msgpack.packb({"a": 1, "b": float("inf")}), RefusedBecause.NOT_A_NUMBER),
        (msgpack.packb({"a": 1, "b": True}), RefusedBecause.WRONG_TYPE),
        (msgpack.packb({"a": 1, "b": b"2"}), RefusedBecause.WRONG_TYPE),
        (msgpack.packb([1, 2]), RefusedBecause.WRONG_TYPE),
        (msgpack.packb({"a": 1}), RefusedBecause.MISSING_FIELD),
        (b"\xc1", RefusedBecause.MALFORMED),
        (b"\xdf\xff\xff\xff\xff", RefusedBecause.MALFORMED),
    ]
    good = msgpack.packb({"a": 1, "b": 2**63})
    decoded = decoder.decode([good, *(payload for payload, _ in bad)])
    assert decoded.rows.tolist() == [[1.0, float(2**63)]]
    assert [item.reason for _, item in decoded.refused] == [reason for _, reason in bad]


READING = st.fixed_dictionaries(
    {
        "a": st.one_of(st.floats(width=32), st.integers(-(2**40), 2**40), st.text(max_size=2)),
        "b": st.one_of(st.floats(width=32), st.booleans(), st.none()),
    }
)


@given(st.lists(READING, min_size=1, max_size=8))
def test_a_group_says_what_each_says_alone(readings: list[dict[str, object]]) -> None:
    """The way of the group and the way of one by one agree for any mixture."""
    payloads = [json.dumps(reading).encode() for reading in readings]
    decoder = Decoder(AB)
    together = decoder.decode(payloads)
    rows, refused = [], []
    for place, payload in enumerate(payloads):
        alone = decoder.decode([payload])
        rows += alone.rows.tolist()
        refused += [(place, item.reason) for _, item in alone.refused]
    assert together.rows.tolist() == rows
    assert [(place, item.reason) for place, item in together.refused] == refused
    assert np.isfinite(together.rows).all()
