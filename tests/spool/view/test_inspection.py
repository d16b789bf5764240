"""Inspections: any journal, batch or piece is listed, whole or damaged, without its store."""

import random
from itertools import accumulate, pairwise

import pytest

from mesh.spool import batch as batches
from mesh.spool.batch import Labels
from mesh.spool.frame import HEADER_BYTES, Owner, pack
from mesh.spool.journal import END, Journal, journal_path
from mesh.spool.view.inspection import INSPECTED_BYTES_MAX, FileKind, Inspection, inspect
from mesh.spool.view.stretch import Stretch
from schemas import wire
from schemas.errors import Refused, RefusedBecause
from schemas.messages import BatchHeader, Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import JournalHeader, LaneMark, Numbers, Reserved
from simulator.disk import SimDisk
from tests.golden.make import BATCH_RECORDS, FOLDER, RECORDS
from tests.spool.frames import AT, EPOCH, OWNER, chained

LABELS = Labels("hall", "pump")
COUNTS = [2, 1, 3]
FRAMES, HEADERS, BODIES = chained(COUNTS)
ENDS = list(accumulate(HEADER_BYTES + len(body) for body in BODIES))
HEADER = JournalHeader(
    OWNER.store, EPOCH, OWNER.boot, 1, 5, 5, 5, {Lane.EVENTS: Numbers(LaneMark(0, bytes(16)), 64)}
)
BATCH = batches.pack(LABELS, HEADERS, BODIES).data


def _journal(data: bytes = FRAMES) -> bytes:
    disk = SimDisk()
    disk.make_directory("journal")
    made = Journal.create(disk, HEADER)
    made.append(data + END)
    return disk.contents()[journal_path(1)].removesuffix(END)


WHOLE = _journal()
HEAD_BYTES = len(WHOLE) - len(FRAMES)


