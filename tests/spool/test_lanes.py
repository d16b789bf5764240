"""Lanes: each keeps its quota and its age, refuses or gives up as configured, and says so."""

import asyncio
import errno
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest

from mesh.spool import cursor as cursors
from mesh.spool import events, journal, shelf, store
from mesh.spool.frame import parse_header
from mesh.spool.lane import LaneSettings, WhenFull
from mesh.spool.spool import DEFAULT_LANES, Spool, SpoolSettings
from schemas.errors import Overloaded
from schemas.limits import BLOCK_BYTES, JOURNALS_CLOSED_MAX, JOURNALS_WAITING_MAX
from schemas.messages import Explained, Lane
from schemas.ranges import Ranges
from simulator.clock import VirtualLoop
from simulator.disk import SimDisk
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
)

ROOMY = replace(SMALL, bytes_max=1 << 24)


def _kept(lanes: Mapping[Lane, LaneSettings], base: SpoolSettings = ROOMY) -> SpoolSettings:
    """Settings with other ways to keep some lanes."""
    return replace(base, lanes={**base.lanes, **lanes})


def _lane(lane: Lane, **changes: object) -> dict[Lane, LaneSettings]:
    return {lane: replace(DEFAULT_LANES[lane], reserved=64, **changes)}  # type: ignore[arg-type]


def _text(number: int) -> str:
    """A text that makes a batch of one block."""
    return random.Random(number).randbytes(1000).hex()


async def _fill(spool: Spool, said: Said, lane: Lane, count: int) -> int:
    """Appends records, a batch each; returns how many were taken before the lane refused."""
    for n in range(count):
        try:
            assert await said.append(spool, lane, [_text(n)])
        except Overloaded:
            return n
        await asyncio.sleep(1)
    return count


def test_a_lane_that_refuses_is_full_by_its_own_quota_and_gives_up_nothing() -> None:
    """Row 16: the caller is told; other lanes go on; a receipt makes room again."""
    settings = _kept(_lane(Lane.ALARMS, bytes_max=4 * BLOCK_BYTES, when_full=WhenFull.REFUSE))

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, settings) as spool:
            taken = await _fill(spool, said, Lane.ALARMS, 20)
            assert 4 <= taken <= 5
            with pytest.raises(Overloaded, match=r"alarms: full, \d+ bytes of 16384"):
                spool.append(Lane.ALARMS, [record("one more")])
            assert await _fill(spool, said, Lane.LOGS, 8) == 8
            assert not explained_of(spool, Lane.ALARMS)
            assert len(await pending(spool, Lane.ALARMS)) == taken
            said.release(spool, Lane.ALARMS, Ranges(((0, 2),)))
            await asyncio.sleep(1)
            assert await said.append(spool, Lane.ALARMS, ["there is room"])
            await audit(spool, said)

    play(main)


def test_a_full_store_makes_lanes_refuse_that_never_give_up() -> None:
    """Row 16: nothing of them goes for others, and others go for them while there are any."""
    settings = _kept(_lane(Lane.ALARMS, when_full=WhenFull.REFUSE), SMALL)

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        said.evicted = True
        async with opened(disk, replace(settings, bytes_max=30 * BLOCK_BYTES)) as spool:
            assert await _fill(spool, said, Lane.LOGS, 5) == 5
            taken = await _fill(spool, said, Lane.ALARMS, 40)
            assert 5 < taken < 40
            with pytest.raises(Overloaded, match="alarms: the spool is full"):
                spool.append(Lane.ALARMS, [record("one more")])
            assert explained_of(spool, Lane.LOGS)[Explained.EVICTED] == Ranges(((0, 5),))
            assert not explained_of(spool, Lane.ALARMS)
            assert await said.append(spool, Lane.EVENTS, ["taken, and the first to go"])
            await audit(spool, said)

    play(main)


