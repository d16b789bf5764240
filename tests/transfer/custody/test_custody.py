"""Custody: what a receipt states is durable, whatever ends the process; nothing is taken twice."""

import asyncio
import errno
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import pytest

from mesh.ports import Arrival
from mesh.transfer.custody.custody import Custody
from mesh.transfer.custody.events import (
    BatchesLost,
    BatchTurnedAway,
    CustodyDegraded,
    CustodyRecovered,
    LifeBegun,
    LifeDisowned,
)
from mesh.transfer.custody.journal import journal_path
from mesh.transfer.custody.lane import LaneKey
from mesh.transfer.source import Life, Source
from schemas.errors import DiskFailed, RefusedBecause, StoreInUse, StoreUnusable
from schemas.messages import Epoch, Lane, Stage
from schemas.ranges import Ranges
from simulator.disk import SimDisk, cut_everywhere
from tests.spool.world import Watcher
from tests.transfer.custody.world import (
    EPOCH,
    KEY,
    LIFE,
    SMALL,
    Owed,
    arrival_of,
    batch_of,
    drained,
    opened,
    play,
    receipt_for,
    resources,
)

LOGS = LaneKey(LIFE, Lane.LOGS)


def _is_source(custody: Custody) -> Source:
    return custody


def test_what_is_taken_is_offered_unchanged() -> None:
    """A batch leaves as it came, byte for byte, in order, until it is released."""

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()) as custody:
            source = _is_source(custody)
            owed = Owed()
            await owed.give(custody, batch_of(0, 5), batch_of(5, 9))
            assert list(source.lives()) == [LIFE]
            first = await source.next_batch(LIFE, Lane.EVENTS, 0)
            assert first is not None
            assert first.data == batch_of(0, 5).data
            second = await source.next_batch(LIFE, Lane.EVENTS, 5)
            assert second is not None
            assert second.data == batch_of(5, 9).data
            assert await source.next_batch(LIFE, Lane.EVENTS, 9) is None
            assert source.stop_of(LIFE, Lane.EVENTS) == 9
            owed.release(custody, KEY, 5)
            assert await drained(custody, KEY) == Ranges(((5, 9),))
            owed.release(custody, KEY, 9)
            assert list(source.lives()) == []

    play(main)


def test_a_number_is_taken_once() -> None:
    """A repeated batch changes nothing and is receipted; one with a new number is kept whole."""

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()) as custody:
            owed = Owed()
            (first,) = await owed.give(custody, batch_of(0, 5))
            (again,) = await owed.give(custody, batch_of(0, 5))
            (wider,) = await owed.give(custody, batch_of(3, 8))
            assert (first.new, again.new, wider.new) == (5, 0, 3)
            assert custody.status().batches == 2
            whole = await custody.next_batch(LIFE, Lane.EVENTS, 5)
            assert whole is not None
            assert whole.data == batch_of(3, 8).data
            (receipt,) = custody.receipts([KEY])
            assert (receipt.watermark, receipt.stage, receipt.holder) == (8, Stage.HELD, "gateway")

    play(main)


def _images(disk: SimDisk, generator: random.Random) -> Iterator[SimDisk]:
    """What a device of small blocks could leave, and one of large ones."""
    for block_bytes in (512, 4096):
        yield from disk.crash_images(generator, block_bytes=block_bytes, samples_max=16)


async def _script(disk: SimDisk, owed: Owed) -> None:
    """Batches of two lanes, releases, rotations, a loss further on, an orderly end."""
    settings = replace(SMALL, journal_bytes_max=1500, retained_share=0.0)
    async with opened(disk, settings, close=False) as custody:
        await owed.give(custody, batch_of(0, 4), batch_of(0, 3, lane=Lane.LOGS))
        await owed.give(custody, batch_of(4, 6))
        owed.release(custody, KEY, 4)
        await asyncio.sleep(1)
        await owed.give(custody, batch_of(4, 9), batch_of(3, 5, lane=Lane.LOGS))
        owed.release(custody, LOGS, 5)
        owed.release(custody, KEY, 6)
        await asyncio.sleep(1)
        await owed.give(custody, batch_of(9, 12))
        await asyncio.sleep(1)
        await custody.close()


