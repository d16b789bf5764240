"""The spool at work: sealing, releasing, giving up, damage, who may open it."""

import asyncio
import errno
import random
import zlib
from dataclasses import replace

import pytest

from mesh.spool import batch as batches
from mesh.spool import cursor as cursors
from mesh.spool import events, journal, sealing, shelf, store
from mesh.spool.batch import Labels
from mesh.spool.commit import Located
from mesh.spool.frame import Whole
from mesh.spool.spool import Spool, SpoolSettings
from schemas import wire
from schemas.errors import DiskFailed, Refused, RefusedBecause, StoreInUse, StoreUnusable
from schemas.limits import HOLDERS_MAX, QUARANTINE_FILES_MAX
from schemas.messages import Account, Explained, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.spool.frames import EPOCH, OWNER, chained
from tests.spool.world import (
    BARE,
    CALM,
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
    resources,
)


def _batches(disk: SimDisk, lane: Lane = Lane.EVENTS) -> list[str]:
    folders = disk.list(f"lanes/{lane}")
    return [
        f"lanes/{lane}/{epoch}/{name}"
        for epoch in folders
        for name in disk.list(f"lanes/{lane}/{epoch}")
    ]


async def _sealed(disk: SimDisk, said: Said, spool: Spool, lanes: list[Lane]) -> None:
    """One batch a lane on the shelf."""
    for lane in lanes:
        assert await said.append(spool, lane, [f"{lane} {n}" for n in range(4)])
    spool._pump.rotate()
    await asyncio.sleep(1)
    assert len(journal.numbers(disk)) == 1


# --- opening --------------------------------------------------------------------------------------


def test_one_process_at_a_time() -> None:
    """Row 26; and the lock is given back, also by an opening that failed."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk):
            with pytest.raises(StoreInUse):
                await Spool.open(resources(disk), CALM)
        disk.faults.fail("open", path="STORE")
        with pytest.raises(DiskFailed):
            await Spool.open(resources(disk), CALM)
        async with opened(disk):
            pass

    play(main)


def test_a_store_of_another_node_or_format_is_not_touched() -> None:
    """Row 48: neither is locked afterwards, and what would be right is said."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk):
            pass
        before = disk.contents()
        other = SpoolSettings(Labels("hall", "other"))
        for _ in range(2):
            with pytest.raises(StoreUnusable, match="hall/pump"):
                await Spool.open(resources(disk), other)
        assert disk.contents() == before
        newer = bytearray(before["STORE"])
        newer[4] = 2
        newer[12:16] = zlib.crc32(newer[16:], zlib.crc32(newer[:12])).to_bytes(4, "little")
        disk.open("STORE", "update").write(newer, 0)
        before = disk.contents()
        for _ in range(2):
            with pytest.raises(StoreUnusable, match=r"version 2.*use the version"):
                await Spool.open(resources(disk), CALM)
        assert disk.contents() == before

    play(main)


def test_who_is_cancelled_takes_the_commit_from_nobody_else() -> None:
    """Statements share their group with what a sensor waits for."""

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()) as spool, asyncio.TaskGroup() as tasks:
            stating = tasks.create_task(spool.state_accounts())
            await asyncio.sleep(0)
            appended = spool.append(Lane.EVENTS, [record("waits")])
            stating.cancel()
            await asyncio.sleep(0)
            assert await appended.settled

    play(main)