def test_a_lane_that_is_switched_off_takes_nothing_and_hands_on_what_it_holds() -> None:
    """Its records stay pending, somebody is told, and a receipt releases them as ever."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, ROOMY) as spool:
            assert await said.append(spool, Lane.METRICS, ["a", "b"])
            await asyncio.sleep(1)
        settings = _kept(_lane(Lane.METRICS, enabled=False))
        async with opened(disk, settings, seed=1, watcher=watcher) as spool:
            assert watcher.of(events.LaneOff) == [events.LaneOff(Lane.METRICS, 2)]
            for _ in range(2):
                with pytest.raises(Overloaded, match="metrics: switched off"):
                    spool.append(Lane.METRICS, [record("c")])
                await asyncio.sleep(61)
            assert await said.append(spool, Lane.EVENTS, ["others go on"])
            assert list(records_of(await pending(spool, Lane.METRICS))) == [0, 1]
            said.release(spool, Lane.METRICS, Ranges(((0, 2),)))
            await asyncio.sleep(1)
            assert not spool.has_pending(Lane.METRICS, 0)
            await audit(spool, said)

    play(main)


def test_what_is_older_than_its_lane_keeps_goes_by_number_and_is_stated() -> None:
    """Exactly what is too old, of that lane alone; also what would stand in an open journal."""
    hour = 3600.0
    settings = replace(
        _kept(_lane(Lane.READINGS, age_seconds_max=11 * hour), CALM), journal_seconds_max=hour
    )

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        said.evicted = True
        async with opened(disk, settings, watcher=watcher) as spool:
            for n in range(6):
                assert await said.append(spool, Lane.READINGS, [f"{n}"])
                assert await said.append(spool, Lane.EVENTS, [f"{n}"])
                await asyncio.sleep(2 * hour)
            await asyncio.sleep(60)
            gone = explained_of(spool, Lane.READINGS)
            assert gone == {Explained.EXPIRED: Ranges(((0, 1),))}, "12 hours; the next has 10"
            assert not explained_of(spool, Lane.EVENTS)
            await asyncio.sleep(30 * hour)
            assert explained_of(spool, Lane.READINGS) == {Explained.EXPIRED: Ranges(((0, 6),))}
            assert {event.why for event in watcher.of(events.Evicted)} == {Explained.EXPIRED}  # type: ignore[attr-defined]
            await audit(spool, said)
        async with opened(disk, settings, seed=1) as spool:
            assert explained_of(spool, Lane.READINGS) == {Explained.EXPIRED: Ranges(((0, 6),))}
            assert len(await pending(spool, Lane.EVENTS)) > 0

    play(main)


def test_a_lane_keeps_its_own_quota_and_costs_no_other() -> None:
    """The oldest go, within a sixteenth of the quota; nobody else gives up anything."""
    quota = 8 * BLOCK_BYTES

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        said.evicted = True
        async with opened(disk, _kept(_lane(Lane.LOGS, bytes_max=quota))) as spool:
            assert await _fill(spool, said, Lane.EVENTS, 3) == 3
            assert await _fill(spool, said, Lane.LOGS, 30) == 30
            await asyncio.sleep(1)
            gone = explained_of(spool, Lane.LOGS)[Explained.EVICTED]
            assert gone.spans[0][0] == 0
            assert len(gone.spans) == 1
            held = shelf.sealed(disk, Lane.LOGS, spool.epoch)
            assert quota // 2 < sum(item.allocated for item in held) <= quota
            assert not explained_of(spool, Lane.EVENTS)
            await audit(spool, said)

    play(main)


def test_a_quota_that_became_smaller_than_what_is_there_is_kept_by_plan() -> None:
    """What was stored under a larger one goes from the oldest on, stated before it is unlinked."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        said.evicted = True
        async with opened(disk, ROOMY) as spool:
            await _fill(spool, said, Lane.LOGS, 10)
        tight = _kept(_lane(Lane.LOGS, bytes_max=4 * BLOCK_BYTES))
        async with opened(disk, tight, seed=1, watcher=watcher) as spool:
            await asyncio.sleep(2)
            gone = explained_of(spool, Lane.LOGS)[Explained.EVICTED]
            assert gone.spans[0][0] == 0
            assert 6 <= len(gone) < 10
            assert watcher.of(events.Evicted) == [events.Evicted(Lane.LOGS, str(gone))]
            await audit(spool, said)

    play(main)


# --- what journals do for it -------------------------------------------------------------------


