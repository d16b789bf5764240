"""Poison: a batch that the receiver refuses for what it is must not hold up its lane."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from mesh.ports import Accepted, Link, LinkState, Part, Refusal
from mesh.spool import batch
from mesh.transfer.delivery import Delivery, DeliverySettings
from nodes.forwarder import BatchParked, BatchRefused
from schemas.errors import RefusedBecause
from schemas.messages import Epoch, Lane, Receipt, Severity, Stage
from schemas.ranges import Ranges
from simulator.disk import SimDisk
from tests.nodes.forwards import forward
from tests.spool.world import CALM, Said, Watcher, opened, pending, play
from tests.transfer.headers import EPOCH, header, receipt_of

TRIES = 3
SETTINGS = DeliverySettings(full_bytes=0, tries_max=TRIES)
POISON = Refusal(RefusedBecause.MALFORMED, "not understood", 0.0)
FULL = Refusal(RefusedBecause.FULL, "no room", 0.0)


def _delivery(settings: DeliverySettings = SETTINGS) -> Delivery:
    return Delivery("hall", "pump", EPOCH, {}, settings)


def _refuse(
    delivery: Delivery, first: int, stop: int, refusal: Refusal = POISON, now: float = 0.0
) -> bool:
    """Sends a batch, which is refused; whether it is parked then."""
    ticket = delivery.on_sent(header(first, stop), now, more=True)
    return delivery.on_refused(Lane.EVENTS, ticket, refusal, now)


def test_a_batch_is_parked_when_it_was_refused_too_often_and_its_lane_moves_on() -> None:
    """Row 46: not before; and then at once, without the pause of a refusal."""
    delivery = _delivery()
    for n in range(TRIES - 1):
        assert not _refuse(delivery, 0, 4, now=float(10 * n))
        assert delivery.start(Lane.EVENTS) == 0
        assert Lane.EVENTS not in delivery.lanes_due(10 * n + 0.5), "a refusal pauses its lane"
    assert _refuse(delivery, 0, 4, now=100.0)
    assert delivery.start(Lane.EVENTS) == 4
    assert Lane.EVENTS in delivery.lanes_due(100.0)
    assert delivery.parked(Lane.EVENTS) == Ranges(((0, 4),))
    delivery.on_sent(header(4, 6), 101.0, more=True)
    assert delivery.start(Lane.EVENTS) == 6


def test_want_of_room_never_parks() -> None:
    """Row 46: the batch is in order, and will be taken once there is room."""
    delivery = _delivery()
    for n in range(100):
        assert not _refuse(delivery, 0, 4, FULL, 10.0 * n)
        assert delivery.start(Lane.EVENTS) == 0
    assert not delivery.parked(Lane.EVENTS)


def test_refusals_are_counted_for_each_batch() -> None:
    """Row 46: two that are refused now and then do not make one that is poison."""
    delivery = _delivery()
    for first in (0, 4, 0, 4):
        assert not _refuse(delivery, first, first + 4)
    assert _refuse(delivery, 4, 8)
    assert delivery.parked(Lane.EVENTS) == Ranges(((4, 8),))
    assert delivery.start(Lane.EVENTS) == 0, "the other one is tried again"


def test_a_link_that_comes_up_anew_gets_what_was_parked_once_more() -> None:
    """Row 46: the receiver may have learned; it has all its tries again."""
    delivery = _delivery()
    assert [_refuse(delivery, 0, 4) for _ in range(TRIES)] == [False, False, True]
    delivery.on_break()
    assert not delivery.parked(Lane.EVENTS)
    assert delivery.start(Lane.EVENTS) == 0
    assert [_refuse(delivery, 0, 4) for _ in range(TRIES)] == [False, False, True]


def test_a_receipt_beyond_it_does_not_release_what_is_parked() -> None:
    """Row 46: what was not taken is kept, whatever is taken behind it."""
    delivery = _delivery()
    for _ in range(TRIES):
        _refuse(delivery, 0, 4)
    delivery.on_sent(header(4, 9), 0.0, more=True)
    held = replace(receipt_of(0), held=Ranges(((4, 9),)))
    released = delivery.on_receipt(held, 9, 1.0)
    assert released.numbers == Ranges(((4, 9),))
    assert delivery.start(Lane.EVENTS) == 9


def test_what_is_parked_is_bounded() -> None:
    """Row 46: a receiver that refuses everything gets it again and again, from the oldest on."""
    delivery = _delivery(replace(SETTINGS, tries_max=1))
    parked = sum(_refuse(delivery, 2 * n, 2 * n + 1) for n in range(1000))
    assert parked == 256
    assert len(delivery.parked(Lane.EVENTS).spans) == 256


# --- with a spool and a link ---------------------------------------------------------------------


class _Picky(Link):
    """Port ``Link``: refuses what holds a number that it does not like, receipts the rest."""

    def __init__(self, refusal: Refusal, poison: int) -> None:
        self.refusal = refusal
        self.poison: int | None = poison
        self.offers: Counter[int] = Counter()
        self._state = LinkState("up", up=True, reason="", since_mono_ns=0, connections=1)
        self._changed = asyncio.Event()
        self._held = dict.fromkeys(Lane, Ranges())
        self._news: asyncio.Queue[Receipt] = asyncio.Queue()
        self._receipts = 0

    @property
    def state(self) -> LinkState:
        """How it stands."""
        return self._state

    def reconnect(self) -> None:
        """Down and up again."""
        self._state = replace(self._state, connections=self._state.connections + 1)
        self._changed.set()

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Once it was connected anew."""
        while self._state == seen:
            self._changed.clear()
            await self._changed.wait()
        return self._state

    async def send(self, part: Part) -> Accepted | Refusal:
        """Judges the batch."""
        await asyncio.sleep(0.01)
        found = batch.parse(part.payload).header
        if found.lane is Lane.EVENTS:
            self.offers[found.first] += 1
            if self.poison in found.present:
                return self.refusal
        held = self._held[found.lane] | found.present
        self._held[found.lane] = held
        self._receipts += 1
        # What it holds in order, and what it holds beyond.
        stop = held.watermark()
        self._news.put_nowait(
            Receipt(
                *("hq", Epoch(9, 9), self._receipts, Stage.ARCHIVED),
                *(found.site, found.node, found.epoch, found.lane),
                *(stop, b"", 0),
                held=held - Ranges.of([(0, stop)]),
            )
        )
        return Accepted()

    async def receipts(self) -> AsyncIterator[Receipt]:
        """As they come."""
        while True:
            yield await self._news.get()