def test_a_node_goes_on_where_it_was() -> None:
    """Identity, epoch, numbers, records, what was released."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            epoch = spool.epoch
            await _sealed(disk, said, spool, [Lane.EVENTS, Lane.LOGS])
            await said.append(spool, Lane.EVENTS, ["fresh"])
            said.release(spool, Lane.EVENTS, Ranges(((0, 2),)))
        watcher = Watcher()
        async with opened(disk, seed=9, watcher=watcher) as spool:
            assert spool.epoch == epoch
            assert spool.released(Lane.EVENTS) == Ranges(((0, 2),))
            await audit(spool, said)
            assert not any(event.lost for event in watcher.of(events.SpoolOpened))  # type: ignore[attr-defined]
            assert spool.append(Lane.EVENTS, [record("next")]).first == 5
            assert spool.append(Lane.LOGS, [record("next")]).first == 4

    play(main)


# --- sealing --------------------------------------------------------------------------------------


def test_sealing_changes_where_records_are_and_nothing_else() -> None:
    """The same records, the same chains, before and after; and then the journal goes."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            for n in range(3):
                await said.append(spool, Lane.EVENTS, [f"{n}", "x"])
                await said.append(spool, Lane.ALARMS, [f"{n}"])
            fresh = await pending(spool, Lane.EVENTS)
            spool._pump.rotate()
            await asyncio.sleep(1)
            assert journal.numbers(disk) == [2]
            kept = await pending(spool, Lane.EVENTS)
            assert records_of(kept) == records_of(fresh)
            assert kept[-1].header.chain_after == fresh[-1].header.chain_after
            assert len(_batches(disk)) == len(_batches(disk, Lane.ALARMS)) == 1
            await audit(spool, said)

    play(main)


def test_a_batch_is_not_read_while_its_journal_goes() -> None:
    """A reader that runs through sealing and releasing gets each pending record, or none."""

    async def main(rng: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, SMALL) as spool:

            async def read() -> None:
                for _ in range(60):
                    for batch in await pending(spool, Lane.EVENTS):
                        for number, data in zip(
                            batch.header.present, batches.open_records(batch), strict=True
                        ):
                            assert said.produced[Lane.EVENTS][number] == data
                    await asyncio.sleep(rng.uniform(0, 0.05))

            async def write() -> None:
                for n in range(60):
                    await said.append(spool, Lane.EVENTS, [f"{n}"])
                    if n % 7 == 0:
                        said.release(spool, Lane.EVENTS, Ranges(((0, rng.randint(1, n + 1)),)))
                    await asyncio.sleep(rng.uniform(0, 0.05))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(read())
                tasks.create_task(read())
                tasks.create_task(write())
            assert Explained.DAMAGED not in explained_of(spool, Lane.EVENTS)
            await audit(spool, said)

    for seed in range(5):
        play(main, seed)


def test_a_lost_write_is_found_when_it_is_read_back() -> None:
    """Row 12: the disk said that it was there; the loss is stated exactly, the rest is kept."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, watcher=watcher) as spool:
            for n in range(3):
                await said.append(spool, Lane.EVENTS, [f"{n}", "x"])
            frame = spool._lanes[Lane.EVENTS].backlog.in_journal(1)[1].frame
            disk.open(journal.journal_path(1), "update").write(bytes(40), frame.offset + 128)
            spool._pump.rotate()
            await asyncio.sleep(1)
            assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((2, 4),))}
            assert sorted(records_of(await pending(spool, Lane.EVENTS))) == [0, 1, 4, 5]
            (found,) = watcher.of(events.DamageFound)
            assert found == events.DamageFound(Lane.EVENTS, "2-3", found.detail)  # type: ignore[attr-defined]
            await audit(spool, said, damaged=True)
        async with opened(disk) as spool:
            assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((2, 4),))}
            await audit(spool, said, damaged=True)

    play(main)


def test_sealing_that_fails_is_tried_again() -> None:
    """Row 16: at each call of the way to the shelf. The journal stays until all is there."""

    async def main(_: random.Random) -> None:
        for operation in ("create", "write", "sync", "rename", "sync_directory", "open", "unlink"):
            disk, said, watcher = SimDisk(), Said(), Watcher()
            async with opened(disk, maintain=False, watcher=watcher) as spool:
                await spool._chores.do()
                await said.append(spool, Lane.EVENTS, ["a", "b"])
                spool._pump.spares["spare"] = 0
                spool._pump.rotate()
                await spool.commit()
                disk.faults.fail(operation, errno.ENOSPC)  # type: ignore[arg-type]
                with pytest.raises(DiskFailed):
                    await spool._chores.do()
                assert 1 in journal.numbers(disk), operation
                await audit(spool, said)
                await spool._chores.do()
                assert journal.numbers(disk) == [2]
                await audit(spool, said)
            async with opened(disk) as spool:
                await audit(spool, said)

    play(main)


def test_before_there_is_a_new_journal_the_old_one_stays() -> None:
    """Opened on a failing disk: sealing the old journal away would take the numbers with it."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await said.append(spool, Lane.EVENTS, ["a"])
        for spare in journal.spares(disk)[0]:
            disk.unlink(spare)
        disk.faults.fail("create", times=10_000, path=journal.SPARE)
        disk.faults.fail("create", times=10_000, path=journal.journal_path(2))
        for number in range(3, 60):
            disk.faults.fail("create", times=10_000, path=journal.journal_path(number))
        async with opened(disk, close=False) as spool:
            assert spool.degraded
            await asyncio.sleep(20)
            assert journal.numbers(disk) == [1]
        async with opened(disk.crash(random.Random(0))) as spool:
            await audit(spool, said)
            assert spool.next_seq(Lane.EVENTS) == 1

    play(main)


