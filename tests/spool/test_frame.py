"""Frames: what verifies is what was written; what does not is named exactly."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.spool.frame import (
    HEADER_BYTES,
    Broken,
    Owner,
    Whole,
    chain,
    pack,
    parse_header,
    scan,
)
from schemas.errors import Damaged
from schemas.messages import Epoch, Instant, Lane
from tests.spool.frames import AT, EPOCH, OWNER, chained

DATA, HEADERS, _ = chained([2, 1, 3])
ENDS = [0]
for _header in HEADERS:
    ENDS.append(ENDS[-1] + HEADER_BYTES + _header.body_bytes)


def _scan(data: bytes) -> list[Whole | Broken]:
    return list(scan(data, OWNER.store, EPOCH, 1))


def _whole(data: bytes) -> list[int]:
    return [item.header.first for item in _scan(data) if isinstance(item, Whole)]


def test_what_was_written_is_read() -> None:
    """Every field, and the chain from frame to frame."""
    items = _scan(DATA)
    assert [item.header for item in items if isinstance(item, Whole)] == HEADERS
    assert [item.offset for item in items] == ENDS[:-1]
    assert HEADERS[1].chain_before == HEADERS[0].chain_after
    assert HEADERS[0].chain_after == chain(bytes(16), DATA[HEADER_BYTES : ENDS[1]])


@given(
    st.sampled_from([*Lane, None]),
    st.integers(0, 2**62),
    st.binary(max_size=300),
    st.builds(Instant, st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**63 - 1), st.booleans()),
    st.builds(Epoch, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
)
def test_headers_come_back(
    lane: Lane | None, first: int, body: bytes, at: Instant, epoch: Epoch
) -> None:
    """Whatever they say."""
    owner = Owner(b"s" * 16, epoch, b"b" * 16)
    data, header = pack(owner, 1, lane, first, 1, body, b"c" * 16, at)
    assert len(data) == HEADER_BYTES
    assert parse_header(data) == header
    assert list(scan(data + body, owner.store, epoch, 1)) == [Whole(0, header)]


@pytest.mark.parametrize("cut", range(len(DATA)))
def test_a_torn_tail_at_every_byte(cut: int) -> None:
    """Row 4: the frames before it are read; what is left of the torn one is no frame."""
    items = _scan(DATA[:cut])
    complete = sum(end <= cut for end in ENDS[1:])
    assert _whole(DATA[:cut]) == [header.first for header in HEADERS[:complete]]
    rest = cut - ENDS[complete]
    if rest:
        tail = items[-1]
        assert isinstance(tail, Broken)
        assert (tail.offset, tail.end) == (ENDS[complete], cut)
        assert (tail.header is not None) == (rest >= HEADER_BYTES)
    else:
        assert len(items) == complete


@pytest.mark.parametrize("zeros", [1, 128, 4096, 1 << 20])
def test_a_tail_of_zeros(zeros: int) -> None:
    """Row 6: a file that grew without its data ends where its frames end."""
    assert _scan(DATA + bytes(zeros))[-1] == Broken(len(DATA), len(DATA) + zeros, None)
    assert _whole(DATA + bytes(zeros)) == [0, 2, 3]


@pytest.mark.parametrize(
    "owner", [Owner(b"T" * 16, EPOCH, OWNER.boot), Owner(OWNER.store, Epoch(1, 78), OWNER.boot)]
)
def test_old_bytes_of_another_file(owner: Owner) -> None:
    """Row 7: whole frames of another store or epoch behind the end are no frames."""
    stale = chained([1, 1], owner=owner)[0]
    assert _whole(DATA + stale) == [0, 2, 3]
    assert _scan(DATA + stale)[-1] == Broken(len(DATA), len(DATA) + len(stale), None)
    assert _whole(stale + DATA) == [0, 2, 3]


def test_a_bit_flip_costs_its_frame_and_no_other() -> None:
    """Row 8: each bit of the middle frame. What is lost is named, or lies between neighbours."""
    start, end = ENDS[1], ENDS[2]
    for bit in range(8 * start, 8 * end):
        damaged = bytearray(DATA)
        damaged[bit // 8] ^= 1 << bit % 8
        items = _scan(bytes(damaged))
        assert [item.header.first for item in items if isinstance(item, Whole)] == [0, 3], bit
        (broken,) = (item for item in items if isinstance(item, Broken))
        assert (broken.offset, broken.end) == (start, end), bit
        if bit >= 8 * (start + HEADER_BYTES):
            assert broken.header == HEADERS[1], "the header names what is lost"
        else:
            assert broken.header is None, "no field of it is believed"


def test_a_flip_in_the_length_is_never_believed() -> None:
    """Row 9: no length leads the reader astray, even where its checksum was made to match."""
    damaged = bytearray(DATA)
    damaged[ENDS[1] + 12 : ENDS[1] + 16] = (2**32 - 1).to_bytes(4, "little")
    assert _whole(bytes(damaged)) == [0, 3]
    head = bytes(damaged[ENDS[1] : ENDS[1] + 124])
    damaged[ENDS[1] + 124 : ENDS[1] + 128] = zlib.crc32(head).to_bytes(4, "little")
    assert _whole(bytes(damaged)) == [0, 3], "it is out of bounds"
    short = bytearray(DATA)
    short[ENDS[1] + 12 : ENDS[1] + 16] = (3).to_bytes(4, "little")
    head = bytes(short[ENDS[1] : ENDS[1] + 124])
    short[ENDS[1] + 124 : ENDS[1] + 128] = zlib.crc32(head).to_bytes(4, "little")
    assert _whole(bytes(short)) == [0, 3], "a length within bounds does not verify either"


@pytest.mark.parametrize("start", range(0, len(DATA), 97))
def test_a_lost_sector_costs_what_lies_in_it(start: int) -> None:
    """Row 10: zeros in the middle; what follows is found."""
    damaged = DATA[:start] + bytes(min(64, len(DATA) - start)) + DATA[start + 64 :]
    kept = [
        header.first
        for header, low, high in zip(HEADERS, ENDS, ENDS[1:], strict=False)
        if high <= start or low >= start + 64
    ]
    assert set(kept) <= set(_whole(damaged))


def test_a_frame_claims_one_place_in_its_lane() -> None:
    """Row 11: the body under another lane's header, or after another chain, does not verify."""
    other = chained([2], lane=Lane.LOGS)[0]
    swapped = DATA[:HEADER_BYTES] + other[HEADER_BYTES:]
    assert _whole(swapped + DATA[ENDS[1] :]) == [2, 3]
    forged = bytearray(DATA)
    forged[88:104] = b"x" * 16
    forged[124:128] = zlib.crc32(bytes(forged[:124])).to_bytes(4, "little")
    assert _whole(bytes(forged)) == [2, 3], "the chain before is part of what is chained"


