"""Batches: nothing opens to other records than were packed, whoever made the bytes."""

import random
import struct
import zlib
from dataclasses import replace
from hashlib import sha256

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mesh.spool import batch
from mesh.spool.batch import COLUMN_RECORDS_MIN, Batch, Labels
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX, BATCH_RAW_BYTES_MAX
from schemas.messages import BatchHeader, Codec, Lane
from schemas.ranges import Ranges
from tests.spool.columns.numbers import RECORDS as NUMBERS
from tests.spool.columns.numbers import framed, reading
from tests.spool.frames import chained
from tests.spool.world import record

Because = RefusedBecause
_, HEADERS, BODIES = chained([2, 1, 3], first=10)
MADE = batch.pack(Labels("hall", "pump", "eu", "acme"), HEADERS, BODIES)
RECORDS = [record(f"events {n}") for n in range(10, 16)]


def _wrap(header: BatchHeader, body: bytes) -> bytes:
    head = wire.encode(header)
    return struct.pack("<4sB3xII", b"HFba", 1, len(head), zlib.crc32(head)) + head + body


def _with(body: bytes, **changes: object) -> bytes:
    """A batch with another body, whose digest and length are right."""
    header = replace(
        MADE.header, body_bytes=len(body), body_digest=sha256(body).digest(), **changes
    )
    return _wrap(header, body)


def test_what_was_packed_is_opened() -> None:
    """Header and records."""
    found = batch.parse(MADE.data)
    assert found == MADE
    assert batch.open_records(found) == RECORDS
    assert found.digest == sha256(MADE.data).digest()
    header = found.header
    assert (header.first, header.last, header.count, header.frames) == (10, 15, 6, (2, 1, 3))
    assert (header.chain_before, header.chain_after) == (
        HEADERS[0].chain_before,
        HEADERS[-1].chain_after,
    )
    assert (header.region, header.tenant, header.priority) == ("eu", "acme", Lane.EVENTS.priority)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 2**60))
def test_any_frames_make_a_batch(counts: list[int], first: int) -> None:
    """However many, wherever they begin."""
    _, headers, bodies = chained(counts, first=first)
    found = batch.parse(batch.pack(Labels("s", "n"), headers, bodies).data)
    assert batch.open_records(found) == [
        record(f"events {n}") for n in range(first, first + sum(counts))
    ]
    assert set(found.header.present) == set(range(first, first + sum(counts)))


def test_the_chain_is_known_where_a_frame_begins() -> None:
    """And nowhere else: there other records would have to have been cut otherwise."""
    _, frames, bodies = chained([2, 1, 3], first=7)
    packed = batch.parse(batch.pack(Labels("s", "n"), frames, bodies).data)
    opened = batch.open_batch(packed)
    found = {n: batch.chain_inside(packed.header, opened, n) for n in range(8, 13)}
    assert found == {
        8: None,
        9: frames[1].chain_before,
        10: frames[2].chain_before,
        11: None,
        12: None,
    }


