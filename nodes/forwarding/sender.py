"""The sender: chooses the next part, reads its batch, sends it, and takes the answer.

One turn after another: as long as the schedule chooses something it goes, then the sender waits
until something has happened. A batch is read when it is chosen, which takes time; should anything
happen meanwhile, the choice is made anew with that batch in hand. So an alarm waits for one read at
most, and for no part that was not under way yet.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from mesh.ports import Accepted, Clock, Observer, Part, Refusal
from mesh.transfer.delivery import DeliverySettings
from mesh.transfer.schedule import Choice, Queue, Schedule
from mesh.transfer.source import Source
from nodes.forwarding.events import BatchParked, BatchRefused, LinkStalled, SendFailed
from nodes.forwarding.lives import Flow, Lives
from nodes.forwarding.route import Route
from nodes.forwarding.transfer import Place, Transfer
from schemas.errors import DiskFailed, LinkDown, RefusedBecause
from schemas.messages import Lane

__all__ = ["Sender"]

_IDLE_SECONDS: Final = 3600.0
_DISK_SECONDS: Final = 1.0
_NEVER: Final = float("inf")
_TURN_SECONDS_MIN: Final = 0.001
_URGENT: Final = frozenset({Lane.ACCOUNT, Lane.ALARMS})
_HEADS_URGENT: Final = 4


class Sender:
    """Sends what the schedule chooses.

    Args:
        source: where batches come from.
        lives: which of its lives may have something to send.
        routes: the links, by name.
        schedule: says what goes over which of them.
        settings: how batches are delivered.
        clock: for budgets by the day.
        observer: is told what happens.
    """

    def __init__(
        self,
        source: Source,
        lives: Lives,
        routes: Mapping[str, Route],
        schedule: Schedule,
        settings: DeliverySettings,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._source = source
        self._lives = lives
        self._routes = routes
        self._schedule = schedule
        self._clock = clock
        self._observer = observer
        # Twice the window: what a broken connection still holds up does not stop the next one.
        self._sends_max = 2 * settings.window_batches
        self._begun: dict[Transfer, None] = {}
        self._sending: dict[str, dict[Transfer, None]] = {name: {} for name in routes}
        self._nothing = schedule.plan(0.0, 0, (), {})
        self._look_at = _NEVER
        self.sends = 0
        """How many batches were begun and have not ended."""
        self.plan = self._nothing
        """The last plan by which nothing could go: why what waits, waits."""

    def __repr__(self) -> str:
        return f"<Sender of {self.sends} batches>"

    def transfers(self) -> list[Transfer]:
        """All that were begun and have not ended, each once, in an order that replays."""
        under_way = (it for sending in self._sending.values() for it in sending)
        return [*dict.fromkeys((*self._begun, *under_way))]

    def sending(self) -> Mapping[str, Iterable[Transfer]]:
        """The batches that are being sent, by link."""
        return self._sending

    def end_all(self) -> None:
        """A link broke: what is said of anything that is under way means nothing any more."""
        for transfer in self.transfers():
            self._end(transfer)

    async def run(self) -> None:
        """Sends until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._lives.begin_turn(loop.time())
                if loop.time() >= self._look_at:
                    self._look_at = _NEVER
                    self._lives.look()
                while (choice := self._choose(loop.time())) is not None:
                    await self._send_next(choice, tasks)
                await self._lives.wait_turn(self._until(loop.time()))

    def _until(self, now: float) -> float:
        timers = [route.get_timer(now) for route in self._routes.values()]
        timers += [self.plan.again_at, self._look_at, self._lives.get_timer(now)]
        timer = min((at for at in timers if at is not None), default=_NEVER)
        return max(now + _TURN_SECONDS_MIN, min(timer, now + _IDLE_SECONDS))

    # --- choosing ----------------------------------------------------------------------------

    def _choose(self, now: float) -> Choice | None:
        queues = self._queues(now) if self._routes else []
        if not queues:
            self.plan = self._nothing
            return None
        wall_ns = self._clock.now().wall_ns
        room = {name: route.room(now) for name, route in self._routes.items()}
        choice = self._schedule.choose(now, wall_ns, queues, room)
        if choice is None:
            self.plan = self._schedule.plan(now, wall_ns, queues, room)
        return choice

    def _queues(self, now: float) -> list[Queue]:
        """What could send a part now: first what was begun, which nothing holds back any more."""
        queues = [
            Queue(transfer.life, *transfer.place, size)
            for transfer in self._begun
            if (size := transfer.next_size(self._part_bytes(transfer.link)))
        ]
        room = self._sends_max - self.sends
        if room <= -_HEADS_URGENT:
            return queues
        size = self._part_bytes("")
        for flow in self._lives.awake:
            queues += [
                Queue(flow.life, *fresh.place, size)
                for fresh in self._lives.fresh(flow, now)
                if room > 0 or fresh.place.lane in _URGENT
            ]
        return queues

    def _part_bytes(self, link: str) -> int:
        route = self._routes.get(link)
        if route is not None:
            return route.part_bytes
        return max(route.part_bytes for route in self._routes.values())

    # --- sending -----------------------------------------------------------------------------

    async def _send_next(self, choice: Choice, tasks: asyncio.TaskGroup) -> None:
        """Sends the next part of the queue that was chosen."""
        loop = asyncio.get_running_loop()
        route, queue = self._routes[choice.link], choice.queue
        flow, place = self._lives.get(queue.life), Place(queue.lane, queue.live)
        if flow is None:
            return
        transfer = flow.heads.get(place)
        if transfer is None:
            stirs = self._lives.stirs
            transfer = await self._begin(route, flow, place)
            if transfer is None or self._lives.stirs != stirs:
                return
        if transfer.link != route.name:
            self._sending.get(transfer.link, {}).pop(transfer, None)
            transfer.begin(route.name)
            self._sending[route.name][transfer] = None
        now, wall_ns = loop.time(), self._clock.now().wall_ns
        left = self._schedule.left(route.name, now, wall_ns)
        size = transfer.next_size(route.part_bytes if left is None else min(route.part_bytes, left))
        part = transfer.cut(size)
        if transfer.is_cut:
            del flow.heads[place]
            del self._begun[transfer]
            self._lives.touch(flow)
        route.on_sent(size, now)
        self._schedule.on_sent(choice, size, now, wall_ns)
        tasks.create_task(self._send_part(route, transfer, part))

    async def _begin(self, route: Route, flow: Flow, place: Place) -> Transfer | None:
        """Takes the next batch of a place in hand; ``None`` when there is none to be sent."""
        loop = asyncio.get_running_loop()
        life, lane, delivery, returns = flow.life, place.lane, flow.delivery, flow.returns
        fresh = self._lives.fresh(flow, loop.time())
        start = next((it.start for it in fresh if it.place == place), None)
        if start is None:
            return None
        try:
            batch = await self._source.next_batch(life, lane, start)
        except DiskFailed as failure:
            self._observer.observe(BatchRefused(route.name, f"{life}/{lane}", str(failure)))
            self._look_at = loop.time() + _DISK_SECONDS
            batch = None
        self._lives.touch(flow)
        if flow.returns != returns:
            # It is to go on from elsewhere now.
            return None
        if batch is None:
            flow.dry.add(place)
            return None
        header = batch.header
        if delivery.is_taken(lane, header.first, header.last + 1):
            # Reached what went before it as live: nothing is pending between.
            delivery.on_skipped(lane, start, header.last + 1)
            return None
        more = self._source.has_pending(life, lane, header.last + 1)
        ticket = delivery.on_sent(header, loop.time(), more=more, start=start)
        self.sends += 1
        transfer = flow.heads[place] = Transfer(life, place, batch, ticket)
        self._begun[transfer] = None
        return transfer

    # --- answers -----------------------------------------------------------------------------

    async def _send_part(self, route: Route, transfer: Transfer, part: Part) -> None:
        loop = asyncio.get_running_loop()
        attempt, life, size = transfer.attempt, route.life, len(part.payload)
        answer: Accepted | Refusal | None = None
        reason = ""
        try:
            answer = await route.link.send(part)
        except LinkDown as down:
            reason = str(down)
        now = loop.time()
        route.on_ended(life)
        if life == route.life:
            match answer:
                case Accepted():
                    route.on_accepted(size, now)
                case Refusal():
                    route.on_refused(size)
                case None:
                    self._on_failure(route, transfer, size, reason, now)
        if attempt == transfer.attempt:
            self._on_answer(route, transfer, part, answer, now)
        self._lives.rouse()

    def _on_failure(
        self, route: Route, transfer: Transfer, size: int, reason: str, now: float
    ) -> None:
        state = route.link.state
        if route.told_on != state.connections:
            route.told_on = state.connections
            self._observer.observe(SendFailed(route.name, str(transfer.batch.header), reason))
        if route.on_failed(size, now):
            self._observer.observe(LinkStalled(route.name, reason))
            route.link.reset(reason)

    def _on_answer(
        self,
        route: Route,
        transfer: Transfer,
        part: Part,
        answer: Accepted | Refusal | None,
        now: float,
    ) -> None:
        lane, header = transfer.place.lane, transfer.batch.header
        flow = self._lives.get(transfer.life)
        match answer:
            case Accepted():
                transfer.on_accepted()
                if not transfer.is_accepted:
                    return
                if flow is not None:
                    flow.delivery.on_accepted(lane, transfer.ticket, now)
            case Refusal() if self._cut_smaller(route, transfer, part, answer):
                return
            case Refusal():
                parked = flow is not None and flow.delivery.on_refused(
                    lane, transfer.ticket, answer, now
                )
                told = (BatchParked if parked else BatchRefused)(
                    route.name, str(header), str(answer)
                )
                self._observer.observe(told)
            case None:
                if flow is not None:
                    flow.delivery.on_failed(lane, transfer.ticket)
        self._end(transfer)

    def _cut_smaller(self, route: Route, transfer: Transfer, part: Part, refusal: Refusal) -> bool:
        """Begins a batch anew in smaller parts where one was too large for the link."""
        flow = self._lives.get(transfer.life)
        if refusal.reason is not RefusedBecause.TOO_LARGE or flow is None:
            return False
        if not route.cut_smaller(len(part.payload)):
            return False
        transfer.begin(route.name)
        if flow.heads.get(transfer.place) not in {None, transfer}:
            return False
        flow.heads[transfer.place] = transfer
        self._begun[transfer] = None
        self._lives.touch(flow)
        return True

    def _end(self, transfer: Transfer) -> None:
        """Nothing more of this batch is to be sent, and what is said of it means nothing."""
        transfer.attempt += 1
        self._sending.get(transfer.link, {}).pop(transfer, None)
        self._begun.pop(transfer, None)
        self.sends -= 1
        flow = self._lives.get(transfer.life)
        if flow is None:
            return
        if flow.heads.get(transfer.place) is transfer:
            del flow.heads[transfer.place]
        flow.dry.discard(transfer.place)
        self._lives.stir(flow)