def test_pieces_that_are_wholly_damaged_or_gone_are_all_named() -> None:
    """Packing reads back what it can, and names the rest; a missing journal is all of it."""
    disk = SimDisk()
    disk.make_directory("journal")
    data, headers, _ = chained([1, 1])
    frames = [Located(1, Whole(0, headers[0])), Located(1, Whole(len(data) // 2, headers[1]))]
    assert sealing.pack(disk, Labels("s", "n"), frames).damaged == tuple(frames)
    disk.open(journal.journal_path(1), "create").write(data[: len(data) // 2 + 10], 0)
    packed = sealing.pack(disk, Labels("s", "n"), frames)
    assert packed.damaged == (frames[1],)
    assert [item.header.first for item in packed.batches] == [0]


# --- the shelf ------------------------------------------------------------------------------------


def test_foreign_and_unfinished_files_are_not_on_the_shelf() -> None:
    """Names alone tell what is there; what a crash left half-written goes."""
    disk = SimDisk()
    shelf.prepare(disk, Lane.EVENTS, EPOCH)
    _, headers, bodies = chained([2])
    item = shelf.put(disk, batches.pack(Labels("s", "n"), headers, bodies))
    folder = f"lanes/events/{EPOCH}"
    for name in ("notes", f"{'0' * 20}-{'0' * 20}.batch.new", f"{5:020d}-{4:020d}.batch"):
        disk.open(f"{folder}/{name}", "create")
    assert shelf.sealed(disk, Lane.EVENTS, EPOCH) == [item]
    shelf.tidy(disk, Lane.EVENTS, EPOCH)
    assert [n for n in disk.list(folder) if n.endswith(".new")] == []
    assert shelf.sealed(disk, Lane.EVENTS, EPOCH) == [item]
    assert item == shelf.Sealed(0, 2, item.size)
    assert OWNER.epoch == EPOCH


def test_a_damaged_batch_is_stated_kept_and_passed_over() -> None:
    """Rows 8, 10 and 24: flipped, unreadable or deleted; its exact range, and nothing else."""

    async def main(rng: random.Random) -> None:
        for damage in ("flip", "unreadable", "deleted"):
            disk, said, watcher = SimDisk(), Said(), Watcher()
            async with opened(disk, watcher=watcher) as spool:
                await _sealed(disk, said, spool, [Lane.EVENTS])
                await _sealed(disk, said, spool, [Lane.EVENTS])
                path = _batches(disk)[0]
                if damage == "flip":
                    disk.flip_bit(path, rng.randrange(8 * disk.size(path)) // 64 * 64 + 1)
                elif damage == "unreadable":
                    disk.damage_extent(path, 20, 1)
                else:
                    disk.unlink(path)
                assert sorted(records_of(await pending(spool, Lane.EVENTS))) == [4, 5, 6, 7]
                assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((0, 4),))}
                await asyncio.sleep(1)
                assert path not in _batches(disk)
                assert len(disk.list("quarantine")) == (damage != "deleted")
                assert len(watcher.of(events.DamageFound)) == 1
                await audit(spool, said, damaged=True)
            async with opened(disk) as spool:
                await audit(spool, said, damaged=True)
                assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((0, 4),))}

    play(main)


def test_a_file_that_cannot_be_opened_now_is_not_damaged() -> None:
    """Row 19: no descriptor is left. Nothing is given up for that."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await _sealed(disk, said, spool, [Lane.EVENTS])
            await said.append(spool, Lane.LOGS, ["fresh"])
            disk.faults.fail("open", errno.EMFILE, times=2)
            for lane in (Lane.EVENTS, Lane.LOGS):
                with pytest.raises(DiskFailed):
                    await spool.next_batch(lane, 0)
            await audit(spool, said)

    play(main)


def test_a_batch_that_an_operator_deleted_is_missed_on_opening() -> None:
    """Row 24: the hole is named, whoever made it."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await _sealed(disk, said, spool, [Lane.EVENTS])
            await _sealed(disk, said, spool, [Lane.EVENTS])
        disk.unlink(_batches(disk)[0])
        async with opened(disk) as spool:
            assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((0, 4),))}
            await audit(spool, said, damaged=True)

    play(main)


