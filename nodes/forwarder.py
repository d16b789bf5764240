"""The forwarder: the shell round ``mesh.transfer.schedule`` and ``mesh.transfer.delivery``.

Never in the way of a decision.

It drains a *source*, a node's spool or a gateway's custody, over one or several links. Each life in
the source has a delivery of its own, which knows what was sent and released; the schedule says
which lane sends its next part over which link; each link's pace says how large a part may be and
how many bytes may be under way. It hands receipts to the deliveries, and releases what they
release.

A holder that lost what it had stated is offered again what is retained here. A receipt of a life
that is pending, which speaks of what was never written, or of other records under its numbers,
means that this source is an older copy: the life is disowned.

A link that is up and carries nothing, or whose every sending fails, is torn down and made anew.
Every failure of a link ends here: the forwarder runs until it is cancelled, and a backlog needs no
restart to drain.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.ports import Accepted, Clock, Link, LinkState, Observer, Part, Refusal
from mesh.transfer.delivery import (
    DEFAULT_LANE_RULES,
    Delivery,
    DeliverySettings,
    Front,
    LaneProgress,
    Released,
)
from mesh.transfer.schedule import (
    Choice,
    LaneRule,
    LinkView,
    Plan,
    Queue,
    Schedule,
    Spent,
)
from mesh.transfer.source import Life, Source
from nodes.forwarding.events import (
    BatchParked,
    BatchRefused,
    CustodyLost,
    LinkChanged,
    LinkStalled,
    ReceiptRefused,
    SendFailed,
)
from nodes.forwarding.route import Route, Uplink
from nodes.forwarding.transfer import Key, Transfer
from schemas.errors import DiskFailed, LinkDown, Refused, RefusedBecause
from schemas.messages import Lane, Receipt

__all__ = [
    "BatchParked",
    "BatchRefused",
    "CustodyLost",
    "Forwarder",
    "ForwarderView",
    "LinkChanged",
    "LinkStalled",
    "ReceiptRefused",
    "SendFailed",
    "Uplink",
]

_DOUBT_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 3600.0
_DISK_SECONDS: Final = 1.0
_NEVER: Final = float("inf")
_TURN_SECONDS_MIN: Final = 0.001
_HEADS_URGENT: Final = 4
_DELIVERIES_MAX: Final = 4096
_OUTDATED: Final = frozenset({RefusedBecause.BEYOND_SENT, RefusedBecause.BAD_CHAIN})
_NO_PLAN: Final = Plan(None, None, {})


@dataclass(frozen=True, slots=True)
class ForwarderView:
    """How a forwarder stands, for people.

    Args:
        links: how each link stands.
        rates: the measured rate of each link in bytes a second, ``None`` before it is known.
        sending: the batches that are being sent, by link.
        plan: the last plan: why what waits, waits.
        schedule: what the schedule says of each link's budget.
    """

    links: tuple[LinkState, ...]
    rates: Mapping[str, float | None]
    sending: Mapping[str, tuple[str, ...]]
    plan: Plan
    schedule: Sequence[LinkView]


class Forwarder:
    """Drains a source over links.

    Args:
        source: what to drain.
        uplinks: over which links, the preferred one first; their names differ.
        rules: what each lane asks for.
        settings: how batches are delivered.
        clock: for budgets by the day and windows of time.
        observer: is told what happens.
        outdated: called when a life was disowned, so that the node can begin anew.
        spent: what each link's budgets had spent, as ``spent`` told before a restart.
        relays: whether receipts for other nodes are normal, as they are at a gateway.
        inboxes: links that bring receipts and carry nothing: what people carry.
    """

    def __init__(
        self,
        source: Source,
        uplinks: Sequence[Uplink],
        rules: Mapping[Lane, LaneRule],
        settings: DeliverySettings,
        clock: Clock,
        observer: Observer,
        outdated: Callable[[], None] = lambda: None,
        *,
        spent: Mapping[str, Spent] | None = None,
        relays: bool = False,
        inboxes: Sequence[Link] = (),
    ) -> None:
        self._source = source
        self._routes = {
            uplink.rule.name: Route(uplink, settings.window_batches) for uplink in uplinks
        }
        self._rules = {**dict.fromkeys(Lane, LaneRule()), **DEFAULT_LANE_RULES, **rules}
        self._schedule = Schedule(
            [uplink.rule for uplink in uplinks], self._rules, spent=spent or {}
        )
        self._settings = settings
        self._clock = clock
        self._observer = observer
        self._outdated = outdated
        self._relays = relays
        self._inboxes = tuple(inboxes)
        self._deliveries: dict[Life, Delivery] = {}
        self._pending: list[Life] = []
        self._heads: dict[Key, Transfer] = {}
        self._dry: set[Key] = set()
        # Lives of which nothing can be sent, and until when: thousands of them cost nothing.
        self._quiet: dict[Life, float] = {}
        self._disowned: set[Life] = set()
        # Twice the window: what a broken connection still holds up does not stop the next one.
        self._sends = 0
        self._sends_max = 2 * settings.window_batches
        self._sending: dict[str, dict[Transfer, None]] = {name: {} for name in self._routes}
        self._doubts: dict[tuple[Lane, RefusedBecause], tuple[int, float]] = {}
        self._plan = _NO_PLAN
        self._look_at = _NEVER
        self._turn = asyncio.Event()
        self._released = asyncio.Event()
        self._look()

    def __repr__(self) -> str:
        return f"<Forwarder {list(self._routes.values())} {len(self._pending)} lives>"

    # --- queries -----------------------------------------------------------------------------

    def states(self) -> list[LinkState]:
        """How each link stands."""
        return [route.link.state for route in self._routes.values()]

    def progress(self) -> dict[Lane, LaneProgress]:
        """Where each lane of the newest life stands; nothing while there is none."""
        return self._deliveries[self._pending[-1]].progress() if self._pending else {}

    def spent(self) -> Mapping[str, Spent]:
        """What each link's budgets have spent; worth keeping across a restart."""
        return self._schedule.spent()

    def view(self) -> ForwarderView:
        """How it stands now."""
        now, wall_ns = asyncio.get_running_loop().time(), self._clock.now().wall_ns
        return ForwarderView(
            tuple(self.states()),
            {name: route.pace.rate for name, route in self._routes.items()},
            {
                name: tuple(str(transfer.batch.header) for transfer in transfers)
                for name, transfers in self._sending.items()
            },
            self._plan,
            self._schedule.view(now, wall_ns),
        )

    async def drained(self) -> None:
        """Returns once nothing durable is left to release.

        May take for ever: give it a deadline.
        """
        while any(
            self._source.has_pending(life, lane, 0)
            for life in self._source.lives()
            for lane in Lane
        ):
            self._released.clear()
            await self._released.wait()

    # --- what runs ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Forwards until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, route in self._routes.items():
                tasks.create_task(self._watch_link(route), name=f"link {name}")
                tasks.create_task(self._take_receipts(route.link), name=f"receipts {name}")
            for link in self._inboxes:
                tasks.create_task(self._take_receipts(link), name=f"receipts {link.state.name}")
            tasks.create_task(self._watch_source(), name="source")
            tasks.create_task(self._send(tasks), name="send")

    async def _watch_link(self, route: Route) -> None:
        loop = asyncio.get_running_loop()
        state = route.link.state
        while True:
            self._observer.observe(LinkChanged(route.name, state.up, state.reason))
            self._source.set_linked(up=any(state.up for state in self.states()))
            self._on_link(route, up=state.up, now=loop.time())
            state = await route.link.wait_changed(state)

    def _on_link(self, route: Route, *, up: bool, now: float) -> None:
        """What went over the link and has no receipt is to be sent again, over whichever is up."""
        alone = all(other is route or not other.link.state.up for other in self._routes.values())
        broke = route.used or (up and alone)
        route.on_changed(now)
        self._schedule.on_link(route.name, up, now)
        if broke:
            for delivery in self._deliveries.values():
                delivery.on_break()
            for transfer in self._transfers():
                self._end(transfer)
        self._look()

    def _transfers(self) -> set[Transfer]:
        """All that were begun and have not ended."""
        sending = [transfer for sending in self._sending.values() for transfer in sending]
        return {*self._heads.values(), *sending}

    async def _watch_source(self) -> None:
        while True:
            await self._source.wait_grown()
            self._look()

    def _look(self) -> None:
        """Something has changed: what was dry may be pending again."""
        self._dry.clear()
        self._quiet.clear()
        self._pending = list(self._source.lives())
        for life in self._pending:
            delivery = self._deliveries.get(life)
            if delivery is None:
                delivery = self._deliveries[life] = self._begin(life)
            self._compare(life, delivery)
        while len(self._deliveries) > max(_DELIVERIES_MAX, 2 * len(self._pending)):
            oldest = next(iter(self._deliveries))
            del self._deliveries[oldest]
            if oldest in self._pending:
                self._deliveries[oldest] = self._begin(oldest)
        self._turn.set()

    def _look_at_life(self, life: Life, delivery: Delivery) -> None:
        """A receipt has come for one life: the others, which may be thousands, are as they were."""
        self._dry -= {key for key in self._dry if key.life == life}
        self._compare(life, delivery)
        self._stir(life)

    def _compare(self, life: Life, delivery: Delivery) -> None:
        """Tells a delivery how far its source has come."""
        for lane in Lane:
            stop = self._source.stop_of(life, lane)
            if stop:
                # Only others' records come late, in a range that a receipt covered already.
                released = self._source.released(life, lane) if self._relays else None
                delivery.on_grown(lane, stop, released)

    def _begin(self, life: Life) -> Delivery:
        released = {lane: self._source.released(life, lane) for lane in Lane}
        return Delivery(*life, released, self._settings, self._rules)

    # --- receipts ----------------------------------------------------------------------------

    async def _take_receipts(self, link: Link) -> None:
        async for receipt in link.receipts():
            life = Life(receipt.site, receipt.node, receipt.epoch)
            delivery = self._judge(life)
            if delivery is None:
                continue
            try:
                self._take(link, life, delivery, receipt)
            except Refused as refused:
                self._doubt(link, receipt.lane, refused)
                if life in self._pending and refused.reason in _OUTDATED:
                    await self._disown(link, life, str(refused))
            self._look_at_life(life, delivery)

    def _judge(self, life: Life) -> Delivery | None:
        """Which delivery judges a receipt for a life; ``None`` where it concerns nobody here."""
        known = self._deliveries.get(life)
        if known is not None:
            return known
        if any(self._source.stop_of(life, lane) for lane in Lane):
            self._deliveries[life] = self._begin(life)
            return self._deliveries[life]
        if self._relays or not self._pending:
            return None
        # It is refused, as foreign.
        return self._deliveries[self._pending[-1]]

    def _take(self, link: Link, life: Life, delivery: Delivery, receipt: Receipt) -> None:
        source, lane = self._source, receipt.lane
        # What people carry may be old: it never tells that a holder has lost something.
        carried = link in self._inboxes
        outcome = delivery.on_receipt(
            receipt,
            source.stop_of(life, lane),
            asyncio.get_running_loop().time(),
            0 if carried else source.held_by(life, lane, receipt.holder),
        )
        if outcome.lost:
            self._reclaim(life, outcome)
        if outcome.numbers:
            source.release(life, lane, outcome.numbers, receipt)
            self._released.set()

    def _reclaim(self, life: Life, outcome: Released) -> None:
        retained = self._source.reclaim(life, outcome.lane, outcome.lost, outcome.holder)
        where = f"{life}/{outcome.lane}"
        self._observer.observe(CustodyLost(outcome.holder, where, len(outcome.lost), len(retained)))

    async def _disown(self, link: Link, life: Life, reason: str) -> None:
        """Once: the next holder knows another past of this life than this source."""
        if life in self._disowned:
            return
        try:
            await self._source.disown(life, reason)
        except DiskFailed as failure:
            self._observer.observe(BatchRefused(link.state.name, str(life), str(failure)))
            return
        self._disowned.add(life)
        if life == self._pending[-1]:
            # A past life is over already: nothing has to begin anew for it.
            self._outdated()

    def _doubt(self, link: Link, lane: Lane, refused: Refused) -> None:
        """Tells of refused receipts, once in a minute: telling is itself sent and receipted."""
        now = asyncio.get_running_loop().time()
        count, due = self._doubts.get((lane, refused.reason), (0, now))
        count += 1
        if now >= due:
            self._observer.observe(ReceiptRefused(link.state.name, lane, str(refused), count))
            count, due = 0, now + _DOUBT_SECONDS
        self._doubts[lane, refused.reason] = (count, due)

    # --- sending -----------------------------------------------------------------------------

    async def _send(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._turn.clear()
            if loop.time() >= self._look_at:
                self._look_at = _NEVER
                self._look()
            self._wake_up(loop.time())
            while (choice := self._choose(loop.time())) is not None:
                await self._send_next(choice, tasks)
            await self._wait_turn(loop)

    def _wake_up(self, now: float) -> None:
        """Tells the lives whose time has come; the others' timers are as they were."""
        for life in self._pending:
            if self._quiet.get(life, 0.0) <= now and self._deliveries[life].on_timer(now):
                self._dry -= {key for key in self._dry if key.life == life}

    def _choose(self, now: float) -> Choice | None:
        queues = self._queues(now) if self._routes else []
        room = {name: route.room(now) for name, route in self._routes.items()}
        self._plan = self._schedule.plan(now, self._clock.now().wall_ns, queues, room)
        return self._plan.choice

    def _queues(self, now: float) -> list[Queue]:
        """What could send a part now: first what was begun, which nothing holds back any more."""
        queues = [
            Queue(*key, size)
            for key, transfer in self._heads.items()
            if (size := transfer.next_size(self._part_bytes(transfer.link)))
        ]
        for life in self._pending:
            if self._quiet.get(life, 0.0) > now:
                continue
            self._quiet.pop(life, None)
            fresh = self._fresh_queues(life, now)
            queues += fresh
            idle = self._deliveries[life].has_room and self._sends < self._sends_max
            if idle and not fresh and not self._turn.is_set():
                self._quiet[life] = self._deliveries[life].get_timer(now) or _NEVER
        return queues

    def _fresh_queues(self, life: Life, now: float) -> list[Queue]:
        """Which lanes of a life could begin with a batch now."""
        delivery = self._deliveries[life]
        queues = []
        for lane in delivery.lanes_due(now):
            if Key(life, lane, live=False) in self._dry and (
                not self._rules[lane].live or Key(life, lane, live=True) in self._dry
            ):
                continue
            for front in delivery.fronts(lane, now):
                key = Key(life, lane, front.live)
                if self._can_begin(key, delivery, front):
                    queues.append(Queue(life, lane, front.live, self._part_bytes("")))
        return queues

    def _can_begin(self, key: Key, delivery: Delivery, front: Front) -> bool:
        """Whether the next batch of a front may be taken in hand."""
        if key in self._dry or key in self._heads or not delivery.has_room:
            return False
        urgent = key.lane.priority <= Lane.ALARMS.priority
        if self._sends >= self._sends_max + _HEADS_URGENT * urgent:
            return False
        if self._source.has_pending(key.life, key.lane, front.start):
            return True
        if delivery.on_dry(key.lane):
            self._stir(key.life)
        else:
            self._dry.add(key)
        return False

    def _part_bytes(self, link: str) -> int:
        route = self._routes.get(link)
        if route is not None:
            return route.part_bytes
        return max(route.part_bytes for route in self._routes.values())

    async def _send_next(self, choice: Choice, tasks: asyncio.TaskGroup) -> None:
        """Sends the next part of the queue that was chosen."""
        loop = asyncio.get_running_loop()
        route = self._routes[choice.link]
        key = Key(choice.queue.life, choice.queue.lane, choice.queue.live)
        transfer = self._heads.get(key) or await self._begin_transfer(route, key)
        if transfer is None:
            return
        if transfer.link != route.name:
            self._sending.get(transfer.link, {}).pop(transfer, None)
            transfer.begin(route.name)
            self._sending[route.name][transfer] = None
        wall_ns = self._clock.now().wall_ns
        left = self._schedule.left(route.name, loop.time(), wall_ns)
        size = transfer.next_size(route.part_bytes if left is None else min(route.part_bytes, left))
        part = transfer.cut(size)
        if transfer.is_cut:
            del self._heads[key]
        now = loop.time()
        route.on_sent(size, now)
        self._schedule.on_sent(choice, size, now, self._clock.now().wall_ns)
        tasks.create_task(self._send_part(route, transfer, part))

    async def _begin_transfer(self, route: Route, key: Key) -> Transfer | None:
        """Takes the next batch of a queue in hand; ``None`` when there is none to be sent."""
        life, lane, live = key
        delivery = self._deliveries[life]
        now = asyncio.get_running_loop().time()
        front = next((f for f in delivery.fronts(lane, now) if f.live == live), None)
        if front is None:
            return None
        try:
            batch = await self._source.next_batch(life, lane, front.start)
        except DiskFailed as failure:
            self._observer.observe(BatchRefused(route.name, f"{life}/{lane}", str(failure)))
            self._look_at = asyncio.get_running_loop().time() + _DISK_SECONDS
            batch = None
        if batch is None:
            self._dry.add(key)
            return None
        header = batch.header
        if delivery.is_taken(lane, header.first, header.last + 1):
            # Reached what went before it as live: nothing is pending between.
            delivery.on_skipped(lane, front.start, header.last + 1)
            return None
        more = self._source.has_pending(life, lane, header.last + 1)
        now = asyncio.get_running_loop().time()
        ticket = delivery.on_sent(header, now, more=more, start=front.start)
        self._sends += 1
        transfer = self._heads[key] = Transfer(key, batch, ticket)
        return transfer

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
        self._turn.set()

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
        key, header = transfer.key, transfer.batch.header
        delivery = self._deliveries.get(key.life)
        match answer:
            case Accepted():
                transfer.on_accepted()
                if not transfer.is_accepted:
                    return
                if delivery is not None:
                    delivery.on_accepted(key.lane, transfer.ticket, now)
            case Refusal() if self._cut_smaller(route, transfer, part, answer):
                return
            case Refusal():
                parked = delivery is not None and delivery.on_refused(
                    key.lane, transfer.ticket, answer, now
                )
                told = (BatchParked if parked else BatchRefused)(
                    route.name, str(header), str(answer)
                )
                self._observer.observe(told)
            case None:
                if delivery is not None:
                    delivery.on_failed(key.lane, transfer.ticket)
        self._end(transfer)

    def _cut_smaller(self, route: Route, transfer: Transfer, part: Part, refusal: Refusal) -> bool:
        """Begins a batch anew in smaller parts where one was too large for the link."""
        if refusal.reason is not RefusedBecause.TOO_LARGE:
            return False
        if not route.cut_smaller(len(part.payload)):
            return False
        transfer.begin(route.name)
        if self._heads.get(transfer.key) not in {None, transfer}:
            return False
        self._heads[transfer.key] = transfer
        return True

    def _end(self, transfer: Transfer) -> None:
        """Nothing more of this batch is to be sent, and what is said of it means nothing."""
        transfer.attempt += 1
        self._sending.get(transfer.link, {}).pop(transfer, None)
        if self._heads.get(transfer.key) is transfer:
            del self._heads[transfer.key]
        self._sends -= 1
        self._dry.discard(transfer.key)
        self._stir(transfer.key.life)

    def _stir(self, life: Life) -> None:
        """Something of a life has changed: it may be able to send."""
        self._quiet.pop(life, None)
        self._turn.set()

    async def _wait_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        timers: list[float | None] = [
            self._quiet[life] if life in self._quiet else self._deliveries[life].get_timer(now)
            for life in self._pending
        ]
        timers += [route.get_timer(now) for route in self._routes.values()]
        timers += [self._plan.again_at, self._look_at]
        timer = min((at for at in timers if at is not None), default=now + _IDLE_SECONDS)
        try:
            async with asyncio.timeout(max(_TURN_SECONDS_MIN, timer - now)):
                await self._turn.wait()
        except TimeoutError:
            return