def test_what_goes_upstream_at_once_is_written_once() -> None:
    """Rows 7, 47: linked, a closed journal waits for its release and is used again, unsealed."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, CALM) as spool:
            spool.set_linked(up=True)
            stale = 0
            for n in range(12):
                for _ in range(4 - n % 4):
                    assert await said.append(spool, Lane.EVENTS, [_text(n)])
                spool._pump.rotate()
                await asyncio.sleep(3)
                assert len(journal.numbers(disk)) > 1, "it waits"
                stale += _has_stale_frames(disk, journal.numbers(disk)[-1])
                for lane in Lane:
                    said.release(spool, lane, Ranges.of([(0, spool.durable(lane))]))
                await asyncio.sleep(1)
            calls = disk.faults.calls
            made = [call.path for call in calls if call.operation in {"create", "rename"}]
            assert not [path for path in made if path.startswith("lanes/")]
            begun = [c for c in calls if (c.operation, c.path[:9]) == ("create", "journal/0")]
            assert len(begun) < 5, "the others began in the blocks of older ones"
            assert stale > 2, "and what those held stood behind the end"
            assert await said.append(spool, Lane.EVENTS, ["after"])
            await audit(spool, said)
            image = disk.crash(random.Random(1))
        async with opened(image, CALM, seed=1) as spool:
            await audit(spool, said)

    play(main)


def test_more_journals_than_may_wait_are_sealed_from_the_oldest_on() -> None:
    """Linked, and faster than the receipts: as many wait as the spool has room for."""
    assert ROOMY.journals_waiting == JOURNALS_WAITING_MAX
    assert SpoolSettings(CALM.labels, bytes_max=1 << 20).journals_waiting == JOURNALS_CLOSED_MAX

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, ROOMY) as spool:
            spool.set_linked(up=True)
            for n in range(JOURNALS_WAITING_MAX + 4):
                assert await said.append(spool, Lane.EVENTS, [f"{n}"])
            await asyncio.sleep(2)
            shelved = shelf.sealed(disk, Lane.EVENTS, spool.epoch)
            assert [item.first for item in shelved] == list(range(len(shelved)))
            assert 0 < len(shelved) < 8
            assert len(spool._pump.closed_journals) == JOURNALS_WAITING_MAX
            await audit(spool, said)

    play(main)


@pytest.mark.parametrize(("rounds", "kept"), [(1, 4), (4, 1)])
def test_a_spool_that_fills_up_keeps_one_spare(rounds: int, kept: int) -> None:
    """Blocks that lie ready are kept from nobody: beyond half of its room it gives them back."""
    settings = replace(BARE, bytes_max=1 << 19, journal_bytes_max=8192)
    assert settings.spares_kept == 4

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(), Said()
        async with opened(disk, settings) as spool:
            for n in range(rounds):
                spool.set_linked(up=True)
                for m in range(20):
                    assert await said.append(spool, Lane.EVENTS, [_text(20 * n + m)])
                    spool._pump.rotate()
                spool.set_linked(up=False)
                await asyncio.sleep(10)
            assert (2 * spool.status().used_bytes > settings.bytes_max) == (kept == 1)
            assert len(journal.spares(disk)[0]) == kept
            await audit(spool, said)

    play(main)


def _has_stale_frames(disk: SimDisk, number: int) -> bool:
    """Whether a journal holds whole headers of frames that were written to another."""
    data = disk.contents()[journal.journal_path(number)]
    at = data.rfind(b"HFfr")
    return at >= 0 and parse_header(data, at).journal != number


def test_a_journal_does_not_wait_for_ever_for_its_release() -> None:
    """Linked, and no receipt comes: it is sealed after a while, and a lost link seals at once."""

    async def main(_: random.Random) -> None:
        for seconds, up in ((9.0, True), (0.5, False)):
            disk, said = SimDisk(), Said()
            async with opened(disk, CALM) as spool:
                spool.set_linked(up=True)
                assert await said.append(spool, Lane.EVENTS, ["a"])
                spool._pump.rotate()
                await asyncio.sleep(8.5)
                assert 1 in journal.numbers(disk)
                spool.set_linked(up=up)
                await asyncio.sleep(seconds)
                assert 1 not in journal.numbers(disk)
                assert len(shelf.sealed(disk, Lane.EVENTS, spool.epoch)) == 1
                await audit(spool, said)

    play(main)


def test_a_full_disk_leaves_room_to_state_a_loss_and_to_write_the_cursor() -> None:
    """Row 16: not a block is free; what is released and what is given up goes all the same."""

    async def main(_: random.Random) -> None:
        disk, said = SimDisk(capacity_bytes=1 << 24), Said()
        said.evicted = True
        async with opened(disk, SMALL, maintain=False) as spool:
            for n in range(8):
                for lane in (Lane.LOGS, Lane.EVENTS):
                    assert await said.append(spool, lane, [_text(n)])
                await spool._chores.do()
            used = disk.capacity_bytes - disk.free_bytes()
            disk.capacity_bytes = used
            with pytest.raises(OSError, match="No space"):
                _grow(disk)
            said.release(spool, Lane.EVENTS, Ranges(((0, 4),)))
            await spool._chores.flush()
            assert cursors.load(disk).released[f"{spool.epoch}/events"] == Ranges(((0, 4),))
            disk.capacity_bytes -= disk.free_bytes()
            spool._chores._settings = replace(SMALL, bytes_max=spool.status().used_bytes - 1)
            await spool._chores.do()
            gone = explained_of(spool, Lane.LOGS)[Explained.EVICTED]
            identity = store.identity(disk)
            assert identity is not None
            newest = journal.numbers(disk)[-1]
            header = journal.read(disk, newest, identity.store, identity.epoch).header
            assert header is not None
            assert header.lanes[Lane.LOGS].explained == {Explained.EVICTED: gone}
            assert not spool.degraded
            assert await said.append(spool, Lane.ALARMS, ["taken again"])
            await audit(spool, said)
            image = disk.crash(random.Random(0))
        async with opened(image, SMALL, seed=1) as spool:
            await audit(spool, said)

    play(main)


def _grow(disk: SimDisk) -> None:
    file = disk.open("grown", "create")
    try:
        file.write(bytes(1), 0)
    except Exception as full:
        raise OSError(errno.ENOSPC, "No space") from full
    finally:
        file.close()
        disk.unlink("grown")


def test_eviction_is_reached_however_fast_journals_close() -> None:
    """Row 16: on a slow disk, with more coming than is sealed, the quota holds all the same."""
    quota = 100 * BLOCK_BYTES
    settings = replace(SMALL, bytes_max=quota, journal_bytes_max=4 * BLOCK_BYTES)

    async def main(_: random.Random) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        disk, said, used = SimDisk(spend=loop.spend), Said(), list[int]()
        said.evicted = True
        disk.faults.stall("sync", 0.05, times=10**9)
        async with opened(disk, settings) as spool:

            async def produce(lane: Lane) -> None:
                while loop.time() < 40:
                    try:
                        await said.append(spool, lane, [_text(len(used) % 50)] * 4)
                    except Overloaded:
                        await asyncio.sleep(0.1)

            async with asyncio.TaskGroup() as tasks:
                for lane in (Lane.EVENTS, Lane.LOGS, Lane.DECISIONS):
                    tasks.create_task(produce(lane))
                while loop.time() < 40:
                    await asyncio.sleep(1)
                    used.append(spool.status().used_bytes)
            assert sum(len(n) for n in explained_of(spool, Lane.LOGS).values()) > 100
            assert max(used) < 2 * quota, f"{max(used)} bytes, at most {quota} and what is open"
            await audit(spool, said)

    play(main)


def test_a_read_that_fails_once_costs_nothing() -> None:
    """Row 10: of a batch, and of a journal that is sealed or sent; the second try gives it."""

    async def main(_: random.Random) -> None:
        for sealed in (True, False):
            disk, said, watcher = SimDisk(), Said(), Watcher()
            async with opened(disk, CALM, watcher=watcher) as spool:
                assert await said.append(spool, Lane.EVENTS, ["a", "b"])
                if sealed:
                    spool._pump.rotate()
                    await asyncio.sleep(1)
                disk.faults.fail("read")
                assert len(records_of(await pending(spool, Lane.EVENTS))) == 2
                disk.faults.fail("read")
                spool._pump.rotate()
                await asyncio.sleep(1)
                assert not explained_of(spool, Lane.EVENTS)
                assert not watcher.of(events.DamageFound)
                await audit(spool, said)

    play(main)