def test_every_bit_flip_is_refused() -> None:
    """Row 8: reserved bytes too."""
    for bit in range(8 * len(MADE.data)):
        data = bytearray(MADE.data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            batch.open_records(batch.parse(bytes(data)))


@pytest.mark.parametrize("size", range(0, len(MADE.data), 7))
def test_every_cut_is_refused(size: int) -> None:
    """Row 4, for a file that is never written in place, and for what crosses a link."""
    with pytest.raises(Refused):
        batch.parse(MADE.data[:size])


def test_nothing_may_follow() -> None:
    """Not even a zero."""
    with pytest.raises(Refused) as refused:
        batch.parse(MADE.data + b"\0")
    assert refused.value.reason is Because.BAD_CHECKSUM


def test_too_long_and_unknown_batches_are_refused() -> None:
    """Before anything in them is looked at."""
    with pytest.raises(Refused) as refused:
        batch.parse(bytes(BATCH_BYTES_MAX + 1))
    assert refused.value.reason is Because.TOO_LARGE
    with pytest.raises(Refused) as refused:
        batch.parse(MADE.data[:4] + b"\2" + MADE.data[5:])
    assert refused.value.reason is Because.BAD_VERSION
    with pytest.raises(Refused) as refused:
        batch.parse(b"HFxx" + MADE.data[4:])
    assert refused.value.reason is Because.MALFORMED


def _open(data: bytes) -> Batch:
    found = batch.parse(data)
    batch.open_records(found)
    return found


def test_a_bomb_is_refused_before_it_opens() -> None:
    """Refusal 29: it declares a GiB, or nothing, or the right size and is longer."""
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    assert len(bomb) < 1 << 16
    raw = b"".join(BODIES)
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(raw)
    long = zstandard.ZstdCompressor().compress(bytes(BATCH_RAW_BYTES_MAX))
    for body in (bomb, unknown, long):
        with pytest.raises(Refused) as refused:
            _open(_with(body))
        assert refused.value.reason is Because.TOO_LARGE


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    """It declares what the header says, and opens to more."""
    raw = b"".join(BODIES)
    longer = bytearray(zstandard.ZstdCompressor().compress(raw + b"\xc0"))
    assert longer[5] == (len(raw) + 1) & 0xFF, "one byte of content size"
    longer[5] -= 1
    with pytest.raises(Refused):
        _open(_with(bytes(longer)))


def test_two_frames_and_leavings_are_refused() -> None:
    """One zstd frame, and nothing behind it."""
    raw = b"".join(BODIES)
    one = zstandard.ZstdCompressor().compress(raw)
    assert _open(_with(one))
    for body in (one + one, one + b"\0", one + b"\x50\x2a\x4d\x18\0\0\0\0"):
        with pytest.raises(Refused) as refused:
            _open(_with(body))
        assert refused.value.reason is Because.MALFORMED


def test_a_dictionary_and_a_wide_window_are_refused() -> None:
    """Nobody here has the dictionary, nor memory to give away."""
    raw = b"".join(BODIES)
    samples = zstandard.ZstdCompressionDict(bytes(range(256)) * 40)
    samples.precompute_compress(level=1)
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    stream = wide.compress(raw) + wide.flush()
    for body in (stream, zstandard.ZstdCompressor(dict_data=samples).compress(raw)[:-1]):
        with pytest.raises(Refused):
            _open(_with(body))


def test_a_wrong_digest_is_refused() -> None:
    """Of the body; the header itself is right."""
    header = replace(MADE.header, body_digest=bytes(32))
    with pytest.raises(Refused) as refused:
        batch.parse(_wrap(header, MADE.body))
    assert refused.value.reason is Because.BAD_CHECKSUM


def test_an_unknown_critical_extension_is_refused_and_an_optional_one_is_not() -> None:
    """A reader must know what it cannot do without."""
    with pytest.raises(Refused) as refused:
        batch.parse(_with(MADE.body, critical={"sealed.v9": b""}))
    assert refused.value.reason is Because.UNKNOWN_EXTENSION
    assert batch.open_records(batch.parse(_with(MADE.body, optional={"x": b"y"}))) == RECORDS


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 5},
        {"first": 9},
        {"last": 16},
        {"present": Ranges(((10, 15),))},
        {"present": Ranges()},
        {"present": Ranges(((10, 13), (14, 16)))},
        {"frames": (6, 1)},
        {"frames": ()},
    ],
)
def test_numbers_that_disagree_are_refused(changes: dict[str, object]) -> None:
    """First, last, count, ranges and frames say the same."""
    with pytest.raises(Refused) as refused:
        batch.parse(_with(MADE.body, **changes))
    assert refused.value.reason is Because.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chain_before": b"x" * 16}, Because.BAD_CHAIN),
        ({"chain_after": b"x" * 16}, Because.BAD_CHAIN),
        ({"frames": (1, 2, 3)}, Because.BAD_CHAIN),
        ({"schema": "records.v2"}, Because.BAD_VERSION),
        ({"sealed": True}, Because.BAD_VERSION),
        ({"raw_bytes": MADE.header.raw_bytes + 1}, Because.TOO_LARGE),
        (
            {"count": 7, "last": 16, "present": Ranges(((10, 17),)), "frames": (2, 1, 4)},
            Because.MALFORMED,
        ),
        (
            {"count": 5, "last": 14, "present": Ranges(((10, 15),)), "frames": (2, 1, 2)},
            Because.MALFORMED,
        ),
    ],
)
def test_records_that_are_not_the_header_s_are_refused(
    changes: dict[str, object], reason: RefusedBecause
) -> None:
    """Chain, schema, seal, length and count are those of the body."""
    with pytest.raises(Refused) as refused:
        _open(_with(MADE.body, **changes))
    assert refused.value.reason is reason


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    """Whatever comes, the only exception is ``Refused``."""
    for data in (noise, MADE.data[:16] + noise, _with(noise or b"\0")):
        with pytest.raises(Refused):
            _open(data)