def test_every_power_cut_keeps_what_was_stated() -> None:
    """Rows 2, 5, 6, 21, 22 and 39: a cut before each change, every disk that it could leave."""
    told: list[Owed] = []

    def work(disk: SimDisk) -> None:
        told.append(Owed())
        play(lambda _: _script(disk, told[-1]))

    images = 0
    for cut, disk in enumerate(cut_everywhere(work)):
        generator = random.Random(cut)
        for number, image in enumerate(_images(disk, generator)):
            images += 1
            try:
                _check(image, deepcopy(told[-1]))
            except BaseException as error:
                error.add_note(f"power cut before change {cut}, image {number}")
                raise
    assert images > 300


def _check(image: SimDisk, owed: Owed) -> None:
    """Opens, audits, goes on, closes in order, opens again in the same life."""
    lives: list[Epoch] = []

    async def first(_: random.Random) -> None:
        async with opened(image, seed=1) as custody:
            # What the next holder said stays said, though the word of it may be lost here.
            await owed.audit(custody)
            before = await drained(custody, KEY)
            (outcome,) = await owed.give(custody, batch_of(0, 14))
            assert outcome.refused is None
            assert outcome.new >= 2
            assert before - await drained(custody, KEY) == Ranges()
            await owed.audit(custody)
            lives.append(custody.life)

    async def second(_: random.Random) -> None:
        async with opened(image, seed=2) as custody:
            assert custody.life == lives[0], "an orderly end leaves no doubt"
            await owed.audit(custody)
            (again,) = await owed.give(custody, batch_of(0, 14))
            assert again.new == 0

    play(first)
    play(second)


def test_a_torn_tail_costs_no_more_than_a_new_life() -> None:
    """Row 4: cut off at any byte of the last group, all before it is there."""

    async def fill(_: random.Random) -> None:
        async with opened(SimDisk(), close=False) as custody:
            disk.append(custody._resources.disk)  # type: ignore[arg-type]
            await owed.give(custody, batch_of(0, 4))
            ends.append(custody._vault.files.end(1))
            await custody.take([arrival_of(batch_of(4, 8))])

    disk: list[SimDisk] = []
    owed, ends = Owed(), list[int]()
    owed.offered[KEY] = Ranges(((0, 8),))
    play(fill)
    data = disk[0].contents()[journal_path(1)]
    for end in range(ends[0], len(data), 7):
        torn = SimDisk()
        torn.make_directory("journal")
        torn.open(journal_path(1), "create").write(data[:end], 0)
        play(lambda _, torn=torn: _audited(torn, deepcopy(owed)))


async def _audited(disk: SimDisk, owed: Owed, *, damaged: bool = False) -> None:
    async with opened(disk, seed=3) as custody:
        await owed.audit(custody, damaged=damaged)
        assert (await owed.give(custody, batch_of(0, 14)))[0].refused is None
        assert (await drained(custody, KEY)).covers(0, 14)
        await owed.audit(custody, damaged=damaged)


@pytest.mark.parametrize("step", range(11))
def test_any_flipped_bit_is_found(step: int) -> None:
    """Rows 8, 9 and 10: the store opens, serves what is whole, and takes back what it stated."""

    async def fill(_: random.Random) -> None:
        async with opened(disk) as custody:
            await owed.give(custody, batch_of(0, 4))
            await owed.give(custody, batch_of(4, 8))
            await owed.give(custody, batch_of(8, 10))

    disk, owed = SimDisk(), Owed()
    play(fill)
    size = disk.size(journal_path(1))
    for bit in range(step, 8 * size, 11 * 13):
        flipped = next(iter(disk.crash_images(random.Random(0))))
        flipped.flip_bit(journal_path(1), bit)
        play(lambda _, flipped=flipped: _takes_back(flipped, deepcopy(owed)))


