"""Histories that once went wrong: each was found by reading, not by chance."""

import asyncio
import errno
import random
from dataclasses import replace

import pytest

from mesh.spool import cursor, journal, shelf
from mesh.spool.backlog import Backlog
from mesh.spool.journal import Journal
from mesh.spool.lane import LaneSettings, WhenFull
from schemas.errors import DiskFailed
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import CALM, SMALL, Said, audit, explained_of, opened, play


def test_a_spool_that_opens_on_a_full_disk_lets_receipts_free_it() -> None:
    """Row 16: the spare that lies ready takes the first journal; what is released goes."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(capacity_bytes=1 << 20), Said()
        async with opened(disk, SMALL) as spool:
            for _ in range(6):
                assert await said.append(spool, Lane.EVENTS, ["x" * 3000])
                await asyncio.sleep(1)
        async with opened(disk, CALM, seed=1):
            await asyncio.sleep(1)
        assert journal.spares(disk)[0]
        disk.capacity_bytes -= disk.free_bytes()
        async with opened(disk, CALM, seed=2) as spool:
            assert not spool.degraded
            said.release(spool, Lane.EVENTS, Ranges(((0, 6),)))
            await asyncio.sleep(10)
            assert disk.free_bytes()
            assert await said.append(spool, Lane.EVENTS, ["again"])

    play(main)


def test_a_release_is_never_taken_back() -> None:
    """Of too many spans a lower one does not push out a higher one, which may be unlinked."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, replace(CALM)) as spool:
            for n in range(400):
                assert await said.append(spool, Lane.EVENTS, [f"{n}"])
            said.release(spool, Lane.EVENTS, Ranges(tuple((n, n + 1) for n in range(40, 400, 2))))
            before = spool.released(Lane.EVENTS)
            said.release(spool, Lane.EVENTS, Ranges(((0, 1),)))
            assert not before - spool.released(Lane.EVENTS)
            await asyncio.sleep(1)
        async with opened(disk) as spool:
            await audit(spool, said)
            assert Explained.DAMAGED not in explained_of(spool, Lane.EVENTS)

    play(main)


def test_a_cursor_on_a_bad_sector_is_written_elsewhere() -> None:
    """Row 14: neither sealing nor giving up waits for it."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, SMALL) as spool:
            assert await said.append(spool, Lane.EVENTS, ["a", "b"])
            disk.faults.fail("sync", times=1, path=cursor.PATH)
            said.release(spool, Lane.EVENTS, Ranges(((0, 1),)))
            await asyncio.sleep(1)
            assert cursor.load(disk).released[f"{spool.epoch}/events"] == Ranges(((0, 1),))
        async with opened(disk) as spool:
            await audit(spool, said)

    play(main)


def test_a_lane_that_refused_takes_records_when_there_is_space_again() -> None:
    """Row 16: nobody has to do anything for it."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        lanes = {**SMALL.lanes, Lane.ALARMS: LaneSettings(0.0, 64, when_full=WhenFull.REFUSE)}
        settings = replace(CALM, lanes=lanes, headroom_bytes=1 << 20)
        async with opened(disk, settings) as spool:
            assert await said.append(spool, Lane.ALARMS, ["a"])
            room = disk.capacity_bytes
            disk.capacity_bytes = room - disk.free_bytes() + 4096
            spool._chores.wake()
            await asyncio.sleep(1)
            assert spool.status().lanes[Lane.ALARMS].refuses
            disk.capacity_bytes = room
            await asyncio.sleep(120)
            assert await said.append(spool, Lane.ALARMS, ["b"])

    play(main)


def test_one_unreadable_inode_does_not_prevent_opening() -> None:
    """Row 10: of a batch, a journal, the cursor, a folder; what is lost is stated."""

    async def main(_: random.Random) -> None:
        for operation, path in (
            ("open", "cursor"),
            ("open", "journal"),
            ("size", "batch"),
            ("list", "folder"),
        ):
            disk, said = SimDisk(), Said()
            async with opened(disk, CALM) as spool:
                assert await said.append(spool, Lane.EVENTS, ["shelved"])
                spool._pump.rotate()
                await asyncio.sleep(1)
                assert await said.append(spool, Lane.EVENTS, ["fresh"])
                epoch = spool.epoch
            where = {
                "cursor": cursor.PATH,
                "journal": journal.journal_path(journal.numbers(disk)[-1]),
                "batch": shelf.batch_path(Lane.EVENTS, epoch, 0, 1),
                "folder": f"{shelf.FOLDER}/events/{epoch}",
            }[path]
            disk.faults.fail(operation, times=10_000, path=where)  # type: ignore[arg-type]
            async with opened(disk, seed=1) as spool:
                await audit(spool, said, damaged=True)
                assert await said.append(spool, Lane.EVENTS, ["after"])

    play(main)


def test_a_journal_of_which_a_sync_failed_is_never_used_again() -> None:
    """Row 13: neither when the next one fails too, nor on a disk that is full at the sync."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, maintain=False, close=False) as spool:
            assert await said.append(spool, Lane.EVENTS, ["a"])
            disk.faults.fail("sync", errno.ENOSPC, times=3)
            assert not await said.append(spool, Lane.EVENTS, ["b"])
            await asyncio.sleep(10)
            assert await said.append(spool, Lane.EVENTS, ["c"])
            assert 1 in spool._pump.closed_journals
            assert 1 not in spool._pump.reusable
            assert not journal.spares(disk)[0]

    play(main)


def test_a_journal_takes_no_number_that_a_spare_has_seen() -> None:
    """Row 7: what an abandoned journal left in a spare belongs to nobody."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            assert await said.append(spool, Lane.EVENTS, ["a"])
        header = journal.read_header(disk, 1)
        assert header is not None
        Journal.create(disk, replace(header, number=9)).close()
        disk.rename(journal.journal_path(9), "journal/spare1")
        assert journal.spares(disk)[1] == 9
        async with opened(disk, seed=1) as spool:
            assert spool._pump.journal > 9

    play(main)


def test_a_frame_that_cannot_be_read_in_a_closed_journal_is_judged_by_its_sealing() -> None:
    """Row 10: a reader's bad luck beside a sealing that reads well costs nothing."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM, maintain=False) as spool:
            assert await said.append(spool, Lane.EVENTS, ["a", "b"])
            spool._pump.rotate()
            assert await spool.commit()
            disk.faults.fail("read", times=2, path=journal.journal_path(1))
            with pytest.raises(DiskFailed, match="sealing it will judge"):
                await spool.next_batch(Lane.EVENTS, 0)
            await spool._chores.do()
            assert not explained_of(spool, Lane.EVENTS)
            await audit(spool, said)
        async with opened(disk) as spool:
            await audit(spool, said)

    play(main)


def test_a_release_of_many_batches_looks_at_each_once() -> None:
    """The first receipt after a lost cursor releases thousands at once, on the loop."""
    looked = 0

    class Counted(shelf.Sealed):
        def __eq__(self, other: object) -> bool:
            nonlocal looked
            looked += 1
            return super().__eq__(other)

        __hash__ = None  # type: ignore[assignment]

    backlog = Backlog((), [Counted(n, n + 1, 10) for n in range(2000)])
    assert len(backlog.release(Ranges(((0, 1999),)))) == 1999
    assert backlog.records == 1
    assert looked < 10_000
