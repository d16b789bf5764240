"""Opening after every crash, and after every kind of damage to what was durable."""

import asyncio
import random
from copy import deepcopy
from dataclasses import replace

import pytest

from mesh.ports import Disk
from mesh.spool import cursor as cursors
from mesh.spool import journal, recovery, shelf, store
from mesh.spool.events import Evicted
from mesh.spool.frame import Whole, scan
from mesh.spool.journal import END, Journal, JournalContent
from mesh.spool.spool import Spool
from schemas.errors import DiskFailed
from schemas.limits import BLOCK_BYTES
from schemas.messages import Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from simulator.disk_faults import PowerCut
from tests.spool.exploring import alive, explore
from tests.spool.frames import chained
from tests.spool.world import (
    CALM,
    SMALL,
    Said,
    Watcher,
    audit,
    explained_of,
    opened,
    play,
    record,
)


async def one_life(disk: SimDisk, said: Said) -> None:
    """Append, seal, release, append beyond a reservation, close."""
    async with opened(disk, SMALL) as spool:
        said.note(spool)
        await _append(disk, said, spool, Lane.EVENTS, "abc")
        await _append(disk, said, spool, Lane.ALARMS, "d")
        await asyncio.sleep(1)
        said.note(spool)
        alive(disk)
        said.release(spool, Lane.EVENTS, Ranges(((0, 3),)))
        await asyncio.sleep(1)
        alive(disk)
        await _append(disk, said, spool, Lane.EVENTS, "efghijklmnopqrstuvwxyz" * 2)
        await asyncio.sleep(1)
        alive(disk)
        said.note(spool)
        said.release(spool, Lane.EVENTS, Ranges(((0, spool.next_seq(Lane.EVENTS)),)))
        await asyncio.sleep(1)
    alive(disk)


async def two_lives(disk: SimDisk, said: Said) -> None:
    """The second begins with what the first left in its journal."""
    async with opened(disk, CALM) as spool:
        await _append(disk, said, spool, Lane.EVENTS, "ab")
        await _append(disk, said, spool, Lane.LOGS, "c")
        said.note(spool)
        alive(disk)
    alive(disk)
    async with opened(disk, CALM, seed=1) as spool:
        await _append(disk, said, spool, Lane.LOGS, "d")
        said.release(spool, Lane.EVENTS, Ranges(((0, 1),)))
        await asyncio.sleep(1)
        said.note(spool)
        alive(disk)
    alive(disk)


async def eviction(disk: SimDisk, said: Said) -> None:
    """More than the quota: journal, spare and three batches, of which one is an account's."""
    watcher = Watcher()
    async with opened(disk, replace(SMALL, bytes_max=5 * BLOCK_BYTES), watcher=watcher) as spool:
        for text in ("x" * 1000, "y" * 1000):
            for lane in (Lane.LOGS, Lane.EVENTS):
                noise = random.Random(text).randbytes(500).hex()
                await _append(disk, said, spool, lane, [text + noise])
            await asyncio.sleep(1)
            alive(disk)
        said.note(spool)
    alive(disk)
    assert watcher.of(Evicted), "something was given up"


async def reused_journals(disk: SimDisk, said: Said) -> None:
    """A journal waits for its release and becomes the spare; the next one begins in it."""
    async with opened(disk, SMALL) as spool:
        spool.set_linked(up=True)
        for number in range(5):
            await _append(disk, said, spool, Lane.EVENTS, [f"{number} {'x' * 300}"])
            alive(disk)
            said.note(spool)
            for lane in (Lane.EVENTS, Lane.ACCOUNT):
                said.release(spool, lane, Ranges(((0, spool.durable(lane)),)))
            await asyncio.sleep(1)
    alive(disk)
    identity = store.identity(disk)
    assert identity is not None
    begun = [
        journal.read(disk, number, identity.store, identity.epoch)
        for number in journal.numbers(disk)
    ]
    ends = {content.number: content.frames[-1].end for content in begun if content.frames}
    behind = [content.data[ends.get(content.number, 0) :] for content in begun if ends]
    assert any(b"xxx" in data for data in behind), "stale frames stand behind the end"