async def _takes_back(disk: SimDisk, owed: Owed) -> None:
    """After damage: a second reading finds all of it, then what is stated is there."""
    async with opened(disk, seed=3) as custody:
        life = owed.last[KEY].life
        await drained(custody, KEY)
        pending = await drained(custody, KEY)
        (receipt,) = custody.receipts([KEY]) or (None,)
        stated = Ranges()
        if receipt is not None:
            stated = Ranges.of([(0, receipt.watermark)]) | receipt.held
        assert not stated - pending
        assert custody.life != life or pending == Ranges(((0, 10),))
        owed.stated.clear()
        owed.last.clear()
        await owed.give(custody, batch_of(0, 4), batch_of(4, 8), batch_of(8, 10))
        assert await drained(custody, KEY) == Ranges(((0, 10),))


def test_damage_found_on_reading_is_offered_again_by_its_origin() -> None:
    """Row 10: set aside, told, gone from ``held`` under a new life; the rest goes on."""

    async def main(_: random.Random) -> None:
        disk, watcher, owed = SimDisk(), Watcher(), Owed()
        async with opened(disk, watcher=watcher) as custody:
            await owed.give(custody, batch_of(0, 4), batch_of(4, 8), batch_of(8, 10))
            life = custody.life
            place = next(iter(custody._vault.holdings[KEY].pending)).place
            disk.damage_extent(journal_path(place.journal), place.offset + 40, 1)
            for _ in range(2):
                with pytest.raises(DiskFailed):
                    await custody.next_batch(LIFE, Lane.EVENTS, 0)
            found = await custody.next_batch(LIFE, Lane.EVENTS, 0)
            assert found is not None
            assert found.header.first == 4
            assert custody.life != life
            (receipt,) = custody.receipts([KEY])
            assert (receipt.watermark, receipt.held) == (0, Ranges(((4, 10),)))
            (lost,) = watcher.of(BatchesLost)
            assert isinstance(lost, BatchesLost)
            assert lost.numbers == "0-3"
            assert (await owed.give(custody, batch_of(0, 4)))[0].new == 4
        async with opened(disk, seed=1) as custody:
            assert await drained(custody, KEY) == Ranges(((0, 10),))

    play(main)


def test_a_deleted_journal_is_a_loss_that_is_stated() -> None:
    """Row 24: what stood in it is no longer stated, under a new life; nothing else changes."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        settings = replace(SMALL, journal_bytes_max=1)
        async with opened(disk, settings) as custody:
            for first in range(0, 12, 3):
                await owed.give(custody, batch_of(first, first + 3))
            kept = custody._vault.holdings[KEY].pending[1]
            life = custody.life
        disk.unlink(journal_path(kept.place.journal))
        async with opened(disk, settings, seed=1) as custody:
            assert custody.life != life
            assert await drained(custody, KEY) == Ranges(((0, 3), (6, 12)))
            (receipt,) = custody.receipts([KEY])
            assert (receipt.watermark, receipt.held) == (3, Ranges(((6, 12),)))

    play(main)


def test_a_failed_sync_is_not_trusted_again() -> None:
    """Rows 13, 15 and 17: the group goes to another journal, and only then is stated."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        async with opened(disk, close=False) as custody:
            await owed.give(custody, batch_of(0, 4))
            disk.faults.fail("sync")
            await owed.give(custody, batch_of(4, 8))
            syncs = [call.path for call in disk.faults.calls if call.operation == "sync"]
            assert syncs.count(journal_path(1)) == 3, "begun, appended, failed, never again"
            disk.drop_caches()
            await owed.audit(custody)
            await owed.give(custody, batch_of(8, 9))
            image = disk.crash(random.Random(1))
        async with opened(image, seed=1) as custody:
            await owed.audit(custody)
            assert await drained(custody, KEY) == Ranges(((0, 9),))

    play(main)