def _flipped(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _listed(data: bytes) -> tuple[Inspection, list[Stretch]]:
    inspection = inspect(data)
    return inspection, list(inspection.stretches)


def _numbers(stretches: list[Stretch]) -> list[int]:
    return [
        number
        for item in stretches
        if item.lane is not None and not item.wrong
        for number in range(item.first, item.first + item.count)
    ]


def test_a_journal_is_listed_frame_by_frame() -> None:
    """Head, offsets, numbers, time, boot and chains; each frame's records open."""
    inspection, listed = _listed(WHOLE)
    assert (inspection.kind, inspection.head, inspection.wrong) == (FileKind.JOURNAL, HEADER, "")
    assert [item.offset for item in listed] == [HEAD_BYTES + end for end in [0, *ENDS[:-1]]]
    assert [(item.first, item.count) for item in listed] == [(0, 2), (2, 1), (3, 3)]
    assert all((item.at, item.boot) == (AT, OWNER.boot) for item in listed)
    assert all(a.chain_after == b.chain_before for a, b in pairwise(listed))
    assert not any(item.wrong or item.unlinked or item.missing for item in listed)
    assert [b"".join(item.records()) for item in listed] == BODIES


def test_a_control_frame_tells_what_it_reserves() -> None:
    """Reservations are shown with their lanes."""
    body = wire.encode(Reserved({Lane.EVENTS: 128}))
    head, _ = pack(OWNER, 1, None, 0, 0, body, bytes(16), AT)
    _, listed = _listed(_journal(head + body))
    assert listed[0].control == Reserved({Lane.EVENTS: 128})
    assert listed[0].lane is None


def test_each_flipped_bit_is_told_and_costs_its_frame_only() -> None:
    """Row 8: a sample of all bits of a journal; what is not hit is listed as before."""
    bits = [*range(40, 64), *random.Random(7).sample(range(len(WHOLE) * 8), 400)]
    for bit in bits:
        try:
            inspection, listed = _listed(_flipped(WHOLE, bit))
        except Refused:
            assert bit // 8 < 5, "a version or a kind that is not known"
            continue
        assert inspection.wrong or any(item.wrong for item in listed), bit
        place = bit // 8 - HEAD_BYTES
        hit = next((n for n, end in enumerate(ENDS) if 0 <= place < end), None)
        kept = [n for n, header in enumerate(HEADERS) if n != hit]
        expected = [number for n in kept for number in range(HEADERS[n].first, HEADERS[n].stop)]
        assert _numbers(listed) == expected, bit


def test_a_broken_body_names_its_numbers_and_a_broken_header_its_neighbours() -> None:
    """Row 9: with a whole header the numbers are known, without one they lie between."""
    body = HEAD_BYTES + ENDS[0] + HEADER_BYTES + 3
    _, listed = _listed(_flipped(WHOLE, body * 8))
    assert [str(item.lost) for item in listed] == ["none", "2", "none"]
    header = HEAD_BYTES + ENDS[0] + 20
    _, listed = _listed(_flipped(WHOLE, header * 8))
    assert [(str(item.lost), str(item.missing)) for item in listed] == [
        ("none", "none"),
        ("none", "none"),
        ("none", "2"),
    ]
    assert listed[1].lane is None
    assert "no whole frame header" in listed[1].wrong


def test_torn_at_every_byte() -> None:
    """Row 4: what is whole is listed, and the rest is one stretch that says why it is not."""
    for cut in range(HEAD_BYTES, len(WHOLE)):
        _, listed = _listed(WHOLE[:cut])
        whole = sum(1 for end in ENDS if HEAD_BYTES + end <= cut)
        assert [item.wrong for item in listed[:whole]] == [""] * whole
        rest = listed[whole:]
        torn = cut > (HEAD_BYTES + ENDS[whole - 1] if whole else HEAD_BYTES)
        assert len(rest) == torn
        assert all(item.wrong and item.end == cut for item in rest)


def test_zeros_behind_the_end_are_unused() -> None:
    """Row 6: a size that grew without its data, and what the file held before, are no damage."""
    _, listed = _listed(WHOLE + bytes(4096))
    assert listed[-1].unused
    assert not listed[-1].wrong
    assert _numbers(listed) == list(range(6))
    other, _, _ = chained([4], owner=Owner(b"O" * 16, EPOCH, b"B" * 16))
    _, listed = _listed(WHOLE + bytes(16) + other)
    assert listed[-1].unused
    assert _numbers(listed) == list(range(6))


def test_zeros_between_frames_are_damage() -> None:
    """Row 10: a sector that reads as zeros, with whole frames behind it."""
    start, end = HEAD_BYTES + ENDS[0], HEAD_BYTES + ENDS[1]
    _, listed = _listed(WHOLE[:start] + bytes(end - start) + WHOLE[end:])
    assert listed[1].wrong.endswith("zeros only")
    assert str(listed[2].missing) == "2"


def test_frames_of_another_store_are_none() -> None:
    """Rows 7, 11: valid frames of somebody else behind ours are named, and not counted."""
    other, _, _ = chained([4], owner=Owner(b"O" * 16, Epoch(9, 9), b"B" * 16))
    _, listed = _listed(WHOLE + other)
    assert _numbers(listed) == list(range(6))
    assert "events 0-3 of store 4f4f4f4f, epoch 9-" in listed[-1].wrong


def test_frames_of_the_journal_that_stood_there_before_are_none() -> None:
    """Row 7: the same store, life and lane, valid in themselves: the number of the journal tells.

    Behind the end they are unused bytes; behind a torn one they are named, and not counted.
    """
    before, _, _ = chained([4], first=6, journal=7)
    _, listed = _listed(WHOLE + END + before)
    assert _numbers(listed) == list(range(6))
    assert listed[-1].unused
    _, listed = _listed(WHOLE + before)
    assert _numbers(listed) == list(range(6))
    assert "events 6-9 of store 53535353" in listed[-1].wrong
    assert "journal 7" in listed[-1].wrong
    # Without a head its name tells, or else its first frame.
    headless = bytes(HEAD_BYTES) + FRAMES + END + before
    assert _numbers(_listed(headless)[1]) == list(range(6))
    assert _numbers(list(inspect(headless, 7).stretches)) == list(range(6, 10))


def test_a_frame_that_does_not_go_on_from_the_one_before_is_marked() -> None:
    """A group that was given up, or a frame that is not what it was."""
    own, headers, _ = chained([2])
    head, _ = pack(OWNER, 1, Lane.EVENTS, headers[-1].stop, 2, BODIES[0], b"x" * 16, AT)
    _, listed = _listed(_journal(own + head + BODIES[0]))
    assert [item.unlinked for item in listed] == [False, True]
    assert not any(item.wrong for item in listed)


def test_a_journal_whose_head_is_gone_is_read_by_its_frames() -> None:
    """Row 10: store and life are taken from the first whole frame."""
    for data in (_flipped(WHOLE, 30 * 8), bytes(HEAD_BYTES) + FRAMES):
        inspection, listed = _listed(data)
        assert inspection.head is None
        assert inspection.wrong
        assert inspection.owner == OWNER
        assert _numbers(listed) == list(range(6))


def test_a_piece_in_quarantine_is_read() -> None:
    """Frames without a head, and a broken one among them."""
    piece = _flipped(FRAMES[: ENDS[1]], (HEADER_BYTES + 2) * 8)
    inspection, listed = _listed(piece)
    assert (inspection.kind, inspection.wrong) == (FileKind.PIECE, "")
    assert [str(item.lost) for item in listed] == ["0-1", "none"]


def test_a_batch_is_listed_with_its_frames_and_chains() -> None:
    """Its header, and each frame that it was made of with its numbers."""
    inspection, listed = _listed(BATCH)
    assert isinstance(inspection.head, BatchHeader)
    assert inspection.kind is FileKind.BATCH
    assert [(item.first, item.count) for item in listed] == [(0, 2), (2, 1), (3, 3)]
    assert [item.chain_after for item in listed] == [header.chain_after for header in HEADERS]
    assert [b"".join(item.records()) for item in listed] == BODIES


def test_each_flipped_bit_of_a_batch_is_told() -> None:
    """Row 8: a sample; where its header is whole the numbers that are lost are named."""
    for bit in (*range(40, 64), *random.Random(3).sample(range(len(BATCH) * 8), 200)):
        try:
            inspection, listed = _listed(_flipped(BATCH, bit))
        except Refused:
            assert bit // 8 < 5, "a version or a kind that is not known"
            continue
        assert inspection.wrong
        assert not listed
        if inspection.head is not None:
            assert inspection.lost == Ranges(((0, 6),))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", RefusedBecause.MALFORMED),
        (b"SQLite format 3\0" * 20, RefusedBecause.MALFORMED),
        (WHOLE[:4] + b"\x02" + WHOLE[5:], RefusedBecause.BAD_VERSION),
        (BATCH[:4] + b"\x02" + BATCH[5:], RefusedBecause.BAD_VERSION),
        (b"HFjr" + bytes(INSPECTED_BYTES_MAX), RefusedBecause.TOO_LARGE),
    ],
    ids=["empty", "another program's", "newer journal", "newer batch", "too large"],
)
def test_what_is_not_known_is_refused(data: bytes, reason: RefusedBecause) -> None:
    """Row 48: a reader says that it does not know a format, and guesses nothing."""
    with pytest.raises(Refused) as refused:
        inspect(data)
    assert refused.value.reason is reason


def test_files_of_version_1_are_listed() -> None:
    """Row 48: what was written on the day that version 1 was made."""
    inspection, listed = _listed((FOLDER / "journal.1").read_bytes())
    assert not inspection.wrong
    assert [record for item in listed for record in item.records()] == RECORDS
    inspection, listed = _listed((FOLDER / "batch.1").read_bytes())
    assert not inspection.wrong
    assert [item.records() for item in listed] == BATCH_RECORDS
