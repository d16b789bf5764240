"""New lives of a spool: copies, older copies, lost identities; what is pending keeps its names."""

import asyncio
import random
from dataclasses import replace

import pytest

from mesh.spool import events, journal, store
from mesh.spool.spool import Spool
from schemas import wire
from schemas.errors import Damaged, DiskFailed, Refused
from schemas.limits import PAST_EPOCHS_MAX
from schemas.messages import Account, Epoch, Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk, cut_everywhere
from tests.spool.world import (
    BARE,
    CALM,
    SMALL,
    Said,
    Watcher,
    opened,
    pending,
    play,
    record,
    records_of,
)

OTHER = b"o" * 16


async def _used(disk: SimDisk, said: Said, *, close: bool = True) -> Epoch:
    """A life that leaves something on the shelf, something fresh, something released."""
    async with opened(disk, CALM, close=close) as spool:
        assert await said.append(spool, Lane.EVENTS, ["shelved"] * 3)
        spool._pump.rotate()
        await asyncio.sleep(1)
        assert await said.append(spool, Lane.EVENTS, ["fresh", "too"])
        assert await said.append(spool, Lane.LOGS, ["a line"])
        said.release(spool, Lane.EVENTS, Ranges(((0, 1),)))
        await asyncio.sleep(1)
        return spool.epoch


async def _held(spool: Spool, lane: Lane, epoch: Epoch) -> dict[int, bytes]:
    return records_of(await pending(spool, lane, epoch))


async def _statements(spool: Spool, epoch: Epoch) -> dict[Lane, Account]:
    """The newest account of each lane of an epoch."""
    told = records_of(await pending(spool, Lane.ACCOUNT)).values()
    accounts = [account for account in map(wire.decode, told) if isinstance(account, Account)]
    return {account.lane: account for account in accounts if account.epoch == epoch}


@pytest.mark.parametrize("close", [True, False])
def test_a_copy_begins_a_new_life_and_keeps_what_it_holds(*, close: bool) -> None:
    """Row 25: the numbers of the copied store are not safe, its records are still pending."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        old = await _used(disk, said, close=close)
        disk.unlock(store.LOCK)
        async with opened(disk, seed=1, watcher=watcher, machine=OTHER) as spool:
            assert spool.epoch != old
            assert spool.epoch.counter == old.counter + 1
            assert spool.epochs == (old, spool.epoch)
            (begun,) = watcher.of(events.EpochBegun)
            assert "another machine" in str(begun)
            held = await _held(spool, Lane.EVENTS, old)
            assert held == {n: said.produced[Lane.EVENTS][n] for n in range(5)}
            assert spool.released(Lane.EVENTS, old) == Ranges(((0, 1),))
            assert spool.next_seq(Lane.EVENTS) == 0
            told = await _statements(spool, old)
            assert told[Lane.EVENTS].next_seq >= 5
            assert (told[Lane.EVENTS].explained == {}) == close
            assert await Said().append(spool, Lane.EVENTS, ["mine"])
        async with opened(disk, seed=2, machine=OTHER) as spool:
            assert spool.epoch.counter == old.counter + 1, "only once"
            assert len(await _held(spool, Lane.EVENTS, old)) == 5

    play(main)


def test_a_past_life_is_released_and_forgotten_like_any_other() -> None:
    """Its batches go when a receipt says so; the cursor remembers across an opening."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        old = await _used(disk, said)
        async with opened(disk, seed=1, machine=OTHER) as spool:
            with pytest.raises(Refused, match="beyond_sent"):
                spool.release(Lane.EVENTS, Ranges(((0, 6),)), "hq", old)
            with pytest.raises(Refused, match="beyond_sent"):
                spool.release(Lane.EVENTS, Ranges(((0, 1),)), "hq", Epoch(9, 9))
            spool.release(Lane.EVENTS, Ranges(((0, 4),)), "hq", old)
            await asyncio.sleep(1)
        async with opened(disk, BARE, seed=2, machine=OTHER) as spool:
            assert spool.released(Lane.EVENTS, old) == Ranges(((0, 4),))
            assert spool.has_pending(Lane.EVENTS, 4, old)
            for lane in Lane:
                numbers = Ranges.of([(0, spool.durable(lane, old))])
                spool.release(lane, numbers, "hq", old)
            await asyncio.sleep(1)
            assert spool.epochs == (spool.epoch,)
            assert not [name for name in disk.contents() if f"/{old}/" in name], "unlinked"

    play(main)