# --- releasing ------------------------------------------------------------------------------------


def test_nothing_is_released_beyond_what_was_written() -> None:
    """And then nothing at all is."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await said.append(spool, Lane.EVENTS, ["a", "b"])
            spool.append(Lane.EVENTS, [record("waits")], awaited=False)
            with pytest.raises(Refused) as refused:
                spool.release(Lane.EVENTS, Ranges(((0, 3),)), "hq")
            assert refused.value.reason is RefusedBecause.BEYOND_SENT
            assert spool.released(Lane.EVENTS) == Ranges()

    play(main)


def test_the_cursor_is_durable_before_anything_goes() -> None:
    """Row 22: in the order of the calls."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, BARE) as spool:
            await _sealed(disk, said, spool, [Lane.EVENTS])
            path = _batches(disk)[0]
            said.release(spool, Lane.EVENTS, Ranges(((0, 4),)))
            await asyncio.sleep(1)
            calls = [(call.operation, call.path) for call in disk.faults.calls]
            assert calls.index(("sync", cursors.PATH)) < calls.index(("unlink", path))
            assert calls.index(("sync_directory", "")) < calls.index(("unlink", path))
            assert _batches(disk) == []

    play(main)


def test_an_unlinking_that_failed_or_was_cut_short_is_finished() -> None:
    """The next chore goes on; so does the next opening."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, BARE) as spool:
            for _ in range(3):
                await _sealed(disk, said, spool, [Lane.EVENTS])
            disk.faults.fail("unlink", after=1)
            said.release(spool, Lane.EVENTS, Ranges(((0, 12),)))
            await asyncio.sleep(1)
            assert len(_batches(disk)) == 2
            await asyncio.sleep(6)
            assert _batches(disk) == []
            await _sealed(disk, said, spool, [Lane.EVENTS])
            disk.faults.fail("unlink", times=100)
            said.release(spool, Lane.EVENTS, Ranges(((0, 16),)))
            await asyncio.sleep(1)
            assert len(_batches(disk)) == 1
        disk.faults._planted.clear()
        async with opened(disk, BARE) as spool:
            await asyncio.sleep(1)
            assert _batches(disk) == []
            assert spool.status().lanes[Lane.EVENTS].pending_records == 0

    play(main)


def test_a_cursor_that_cannot_be_written_never_costs_the_good_slot() -> None:
    """Row 23: a second attempt goes to the slot of the first."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk) as spool:
            await said.append(spool, Lane.EVENTS, ["x"] * 10)
            for stop in (2, 4):
                said.release(spool, Lane.EVENTS, Ranges(((0, stop),)))
                await asyncio.sleep(1)
            disk.faults.fail("write", times=3, path=cursors.PATH)
            disk.faults.fail("create", times=3, path="cursor.new")
            said.release(spool, Lane.EVENTS, Ranges(((0, 6),)))
            for _ in range(3):
                found = cursors.load(disk)
                assert found.released[f"{spool.epoch}/events"] == Ranges(((0, 4),))
                await asyncio.sleep(5.5)
            await asyncio.sleep(20)
            found = cursors.load(disk)
            assert found.released[f"{spool.epoch}/events"] == Ranges(((0, 6),))
            assert found.generation == 3

    play(main)