async def expiry(disk: SimDisk, said: Said) -> None:
    """What is too old is given up; what is younger stays."""
    watcher = Watcher()
    lanes = {**SMALL.lanes, Lane.LOGS: replace(SMALL.lanes[Lane.LOGS], age_seconds_max=70.0)}
    async with opened(disk, replace(SMALL, lanes=lanes), watcher=watcher) as spool:
        await _append(disk, said, spool, Lane.LOGS, "ab")
        await asyncio.sleep(40)
        await _append(disk, said, spool, Lane.LOGS, "c")
        await asyncio.sleep(62)
        alive(disk)
        said.note(spool)
        assert spool.status().lanes[Lane.LOGS].pending_records == 1
    alive(disk)
    assert watcher.of(Evicted), "something was given up"


async def _append(
    disk: SimDisk, said: Said, spool: Spool, lane: Lane, texts: str | list[str]
) -> None:
    try:
        await said.append(spool, lane, list(texts))
    except DiskFailed as failed:
        raise PowerCut("the spool took it for a failing disk") from failed
    alive(disk)


@pytest.mark.parametrize("script", [one_life, two_lives, eviction, reused_journals, expiry])
def test_every_crash_loses_nothing_and_reuses_nothing(script: object) -> None:
    """Rows 4, 5, 6, 7, 16, 20, 21, 22: the power goes before each change."""
    explored = explore(script)  # type: ignore[arg-type]
    print(f"{script}: {explored}")
    assert explored.cuts > 40, "the history is long enough to be worth it"
    assert explored.images > explored.cuts, "and not everything was synced at each cut"


# --- planted: the explorer must find what it is there to find ------------------------------------


class _ForgetsFolders(SimDisk):
    """Leaves out the sync of folders once the store is made."""

    def sync_directory(self, path: str) -> None:
        """Syncs the root only."""
        if not path:
            super().sync_directory(path)


def test_a_missing_sync_of_a_folder_is_found() -> None:
    """Row 21, planted: the name of a journal is never made durable."""
    with pytest.raises(AssertionError, match=r"lost|damaged|handed out"):
        explore(two_lives, _ForgetsFolders)


def test_an_acknowledgement_before_the_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 2, planted: frames are written, and nobody waits for them."""

    def append(self: Journal, data: bytes) -> int:
        offset = self.size
        self._file.write(data, offset)
        self.size = offset + len(data) - len(END)
        return offset

    monkeypatch.setattr(Journal, "append", append)
    with pytest.raises(AssertionError, match=r"acknowledged and lost"):
        explore(two_lives)


def test_unlinking_before_the_cursor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 22, planted: what was released goes before the cursor says so."""
    store = cursors.store
    there: list[tuple[object, ...]] = []

    def hasty(disk: Disk, cursor: object) -> None:
        for lane in Lane:
            epoch = next(iter(disk.list(f"lanes/{lane}")), None)
            for name in disk.list(f"lanes/{lane}/{epoch}") if epoch else []:
                path = f"lanes/{lane}/{epoch}/{name}"
                if lane is Lane.EVENTS and name.startswith("0" * 20):
                    disk.unlink(path)
                    there.append((path,))
        store(disk, cursor)  # type: ignore[arg-type]

    monkeypatch.setattr(cursors, "store", hasty)
    with pytest.raises(AssertionError, match="damaged"):
        explore(one_life)
    assert there, "the fault was planted where it can strike"


def test_a_number_used_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: numbering goes on at the last durable record, not at the reservation."""
    monkeypatch.setattr(recovery, "_reserved", lambda *_: 0)
    monkeypatch.setattr(recovery, "_head_lost", lambda *_: False)
    with pytest.raises(AssertionError, match="handed out already"):
        explore(one_life)


def test_a_journal_that_goes_before_its_batches_are_named_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sealing, planted: the folder of a new batch is not synced before the journal goes."""
    put = shelf.put

    class _Careless:
        def __init__(self, disk: Disk) -> None:
            self._disk = disk

        def __getattr__(self, name: str) -> object:
            return getattr(self._disk, name)

        def sync_directory(self, path: str) -> None:
            """Does nothing."""

    monkeypatch.setattr(shelf, "put", lambda disk, batch: put(_Careless(disk), batch))  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"lost|damaged"):
        explore(one_life)


# --- damage to what was durable ------------------------------------------------------------------


async def _written(disk: SimDisk, said: Said, *, close: bool) -> None:
    async with opened(disk, CALM, maintain=False, close=close) as spool:
        for n in range(4):
            assert await said.append(spool, Lane.EVENTS, [f"{n}", "x"])
            assert await said.append(spool, Lane.ALARMS, [f"{n}"])
        said.note(spool)
    disk.unlock("LOCK")