# --- columns ---------------------------------------------------------------------------------

READINGS = [reading(n, {"a": n / 8, "b": float(n * n % 7)}) for n in range(90)]
NARROW = batch.pack(Labels("hall", "pump"), *framed(READINGS, 40, Lane.READINGS))


def test_lanes_of_numbers_rest_as_columns() -> None:
    """Metrics and readings, where that is smaller; the records are the same bytes."""
    rows = batch.pack(Labels("s", "n"), *framed(READINGS, 40, Lane.METRICS), rows_only=True)
    narrow = batch.pack(Labels("s", "n"), *framed(READINGS, 40, Lane.METRICS))
    assert (rows.header.codec, narrow.header.codec) == (Codec.ROWS_ZSTD, Codec.COLUMNS)
    assert batch.open_records(batch.parse(rows.data)) == READINGS
    assert batch.open_records(batch.parse(narrow.data)) == READINGS
    assert len(narrow.data) < len(rows.data)
    assert narrow.header.chain_after == rows.header.chain_after


def test_other_lanes_small_runs_and_wide_columns_rest_as_rows() -> None:
    """Columns are never larger than rows, and are not tried where they save little."""
    dice = random.Random(1)
    wide = [reading(n, {"a": 1.0}, f"{dice.randrange(10**9)}") for n in range(90)]
    for records, lane in (
        (READINGS, Lane.EVENTS),
        (READINGS[: COLUMN_RECORDS_MIN - 1], Lane.READINGS),
        (wide, Lane.READINGS),
        ([reading(0, {"a": 1.0})] * 90, Lane.READINGS),
    ):
        made = batch.pack(Labels("s", "n"), *framed(records, 40, lane))
        assert made.header.codec is Codec.ROWS_ZSTD
        assert batch.open_records(batch.parse(made.data)) == records


@given(NUMBERS, st.integers(1, 50), st.sampled_from([Lane.METRICS, Lane.READINGS]))
def test_any_numbers_make_a_batch(records: list[bytes], frame_records: int, lane: Lane) -> None:
    """Whatever the records, in whichever codec, the same bytes come back."""
    made = batch.pack(Labels("s", "n"), *framed(records, frame_records, lane))
    assert batch.open_records(batch.parse(made.data)) == records


def test_every_bit_flip_of_columns_is_refused() -> None:
    """Row 8: as for rows."""
    for bit in range(8 * len(NARROW.data)):
        data = bytearray(NARROW.data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            batch.open_records(batch.parse(bytes(data)))


@given(st.data())
def test_columns_whose_digest_was_made_right_do_not_pass_the_chain(data: st.DataObject) -> None:
    """Row 8: a stranger can make digests, but other numbers do not lead to the chain."""
    body = bytearray(NARROW.body)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    header = replace(NARROW.header, body_digest=sha256(body).digest())
    try:
        assert batch.open_records(batch.parse(_wrap(header, bytes(body)))) == READINGS
    except Refused:
        return


def test_a_body_in_another_codec_than_it_says_is_refused() -> None:
    """Rows called columns, and the other way round."""
    for made, codec in ((MADE, Codec.COLUMNS), (NARROW, Codec.ROWS_ZSTD)):
        with pytest.raises(Refused):
            _open(_wrap(replace(made.header, codec=codec), made.body))