def test_a_disk_that_goes_on_failing_degrades_the_store() -> None:
    """Row 14: custody is refused, nothing is stated, what is held is served; then it recovers."""

    async def main(_: random.Random) -> None:
        disk, owed, watcher = SimDisk(), Owed(), Watcher()
        async with opened(disk, watcher=watcher) as custody:
            await owed.give(custody, batch_of(0, 4))
            disk.faults.fail("sync", times=3)
            (outcome,) = await owed.give(custody, batch_of(4, 8))
            assert outcome.refused is not None
            assert outcome.later
            assert outcome.refused.reason is RefusedBecause.FULL
            assert watcher.of(CustodyDegraded)
            assert await drained(custody, KEY) == Ranges(((0, 4),))
            assert (await owed.give(custody, batch_of(4, 8)))[0].later
            await asyncio.sleep(20)
            assert watcher.of(CustodyRecovered)
            assert (await owed.give(custody, batch_of(4, 8)))[0].new == 4
            await owed.audit(custody)

    play(main)


def test_a_full_disk_refuses_and_keeps_what_it_holds() -> None:
    """Rows 16 and 18: refused with a pause, never evicted; taken once there is space again."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        async with opened(disk) as custody:
            await owed.give(custody, batch_of(0, 4))
            await asyncio.sleep(1)
            capacity, disk.capacity_bytes = disk.capacity_bytes, 0
            outcomes = await owed.give(custody, batch_of(4, 80))
            assert outcomes[0].later
            disk.capacity_bytes = capacity
            await asyncio.sleep(20)
            assert (await owed.give(custody, batch_of(4, 80)))[0].new == 76
            await owed.audit(custody)
        async with opened(disk, seed=1) as custody:
            await owed.audit(custody)

    play(main)


def test_releases_find_room_on_a_full_disk() -> None:
    """Row 16: what was kept for it states the release, and the space comes back."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        async with opened(disk, replace(SMALL, retained_share=0.0)) as custody:
            for first in range(0, 400, 20):
                await owed.give(custody, batch_of(first, first + 20))
            await asyncio.sleep(1)
            used = disk.capacity_bytes - disk.free_bytes()
            disk.capacity_bytes = used
            before = custody.status().used_bytes
            owed.release(custody, KEY, 400)
            await asyncio.sleep(30)
            assert custody.status().used_bytes < before
            assert custody.status().degraded == ""
        async with opened(disk, seed=1) as custody:
            assert await drained(custody, KEY) == Ranges()

    play(main)


def test_a_full_quota_refuses_and_goes_on_when_something_is_released() -> None:
    """A gateway refuses rather than evicts: what was stated stays until the next holder has it."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        settings = replace(SMALL, bytes_max=(2 << 20) + (1 << 19))
        async with opened(disk, settings) as custody:
            taken = 0
            while not (await owed.give(custody, batch_of(taken, taken + 250)))[0].later:
                taken += 250
            (receipt,) = custody.receipts([KEY])
            assert receipt.not_before_ms > 0
            assert receipt.credit_bytes > 0
            await owed.audit(custody)
            assert custody.status().used_bytes <= settings.bytes_max
            owed.release(custody, KEY, taken // 2)
            await asyncio.sleep(1)
            outcomes = await owed.give(custody, batch_of(taken, taken + 250))
            assert outcomes[0].new == 250
            await owed.audit(custody)

    play(main)


def test_a_parked_batch_does_not_hold_a_journal_for_ever() -> None:
    """Row 46: what is pending in an old journal is copied when its space is needed."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        settings = replace(SMALL, bytes_max=(2 << 20) + (1 << 19), journal_bytes_max=100_000)
        stuck = LaneKey(LIFE, Lane.LOGS)
        async with opened(disk, settings) as custody:
            last = 0
            for round_ in range(60):
                await owed.give(custody, batch_of(round_, round_ + 1, lane=Lane.LOGS))
                for _ in range(4):
                    (outcome,) = await owed.give(custody, batch_of(last, last + 250))
                    assert outcome.new == 250, "there is always room"
                    last += 250
                owed.release(custody, KEY, last)
                await asyncio.sleep(1)
            assert await drained(custody, stuck) == Ranges(((0, 60),))
        async with opened(disk, settings, seed=1) as custody:
            assert await drained(custody, stuck) == Ranges(((0, 60),))
            await owed.audit(custody)

    play(main)


