"""The forwarder: every failure of the link ends there, and only receipts release."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mesh.ports import Accepted, Part, Refusal
from mesh.spool import batch
from mesh.spool.spool import Spool, SpoolSettings
from mesh.transfer.delivery import DeliverySettings
from nodes.forwarder import BatchRefused, LinkChanged, ReceiptRefused
from schemas.errors import LinkDown, RefusedBecause
from schemas.messages import Epoch, Lane, Receipt, Stage
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.nodes.forwards import Standing, forward
from tests.spool.world import CALM, SMALL, Said, Watcher, opened, play

SETTINGS = DeliverySettings(window_batches=3, receipt_seconds=10.0)
Answer = Callable[[Part], Any]


@dataclass
class Wire(Standing):
    """Port ``Link``: answers as it is told, and keeps what was sent."""

    answer: Answer = lambda _: Accepted()
    seconds: float = 0.01
    sent: list[Part] = field(default_factory=list)
    most: int = 0
    news: "asyncio.Queue[Receipt]" = field(default_factory=asyncio.Queue)
    under_way: int = 0

    def turn(self, *, up: bool) -> None:
        """Up or down."""
        connections = self.state.connections + up
        self.state = replace(self.state, up=up, connections=connections)
        self.changed.set()

    def reset(self, reason: str) -> None:
        """Comes up anew at once."""
        assert reason
        self.turn(up=True)

    async def send(self, part: Part) -> Accepted | Refusal:
        """As told."""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.sent.append(part)
        try:
            await asyncio.sleep(self.seconds)
            answer = self.answer(part)
            if isinstance(answer, Exception):
                raise answer
            assert isinstance(answer, Accepted | Refusal)
            return answer
        finally:
            self.under_way -= 1

    async def receipts(self) -> AsyncIterator[Receipt]:
        """As they come."""
        while True:
            yield await self.news.get()

    def lanes(self) -> list[Lane]:
        """Of what was sent, in order."""
        return [part.lane for part in self.sent]


class World:
    """A spool, a wire, a forwarder between them."""

    def __init__(self, spool: Spool, wire: Wire) -> None:
        self.spool = spool
        self.wire = wire
        self.said = Said()
        self.watcher = Watcher()
        self.forwarder = forward("pump", spool, wire, SETTINGS, self.watcher)
        self.number = 0

    def receipt(self, lane: Lane, watermark: int, changes: dict[str, Any] | None = None) -> None:
        """Comes over the wire."""
        self.number += 1
        made = Receipt(
            "hq",
            Epoch(9, 9),
            self.number,
            Stage.ARCHIVED,
            "hall",
            "pump",
            self.spool.epoch,
            lane,
            watermark,
            b"",
            0,
        )
        self.wire.news.put_nowait(replace(made, **(changes or {})))

    async def everything(self) -> None:
        """Receipts for all that is durable."""
        for lane in Lane:
            self.receipt(lane, self.spool.durable(lane))
        await asyncio.sleep(1)


def _play(
    scenario: Callable[[World], Any], wire: Wire | None = None, settings: SpoolSettings = CALM
) -> None:
    async def main(_: random.Random) -> None:
        async with opened(SimDisk(), settings) as spool:
            world = World(spool, wire or Wire())
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(world.forwarder.run())
                await scenario(world)
                running.cancel()

    play(main)


def test_what_is_recorded_is_sent_and_released_by_a_receipt() -> None:
    """The part is the whole batch, under its digest; ``drained`` returns when nothing is left."""

    async def scenario(world: World) -> None:
        await world.said.append(world.spool, Lane.EVENTS, ["a", "b"])
        await asyncio.sleep(2)
        part = next(part for part in world.wire.sent if part.lane is Lane.EVENTS)
        found = batch.parse(part.payload)
        assert (part.site, part.node, part.offset, part.total) == (
            "hall",
            "pump",
            0,
            len(part.payload),
        )
        assert part.digest == found.digest
        assert len(batch.open_records(found)) == 2
        assert world.spool.status().lanes[Lane.EVENTS].pending_records == 2, "accepted is nothing"
        drained = asyncio.get_running_loop().create_task(world.forwarder.drained())
        await world.everything()
        async with asyncio.timeout(5):
            await drained
        assert world.forwarder.progress()[Lane.EVENTS].released_to == 2
        assert world.forwarder.states() == [world.wire.state]

    _play(scenario)


def test_without_a_receipt_it_is_sent_again_for_ever() -> None:
    """A transport acknowledges and forgets; it is offered anew, at intervals that grow."""

    async def scenario(world: World) -> None:
        await world.said.append(world.spool, Lane.ALARMS, ["a"])
        await asyncio.sleep(55)
        assert world.wire.lanes().count(Lane.ALARMS) == 3, "after 0, 10 and 30 seconds"
        await asyncio.sleep(1000)
        assert 14 <= world.wire.lanes().count(Lane.ALARMS) <= 18, "every 80 seconds at last"
        await world.everything()
        before = len(world.wire.sent)
        await asyncio.sleep(100)
        assert len(world.wire.sent) == before

    _play(scenario)


def test_a_link_that_is_down_is_left_alone() -> None:
    """Nothing is sent; when it comes up, all that is not released is."""

    async def scenario(world: World) -> None:
        await asyncio.sleep(1)
        await world.everything()
        world.wire.turn(up=False)
        await world.said.append(world.spool, Lane.EVENTS, ["a"])
        before = len(world.wire.sent)
        await asyncio.sleep(1000)
        assert len(world.wire.sent) == before
        world.wire.turn(up=True)
        await asyncio.sleep(1)
        assert world.wire.lanes()[before:] == [Lane.EVENTS]
        ups = [event.up for event in world.watcher.of(LinkChanged)]  # type: ignore[attr-defined]
        assert ups == [True, False, True]

    _play(scenario)


def test_a_refusal_pauses_its_lane_and_no_other() -> None:
    """And is told of."""

    def answer(part: Part) -> Accepted | Refusal:
        if part.lane is Lane.LOGS:
            return Refusal(RefusedBecause.FULL, "no room", 20.0)
        return Accepted()

    async def scenario(world: World) -> None:
        await world.said.append(world.spool, Lane.LOGS, ["a"])
        await world.said.append(world.spool, Lane.EVENTS, ["a"])
        await asyncio.sleep(9)
        assert world.wire.lanes().count(Lane.LOGS) == 1
        assert world.wire.lanes().count(Lane.EVENTS) == 1
        await asyncio.sleep(20)
        assert world.wire.lanes().count(Lane.LOGS) == 2
        assert len(world.watcher.of(BatchRefused)) == 2

    _play(scenario, Wire(answer))


def test_a_send_that_fails_is_tried_again_soon_but_not_at_once() -> None:
    """A link that is up and answers nothing must not be hammered."""

    async def scenario(world: World) -> None:
        await world.said.append(world.spool, Lane.EVENTS, ["a"])
        await asyncio.sleep(20)
        assert 10 <= world.wire.lanes().count(Lane.EVENTS) <= 25
        assert world.spool.status().lanes[Lane.EVENTS].pending_records == 1

    _play(scenario, Wire(lambda _: LinkDown("no answer")))


def test_the_window_bounds_what_is_under_way() -> None:
    """However long the backlog, however slow the link."""

    async def scenario(world: World) -> None:
        for _ in range(20):
            await world.said.append(world.spool, Lane.EVENTS, ["x" * 3000] * 20)
        await asyncio.sleep(200)
        assert world.wire.most == SETTINGS.window_batches

    _play(scenario, Wire(seconds=5.0), replace(SMALL, lanes=CALM.lanes))


def test_a_flapping_link_gathers_no_sends() -> None:
    """Row 32: what a broken connection still holds up is bounded too."""

    async def scenario(world: World) -> None:
        for _ in range(20):
            await world.said.append(world.spool, Lane.EVENTS, ["x" * 3000] * 20)
        for _ in range(100):
            world.wire.turn(up=False)
            await asyncio.sleep(0.2)
            world.wire.turn(up=True)
            await asyncio.sleep(0.5)
        assert world.wire.most <= 2 * SETTINGS.window_batches
        world.wire.seconds = 0.01
        world.wire.sent.clear()
        await asyncio.sleep(60)
        assert world.wire.sent, "and it recovers"

    _play(scenario, Wire(seconds=30.0), replace(SMALL, lanes=CALM.lanes))


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "other"},
        {"epoch": Epoch(7, 7)},
        {"watermark": 10_000},
        {"held": Ranges(((5000, 5001),))},
        {"watermark": 2, "chain": b"x" * 16, "chain_at": 2},
    ],
)
def test_a_receipt_that_is_not_believed_keeps_the_data(changes: dict[str, Any]) -> None:
    """Refusal 15: told of; the next one is taken."""

    async def scenario(world: World) -> None:
        await world.said.append(world.spool, Lane.EVENTS, ["a", "b"])
        await asyncio.sleep(1)
        world.receipt(Lane.EVENTS, 1, changes)
        await asyncio.sleep(1)
        assert world.spool.status().lanes[Lane.EVENTS].pending_records == 2
        assert len(world.watcher.of(ReceiptRefused)) == 1
        await world.everything()
        assert world.spool.status().lanes[Lane.EVENTS].pending_records == 0

    _play(scenario)


def test_doubt_is_told_once_a_minute_with_its_count() -> None:
    """Telling is itself sent and receipted: it must not feed on itself."""

    async def scenario(world: World) -> None:
        await world.said.append(world.spool, Lane.EVENTS, ["a", "b"])
        await asyncio.sleep(1)
        for _ in range(20):
            world.receipt(Lane.EVENTS, 1, {"watermark": 10_000})
            await asyncio.sleep(1)
        assert [event.count for event in world.watcher.of(ReceiptRefused)] == [1]  # type: ignore[attr-defined]
        await asyncio.sleep(60)
        world.receipt(Lane.EVENTS, 1, {"watermark": 10_000})
        await asyncio.sleep(1)
        assert [event.count for event in world.watcher.of(ReceiptRefused)] == [1, 20]  # type: ignore[attr-defined]

    _play(scenario)


def test_the_most_urgent_goes_first() -> None:
    """An alarm does not wait behind history."""

    async def scenario(world: World) -> None:
        world.wire.turn(up=False)
        await asyncio.sleep(0.1)
        for lane in (Lane.LOGS, Lane.DECISIONS, Lane.ALARMS):
            await world.said.append(world.spool, lane, ["x"])
        world.wire.sent.clear()
        world.wire.turn(up=True)
        await asyncio.sleep(0.5)
        assert world.wire.lanes() == [Lane.ACCOUNT, Lane.ALARMS, Lane.DECISIONS, Lane.LOGS]

    _play(scenario)


def test_a_trickle_becomes_few_batches_and_a_backlog_drains_at_once() -> None:
    """A lane lingers after the last of it, not between."""

    async def scenario(world: World) -> None:
        for n in range(50):
            await world.said.append(world.spool, Lane.LOGS, [f"{n}"])
            await asyncio.sleep(0.1)
        trickle = world.wire.lanes().count(Lane.LOGS)
        assert trickle <= 7
        await world.everything()
        world.wire.turn(up=False)
        for n in range(50):
            await world.said.append(world.spool, Lane.LOGS, [f"{n}"])
            world.spool._pump.rotate()
            await asyncio.sleep(0.5)
        world.wire.sent.clear()
        world.wire.turn(up=True)
        await asyncio.sleep(1.0)
        assert world.wire.lanes().count(Lane.LOGS) == 50, "small batches, and none waits"

    _play(scenario)


def test_a_disk_that_cannot_be_read_now_stops_nobody() -> None:
    """The lane is passed over and tried again; the others go on."""

    async def scenario(world: World) -> None:
        disk = world.spool._resources.disk
        assert isinstance(disk, SimDisk)
        await world.said.append(world.spool, Lane.LOGS, ["a"])
        disk.faults.fail("open", times=3)
        await asyncio.sleep(60)
        assert Lane.LOGS in world.wire.lanes()

    _play(scenario)
