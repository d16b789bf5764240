"""What was released and stays, and what a holder that lost it gets back."""

import asyncio
import errno
import random
from dataclasses import replace

import pytest

from mesh.spool import cursor as cursors
from mesh.spool import journal
from mesh.spool.events import DamageFound, Evicted, Reclaimed
from mesh.spool.spool import Spool, SpoolSettings
from mesh.spool.view.outlook import outlook
from mesh.spool.view.sight import look
from schemas import wire
from schemas.errors import DiskFailed
from schemas.messages import Account, Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.world import (
    BARE,
    CALM,
    LABELS,
    SMALL,
    Said,
    Watcher,
    audit,
    explained_of,
    opened,
    pending,
    play,
    record,
    records_of,
)

LANE = Lane.EVENTS
ALL = Ranges(((0, 12),))
SOME = Ranges(((3, 5), (7, 9)))


def _held(disk: SimDisk, folder: str = f"lanes/{LANE}") -> list[str]:
    return sorted(path for path in disk.contents() if path.startswith(folder))


async def _filled(spool: Spool, said: Said, *, records: int = 12, size: int = 1) -> None:
    """Records in frames of two, on the shelf or in the journal, as the settings will have it."""
    generator = random.Random(1)
    for number in range(0, records, 2):
        texts = [f"{number + n} {generator.randbytes(size).hex()}" for n in range(2)]
        assert await said.append(spool, LANE, texts)
    spool._pump.rotate()
    await asyncio.sleep(2)


def _release_all(spool: Spool, said: Said) -> None:
    """All that is durable, accounts included."""
    for lane in Lane:
        if spool.durable(lane):
            said.release(spool, lane, Ranges(((0, spool.durable(lane)),)))


async def _records(spool: Spool) -> list[int]:
    return sorted(records_of(await pending(spool, LANE)))


# --- what stays -----------------------------------------------------------------------------------


def test_what_was_released_stays_and_is_not_pending() -> None:
    """It costs no space that anybody counts, and a next opening finds it again."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        for _life in range(2):
            async with opened(disk) as spool:
                if not said.produced:
                    await _filled(spool, said)
                    used = spool.status().used_bytes
                    said.release(spool, LANE, ALL)
                    await asyncio.sleep(1)
                    assert spool.status().used_bytes < used
                status = spool.status()
                assert status.lanes[LANE].pending_records == 0
                assert status.lanes[LANE].pending_bytes == 0
                assert status.retained_bytes == 4096
                assert spool.retained(LANE) == ALL
                assert not spool.has_pending(LANE, 0)
                assert len(_held(disk)) == 1
                with look(disk, lambda: None) as sight:
                    seen = outlook(sight, CALM.lanes, CALM.bytes_max)
                assert seen.retained_bytes == 4096
                assert seen.lanes[LANE].present.retained == ALL
                assert seen.lanes[LANE].records == 0

    play(main)


def test_a_journal_of_which_all_was_released_stays_until_a_spare_is_wanted() -> None:
    """The last few, and no more bytes are written for it: the next one is begun in the oldest."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM) as spool:
            spool.set_linked(up=True)
            for turn in range(6):
                assert await said.append(spool, LANE, ["x", "y"])
                spool._pump.rotate()
                _release_all(spool, said)
                await asyncio.sleep(1)
                stays = spool._chores.retained.journals
                assert stays == min(turn + 1, CALM.journals_retained_max)
            assert spool.retained(LANE) == Ranges(((8, 12),))
            assert not _held(disk, "lanes"), "nothing was sealed"
            assert len(journal.numbers(disk)) == 1 + CALM.journals_retained_max
            assert spool._pump.spares, "there is always one"
            with look(disk, lambda: None) as sight:
                seen = outlook(sight, CALM.lanes, CALM.bytes_max)
            status = spool.status()
            assert (seen.used_bytes, seen.retained_bytes) == (
                status.used_bytes,
                status.retained_bytes,
            )
        async with opened(disk, CALM) as spool:
            await asyncio.sleep(1)
            assert spool.retained(LANE) == Ranges(((8, 12),)), "the newest ones"

    play(main)