def _journal(*, close: bool) -> tuple[SimDisk, Said]:
    disk, said = SimDisk(), Said()

    async def main(_: random.Random) -> None:
        await _written(disk, said, close=close)

    play(main)
    return disk, said


def _copy(disk: SimDisk) -> SimDisk:
    return next(disk.crash_images(random.Random(0)))


def _reopened(disk: SimDisk, said: Said) -> dict[Lane, dict[str, Ranges]]:
    """What is explained after opening a damaged disk; audited, and gone on with."""
    told: dict[Lane, dict[str, Ranges]] = {}
    known = deepcopy(said)

    async def main(_: random.Random) -> None:
        async with opened(disk, CALM, seed=1) as spool:
            await audit(spool, known, damaged=True)
            for lane in (Lane.EVENTS, Lane.ALARMS):
                told[lane] = dict(explained_of(spool, lane))
            assert await known.append(spool, Lane.EVENTS, ["after"])
            await asyncio.sleep(1)
            await audit(spool, known, damaged=True)

    async def again(_: random.Random) -> None:
        async with opened(disk, CALM, seed=2) as spool:
            await audit(spool, known, damaged=True)

    play(main)
    play(again)
    return told


@pytest.mark.parametrize("close", [True, False])
def test_any_flipped_bit_is_survived_and_no_number_comes_twice(*, close: bool) -> None:
    """Rows 8 and 9: a sample of all bits of a journal, head and control frames included."""
    disk, said = _journal(close=close)
    path = "journal/0000000000000001"
    bits = random.Random(1).sample(range(8 * disk.size(path)), 80)
    for bit in bits:
        image = _copy(disk)
        image.flip_bit(path, bit)
        try:
            _reopened(image, said)
        except BaseException as error:
            error.add_note(f"bit {bit}")
            raise


def _frames(disk: SimDisk) -> JournalContent:
    identity = store.identity(disk)
    assert identity is not None
    return journal.read(disk, 1, identity.store, identity.epoch)


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("part", ["header", "body"])
def test_the_exact_range_of_a_damaged_frame_is_stated(part: str, *, close: bool) -> None:
    """A frame in the middle: its numbers, whether it still names them or its neighbours do."""
    disk, said = _journal(close=close)
    content = _frames(disk)
    frame = next(f for f in content.frames if f.header.lane is Lane.EVENTS and f.header.first == 2)
    offset = frame.body_offset + 3 if part == "body" else frame.offset + 20
    disk.flip_bit("journal/0000000000000001", 8 * offset)
    told = _reopened(disk, said)
    damaged = told[Lane.EVENTS][Explained.DAMAGED]
    assert damaged.spans[0] == (2, 4)
    if close or part == "body":
        assert damaged == Ranges(((2, 4),))
        assert Explained.DAMAGED not in told[Lane.ALARMS]


def test_the_last_frame_with_a_whole_header_is_damage_and_no_tail() -> None:
    """Nobody knows whether it was acknowledged; its exact range is damaged, the rest void."""
    disk, said = _journal(close=False)
    last = _frames(disk).frames[-1]
    file = disk.open("journal/0000000000000001", "update")
    file.truncate(last.body_offset + 2)
    told = _reopened(disk, said)
    assert last.header.lane is Lane.ALARMS
    assert told[Lane.ALARMS][Explained.DAMAGED] == Ranges(((3, 4),))
    assert told[Lane.ALARMS][Explained.VOID].spans[0][0] == 4
    assert Explained.DAMAGED not in told[Lane.EVENTS]


def test_torn_at_every_byte_a_tail_costs_what_was_not_whole() -> None:
    """Row 4 at the level of the spool: the frames before are there, numbering goes on behind."""
    disk, said = _journal(close=False)
    whole = _frames(disk)
    path, last = "journal/0000000000000001", whole.frames[-2]
    for cut in range(last.offset, disk.size(path), 9):
        image = _copy(disk)
        image.open(path, "update").truncate(cut)
        told = _reopened(image, said)
        kept = sum(frame.end <= cut for frame in whole.frames)
        assert kept >= len(whole.frames) - 2
        assert told[Lane.EVENTS][Explained.VOID].end >= 64


@pytest.mark.parametrize("zeros", [1, 4096, 1 << 20])
def test_a_zero_filled_tail_is_a_tail(zeros: int) -> None:
    """Row 6: nothing is damaged by a file that grew without its data."""
    disk, said = _journal(close=False)
    file = disk.open("journal/0000000000000001", "update")
    file.write(bytes(zeros), file.size())
    told = _reopened(disk, said)
    for lane in told:
        assert set(told[lane]) == {Explained.VOID}


