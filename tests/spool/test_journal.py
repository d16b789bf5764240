"""Journals and cursors: what they hold after what can happen to a file."""

import errno
import itertools
import random
from dataclasses import replace

import pytest

from mesh.spool import cursor, journal
from mesh.spool.frame import HEADER_BYTES, Broken
from mesh.spool.journal import END, Journal, JournalContent, journal_path
from schemas import limits
from schemas.errors import DiskFailed
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import Cursor, JournalHeader, LaneMark, Numbers
from simulator.disk import SimDisk
from simulator.disk_faults import OperationName
from tests.spool.frames import EPOCH, OWNER, chained

FRAMES, HEADERS, _ = chained([2, 1, 3])
HEADER = JournalHeader(
    OWNER.store, EPOCH, OWNER.boot, 1, 5, 6, 7, {Lane.EVENTS: Numbers(LaneMark(0, bytes(16)), 64)}
)
PATH = journal_path(1)


def _disk() -> SimDisk:
    disk = SimDisk()
    disk.make_directory("journal")
    disk.sync_directory("")
    return disk


def _written() -> SimDisk:
    disk = _disk()
    made = Journal.create(disk, HEADER)
    made.append(FRAMES + END)
    made.close()
    return disk


def _read(disk: SimDisk) -> JournalContent:
    return journal.read(disk, 1, OWNER.store, EPOCH)


def _firsts(content: JournalContent) -> list[int]:
    return [frame.header.first for frame in content.frames]


def test_what_was_written_is_read() -> None:
    """Header and frames, nothing broken."""
    content = _read(_written())
    assert content.header == HEADER
    assert _firsts(content) == [0, 2, 3]
    assert not content.broken
    assert not content.torn_tail


def test_a_journal_counts_once_it_is_durable_with_its_name() -> None:
    """Row 21: before the first frame there is nothing that a crash could take."""
    disk = _disk()
    Journal.create(disk, HEADER)
    for image in disk.crash_images(random.Random(0)):
        assert _read(image).header == HEADER


def test_a_journal_that_cannot_be_begun_leaves_no_file() -> None:
    """Row 16: a full disk is tried again every few seconds; its folder must not fill."""
    for operation in ("write", "sync", "sync_directory"):
        disk = _disk()
        disk.faults.fail(operation, errno.ENOSPC)  # type: ignore[arg-type]
        with pytest.raises(DiskFailed):
            Journal.create(disk, HEADER)
        assert journal.numbers(disk) == []


def test_torn_at_every_byte() -> None:
    """Row 4: whole frames are read, the rest is a torn tail or a frame that is named."""
    whole = _written().contents()[PATH]
    start = len(whole) - len(FRAMES) - 16
    for cut in range(start, len(whole)):
        disk = _written()
        disk.open(PATH, "update").truncate(cut)
        content = _read(disk)
        assert content.header == HEADER
        ends = [frame.end for frame in _read(_written()).frames]
        assert len(content.frames) == sum(end <= cut for end in ends)
        if content.broken:
            (tail,) = content.broken
            assert content.torn_tail == (cut - tail.offset < HEADER_BYTES)


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 40, 90])
def test_a_head_that_was_torn_was_never_begun(cut: int) -> None:
    """No header, no frames; and it opens."""
    disk = _written()
    disk.open(PATH, "update").truncate(cut)
    content = _read(disk)
    assert content.header is None
    assert content.frames == ()


def test_a_flipped_head_keeps_the_frames() -> None:
    """Row 8: what the header said is lost, what was acknowledged is not."""
    whole = _written().contents()[PATH]
    start = len(whole) - len(FRAMES) - 16
    for bit in range(8 * start):
        disk = _written()
        disk.flip_bit(PATH, bit)
        content = _read(disk)
        assert _firsts(content) == [0, 2, 3], bit
        assert content.header is None, bit


@pytest.mark.parametrize("zeros", [1, 4096, 1 << 20])
def test_a_tail_of_zeros_is_an_end(zeros: int) -> None:
    """Row 6: the size grew and the data did not; nothing was begun behind the last frame."""
    disk = _written()
    file = disk.open(PATH, "update")
    file.write(bytes(zeros), file.size())
    content = _read(disk)
    assert _firsts(content) == [0, 2, 3]
    assert not content.broken
    assert not content.torn_tail


def test_a_tail_of_anything_else_is_torn() -> None:
    """Row 4: something was begun and not finished; of a long one the beginning is kept."""
    disk = _written()
    file = disk.open(PATH, "update")
    end = file.size() - 16
    file.write(b"x" * 200_000, end)
    content = _read(disk)
    assert _firsts(content) == [0, 2, 3]
    assert content.torn_tail
    assert content.broken == (Broken(end, end + limits.TORN_TAIL_BYTES_KEPT, None),)


def test_what_a_file_held_before_is_no_part_of_a_journal() -> None:
    """Row 7: a journal begins in the blocks of an older one; its old frames lie behind the end."""
    disk = _written()
    long = Journal.create(disk, replace(HEADER, number=2))
    long.append(chained([2, 1, 3] * 9, journal=2)[0] + END)
    long.close()
    journal.retire(disk, 2, journal.SPARE)
    made = Journal.create(disk, replace(HEADER, number=3), spare=journal.SPARE)
    made.append(chained([5], journal=3)[0] + END)
    assert disk.list("journal") == ["0000000000000001", "0000000000000003"]
    content = journal.read(disk, 3, OWNER.store, EPOCH)
    assert [frame.header.count for frame in content.frames] == [5]
    assert not content.broken
    assert b"HFfr" in disk.contents()[journal_path(3)][made.size :], "they are there"
    assert made.allocated == content.size


