"""The bounds agree with what is written under them."""

import random
from dataclasses import replace

from mesh.spool import batch, frame, journal
from mesh.spool.batch import Labels
from schemas import limits, wire
from schemas.messages import Account, Epoch, Instant, Lane
from schemas.ranges import Ranges
from schemas.stored import Cursor, JournalHeader, LaneMark, Numbers
from tests.schemas.samples import EPOCH

_OWNER = frame.Owner(bytes(16), Epoch(2**64 - 1, 2**64 - 1), bytes(16))


def _spans(count: int) -> Ranges:
    high = 2**62
    return Ranges(tuple((high + 2 * n, high + 2 * n + 1) for n in range(count)))


def test_every_bound_is_exported_and_positive() -> None:
    """A limit stands in the list, or it does not exist."""
    names = {name for name in vars(limits) if name.isupper()}
    assert names == set(limits.__all__)
    assert all(getattr(limits, name) > 0 for name in names)
    assert list(limits.__all__) == sorted(limits.__all__)


def test_the_largest_account_is_a_record() -> None:
    """An account that cannot be appended would stop the spool from opening."""
    explained = {"void": _spans(limits.EXPLAINED_SPANS_MAX)}
    holders = {f"{n:063d}": limits.SEQ_MAX for n in range(limits.HOLDERS_MAX)}
    epoch = _OWNER.epoch
    account = Account(2**62, 2**62, Lane.DECISIONS, epoch, 2**62, 2**62, explained, holders)
    data = wire.encode(account)
    assert len(data) <= limits.RECORD_BYTES_MAX
    assert wire.decode(data) == account


def test_the_largest_journal_header_can_be_written_and_read() -> None:
    """One that cannot would leave the spool degraded for ever."""
    numbers = Numbers(
        LaneMark(2**62, bytes(16)), 2**62, {"void": _spans(limits.EXPLAINED_SPANS_MAX)}, 2**62
    )
    header = JournalHeader(
        bytes(16), EPOCH, bytes(16), 2**62, 2**62, 2**62, 2**62, dict.fromkeys(Lane, numbers)
    )
    data = wire.encode(header)
    assert len(data) <= limits.JOURNAL_HEADER_BYTES_MAX
    assert wire.decode(data) == header
    assert journal._READ_BYTES_MAX > limits.JOURNAL_BYTES_MAX + limits.COMMIT_GROUP_BYTES_MAX


def test_the_largest_cursor_fits_its_slot() -> None:
    """All lanes, all torn to pieces, all holders."""
    spans = _spans(limits.RANGES_MAX // 16)
    released = {f"{_OWNER.epoch}/{lane}": spans for lane in Lane}
    holders = {
        f"{_OWNER.epoch}/{lane}/{n:063d}": 2**62 for lane in Lane for n in range(limits.HOLDERS_MAX)
    }
    data = wire.encode(Cursor(2**62, released, holders))
    assert len(data) + 12 <= limits.CURSOR_BYTES_MAX
    assert wire.decode_as(Cursor, data).released == released


def test_a_batch_that_does_not_shrink_is_still_a_batch() -> None:
    """Noise grows by a few bytes under zstd; what was sealed must be readable."""
    noise = random.Random(1).randbytes(limits.FRAME_BODY_BYTES_MAX)
    frames, bodies, before = [], [], frame.CHAIN_START
    for index in range(limits.BATCH_RAW_BYTES_MAX // limits.FRAME_BODY_BYTES_MAX):
        body = bytes(byte ^ index for byte in noise)
        _, header = frame.pack(_OWNER, 1, Lane.EVENTS, index, 1, body, before, Instant(0, 0))
        before = header.chain_after
        frames.append(header)
        bodies.append(body)
    made = batch.pack(Labels("s" * 63, "n" * 63), frames, bodies)
    assert made.header.raw_bytes == limits.BATCH_RAW_BYTES_MAX
    assert made.header.body_bytes > limits.BATCH_RAW_BYTES_MAX, "it did not shrink"
    assert batch.parse(made.data).header == made.header
    longest = replace(made.header, frames=(4096,) * limits.FRAMES_PER_BATCH_MAX)
    assert len(wire.encode(longest)) <= limits.BATCH_HEADER_BYTES_MAX