def test_stale_frames_behind_the_end_are_not_taken() -> None:
    """Row 7: of another store, whole, with numbers that would fit."""
    disk, said = _journal(close=False)
    file = disk.open("journal/0000000000000001", "update")
    file.write(chained([5], first=8)[0], file.size())
    told = _reopened(disk, said)
    assert set(told[Lane.EVENTS]) == {Explained.VOID}


def test_an_unreadable_sector_does_not_prevent_opening() -> None:
    """Row 10: in the journal and in the cursor."""
    disk, said = _journal(close=False)
    path = "journal/0000000000000001"
    file = disk.open(path, "update")
    file.write(bytes(8192 - file.size()), file.size())
    file.write(b"behind", 8192)
    disk.damage_extent(path, 5000, 1)
    told = _reopened(disk, said)
    assert not told[Lane.EVENTS].get(Explained.DAMAGED, Ranges()) & Ranges(((0, 8),))


def test_a_store_that_lost_all_begins_a_new_life() -> None:
    """Its only journal is unreadable or deleted: in the old life no number would be safe."""
    for damage in ("unreadable", "deleted"):
        disk, said = _journal(close=False)
        old = store.identity(disk)
        if damage == "unreadable":
            disk.damage_extent("journal/0000000000000001", 10, 1)
        else:
            disk.unlink("journal/0000000000000001")
        _reopened(disk, Said())
        new = store.identity(disk)
        assert old is not None
        assert new is not None
        assert new.parent == old.epoch != new.epoch
        assert new.store == old.store
        assert said.acknowledged


@pytest.mark.parametrize("close", [True, False])
def test_a_lost_head_keeps_the_records_and_leaps_ahead(*, close: bool) -> None:
    """What was reserved is not known; numbering goes on where none can have been."""
    disk, said = _journal(close=close)
    disk.flip_bit("journal/0000000000000001", 200)
    told = _reopened(disk, said)
    assert told[Lane.EVENTS][Explained.DAMAGED] == Ranges(((8, 8 + 2**32),))


@pytest.mark.parametrize("behind", [True, False])
def test_a_lost_reservation_is_skipped(*, behind: bool) -> None:
    """The control frame that reserved last is rotten, in the middle or at the very end."""
    said, images = Said(), list[SimDisk]()

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, CALM, maintain=False, close=False) as spool:
            assert await said.append(spool, Lane.EVENTS, ["x"] * 40)
            assert await said.append(spool, Lane.ALARMS, ["x"])
            if behind:
                assert await said.append(spool, Lane.ALARMS, ["behind"])
            spool.append(Lane.EVENTS, [record("beyond")] * 60, awaited=False)
            said.note(spool)
            images.append(_copy(disk))

    play(main)
    (disk,) = images
    content = _frames(disk)
    assert len(content.reserved) > 1
    data = disk.contents()["journal/0000000000000001"]
    frames = scan(data, *_owner(disk), 1, content.frames[0].offset - 1)
    control = [f for f in frames if isinstance(f, Whole) and f.header.lane is None][-1]
    disk.flip_bit("journal/0000000000000001", 8 * control.offset + 100)
    _reopened(disk, said)


def _owner(disk: SimDisk) -> tuple[bytes, Epoch]:
    identity = store.identity(disk)
    assert identity is not None
    return identity.store, identity.epoch


def test_a_deleted_journal_is_noticed_by_what_lies_beyond_it() -> None:
    """Row 24: an older journal, closed in order, is left; the shelf knows higher numbers."""
    disk, said = _journal(close=True)
    old = disk.contents()["journal/0000000000000001"]

    async def main(_: random.Random) -> None:
        async with opened(disk, SMALL, seed=1) as spool:
            await said.append(spool, Lane.EVENTS, ["sealed"] * 3)
            await asyncio.sleep(1)
            await said.append(spool, Lane.EVENTS, ["in the journal"])
            await asyncio.sleep(1)
            said.note(spool)

    play(main)
    for number in journal.numbers(disk):
        disk.unlink(journal.journal_path(number))
    disk.open("journal/0000000000000001", "create").write(old, 0)
    told = _reopened(disk, said)
    assert told[Lane.EVENTS][Explained.DAMAGED].end >= 2**32
