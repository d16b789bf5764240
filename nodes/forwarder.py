"""The forwarder: the shell round ``mesh.transfer.delivery`` for one link.

Never in the way of a decision.

It waits for the link, sends what the delivery says, hands receipts to it, and releases what they
release. Each life of the spool that has something pending has a delivery of its own; within a lane
the oldest life goes first. A receipt of the present life that speaks of what was never written, or
of other records under its numbers, means that this spool was restored from an older copy: its
numbers are given up. Every failure of the link ends here: the forwarder runs until it is cancelled,
and a backlog needs no restart to drain.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mesh.ports import Accepted, Link, LinkState, Observer, Part, Refusal
from mesh.spool.batch import Batch
from mesh.spool.spool import Spool
from mesh.transfer.delivery import Delivery, DeliverySettings, LaneProgress
from schemas.errors import DiskFailed, LinkDown, Refused, RefusedBecause
from schemas.messages import Epoch, Lane, Severity

__all__ = [
    "BatchParked",
    "BatchRefused",
    "Forwarder",
    "LinkChanged",
    "ReceiptRefused",
    "SendFailed",
]

_RETRY_SECONDS: Final = 1.0
_DOUBT_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 3600.0
_OUTDATED: Final = frozenset({RefusedBecause.BEYOND_SENT, RefusedBecause.BAD_CHAIN})


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """A link came up or went down."""

    name: str
    up: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BatchRefused:
    """A batch was not taken upstream; it is kept and offered again."""

    link: str
    batch: str
    reason: str


@dataclass(frozen=True, slots=True)
class BatchParked:
    """A batch was refused too often for what it is; it is kept, and its lane goes on without it."""

    link: str
    batch: str
    reason: str

    @property
    def severity(self) -> Severity:
        """An alarm: it will not arrive by itself."""
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class SendFailed:
    """A batch may not have arrived; it is sent again. Told once for each life of the link."""

    link: str
    batch: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReceiptRefused:
    """Receipts were not believed; the data is kept.

    For this very node and epoch that means that its past is not what headquarters knows: the spool
    was restored from an older copy, or another node has the same name.
    """

    link: str
    lane: str
    reason: str
    count: int

    @property
    def severity(self) -> Severity:
        """An alarm: somebody has to look."""
        return Severity.ERROR


class Forwarder:
    """Drains a spool over a link.

    Args:
        site: of this node.
        node: this node.
        spool: what to drain.
        link: over which link.
        settings: how to use it.
        observer: is told what happens.
        outdated: called when the spool has turned out to be an older copy, so that the node can
            begin anew.
    """

    def __init__(
        self,
        site: str,
        node: str,
        spool: Spool,
        link: Link,
        settings: DeliverySettings,
        observer: Observer,
        outdated: Callable[[], None] = lambda: None,
    ) -> None:
        self._spool = spool
        self._link = link
        self._observer = observer
        self._outdated = outdated
        self._deliveries = {
            epoch: Delivery(
                *(site, node, epoch),
                {lane: spool.released(lane, epoch) for lane in Lane},
                settings,
            )
            for epoch in spool.epochs
        }
        self._present = self._deliveries[spool.epoch]
        self._given_up = False
        # Twice the window: what a broken connection still holds up does not stop the next one.
        self._sends = 0
        self._sends_max = 2 * settings.window_batches
        self._doubts: dict[tuple[Lane, RefusedBecause], tuple[int, float]] = {}
        self._failed_on = -1
        self._turn = asyncio.Event()
        self._released = asyncio.Event()

    def states(self) -> list[LinkState]:
        """How the link stands, as a list since a node may have several."""
        return [self._link.state]

    def progress(self) -> dict[Lane, LaneProgress]:
        """Where each lane of the present life stands on the link."""
        return self._present.progress()

    async def run(self) -> None:
        """Forwards until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_link(), name="link")
            tasks.create_task(self._watch_spool(), name="spool")
            tasks.create_task(self._take_receipts(), name="receipts")
            tasks.create_task(self._send(tasks), name="send")

    async def drained(self) -> None:
        """Returns once nothing durable is left to release.

        May take for ever: give it a deadline.
        """
        while any(
            lane.pending_records or lane.waiting_records
            for lane in self._spool.status().lanes.values()
        ):
            self._released.clear()
            await self._released.wait()

    async def _watch_link(self) -> None:
        state = self._link.state
        while True:
            self._observer.observe(LinkChanged(state.name, state.up, state.reason))
            self._spool.set_linked(up=state.up)
            for delivery in self._deliveries.values():
                delivery.on_break()
            self._turn.set()
            state = await self._link.wait_changed(state)

    async def _watch_spool(self) -> None:
        while True:
            await self._spool.wait_grown()
            self._turn.set()

    async def _take_receipts(self) -> None:
        loop = asyncio.get_running_loop()
        async for receipt in self._link.receipts():
            # A receipt of a life that is not known here is judged, and refused, by the present one.
            delivery = self._deliveries.get(receipt.epoch, self._present)
            try:
                durable = self._spool.durable(receipt.lane, receipt.epoch)
                released = delivery.on_receipt(receipt, durable, loop.time())
                if released.numbers:
                    self._spool.release(
                        released.lane, released.numbers, released.holder, receipt.epoch
                    )
                    self._released.set()
            except Refused as refused:
                self._doubt(receipt.lane, refused, loop.time())
                if delivery is self._present and refused.reason in _OUTDATED:
                    await self._give_up_epoch(str(refused))
            self._turn.set()

    async def _give_up_epoch(self, reason: str) -> None:
        """Once: headquarters knows another past of this spool than the spool itself."""
        if self._given_up:
            return
        try:
            await self._spool.give_up_epoch(reason)
        except DiskFailed as failure:
            self._observer.observe(BatchRefused(self._link.state.name, "STORE", str(failure)))
            return
        self._given_up = True
        self._outdated()

    def _doubt(self, lane: Lane, refused: Refused, now: float) -> None:
        """Tells of refused receipts, once in a minute: telling is itself sent and receipted."""
        count, due = self._doubts.get((lane, refused.reason), (0, now))
        count += 1
        if now >= due:
            told = ReceiptRefused(self._link.state.name, lane, str(refused), count)
            self._observer.observe(told)
            count, due = 0, now + _DOUBT_SECONDS
        self._doubts[lane, refused.reason] = (count, due)

    async def _send(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._turn.clear()
            for delivery in self._deliveries.values():
                delivery.on_timer(loop.time())
            while self._link.state.up and self._sends < self._sends_max:
                batch = await self._next_batch(loop.time())
                if batch is None:
                    break
                header = batch.header
                delivery = self._deliveries[header.epoch]
                more = self._spool.has_pending(header.lane, header.last + 1, header.epoch)
                ticket = delivery.on_sent(header, loop.time(), more=more)
                self._sends += 1
                tasks.create_task(self._send_one(batch, ticket), name=f"send {header}")
            await self._wait_turn(loop)

    async def _wait_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        timers = [delivery.get_timer(now) for delivery in self._deliveries.values()]
        timer = min((at for at in timers if at is not None), default=now + _IDLE_SECONDS)
        delay = max(0.001, timer - now)
        try:
            async with asyncio.timeout(delay):
                await self._turn.wait()
        except TimeoutError:
            return

    async def _next_batch(self, now: float) -> Batch | None:
        for lane, epoch in self._due(now):
            delivery = self._deliveries[epoch]
            try:
                batch = await self._spool.next_batch(lane, delivery.start(lane), epoch)
            except DiskFailed as failure:
                self._observer.observe(BatchRefused(self._link.state.name, lane, str(failure)))
                continue
            if batch is not None:
                return batch
        return None

    def _due(self, now: float) -> list[tuple[Lane, Epoch]]:
        """Which lane of which life may send now, the most urgent first, the oldest life first."""
        due = {
            epoch: delivery.lanes_due(now) if delivery.has_room else []
            for epoch, delivery in self._deliveries.items()
        }
        return [(lane, epoch) for lane in Lane for epoch, lanes in due.items() if lane in lanes]

    async def _send_one(self, batch: Batch, ticket: int) -> None:
        header = batch.header
        loop = asyncio.get_running_loop()
        part = Part(
            header.site, header.node, header.lane, batch.digest, 0, len(batch.data), batch.data
        )
        try:
            answer = await self._link.send(part)
        except LinkDown as down:
            answer = None
            state = self._link.state
            if state.connections != self._failed_on:
                self._failed_on = state.connections
                self._observer.observe(SendFailed(state.name, str(header), str(down)))
            await asyncio.sleep(_RETRY_SECONDS)
        delivery = self._deliveries[header.epoch]
        match answer:
            case None:
                delivery.on_failed(header.lane, ticket)
            case Accepted():
                delivery.on_accepted(header.lane, ticket, loop.time())
            case Refusal():
                parked = delivery.on_refused(header.lane, ticket, answer, loop.time())
                told = (BatchParked if parked else BatchRefused)(
                    self._link.state.name, str(header), str(answer)
                )
                self._observer.observe(told)
        self._sends -= 1
        self._turn.set()