@pytest.mark.parametrize(
    ("offset", "value"), [(4, 2), (5, 2), (6, 200), (7, 1), (8, 255), (0, 0), (23, 255)]
)
def test_headers_of_another_version_are_not_read(offset: int, value: int) -> None:
    """With a checksum that matches: what is not known is not guessed at."""
    data = bytearray(DATA[:HEADER_BYTES])
    data[offset] = value
    if offset == 8:
        data[8:12] = (4097).to_bytes(4, "little")
    data[124:128] = zlib.crc32(bytes(data[:124])).to_bytes(4, "little")
    with pytest.raises(Damaged):
        parse_header(bytes(data))


@given(st.binary(max_size=400), st.integers(0, 400))
def test_noise_between_frames_is_passed_over(noise: bytes, at: int) -> None:
    """Whatever stands there, nothing is invented, all bytes are told of, and it ends."""
    for data in (noise, DATA[: ENDS[1]] + noise + DATA[ENDS[1] :], DATA + noise[:at]):
        items = _scan(data)
        position = 0
        for item in items:
            assert item.offset == position
            position = item.end
        assert position == len(data)
        assert set(_whole(data)) <= {0, 2, 3}


def test_many_beginnings_cost_little() -> None:
    """A file full of magics is one pass, not one pass for each."""
    data = b"HFfr" * 100_000
    assert _scan(data) == [Broken(0, len(data), None)]
    tail = random.Random(1).randbytes(100_000)
    assert _scan(DATA + tail)[-1] == Broken(len(DATA), len(DATA) + len(tail), None)


def test_times_and_trust_are_kept() -> None:
    """A clock that nobody vouches for is said to be one."""
    head, header = pack(
        OWNER, 1, Lane.LOGS, 0, 1, b"\xc0", bytes(16), Instant(-1, 7, trusted=False)
    )
    assert parse_header(head).at == Instant(-1, 7, trusted=False)
    assert header.at != AT