def test_a_lost_cursor_means_sending_again() -> None:
    """Row 23: what is there is pending again; what went is said to be gone, and no more."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, BARE) as spool:
            await _sealed(disk, said, spool, [Lane.EVENTS])
            await _sealed(disk, said, spool, [Lane.EVENTS])
            said.release(spool, Lane.EVENTS, Ranges(((0, 6),)))
            await asyncio.sleep(1)
        disk.unlink(cursors.PATH)
        async with opened(disk, BARE) as spool:
            assert sorted(records_of(await pending(spool, Lane.EVENTS))) == [4, 5, 6, 7]
            assert explained_of(spool, Lane.EVENTS) == {Explained.DAMAGED: Ranges(((0, 4),))}

    play(main)


def test_more_holes_than_a_cursor_holds_are_released_later() -> None:
    """What no cursor says was released is neither forgotten nor unlinked."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, replace(SMALL, journal_bytes_max=1 << 20)) as spool:
            for n in range(300):
                assert await said.append(spool, Lane.EVENTS, [f"{n}a"])
                assert await said.append(spool, Lane.EVENTS, [f"{n}b"])
            torn = Ranges(tuple((2 * n, 2 * n + 1) for n in range(300)))
            said.release(spool, Lane.EVENTS, torn)
            await asyncio.sleep(1)
            assert len(spool.released(Lane.EVENTS).spans) == 160
            spool._pump.rotate()
            await asyncio.sleep(1)
            await audit(spool, said)
        async with opened(disk) as spool:
            await audit(spool, said)
            assert Explained.DAMAGED not in explained_of(spool, Lane.EVENTS)
            said.release(spool, Lane.EVENTS, Ranges(((0, 600),)))
            await asyncio.sleep(1)
            assert spool.released(Lane.EVENTS) == Ranges(((0, 600),))

    play(main)