def test_every_crash_in_a_change_of_lives_keeps_all() -> None:
    """Row 25: the old life goes on, or the new one has begun; nothing is between."""
    said, old = Said(), []

    def make() -> SimDisk:
        disk, said.acknowledged, said.produced = SimDisk(), {}, {}

        async def first(_: random.Random) -> None:
            old.append(await _used(disk, said))

        play(first)
        return disk

    def work(disk: SimDisk) -> None:
        disk.unlock(store.LOCK)

        async def copy(_: random.Random) -> None:
            async with opened(disk, seed=1, machine=OTHER, maintain=False, close=False):
                disk.list("")

        play(copy)

    images = 0
    for disk in cut_everywhere(work, make):
        life, number = old[-1], images
        for image in disk.crash_images(random.Random(number), samples_max=12):
            images += 1

            async def check(_: random.Random, image: SimDisk = image, life: Epoch = life) -> None:
                async with opened(image, seed=7, machine=OTHER) as spool:
                    assert spool.epoch != life
                    held = await _held(spool, Lane.EVENTS, life)
                    wanted = said.acknowledged[Lane.EVENTS] - {0}
                    assert wanted <= held.keys()
                    assert len(await _held(spool, Lane.LOGS, life)) == 1
                    told = (await _statements(spool, life))[Lane.EVENTS]
                    assert Explained.DAMAGED not in told.explained
                    assert await Said().append(spool, Lane.EVENTS, ["goes on"])

            play(check)
    assert images > 60


@pytest.mark.parametrize("way", ["rotten", "gone"])
def test_a_store_without_its_identity_opens_in_a_new_life(way: str) -> None:
    """Row 24: the journals say whose it is; nothing that they hold is lost."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        old = await _used(disk, said)
        if way == "rotten":
            disk.flip_bit("STORE", 8 * 40)
        else:
            disk.unlink("STORE")
        async with opened(disk, seed=1, watcher=watcher) as spool:
            assert spool.epochs == (old, spool.epoch)
            assert len(await _held(spool, Lane.EVENTS, old)) == 5
            assert watcher.of(events.EpochBegun)
        async with opened(disk, seed=2) as spool:
            assert spool.epoch.counter == old.counter + 1

    play(main)


def test_all_single_bit_flips_of_the_identity_are_found() -> None:
    """Row 8: a STORE with any bit turned is refused or made anew, never believed."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk):
            pass
        size = disk.size("STORE")
        for bit in range(8 * size):
            disk.flip_bit("STORE", bit)
            with pytest.raises(Damaged, match="STORE"):
                store.identity(disk)
            disk.flip_bit("STORE", bit)

    play(main)


def test_a_store_restored_from_an_older_copy_begins_anew_at_the_next_opening() -> None:
    """A receipt spoke of more than was ever written here: its numbers belong to somebody else."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, watcher=watcher) as spool:
            old = spool.epoch
            assert await said.append(spool, Lane.EVENTS, ["a"])
            await spool.give_up_epoch("headquarters holds 100")
            assert watcher.of(events.StoreOutdated)
            assert await said.append(spool, Lane.EVENTS, ["goes on meanwhile"])
        async with opened(disk, seed=1, watcher=watcher) as spool:
            assert spool.epochs == (old, spool.epoch)
            assert len(await _held(spool, Lane.EVENTS, old)) == 2
        async with opened(disk, seed=2) as spool:
            assert spool.epoch.counter == old.counter + 1, "once"

    play(main)


def test_lives_are_bounded_and_what_goes_is_stated() -> None:
    """Of too many lives the oldest is forgotten, by number, and its files go."""

    async def main(_: random.Random) -> None:
        disk, lives = SimDisk(), []
        for life in range(PAST_EPOCHS_MAX + 2):
            async with opened(disk, seed=life, machine=bytes([life + 1]) * 16) as spool:
                lives.append(spool.epoch)
                assert await Said().append(spool, Lane.EVENTS, ["a", "b"])
                await asyncio.sleep(1)
                last = {e: await _statements(spool, e) for e in lives[:-1]}
        oldest = last[lives[0]][Lane.EVENTS]
        assert oldest.explained == {Explained.FORGOTTEN: Ranges(((0, 2),))}
        assert not [name for name in disk.contents() if f"/{lives[0]}/" in name]
        assert last[lives[1]][Lane.EVENTS].explained == {}
        async with opened(disk, seed=99, machine=bytes([life + 1]) * 16) as spool:
            assert spool.epochs[-PAST_EPOCHS_MAX - 1 :] == tuple(lives[1:])

    play(main)


def test_a_machine_without_a_name_is_no_other_machine() -> None:
    """A container without a machine id goes on where it was."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, machine=bytes(16)) as spool:
            first = spool.epoch
        async with opened(disk, seed=1, machine=OTHER) as spool:
            assert spool.epoch == first

    play(main)


