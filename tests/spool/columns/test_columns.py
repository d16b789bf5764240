"""Columns: the same bytes come back, whatever was in them, and strangers' bytes do no harm."""

import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.spool.columns import body as columns
from mesh.spool.columns import chunks
from mesh.spool.columns.templates import SLOTS_MAX, template
from mesh.spool.columns.varints import unsigned
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_RAW_BYTES_MAX
from schemas.messages import Event, Severity
from tests.spool.columns.numbers import BITS, RECORDS, float_of, metric, reading

Because = RefusedBecause
_DICE = random.Random(1)
STEADY = [
    reading(n, {"current": round(_DICE.gauss(2, 0.5), 5), "flow": _DICE.choice([32.0, 31.001])})
    for n in range(200)
]
MIXED = [
    reading(n, {"a": n / 10, **({"b": float(n)} if n % 5 else {})}) if n % 3
    else metric(n, "up", float(n % 7), {"job": str(n % 4)})
    for n in range(240)
]  # fmt: skip


def _body(records: list[bytes]) -> bytes:
    data = columns.encode(records)
    assert data is not None, "columns suit them"
    return data


def _opened(data: bytes, records: list[bytes]) -> bytes:
    return columns.decode(data, len(records), sum(map(len, records)))


@given(RECORDS)
def test_whatever_is_written_comes_back(records: list[bytes]) -> None:
    """To the byte: mixed kinds and topics, fields that are missing, any bits, any times."""
    data = columns.encode(records)
    if data is not None:
        assert _opened(data, records) == b"".join(records)


@given(st.lists(st.tuples(BITS, BITS), min_size=2, max_size=150))
def test_any_floats_make_columns(bits: list[tuple[int, int]]) -> None:
    """No float is refused: NaN keeps its payload, zero its sign, the huge and the tiny all bits."""
    records = [
        reading(n, {"a": float_of(one), "b": float_of(two)}) for n, (one, two) in enumerate(bits)
    ]
    assert _opened(_body(records), records) == b"".join(records)


@pytest.mark.parametrize("records", [STEADY, MIXED], ids=["steady", "mixed"])
def test_columns_are_a_fraction_of_rows(records: list[bytes]) -> None:
    """Missing fields and interleaved kinds cost little more than one table does."""
    raw = b"".join(records)
    assert _opened(_body(records), records) == raw
    assert len(_body(records)) < len(raw) / 8


def test_a_missing_field_does_not_begin_a_new_series() -> None:
    """A counter that goes on across records with and without its neighbour stays a line."""
    whole = [reading(n, {"a": float(n), "b": 1.0}) for n in range(200)]
    holes = [reading(n, {"a": float(n), **({"b": 1.0} if n % 3 else {})}) for n in range(200)]
    # What is more: the second template, and which record has which.
    assert len(_body(holes)) < len(_body(whole)) + 100


def test_a_few_exceptions_do_not_spoil_a_column() -> None:
    """NaN among decimals costs the NaN, not the decimals."""
    values = [round(_DICE.gauss(20, 3), 3) for _ in range(300)]
    clean = [reading(n, {"a": value}) for n, value in enumerate(values)]
    spoilt = list(clean)
    for n in (7, 90, 91):
        spoilt[n] = reading(n, {"a": float_of(0x7FF8_0000_DEAD_BEEF)})
    spoilt[200] = reading(200, {"a": -0.0})
    assert _opened(_body(spoilt), spoilt) == b"".join(spoilt)
    assert len(_body(spoilt)) < len(_body(clean)) + 60


def test_columns_are_no_worse_than_plain_pcodec() -> None:
    """A sensor that prints all its digits costs what pcodec makes of its floats, and no more."""
    dice = np.random.default_rng(3)
    for values in (
        dice.normal(size=500),
        np.cumsum(dice.normal(size=500)),
        dice.normal(size=500).astype(np.float32).astype(np.float64),
        np.sin(np.arange(500) / 20),
    ):
        records = [reading(n, {"a": float(value)}) for n, value in enumerate(values)]
        constant = [reading(n, {"a": 1.0}) for n in range(500)]
        rest = len(_body(constant))
        assert len(_body(records)) <= rest + len(chunks.write_floats(values)) + 1


@pytest.mark.parametrize(
    "records",
    [
        [wire.encode(Event(n, n, f"event {n}", Severity.NOTICE, "")) for n in range(100)],
        [wire.encode(Event(0, 0, "same", Severity.NOTICE, "")) for _ in range(100)],
        [b"\xc1"] * 100,
        [b"\x92\x01"] * 100,
        [b"\x91" * 40 + b"\x01"] * 100,
        [b"\xdc\x40\x00" + b"\xcc\x07" * 0x4000] * 3,
        [b"\xca\0\0\0\0"] * 100,
        [b"\x81\x01\xcc\x07"] * 100,
        [b"\xcc\x07\xcc\x07"] * 100,
    ],
    ids=["alike", "numberless", "noise", "short", "deep", "many", "float32", "key", "two"],
)
def test_what_has_no_columns_is_left_alone(records: list[bytes]) -> None:
    """Too little in common, no numbers, or bytes of another form."""
    assert columns.encode(records) is None