@pytest.mark.parametrize("poison", [True, False])
def test_a_poisoned_lane_drains_around_it_and_somebody_is_told(*, poison: bool) -> None:
    """Row 46: parked, told as an alarm, tried after a reconnect; for want of room it waits."""

    async def main(_: random.Random) -> None:
        disk, said, watcher = SimDisk(), Said(), Watcher()
        async with opened(disk, CALM) as spool:
            link = _Picky(POISON if poison else FULL, 2)
            for n in range(4):
                assert await said.append(spool, Lane.EVENTS, [f"{n}", "x"])
                spool._pump.rotate()
                await asyncio.sleep(1)
            forwarder = forward("pump", spool, link, SETTINGS, watcher)
            work = asyncio.get_running_loop().create_task(forwarder.run())
            await asyncio.sleep(30)
            parked = [event for event in watcher.seen if isinstance(event, BatchParked)]
            left = [item.header.first for item in await pending(spool, Lane.EVENTS)]
            assert left == [2], "what is behind it is taken all the same"
            if poison:
                assert link.offers[2] == TRIES
                (alarm,) = parked
                assert alarm.severity is Severity.ERROR
                assert "not understood" in alarm.reason
                assert len(watcher.of(BatchRefused)) == TRIES - 1
            else:
                assert link.offers[2] > TRIES
                assert not parked
            link.poison = None
            link.reconnect()
            await asyncio.sleep(5)
            assert not await pending(spool, Lane.EVENTS)
            work.cancel()
            await asyncio.wait([work])

    play(main)