def test_holders_are_bounded() -> None:
    """Receipts come from outside; names in them must not fill the cursor or the accounts."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk) as spool:
            await Said().append(spool, Lane.EVENTS, ["a"])
            for n in range(1000):
                spool.release(Lane.EVENTS, Ranges(((0, 1),)), f"holder-{n}")
            assert len(spool._chores.releases.holders(spool.epoch, Lane.EVENTS)) == HOLDERS_MAX
            assert "holder-999" in spool._chores.releases.holders(spool.epoch, Lane.EVENTS)
            await asyncio.sleep(1)
            assert len(cursors.load(disk).holders) == HOLDERS_MAX

    play(main)


# --- giving up ------------------------------------------------------------------------------------


async def _fill(spool: Spool, said: Said, lane: Lane, count: int) -> None:
    for n in range(count):
        assert await said.append(spool, lane, [random.Random(n).randbytes(1000).hex()])
        await asyncio.sleep(1)


def test_a_full_store_gives_up_the_least_urgent_first_and_says_so() -> None:
    """Row 16: stated in a journal before it is unlinked, and in an account."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        said.evicted = True
        async with opened(disk, replace(SMALL, bytes_max=120_000), watcher=watcher) as spool:
            await _fill(spool, said, Lane.ALARMS, 4)
            await _fill(spool, said, Lane.LOGS, 40)
            status = spool.status()
            assert status.used_bytes <= 120_000
            gone = explained_of(spool, Lane.LOGS)[Explained.EVICTED]
            assert gone.spans[0][0] == 0, "the oldest first"
            assert not explained_of(spool, Lane.ALARMS)
            assert watcher.of(events.Evicted)
            await audit(spool, said)
            newest = journal.numbers(disk)[-1]
            content = journal.read(disk, newest, spool._identity.store, spool.epoch)
            assert content.header is not None
            assert content.header.lanes[Lane.LOGS].explained == {Explained.EVICTED: gone}
            told = records_of(await pending(spool, Lane.ACCOUNT)).values()
            accounts = [a for a in map(wire.decode, told) if isinstance(a, Account)]
            logs = [a for a in accounts if a.lane is Lane.LOGS]
            assert logs[-1].explained == {Explained.EVICTED: gone}
        async with opened(disk) as spool:
            await audit(spool, said)

    play(main)


def test_a_loss_that_cannot_be_stated_is_not_a_loss_yet() -> None:
    """The disk fails as the statement is to be written: the batches stay, and go later."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        said.evicted = True
        async with opened(disk, replace(CALM, bytes_max=5000), maintain=False) as spool:
            for n in range(4):
                text = random.Random(n).randbytes(1000).hex()
                assert await said.append(spool, Lane.LOGS, [text])
                spool._pump.rotate()
                await spool.commit()
            real = spool._chores._evict

            async def fails() -> None:
                for number in range(1, 60):
                    disk.faults.fail("create", times=100, path=journal.journal_path(number))
                for spare in journal.spare_names(3):
                    disk.faults.fail("write", times=100, path=spare)
                await real()

            spool._chores._evict = fails  # type: ignore[method-assign]
            with pytest.raises(DiskFailed, match="eviction"):
                await spool._chores.do()
            assert len(_batches(disk, Lane.LOGS)) == 4, "nothing was unlinked"
            for image in disk.crash_images(random.Random(0), samples_max=20):
                async with opened(image) as other:
                    await audit(other, said)
            disk.faults._planted.clear()
            spool._chores._evict = real  # type: ignore[method-assign]
            await spool._chores.do()
            assert len(_batches(disk, Lane.LOGS)) < 4
            await audit(spool, said)

    play(main)


def test_a_disk_too_full_to_seal_is_helped_by_giving_up() -> None:
    """Row 16: a failing seal does not keep the eviction from making room."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        said.evicted = True
        async with opened(disk, CALM, maintain=False) as spool:
            for n in range(6):
                await said.append(spool, Lane.LOGS, [random.Random(n).randbytes(1000).hex()])
                spool._pump.rotate()
                await spool.commit()
            await spool._chores.do()
            await said.append(spool, Lane.LOGS, ["one more"])
            spool._pump.rotate()
            await spool.commit()
            spool._chores._settings = replace(CALM, bytes_max=5000)
            disk.faults.fail("create", errno.ENOSPC)
            with pytest.raises(DiskFailed):
                await spool._chores.do()
            assert len(_batches(disk, Lane.LOGS)) < 6
            await audit(spool, said)

    play(main)