def test_numbers_of_one_record_are_series_of_their_own() -> None:
    """Also where they stand under the same key, or under none."""
    record = b"\x93\xcb" + bytes(8) + b"\xcb" + bytes(8) + b"\x81\xa1a\xcb" + bytes(8)
    assert len({slot.series for slot in template(record).slots}) == 3
    records = [
        record[:2] + struct.pack(">d", n) + record[10:11] + struct.pack(">d", 1 / (n + 1))
        + record[19:]
        for n in range(50)
    ]  # fmt: skip
    assert _opened(_body(records), records) == b"".join(records)


def test_too_many_shapes_are_left_alone() -> None:
    """A name of each length: the search for what is alike is bounded, and gives up."""
    records = [
        metric(n, "m", 1.0, {"x" * (n % 250 + 1): "y" * (250 - n % 250)}) for n in range(700)
    ]
    found = columns.encode(records)
    assert found is None or _opened(found, records) == b"".join(records)


# --- strangers -------------------------------------------------------------------------------


def _judge(data: bytes, records: list[bytes]) -> bool:
    """Whether it opens; to exactly as many bytes as were said, or else it is refused."""
    size = sum(map(len, records))
    try:
        opened = columns.decode(data, len(records), size)
    except Refused:
        return False
    assert len(opened) == size
    return True


@given(st.data())
@settings(max_examples=300)
def test_mutated_bytes_are_refused_or_have_their_length(data: st.DataObject) -> None:
    """Whatever the bytes, the only exception is ``Refused``; the batch's chain judges the rest."""
    records = data.draw(st.sampled_from([STEADY, MIXED]))
    body = bytearray(_body(records))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(body) - 1))
        body[where] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(body))))
    _judge(bytes(body[:cut]), records)


def test_every_byte_changed_and_every_cut() -> None:
    """Row 4: no cut opens. Row 8: no changed byte does more than to give other numbers."""
    records = MIXED[:90]
    body = _body(records)
    for size in range(len(body)):
        assert not _judge(body[:size], records)
    for at in range(len(body)):
        for change in (0x01, 0x80, 0xFF):
            _judge(body[:at] + bytes((body[at] ^ change,)) + body[at + 1 :], records)
    assert not _judge(body + b"\0", records)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    """At the front, and behind a good beginning."""
    head = bytes((1, len(chunks.HEAD))) + chunks.HEAD
    for data in (noise, head + noise):
        with pytest.raises(Refused):
            columns.decode(data, 3, 90_001)


@pytest.mark.parametrize(
    ("count", "raw_bytes"), [(0, 10), (11, 10), (1, BATCH_RAW_BYTES_MAX + 1), (-1, 10)]
)
def test_a_size_out_of_bounds_is_refused(count: int, raw_bytes: int) -> None:
    """Refusal 29: before anything is looked at."""
    with pytest.raises(Refused) as refused:
        columns.decode(_body(STEADY), count, raw_bytes)
    assert refused.value.reason is Because.TOO_LARGE


def _templates(words: bytes, size: int | None = None) -> bytes:
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = squeezer.compress(words) + squeezer.flush()
    head = bytes((1, len(chunks.HEAD))) + chunks.HEAD
    said = len(words) if size is None else size
    return head + unsigned(said) + unsigned(len(deflated)) + deflated


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_templates(bytes(1 << 28)), Because.TOO_LARGE),
        (_templates(bytes(1 << 28), 100), Because.MALFORMED),
        (_templates(b"\x01\xc0", 3), Because.MALFORMED),
        (_templates(b"\x05\xc0"), Because.MALFORMED),
        (_templates(b"\x01\xc1"), Because.MALFORMED),
        (_templates(b"\x02\xc0\xc0"), Because.MALFORMED),
        (_templates(b""), Because.MALFORMED),
        (_templates(b"\x01\xc0" * 11), Because.MALFORMED),
        (
            _templates((unsigned(3 + 2 * 4096) + b"\xdc\x10\0" + b"\xcc\0" * 4096) * 3),
            Because.TOO_LARGE,
        ),
    ],
    ids=["huge", "longer", "shorter", "cut", "noise", "two", "none", "many", "slots"],
)
def test_a_bomb_of_templates_is_refused(data: bytes, reason: RefusedBecause) -> None:
    """Refusal 29: longer than it says, than is allowed, or than makes sense. In little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(Refused) as refused:
            columns.decode(data, 10, 100_000)
        assert refused.value.reason is reason
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert SLOTS_MAX < 3 * 4096


def test_strangers_get_little_memory() -> None:
    """Row 8: changed lengths and counts never make a reader allocate much more than the records."""
    body = _body(MIXED)
    dice = random.Random(5)
    tracemalloc.start()
    try:
        for _ in range(400):
            changed = bytearray(body)
            for _ in range(dice.choice((1, 2, 8))):
                changed[dice.randrange(len(body))] = dice.randrange(256)
            _judge(bytes(changed), MIXED)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