def test_the_oldest_release_goes_first_and_before_anything_pending() -> None:
    """Row 16: a quota that is reached costs what was released, whatever its lane, and no record."""
    settings = replace(SMALL, bytes_max=131_072, retained_bytes_max=65_536)

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, settings, watcher=watcher) as spool:
            await _filled(spool, said, records=16, size=1500)
            low, high = Ranges(((0, 4),)), Ranges(((10, 16),))
            said.release(spool, LANE, high)
            said.release(spool, LANE, low)
            await asyncio.sleep(1)
            assert spool.retained(LANE) == low | high
            lost = Ranges()
            for turn in range(40):
                texts = [f"{turn} {random.Random(turn).randbytes(1500).hex()}"]
                assert await said.append(spool, Lane.METRICS, texts)
                await asyncio.sleep(1)
                if spool.retained(LANE) != (low | high) and not lost:
                    lost = (low | high) - spool.retained(LANE)
                    assert lost.spans[0][0] == 10, "what was released first"
                if watcher.of(Evicted):
                    break
            assert lost
            assert watcher.of(Evicted), "in the end records go too"
            assert not spool.retained(LANE), "but only when nothing else was left"
            await audit(spool, said)

    play(main)


@pytest.mark.parametrize("settings", [BARE, replace(CALM, bytes_max=1, headroom_bytes=0)])
def test_what_may_not_stay_goes_at_once(settings: SpoolSettings) -> None:
    """None where it is so configured, none where the spool is full of other things."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM) as spool:
            await _filled(spool, said)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(1)
            assert _held(disk)
        async with opened(disk, settings) as spool:
            await asyncio.sleep(1)
            assert not _held(disk)
            assert spool.status().retained_bytes == 0

    play(main)


def test_a_file_system_that_others_fill_takes_what_was_released() -> None:
    """Row 16: the headroom is kept free of it, without a record being given up or refused."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        settings = replace(SMALL, headroom_bytes=1 << 16)
        async with opened(disk, settings) as spool:
            await _filled(spool, said, records=40)
            said.release(spool, LANE, Ranges(((0, 40),)))
            await asyncio.sleep(1)
            assert len(_held(disk)) == 20
            before, free = disk.capacity_bytes, disk.free_bytes()
            disk.capacity_bytes = before - free + settings.retained_leave_bytes - 4096
            assert await said.append(spool, LANE, ["more"])
            await asyncio.sleep(2)
            assert disk.free_bytes() >= settings.retained_leave_bytes
            assert 0 < len(spool.retained(LANE)) < 40
            assert explained_of(spool, LANE) == {}

    play(main)


# --- what a holder gets back ----------------------------------------------------------------------


@pytest.mark.parametrize("settings", [CALM, SMALL], ids=["in the open journal", "on the shelf"])
@pytest.mark.parametrize("again", [False, True], ids=["at once", "after an opening"])
def test_what_is_retained_is_pending_again(settings: SpoolSettings, *, again: bool) -> None:
    """Row 35: upstream acknowledged, then lost: all of it is offered again, and released again."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, settings, watcher=watcher) as spool:
            for number in range(12):
                assert await said.append(spool, LANE, [f"{number}"])
            await asyncio.sleep(0 if settings is CALM else 20)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(1)
            if not again:
                await lose(spool, said, watcher)
        async with opened(disk, settings, watcher=watcher) as spool:
            if again:
                await asyncio.sleep(1)
                await lose(spool, said, watcher)
            assert spool.released(LANE) == ALL - SOME, "the cursor has lost them durably"
            assert set(SOME) <= set(await _records(spool))
            await audit(spool, said)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(1)
            assert spool.retained(LANE) == ALL
            assert spool.status().lanes[LANE].pending_records == 0

    async def lose(spool: Spool, said: Said, watcher: Watcher) -> None:
        grown = asyncio.get_running_loop().create_task(spool.wait_grown())
        await asyncio.sleep(0)
        assert spool.reclaim(LANE, SOME, "hq") == SOME
        said.released[LANE] -= set(SOME)
        await grown
        assert spool.released(LANE) == ALL - SOME
        assert spool.status().lanes[LANE].pending_records == len(SOME)
        assert spool.has_pending(LANE, 8)
        assert not spool.has_pending(LANE, 9)
        assert set(SOME) <= set(await _records(spool))
        assert spool.status().lanes[LANE].pending_records == len(SOME)
        assert spool.reclaim(LANE, SOME, "hq") == Ranges(), "once"
        await asyncio.sleep(1)
        [told] = watcher.of(Reclaimed)
        assert isinstance(told, Reclaimed)
        assert (told.pending, told.forgotten, told.holder) == (str(SOME), "none", "hq")

    play(main)


def test_what_is_there_no_more_is_forgotten() -> None:
    """Stated durably, in an account too, and never twice; the cursor then says no more of it."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        gone = {Explained.FORGOTTEN: SOME}
        async with opened(disk, BARE) as spool:
            await _filled(spool, said)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(1)
            assert spool.reclaim(LANE, SOME, "hq") == Ranges()
            assert explained_of(spool, LANE) == gone
            assert spool.released(LANE) == ALL - SOME
            await audit(spool, said)
            assert spool._chores.releases.withheld
            assert spool.reclaim(LANE, ALL, "hq") == Ranges()
            said.release(spool, LANE, ALL - SOME)
            await asyncio.sleep(1)
            assert not spool._chores.releases.withheld
            found = [
                wire.decode_as(Account, data)
                for data in records_of(await pending(spool, Lane.ACCOUNT)).values()
            ]
            newest = [account for account in found if account.lane is LANE][-1]
            assert newest.explained[Explained.FORGOTTEN] & SOME == SOME
            assert newest.released == {"hq": 3}
        async with opened(disk, BARE) as spool:
            assert not spool.released(LANE) & SOME
            assert cursors.load(disk).released[f"{spool.epoch}/{LANE}"] == ALL - SOME
            await audit(spool, said)

    play(main)