def test_what_was_given_up_does_not_come_back_after_a_crash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unfinished unlinks are completed on opening."""

    def fails(*_: object) -> None:
        raise DiskFailed("no unlinking today")

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        said.evicted = True
        async with opened(disk, replace(SMALL, bytes_max=5_000), close=False) as spool:
            with monkeypatch.context() as patched:
                patched.setattr(shelf, "clear", fails)
                await _fill(spool, said, Lane.LOGS, 8)
            assert explained_of(spool, Lane.LOGS)
        assert len(_batches(disk, Lane.LOGS)) == 8
        async with opened(disk.crash(random.Random(0))) as spool:
            await asyncio.sleep(1)
            await audit(spool, said)
            gone = explained_of(spool, Lane.LOGS)[Explained.EVICTED]
            assert len(gone) + spool.status().lanes[Lane.LOGS].pending_records <= 64
            left = shelf.sealed(spool._resources.disk, Lane.LOGS, spool.epoch)
            assert not gone & Ranges.of([(item.first, item.stop) for item in left])

    play(main)


def test_hours_are_told_while_it_grows() -> None:
    """How long until it is full at the present rate; nothing while nothing grows."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk, replace(CALM, bytes_max=10_000_000)) as spool:
            assert spool.status().hours_left is None
            for _ in range(60):
                await Said().append(spool, Lane.LOGS, ["x" * 972])
                await asyncio.sleep(1)
                spool.status()
            hours = spool.status().hours_left
            assert hours is not None
            assert 2.0 < hours < 4.0

    play(main)


# --- accounts -------------------------------------------------------------------------------------


def test_each_life_states_every_lane_with_rising_numbers() -> None:
    """Crashes included: an account with an old number would be passed over for ever."""

    async def main(rng: random.Random) -> None:
        disk: SimDisk = SimDisk()
        said = Said()
        highest = 0
        for life in range(6):
            async with opened(disk, seed=life, close=life % 2 == 0) as spool:
                await said.append(spool, Lane.EVENTS, [f"{life}"])
                await spool.state_accounts()
                told = records_of(await pending(spool, Lane.ACCOUNT))
                accounts = [wire.decode_as(Account, data) for data in told.values()]
                for lane in (Lane.EVENTS, Lane.ACCOUNT):
                    numbers = [a.number for a in accounts if a.lane is lane]
                    assert numbers == sorted(set(numbers)), lane
                newest = max(a.number for a in accounts)
                assert newest > highest
                highest = newest
                last = next(a for a in reversed(accounts) if a.lane is Lane.EVENTS)
                assert last.next_seq == spool.next_seq(Lane.EVENTS)
                assert last.explained == explained_of(spool, Lane.EVENTS)
                own = next(a for a in reversed(accounts) if a.lane is Lane.ACCOUNT)
                assert own.next_seq == spool.next_seq(Lane.ACCOUNT)
            disk = disk.crash(rng)

    play(main)


def test_quarantine_is_bounded_and_never_in_the_way() -> None:
    """Evidence is kept while there is room; for want of it the spool opens all the same."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, close=False) as spool:
            await said.append(spool, Lane.EVENTS, ["a"])
        file = disk.open(journal.journal_path(1), "update")
        end = file.size() - 16
        file.write(b"torn", end)
        image = disk.crash(random.Random(0))
        disk.unlock(store.LOCK)
        name = f"quarantine/journal-{1:016d}-{end}"
        watcher = Watcher()
        async with opened(disk, watcher=watcher) as spool:
            assert watcher.of(events.Quarantined) == [events.Quarantined(name)]
            await audit(spool, said)
        image.faults.fail("create", errno.ENOSPC)
        async with opened(image) as spool:
            assert not spool.degraded
            await audit(spool, said)
        content = journal.JournalContent(
            1, None, (), (), torn_tail=False, reserved=(), closed=None, size=0
        )
        for n in range(QUARANTINE_FILES_MAX):
            disk.open(f"quarantine/{n}", "create")
        assert store.quarantine(disk, content) == []
        item = shelf.Sealed(0, 1, 1)
        shelf.prepare(disk, Lane.EVENTS, EPOCH)
        disk.open(shelf.batch_path(Lane.EVENTS, EPOCH, 0, 1), "create")
        assert store.set_aside(disk, Lane.EVENTS, EPOCH, item) == ""
        assert len(disk.list("quarantine")) <= QUARANTINE_FILES_MAX + 1

    play(main)
