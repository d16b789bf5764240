"""Rows of the list of faults that concern the spool as a whole: torn, misdirected, lost, old."""

import asyncio
import errno
import random
from dataclasses import replace

import pytest

from mesh.spool import events, journal, shelf, store
from mesh.spool.journal import JournalContent, journal_path
from mesh.spool.spool import Spool
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.frames import EPOCH, OWNER, chained
from tests.spool.world import (
    CALM,
    Said,
    Watcher,
    audit,
    explained_of,
    opened,
    pending,
    play,
    records_of,
)

BLOCK = 512


async def _shelved(spool: Spool, said: Said, lane: Lane, count: int) -> None:
    """So many batches of two records on the shelf."""
    for n in range(count):
        assert await said.append(spool, lane, [f"{lane} {n}", "x"])
        spool._pump.rotate()
        await asyncio.sleep(1)


def _paths(disk: SimDisk, spool: Spool, lane: Lane) -> list[str]:
    return [
        shelf.batch_path(lane, spool.epoch, item.first, item.stop)
        for item in shelf.sealed(disk, lane, spool.epoch)
    ]


def _content(disk: SimDisk, number: int) -> JournalContent:
    identity = store.identity(disk)
    assert identity is not None
    return journal.read(disk, number, identity.store, identity.epoch)


def _overwrite(disk: SimDisk, path: str, data: bytes) -> None:
    file = disk.open(path, "update")
    file.truncate(len(data))
    file.write(data, 0)
    file.close()


# --- torn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [False, True])
def test_any_blocks_of_a_write_that_are_missing_cost_that_write_alone(*, behind: bool) -> None:
    """Row 5: at the end it is a tail or a frame that is named; with others behind it is damage."""
    disks, said = list[SimDisk](), Said()

    async def write(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, CALM, maintain=False, close=False) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            assert await said.append(spool, Lane.EVENTS, ["y" * 1900])
            if behind:
                assert await said.append(spool, Lane.EVENTS, ["behind"])
        disks.append(disk)

    play(write)
    frames = _content(disks[0], 1).frames
    hit = next(
        item for item in frames if item.header.lane is Lane.EVENTS and item.header.first == 1
    )
    data = disks[0].contents()[journal_path(1)]
    blocks = range(hit.offset // BLOCK, hit.end // BLOCK + 1)
    for subset in range(1, 1 << len(blocks)):
        torn = bytearray(data)
        for index, block in enumerate(blocks):
            low, high = max(hit.offset, block * BLOCK), min(hit.end, (block + 1) * BLOCK)
            if subset >> index & 1 and low < high:
                torn[low:high] = bytes(high - low)
        _judge_torn(disks[0], bytes(torn), behind=behind)


def _judge_torn(disk: SimDisk, torn: bytes, *, behind: bool) -> None:
    image = disk.crash(random.Random(0))
    _overwrite(image, journal_path(1), torn)

    async def judge(_: random.Random) -> None:
        async with opened(image, CALM, seed=1) as spool:
            held = records_of(await pending(spool, Lane.EVENTS))
            assert set(held) == ({0, 2} if behind else {0})
            stated = explained_of(spool, Lane.EVENTS)
            if behind:
                assert stated[Explained.DAMAGED] & Ranges(((0, 3),)) == Ranges(((1, 2),))
            else:
                known = Ranges.of([span for why in stated.values() for span in why.spans])
                assert known.covers(1, 2)
            assert not spool.append(Lane.EVENTS, [b"\xc0"]).first <= 2

    play(judge)


# --- misdirected -------------------------------------------------------------------------------


def test_a_frame_of_another_journal_in_this_one_is_no_frame_of_it() -> None:
    """Row 11: whole, of this store and life, with numbers that fit; refused by its journal."""
    disk = SimDisk()
    disk.make_directory("journal")
    disk.open(journal_path(1), "create").write(chained([2, 1, 3])[0], 0)
    for owner, number in ((OWNER, 2), (replace(OWNER, store=b"T" * 16), 1)):
        stray, (header,), _ = chained([1], first=2, owner=owner, journal=number)
        data = bytearray(chained([2, 1, 3])[0])
        start = len(chained([2])[0])
        data[start : start + len(stray)] = stray
        _overwrite(disk, journal_path(1), bytes(data))
        content = journal.read(disk, 1, OWNER.store, EPOCH)
        assert [item.header.first for item in content.frames] == [0, 3], "and its neighbours stay"
        assert [(item.offset, item.end) for item in content.broken] == [(start, start + len(stray))]
        assert header.count == 1


@pytest.mark.parametrize("stray", ["other lane", "other numbers", "other life"])
def test_a_whole_batch_in_the_place_of_another_is_not_taken_for_it(stray: str) -> None:
    """Row 11: its loss is stated, the stranger is set aside, what it is a copy of stays."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, watcher=watcher) as spool:
            await _shelved(spool, said, Lane.EVENTS, 3)
            await _shelved(spool, said, Lane.LOGS, 1)
            there = _paths(disk, spool, Lane.EVENTS)
            match stray:
                case "other lane":
                    data = disk.contents()[_paths(disk, spool, Lane.LOGS)[0]]
                case "other numbers":
                    data = disk.contents()[there[2]]
                case _:
                    data = await _of_another_life()
            _overwrite(disk, there[0], data)
            held = records_of(await pending(spool, Lane.EVENTS))
            assert sorted(held) == [2, 3, 4, 5]
            assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((0, 2),))}
            await asyncio.sleep(1)
            assert there[0] not in disk.contents()
            assert len(watcher.of(events.Quarantined)) == 1
            assert len(records_of(await pending(spool, Lane.LOGS))) == 2
            await audit(spool, said, damaged=True)

    play(main)


async def _of_another_life() -> bytes:
    """A batch of the same lane and numbers, of the spool of another node."""
    disk, said = SimDisk(), Said()
    async with opened(disk, seed=77) as spool:
        await _shelved(spool, said, Lane.EVENTS, 1)
        return disk.contents()[_paths(disk, spool, Lane.EVENTS)[0]]


# --- lost, and gone ----------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 100])
def test_a_batch_of_which_the_write_was_lost_is_stated(left: int) -> None:
    """Row 12: the disk said that it is there; nothing but zeros is, or only its beginning."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await _shelved(spool, said, Lane.EVENTS, 2)
            path = _paths(disk, spool, Lane.EVENTS)[1]
            data = disk.contents()[path]
            _overwrite(disk, path, data[:left] + bytes(len(data) - left))
            assert sorted(records_of(await pending(spool, Lane.EVENTS))) == [0, 1]
            assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((2, 4),))}
            await audit(spool, said, damaged=True)

    play(main)