def test_what_the_next_holder_lost_is_offered_again() -> None:
    """Retained batches are pending again, also after a crash; the rest leaves ``held``."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        settings = replace(SMALL, journal_bytes_max=1, retained_share=0.005)
        async with opened(disk, settings, close=False) as custody:
            for first in range(0, 20, 2):
                await owed.give(custody, batch_of(first, first + 2))
            owed.release(custody, KEY, 16)
            await asyncio.sleep(1)
            life = custody.life
            retained = custody.status().retained
            assert 0 < retained < 8
            back = custody.reclaim(LIFE, Lane.EVENTS, Ranges(((0, 16),)), "hq")
            assert back == Ranges(((16 - 2 * retained, 16),))
            assert custody.held_by(LIFE, Lane.EVENTS, "hq") == 0
            await asyncio.sleep(1)
            assert custody.life != life
            assert await drained(custody, KEY) == Ranges(((back.spans[0][0], 20),))
            (receipt,) = custody.receipts([KEY])
            assert receipt.held == Ranges(((back.spans[0][0], 20),))
            (again,) = await custody.take([arrival_of(batch_of(0, 2))])
            assert again.new == 2
            image = disk.crash(random.Random(2))
        async with opened(image, seed=1) as custody:
            there = await drained(custody, KEY)
            assert there == Ranges(((0, 2),)) | Ranges(((back.spans[0][0], 20),))

    play(main)


def test_what_does_not_verify_is_refused_and_kept_for_a_person() -> None:
    """Refusals 12, 13 and 16: with its reason, never receipted, once each in quarantine, told."""

    async def main(_: random.Random) -> None:
        disk, watcher = SimDisk(), Watcher()
        whole = batch_of(0, 4)
        torn = whole.data[:-3]
        version = whole.data[:4] + b"\x09" + whole.data[5:]
        bomb = whole.data + bytes(300_000)
        wrong = {
            RefusedBecause.BAD_CHECKSUM: arrival_of(whole)._replace(payload=torn),
            RefusedBecause.BAD_VERSION: arrival_of(whole)._replace(payload=version),
            RefusedBecause.TOO_LARGE: arrival_of(whole)._replace(payload=bomb),
            RefusedBecause.MALFORMED: arrival_of(whole)._replace(payload=b"no batch"),
            RefusedBecause.FOREIGN: arrival_of(whole)._replace(node="other"),
            RefusedBecause.BAD_CHAIN: arrival_of(batch_of(4, 8, salt="x")),
        }
        async with opened(disk, watcher=watcher) as custody:
            await custody.take([arrival_of(batch_of(0, 4))])
            before = custody.receipts([KEY])[0]
            for reason, arrival in wrong.items():
                for _ in range(2):
                    (outcome,) = await custody.take([arrival])
                    assert outcome.refused is not None
                    assert outcome.refused.reason is reason
                    assert not outcome.later
            told = watcher.of(BatchTurnedAway)
            assert len(told) == 2 * len(wrong)
            assert len(disk.list("quarantine")) == len(wrong)
            after = custody.receipts([KEY])[0]
            assert (after.watermark, after.chain) == (before.watermark, before.chain)
            assert await drained(custody, KEY) == Ranges(((0, 4),))

    play(main)


def test_a_jump_of_2_to_the_60_is_refused() -> None:
    """Refusal 13: no lane jumps so far; what jumps less is taken, at the cost of one range."""
    far = batch_of(0, 4)
    header = replace(
        far.header,
        first=2**60,
        last=2**60 + 3,
        present=Ranges(((2**60, 2**60 + 4),)),
    )
    jumped = _with_header(far.data, header)

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()) as custody:
            (outcome,) = await custody.take([Arrival("hall", "pump", "events", jumped, False, 0)])  # noqa: FBT003
            assert outcome.refused is not None
            assert outcome.refused.reason is RefusedBecause.OUT_OF_RANGE
            assert custody.receipts([KEY]) == []

    play(main)


def _with_header(data: bytes, header: object) -> bytes:
    """The same body under another header."""
    import struct  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    from schemas import wire  # noqa: PLC0415

    (size,) = struct.unpack_from("<I", data, 8)
    head = wire.encode(header)  # type: ignore[arg-type]
    return data[:8] + struct.pack("<II", len(head), zlib.crc32(head)) + head + data[16 + size :]


def test_a_critical_extension_that_is_not_known_is_refused() -> None:
    """A gateway does not pass on what it may not understand."""
    batch = batch_of(0, 4)
    data = _with_header(batch.data, replace(batch.header, critical={"sealed2": b""}))

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()) as custody:
            (outcome,) = await custody.take([Arrival("hall", "pump", "events", data, False, 0)])  # noqa: FBT003
            assert outcome.refused is not None
            assert outcome.refused.reason is RefusedBecause.UNKNOWN_EXTENSION

    play(main)


def test_a_body_that_would_open_to_much_is_carried_closed() -> None:
    """Refusal 29: a gateway opens nothing, so that a bomb is headquarters' to refuse."""

    async def main(_: random.Random) -> None:
        batch = batch_of(0, 4)
        bomb = _with_header(batch.data, replace(batch.header, raw_bytes=1))
        async with opened(SimDisk()) as custody:
            (outcome,) = await custody.take([Arrival("hall", "pump", "events", bomb, False, 0)])  # noqa: FBT003
            assert outcome.new == 4

    play(main)