def test_what_a_full_store_evicts_of_a_past_life_is_stated_first() -> None:
    """Row 22: in STORE, before the batch goes; a loss that cannot be stated is none yet."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        old = await _used(disk, said)
        tight = replace(SMALL, bytes_max=1)
        async with opened(disk, tight, seed=1, machine=OTHER, maintain=False) as spool:
            disk.faults.fail("rename", path="STORE.new")
            with pytest.raises(DiskFailed):
                await spool._chores.do()
            assert [name for name in disk.contents() if f"logs/{old}/" in name], "still there"
            await spool._chores.do()
            identity = store.identity(disk)
            assert identity is not None
            stated = identity.past[0].lanes[Lane.LOGS].explained
            assert stated == {Explained.EVICTED: Ranges(((0, 1),))}
            assert not [name for name in disk.contents() if f"logs/{old}/" in name]
            told = await _statements(spool, old)
            assert told[Lane.LOGS].explained == stated
        async with opened(disk, seed=2, machine=OTHER) as spool:
            assert not spool.has_pending(Lane.LOGS, 0, old)

    play(main)


def test_a_journal_of_a_life_that_is_over_is_removed() -> None:
    """A crash after the change left it; all that it held is on the shelf."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        old = await _used(disk, said)
        left = disk.contents()
        async with opened(disk, seed=1, machine=OTHER):
            pass
        for number in journal.numbers(disk):
            disk.unlink(journal.journal_path(number))
        for path, data in left.items():
            if path.startswith("journal/0"):
                disk.open(path, "create").write(data, 0)
        watcher = Watcher()
        async with opened(disk, seed=2, machine=OTHER, watcher=watcher) as spool:
            assert len(await _held(spool, Lane.EVENTS, old)) == 5
            assert not watcher.of(events.Quarantined)
            assert spool.append(Lane.EVENTS, [record("x")]).first == 0

    play(main)


@pytest.mark.parametrize("left", ["no STORE and no journal", "a life that STORE does not name"])
def test_batches_that_nobody_names_are_adopted(left: str) -> None:
    """Row 24: what is on the shelf is handed on, whatever else was lost."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        old = await _used(disk, said)
        async with opened(disk, seed=1, machine=OTHER):
            pass
        identity = store.identity(disk)
        assert identity is not None
        if left.startswith("no"):
            for number in journal.numbers(disk):
                disk.unlink(journal.journal_path(number))
            disk.unlink("STORE")
        else:
            store.write(disk, replace(identity, past=()))
        async with opened(disk, seed=2, machine=OTHER) as spool:
            assert old in spool.epochs
            assert len(await _held(spool, Lane.EVENTS, old)) == 5
            told = (await _statements(spool, old))[Lane.EVENTS]
            # What the lost journals held beyond the shelf, nobody knows: it is called damaged.
            assert told.explained.get(Explained.DAMAGED, Ranges()) == Ranges.of(
                [(5, told.next_seq)]
            )

    play(main)


def test_records_of_a_past_life_age_on() -> None:
    """Row 30: running time goes on through a change of lives."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        lanes = {lane: replace(kept, age_seconds_max=3600.0) for lane, kept in CALM.lanes.items()}
        ageing = replace(CALM, lanes=lanes)
        async with opened(disk, ageing) as spool:
            await asyncio.sleep(50_000)
            assert await said.append(spool, Lane.EVENTS, ["old"])
            old = spool.epoch
        async with opened(disk, ageing, seed=1, machine=OTHER) as spool:
            await asyncio.sleep(3000)
            assert spool.has_pending(Lane.EVENTS, 0, old)
            await asyncio.sleep(800)
            assert not spool.has_pending(Lane.EVENTS, 0, old)
            told = (await _statements(spool, old))[Lane.EVENTS]
            assert told.explained[Explained.EXPIRED] == Ranges(((0, 1),))

    play(main)
