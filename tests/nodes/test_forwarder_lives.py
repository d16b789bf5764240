"""The forwarder and the lives of a spool: past ones are drained, an older copy is found out."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

from mesh.ports import Accepted, Part, Refusal
from mesh.spool import batch, events
from mesh.spool.spool import Spool
from mesh.transfer.delivery import DeliverySettings
from nodes.forwarder import BatchParked
from schemas.errors import RefusedBecause
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.nodes.forwards import forward
from tests.nodes.test_forwarder import Wire, World
from tests.spool.world import Said, Watcher, opened, play

OTHER = b"o" * 16
SETTINGS = DeliverySettings(window_batches=3, receipt_seconds=10.0)


async def _past(disk: SimDisk, texts: list[str]) -> Epoch:
    """A life that ends with something pending."""
    async with opened(disk) as spool:
        assert await Said().append(spool, Lane.EVENTS, texts)
        return spool.epoch


def _play(scenario: Callable[[World, Epoch], Any], machine: bytes = OTHER) -> None:
    """In the second life of a spool."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        past = await _past(disk, ["a", "b"])
        async with opened(disk, seed=1, machine=machine) as spool:
            world = World(spool, Wire())
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(world.forwarder.run())
                await scenario(world, past)
                running.cancel()

    play(main)


def _epochs(parts: list[Part], lane: Lane) -> list[Epoch]:
    return [batch.parse(part.payload).header.epoch for part in parts if part.lane is lane]


def test_a_past_life_is_sent_first_and_released_by_its_own_receipts() -> None:
    """Row 25: under the identities that were given out then."""

    async def scenario(world: World, past: Epoch) -> None:
        await world.said.append(world.spool, Lane.EVENTS, ["c"])
        await asyncio.sleep(2)
        assert _epochs(world.wire.sent, Lane.EVENTS)[:2] == [past, world.spool.epoch]
        world.receipt(Lane.EVENTS, 2, {"epoch": past})
        world.receipt(Lane.EVENTS, 1)
        await asyncio.sleep(1)
        assert world.spool.released(Lane.EVENTS, past) == Ranges(((0, 2),))
        assert world.spool.released(Lane.EVENTS) == Ranges(((0, 1),))

    _play(scenario)


def test_a_receipt_of_an_unknown_life_changes_nothing() -> None:
    """It may be a clone's: the data is kept, and the present life is not given up for it."""

    async def scenario(world: World, past: Epoch) -> None:
        world.receipt(Lane.EVENTS, 1, {"epoch": Epoch(77, 7)})
        world.receipt(Lane.EVENTS, 99, {"epoch": past})
        await asyncio.sleep(1)
        assert not world.spool.released(Lane.EVENTS, past)
        assert not world.watcher.of(events.StoreOutdated)

    _play(scenario)


async def _outdated(disk: SimDisk, spool: Spool, watermark: int) -> int:
    """How often the node was told to begin anew, by two receipts that speak of too much."""
    told: list[int] = []
    wire, watcher = Wire(), Watcher()
    forwarder = forward("pump", spool, wire, SETTINGS, watcher, lambda: told.append(1))
    world = World(spool, wire)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(forwarder.run())
        world.receipt(Lane.EVENTS, watermark)
        await asyncio.sleep(1)
        world.receipt(Lane.EVENTS, watermark + 1)
        await asyncio.sleep(1)
        running.cancel()
    assert disk.size("STORE")
    return len(told)


def test_a_receipt_beyond_what_was_written_ends_the_life() -> None:
    """Restored from an older copy: told once; the next opening begins a new life, all is kept."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk) as spool:
            old = spool.epoch
            assert await Said().append(spool, Lane.EVENTS, ["a"])
            assert await _outdated(disk, spool, 50) == 1
        async with opened(disk, seed=2) as spool:
            assert spool.epochs == (old, spool.epoch)

    play(main)


def test_a_disk_that_cannot_mark_the_end_of_a_life_is_asked_again() -> None:
    """The next receipt says the same."""

    async def main(_: random.Random) -> None:
        disk = SimDisk()
        async with opened(disk) as spool:
            assert await Said().append(spool, Lane.EVENTS, ["a"])
            disk.faults.fail("rename", path="STORE.new")
            assert await _outdated(disk, spool, 50) == 1

    play(main)


def test_a_batch_that_is_always_refused_is_parked_and_its_lane_moves_on() -> None:
    """Row 46: after some tries; it stays pending, and a new connection tries it again."""

    async def scenario(world: World, _: Epoch) -> None:
        poison = Refusal(RefusedBecause.BAD_CHAIN, "never", 0.0)

        def answer(part: Part) -> Accepted | Refusal:
            return poison if batch.parse(part.payload).header.first == 0 else Accepted()

        world.wire.answer = answer
        await world.said.append(world.spool, Lane.ALARMS, ["poison"])
        await asyncio.sleep(10)
        assert world.watcher.of(BatchParked)
        await world.said.append(world.spool, Lane.ALARMS, ["after"])
        await asyncio.sleep(1)
        firsts = [
            batch.parse(part.payload).header.first
            for part in world.wire.sent
            if part.lane is Lane.ALARMS
        ]
        assert firsts.count(0) == 5
        assert 1 in firsts
        assert world.spool.has_pending(Lane.ALARMS, 0)
        world.wire.sent.clear()
        world.wire.turn(up=False)
        await asyncio.sleep(1)
        world.wire.turn(up=True)
        await asyncio.sleep(1)
        assert Lane.ALARMS in world.wire.lanes()

    _play(scenario, b"m" * 16)