def test_what_is_too_old_goes_back_to_its_origin() -> None:
    """An age that was asked for, or the header's: gone from ``held`` under a new life, told."""

    async def main(_: random.Random) -> None:
        disk, watcher, owed = SimDisk(), Watcher(), Owed()
        settings = replace(SMALL, max_age_seconds=3600)
        async with opened(disk, settings, watcher=watcher) as custody:
            await owed.give(custody, batch_of(0, 4))
            await asyncio.sleep(1800)
            await owed.give(custody, batch_of(4, 8))
            life = custody.life
            await asyncio.sleep(1900)
            assert await drained(custody, KEY) == Ranges(((4, 8),))
            assert custody.life != life
            assert custody.receipts([KEY])[0].held == Ranges(((4, 8),))
            assert [it.numbers for it in watcher.of(BatchesLost)] == ["0-3"]  # type: ignore[attr-defined]

    play(main)


def test_what_expired_goes_back_once_and_is_kept_when_it_comes_again() -> None:
    """A batch that its origin sends though its time is over costs one new life, not one a minute.

    The next opening judges it by the time at which it was taken, as the one before did.
    """

    async def main(_: random.Random) -> None:
        disk, watcher = SimDisk(), Watcher()
        made = resources(disk, watcher)
        useful_ns = made.clock.now().wall_ns + 600 * 10**9
        batch = batch_of(0, 4)
        data = _with_header(batch.data, replace(batch.header, expires_wall_ns=useful_ns))
        offered = [Arrival("hall", "pump", "events", data, False, 0)]  # noqa: FBT003

        async with opened(disk, watcher=watcher) as custody:
            for seconds, lives in ((500, 0), (600, 1), (3600, 1)):
                await custody.take(offered)
                await asyncio.sleep(seconds)
                begun = [it.reason for it in watcher.of(LifeBegun)]  # type: ignore[attr-defined]
                assert len(begun) == lives, begun
            life = custody.life
            assert await drained(custody, KEY) == Ranges(((0, 4),))
        async with opened(disk, watcher=watcher) as custody:
            await asyncio.sleep(3600)
            assert custody.life == life
            assert await drained(custody, KEY) == Ranges(((0, 4),))

    play(main)