@pytest.mark.parametrize("operation", ["write", "sync", "rename", "sync_directory"])
def test_a_spare_that_fails_is_gone(operation: OperationName) -> None:
    """Row 13: nobody knows what it holds; the next journal is a new file."""
    disk = _disk()
    journal.make_spare(disk, 4096)
    disk.faults.fail(operation)
    with pytest.raises(DiskFailed):
        Journal.create(disk, HEADER, spare=journal.SPARE)
    assert disk.list("journal") == []


def test_a_spare_is_made_once_and_is_large_enough() -> None:
    """Row 16: its blocks are there before they are needed."""
    disk = _disk()
    assert journal.make_spare(disk, 4096) == 4096
    assert journal.make_spare(disk, 4096) == 4096
    assert journal.make_spare(disk, 8192) == 8192
    disk.capacity_bytes = 8192
    assert Journal.create(disk, HEADER, spare=journal.SPARE).allocated == 8192
    assert disk.free_bytes() == 0


def test_an_unreadable_sector_costs_what_lies_in_it() -> None:
    """Row 10: the medium fails in the middle; the rest is read."""
    data, headers, _ = chained([40] * 8)
    disk = _disk()
    made = Journal.create(disk, HEADER)
    offset = made.append(data + END)
    disk.damage_extent(PATH, 4096, 100)
    content = _read(disk)
    at, lost = offset, []
    for header in headers:
        end = at + HEADER_BYTES + header.body_bytes
        if at < 8192 and end > 4096:
            lost.append(header.first)
        at = end
    assert lost
    assert _firsts(content) == [h.first for h in headers if h.first not in lost]


def test_another_number_store_or_epoch_is_another_journal() -> None:
    """Row 25, as far as a file that was copied goes."""
    disk = _written()
    disk.rename(PATH, journal_path(2))
    assert journal.read(disk, 2, OWNER.store, EPOCH).header is None
    disk.rename(journal_path(2), PATH)
    for store, epoch in ((b"x" * 16, EPOCH), (OWNER.store, Epoch(1, 78))):
        content = journal.read(disk, 1, store, epoch)
        assert content.header is None
        assert content.frames == ()


def test_foreign_names_are_passed_over() -> None:
    """What a person left there is no journal."""
    disk = _written()
    for name in ("journal/notes.txt", "journal/42", "journal/000000000000004x"):
        disk.open(name, "create")
    assert journal.numbers(disk) == [1]


# --- cursors --------------------------------------------------------------------------------------


def _cursor(generation: int) -> Cursor:
    return Cursor(generation, {f"{EPOCH}/events": Ranges(((0, generation),))})


def _stored(generations: int) -> SimDisk:
    disk = SimDisk()
    for generation in range(1, generations + 1):
        cursor.store(disk, _cursor(generation))
    return disk


def test_the_newest_cursor_holds() -> None:
    """Slots take turns."""
    assert cursor.load(SimDisk()) == Cursor(0)
    for generation in (1, 2, 3, 4):
        assert cursor.load(_stored(generation)) == _cursor(generation)


def test_a_crash_in_mid_write_leaves_the_cursor_before() -> None:
    """Row 23: old or new, never none; where it is written anew beside, too."""
    for fault, beside in itertools.product(("write", "sync"), ("write", "sync", "rename", None)):
        disk = _stored(4)
        disk.faults.fail(fault, path=cursor.PATH)  # type: ignore[arg-type]
        if beside is None:
            cursor.store(disk, _cursor(5))
            assert cursor.load(disk) == _cursor(5)
        else:
            disk.faults.fail(beside, path="cursor.new")  # type: ignore[arg-type]
            with pytest.raises(DiskFailed):
                cursor.store(disk, _cursor(5))
        for image in disk.crash_images(random.Random(0), block_bytes=512):
            assert cursor.load(image) in (_cursor(4), _cursor(5))


def test_the_first_cursor_is_there_or_not() -> None:
    """Row 21: its name is durable when it is stored."""
    disk = _stored(1)
    for image in disk.crash_images(random.Random(0)):
        assert cursor.load(image) == _cursor(1)


def test_damage_to_a_slot_gives_the_other() -> None:
    """Row 23: flipped, cut, zeroed or unreadable."""
    for bit in range(0, 8 * 60, 5):
        disk = _stored(4)
        disk.flip_bit(cursor.PATH, bit)
        assert cursor.load(disk) in (_cursor(3), _cursor(4))
    disk = _stored(4)
    disk.damage_extent(cursor.PATH, 0, 1)
    assert cursor.load(disk) == _cursor(3)
    disk.open(cursor.PATH, "update").truncate(10)
    assert cursor.load(disk) == Cursor(0)


def test_a_cursor_is_bounded_from_above() -> None:
    """Beyond the bound only what adds no span is taken; what was released stays so."""
    spans = tuple((2 * n, 2 * n + 1) for n in range(1000))
    kept = cursor.widened(Ranges(), Ranges(spans))
    assert kept.spans == spans[: len(kept.spans)]
    assert len(kept.spans) == 160
    low = cursor.widened(kept, Ranges(((1, 2),)))
    assert low == kept | Ranges(((1, 2),)), "it joins two"
    assert cursor.widened(kept, Ranges(((5000, 5001),))) == kept
    assert cursor.widened(Ranges(((9, 10),)), Ranges(spans)).covers(9, 10), "never taken back"
    assert cursor.widened(Ranges(), Ranges(((0, 5),))) == Ranges(((0, 5),))