def test_numbers_that_were_never_released_or_were_given_up_stay_what_they_are() -> None:
    """A holder may say what it likes; a life that is not known has nothing."""

    async def main(_: random.Random) -> None:
        said = Said()
        async with opened(SimDisk(), CALM) as spool:
            await _filled(spool, said)
            assert spool.reclaim(LANE, Ranges(((0, 1000),)), "hq") == Ranges()
            spool._lanes[LANE].explain(Explained.EVICTED, Ranges(((0, 2),)))
            said.release(spool, LANE, ALL)
            back = spool.reclaim(LANE, Ranges(((0, 1000),)), "hq")
            assert back == Ranges(((2, 12),))
            assert spool.released(LANE) == Ranges(((0, 2),))
            assert explained_of(spool, LANE) == {Explained.EVICTED: Ranges(((0, 2),))}
            unknown = replace(spool.epoch, counter=77)
            assert spool.reclaim(LANE, ALL, "hq", unknown) == Ranges()

    play(main)


def test_more_holes_than_a_cursor_holds_are_reclaimed_later() -> None:
    """What does not fit stays released, and nothing is forgotten that was not said to be."""
    released = Ranges(((0, 1000),))
    lost = Ranges.of([(number, number + 1) for number in range(0, 1000, 2)])
    rest = cursors.narrowed(released, lost)
    assert cursors.fits(rest)
    assert not cursors.fits(released - lost)
    assert (released - rest) - lost == Ranges()
    assert len(rest.spans) > 100
    assert cursors.narrowed(rest, rest) == Ranges()


def test_a_retained_batch_that_rotted_is_damaged_only_if_it_is_reclaimed() -> None:
    """Row 8: nobody needs it until then; then the exact range is stated."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, SMALL, watcher=watcher) as spool:
            await _filled(spool, said)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(1)
        for path in _held(disk)[1:3]:
            disk.flip_bit(path, 900)
        async with opened(disk, SMALL, watcher=watcher) as spool:
            await asyncio.sleep(1)
            assert spool.retained(LANE) == ALL
            assert not watcher.of(DamageFound)
            assert spool.reclaim(LANE, Ranges(((0, 4),)), "hq") == Ranges(((0, 4),))
            said.released[LANE] = set(range(4, 12))
            assert await _records(spool) == [0, 1]
            assert explained_of(spool, LANE) == {Explained.DAMAGED: Ranges(((2, 4),))}
            await audit(spool, said, damaged=True)

    play(main)


@pytest.mark.parametrize("how", ["rotted", "removed"])
def test_a_retained_journal_that_rotted_is_damaged_only_if_it_is_reclaimed(how: str) -> None:
    """Row 8: as for a batch; the frames that verify come back."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM) as spool:
            spool.set_linked(up=True)
            for text in "abc":
                assert await said.append(spool, LANE, [text])
            spool._pump.rotate()
            _release_all(spool, said)
            await asyncio.sleep(1)
            [kept] = spool._chores.retained._journals
            path = journal.journal_path(kept)
            if how == "removed":
                disk.unlink(path)
            else:
                disk.flip_bit(path, 8 * disk.contents()[path].index(record("b")))
            assert explained_of(spool, LANE) == {}
            assert spool.reclaim(LANE, Ranges(((0, 3),)), "hq") == Ranges(((0, 3),))
            said.released[LANE] = set()
            left = [] if how == "removed" else [0, 2]
            assert await _records(spool) == left
            lost = Ranges.of([(0, 3)]) - Ranges.of([(n, n + 1) for n in left])
            assert explained_of(spool, LANE) == {Explained.DAMAGED: lost}
            assert spool.status().lanes[LANE].pending_records == len(left)
            await audit(spool, said, damaged=True)

    play(main)