def test_no_space_that_shows_only_at_the_sync_costs_nothing() -> None:
    """Row 17: the group goes to a new file; the one that failed is never synced again."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM) as spool:
            assert await said.append(spool, Lane.EVENTS, ["before"])
            number = spool._pump.journal
            disk.faults.fail("sync", errno.ENOSPC, path=journal_path(number))
            assert await said.append(spool, Lane.EVENTS, ["in a new file"])
            assert not spool.degraded
            assert spool._pump.journal > number
            at = [
                call.number
                for call in disk.faults.calls
                if (call.operation, call.path) == ("sync", journal_path(number))
            ]
            assert await said.append(spool, Lane.EVENTS, ["and on"])
            await asyncio.sleep(30)
            later = [call for call in disk.faults.calls if call.number > at[-1]]
            assert ("sync", journal_path(number)) not in [(c.operation, c.path) for c in later]
            await audit(spool, said)
            image = disk.crash(random.Random(3))
        async with opened(image, CALM, seed=1) as spool:
            await audit(spool, said)

    play(main)


def test_a_deleted_journal_is_a_gap_of_exactly_what_it_held() -> None:
    """Row 24: closed, waiting for its release; the newest one tells where the lanes stand."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM, close=False) as spool:
            spool.set_linked(up=True)
            for n in range(3):
                assert await said.append(spool, Lane.EVENTS, [f"{n}"] * (n + 1))
                assert await said.append(spool, Lane.ALARMS, [f"{n}"])
                if n < 2:
                    spool._pump.rotate()
                    await spool.commit()
        assert len(journal.numbers(disk)) == 3
        image = disk.crash(random.Random(0))
        image.unlink(journal_path(journal.numbers(disk)[1]))
        async with opened(image, CALM, seed=1) as spool:
            for lane, lost, kept in (
                (Lane.EVENTS, (1, 3), [0, 3, 4, 5]),
                (Lane.ALARMS, (1, 2), [0, 2]),
            ):
                assert explained_of(spool, lane)[Explained.DAMAGED] == Ranges((lost,))
                assert sorted(records_of(await pending(spool, lane))) == kept
            await audit(spool, said, damaged=True)

    play(main)