def test_a_clock_that_jumps_expires_nothing() -> None:
    """Row 30: age is counted on the monotonic clock while the gateway runs."""

    async def main(_: random.Random) -> None:
        watcher, owed = Watcher(), Owed()
        made = resources(SimDisk(), watcher)
        settings = replace(SMALL, max_age_seconds=3600)
        custody = await Custody.open(made, settings)
        async with asyncio.TaskGroup() as tasks:
            chores = tasks.create_task(custody.maintain())
            await owed.give(custody, batch_of(0, 4))
            made.clock.jump(10 * 366 * 86_400)  # type: ignore[attr-defined]
            await asyncio.sleep(600)
            made.clock.jump(-20 * 366 * 86_400)  # type: ignore[attr-defined]
            await asyncio.sleep(600)
            assert await drained(custody, KEY) == Ranges(((0, 4),))
            chores.cancel()

    play(main)


def test_lives_of_a_node_come_oldest_first() -> None:
    """Within a node what was first decided is first told."""

    async def main(_: random.Random) -> None:
        later = Epoch(2, 1)
        async with opened(SimDisk()) as custody:
            owed = Owed()
            await owed.give(custody, batch_of(0, 3, epoch=later))
            await owed.give(custody, batch_of(0, 3))
            await owed.give(custody, batch_of(0, 3, node="fan"))
            assert list(custody.lives()) == [
                Life("hall", "fan", EPOCH),
                LIFE,
                Life("hall", "pump", later),
            ]
            assert custody.stop_of(Life("hall", "x", EPOCH), Lane.EVENTS) == 0

    play(main)


def test_what_the_archive_says_waits_to_be_passed_down() -> None:
    """The newest of each lane; what another gateway holds is nobody's business below."""

    async def main(_: random.Random) -> None:
        async with opened(SimDisk()) as custody:
            owed = Owed()
            await owed.give(custody, batch_of(0, 9))
            custody.release(
                *(LIFE, Lane.EVENTS, Ranges(((0, 2),))),
                receipt_for(KEY, 2, stage=Stage.HELD, holder="other"),
            )
            assert custody.take_relays() == []
            custody.release(LIFE, Lane.EVENTS, Ranges(((0, 3),)), receipt_for(KEY, 3))
            newest = receipt_for(KEY, 5, number=2)
            custody.release(LIFE, Lane.EVENTS, Ranges(((0, 5),)), newest)
            assert custody.take_relays() == [newest]
            assert custody.take_relays() == []

    play(main)


def test_a_store_has_one_owner_and_one_name() -> None:
    """Rows 25, 26 and 48: a second process, another name, another machine, another format."""

    async def main(_: random.Random) -> None:
        disk, watcher = SimDisk(), Watcher()
        async with opened(disk) as custody:
            life = custody.life
            with pytest.raises(StoreInUse):
                await Custody.open(resources(disk, watcher), SMALL)
        with pytest.raises(StoreUnusable, match="give the gateway its old name"):
            await Custody.open(resources(disk, watcher), replace(SMALL, holder="other"))
        moved = replace(resources(disk, watcher, 5), machine=b"n" * 16)
        copied = await Custody.open(moved, SMALL)
        assert copied.life != life
        assert watcher.of(LifeBegun)
        await copied.close()

    play(main)


def test_another_past_is_told_and_nothing_dropped() -> None:
    """The same numbers with another chain further on: an alarm, and both are kept."""

    async def main(_: random.Random) -> None:
        watcher, owed = Watcher(), Owed()
        async with opened(SimDisk(), watcher=watcher) as custody:
            await owed.give(custody, batch_of(0, 3))
            await custody.disown(LIFE, "bad chain")
            assert watcher.of(LifeDisowned)
            assert await drained(custody, KEY) == Ranges(((0, 3),))

    play(main)


def test_a_write_that_finds_no_room_leaves_no_trace() -> None:
    """Row 16: the same journal goes on, and what did not fit is taken once it does."""

    async def main(_: random.Random) -> None:
        disk, owed = SimDisk(), Owed()
        async with opened(disk) as custody:
            await owed.give(custody, batch_of(0, 3))
            disk.faults.fail("write", errno.ENOSPC)
            assert (await owed.give(custody, batch_of(3, 6)))[0].later
            assert (await owed.give(custody, batch_of(3, 6)))[0].new == 3
            assert len(custody._vault.files) == 1
        async with opened(disk, seed=1) as custody:
            await owed.audit(custody)

    play(main)