def test_a_journal_that_cannot_be_read_now_is_read_later() -> None:
    """A medium that fails says nothing about what it holds: nothing is called damaged."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM, maintain=False) as spool:
            assert await said.append(spool, LANE, ["a", "b"])
            said.release(spool, LANE, Ranges(((0, 2),)))
            assert spool.reclaim(LANE, Ranges(((1, 2),)), "hq") == Ranges(((1, 2),))
            disk.faults.fail("open", errno.EIO)
            with pytest.raises(DiskFailed, match="cannot be read"):
                await spool.next_batch(LANE, 0)
            assert await _records(spool) == [0, 1]
            assert explained_of(spool, LANE) == {}

    play(main)


def test_a_journal_that_can_never_be_read_keeps_no_other_from_being_sealed() -> None:
    """Row 10: what was released and is wanted again must not stop what is fresh."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM) as spool:
            assert await said.append(spool, LANE, ["a", "b"])
            spool._pump.rotate()
            _release_all(spool, said)
            await asyncio.sleep(1)
            [kept] = spool._chores.retained._journals
            disk.faults.fail("open", errno.EIO, times=10_000, path=journal.journal_path(kept))
            assert spool.reclaim(LANE, Ranges(((0, 2),)), "hq") == Ranges(((0, 2),))
            assert await said.append(spool, LANE, ["c", "d"])
            spool._pump.rotate()
            await asyncio.sleep(30)
            assert [path[-46:] for path in _held(disk)] == [f"{2:020d}-{3:020d}.batch"[-46:]]
            disk.faults._planted.clear()
            await asyncio.sleep(30)
            assert await _records(spool) == [0, 1, 2, 3]

    play(main)


def test_what_is_reclaimed_while_its_journal_is_sealed_is_not_lost() -> None:
    """Whatever the moment: it is in the batch, or in the journal, which then stays."""

    async def main(generator: random.Random) -> None:
        for delay in range(60):
            disk, said = SimDisk(), Said()
            async with opened(disk, CALM, seed=delay) as spool:
                for text in "abcdef":
                    assert await said.append(spool, LANE, [text, text])
                said.release(spool, LANE, Ranges(((0, 4), (6, 8))))
                spool._pump.rotate()
                await asyncio.sleep(delay / 500)
                lost = generator.choice([Ranges(((0, 8),)), Ranges(((1, 3),)), Ranges(((6, 7),))])
                back = spool.reclaim(LANE, lost, "hq")
                for numbers in (said.released[LANE], said.acknowledged[LANE]):
                    numbers.difference_update(lost - back)
                said.released[LANE].difference_update(back)
                if generator.random() < 0.5:
                    assert set(back) <= set(await _records(spool))
                await asyncio.sleep(3)
                assert set(back) <= set(await _records(spool))
                await audit(spool, said)
                left = Ranges.of([(n, n + 1) for n in await _records(spool)])
                pending_records = spool.status().lanes[LANE].pending_records
                assert pending_records == len(left - spool.released(LANE))
            assert not explained_of(spool, LANE).keys() - {Explained.FORGOTTEN}

    play(main, seconds_max=1e6)


# --- crashes and failing disks --------------------------------------------------------------------


@pytest.mark.parametrize("settings", [CALM, SMALL, BARE], ids=["journal", "shelf", "gone"])
def test_a_crash_at_every_change_undoes_it_or_keeps_it(settings: SpoolSettings) -> None:
    """Rows 21 and 35: released and there, or pending, or forgotten; never in no place."""

    async def before(disk: SimDisk, said: Said, cut: int | None) -> bool:
        watcher = Watcher()
        async with opened(disk, settings, watcher=watcher, close=False) as spool:
            await _filled(spool, said)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(20)
            if cut is not None:
                disk.faults.cut_power(cut)
            said.forgettable[LANE] = said.lost[LANE] = set(SOME)
            spool.reclaim(LANE, SOME, "hq")
            await asyncio.sleep(20)
            return bool(watcher.of(Reclaimed))

    def live(cut: int | None) -> tuple[SimDisk, Said, bool]:
        disk, said, told = SimDisk(), Said(), []

        async def main(_: random.Random) -> None:
            told.append(await before(disk, said, cut))

        try:
            play(main)
        except BaseException:
            # A power cut is no exception of ours.
            if cut is None:
                raise
        return disk, said, bool(told and told[0])

    _, _, told = live(None)
    assert told
    for cut in range(40):
        disk, said, _ = live(cut)
        for seed in range(3):
            left = disk.crash(random.Random(seed))

            async def after(_: random.Random, left: SimDisk = left, said: Said = said) -> None:
                async with opened(left, settings, seed=1) as spool:
                    await audit(spool, said)
                    await asyncio.sleep(5)
                    spool.reclaim(LANE, SOME, "hq")
                    await audit(spool, said)
                    assert not spool.released(LANE) & SOME, "wherever the crash came"
                    said.release(spool, LANE, ALL)
                    await asyncio.sleep(5)
                    await audit(spool, said)

            play(after)


def test_a_cursor_that_cannot_be_written_delays_the_loss_only() -> None:
    """Row 13: the holder is told nothing false meanwhile, and what is pending is offered."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, SMALL, watcher=watcher) as spool:
            await _filled(spool, said)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(1)
            disk.faults.fail("write", errno.ENOSPC, times=2, path=cursors.PATH)
            assert spool.reclaim(LANE, SOME, "hq") == SOME
            await asyncio.sleep(1)
            assert not watcher.of(Reclaimed)
            assert set(SOME) <= set(await _records(spool))
            await asyncio.sleep(30)
            assert watcher.of(Reclaimed)

    play(main)


def test_a_disk_that_is_full_while_a_loss_is_stated_costs_nothing_else() -> None:
    """Row 16: what is released meanwhile is so durably, though the loss waits for its journal."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, BARE) as spool:
            await _filled(spool, said)
            said.release(spool, LANE, ALL)
            await asyncio.sleep(1)
            assert await said.append(spool, LANE, ["x", "y", "z"])
            assert spool.reclaim(LANE, SOME, "hq") == Ranges()
            disk.faults.fail("create", errno.ENOSPC, times=1000)
            disk.faults.fail("rename", errno.ENOSPC, times=1000)
            said.release(spool, LANE, Ranges(((12, 14),)))
            await asyncio.sleep(3)
            assert spool._chores.releases.withheld
            assert cursors.load(disk).released[f"{spool.epoch}/{LANE}"] == Ranges(((0, 14),))
            disk.faults._planted.clear()
            await asyncio.sleep(30)
            assert not spool._chores.releases.withheld
            assert not cursors.load(disk).released[f"{spool.epoch}/{LANE}"] & SOME

    play(main)


def test_a_past_life_gives_back_what_it_retains() -> None:
    """Row 35: the batches of a life that is over stay too, and the life has something to send."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, SMALL) as spool:
            await _filled(spool, said)
            old = spool.epoch
        async with opened(disk, SMALL, seed=1, machine=b"o" * 16) as spool:
            for lane in Lane:
                spool.release(lane, Ranges.of([(0, spool.durable(lane, old))]), "hq", old)
            await asyncio.sleep(1)
            assert spool.epochs == (spool.epoch,)
            assert spool.retained(LANE, old) == ALL
            assert spool.reclaim(LANE, SOME, "hq", old) == SOME
            assert spool.epochs == (old, spool.epoch)
            await asyncio.sleep(1)
        async with opened(disk, SMALL, seed=2, machine=b"o" * 16) as spool:
            assert set(SOME) <= set(records_of(await pending(spool, LANE, old)))
            assert not spool.released(LANE, old) & SOME

    play(main)


def test_a_quarter_of_the_spool_may_be_retained() -> None:
    """Unless somebody says how much; 0 is nothing."""
    assert SpoolSettings(LABELS).retained_bytes == SpoolSettings(LABELS).bytes_max // 4
    assert SpoolSettings(LABELS, retained_bytes_max=0).retained_bytes == 0
    assert SpoolSettings(LABELS, retained_bytes_max=5).retained_bytes == 5
