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

from mesh.ports import Clock, Link, LinkState, Observer
from mesh.transfer.delivery import DEFAULT_LANE_RULES, DeliverySettings, LaneProgress
from mesh.transfer.schedule import LaneRule, LinkView, Plan, Schedule, Spent
from mesh.transfer.source import Source
from nodes.forwarding.events import (
    BatchParked,
    BatchRefused,
    CustodyLost,
    LinkChanged,
    LinkStalled,
    ReceiptRefused,
    SendFailed,
)
from nodes.forwarding.lives import Lives
from nodes.forwarding.receipts import Receipts
from nodes.forwarding.route import Route, Uplink
from nodes.forwarding.sender import Sender
from schemas.messages import Lane

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
        rules = {**dict.fromkeys(Lane, LaneRule()), **DEFAULT_LANE_RULES, **rules}
        self._schedule = Schedule([uplink.rule for uplink in uplinks], rules, spent=spent or {})
        self._clock = clock
        self._observer = observer
        self._inboxes = tuple(inboxes)
        self._lives = Lives(source, settings, rules, relays=relays)
        self._receipts = Receipts(
            source, self._lives, observer, outdated, relays=relays, inboxes=self._inboxes
        )
        self._sender = Sender(
            source, self._lives, self._routes, self._schedule, settings, clock, observer
        )

    def __repr__(self) -> str:
        return f"<Forwarder {list(self._routes.values())} {self._lives}>"

    # --- queries -----------------------------------------------------------------------------

    def states(self) -> list[LinkState]:
        """How each link stands."""
        return [route.link.state for route in self._routes.values()]

    def progress(self) -> dict[Lane, LaneProgress]:
        """Where each lane of the newest life stands; nothing while there is none."""
        newest = self._lives.newest
        return {} if newest is None else newest.delivery.progress()

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
                for name, transfers in self._sender.sending().items()
            },
            self._sender.plan,
            self._schedule.view(now, wall_ns),
        )

    async def drained(self) -> None:
        """Returns once nothing durable is left to release.

        May take for ever: give it a deadline.
        """
        await self._receipts.drained()

    # --- what runs ---------------------------------------------------------------------------

    async def run(self) -> None:
        """Forwards until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, route in self._routes.items():
                tasks.create_task(self._watch_link(route), name=f"link {name}")
                tasks.create_task(self._receipts.take(route.link), name=f"receipts {name}")
            for link in self._inboxes:
                tasks.create_task(self._receipts.take(link), name=f"receipts {link.state.name}")
            tasks.create_task(self._watch_source(), name="source")
            tasks.create_task(self._sender.run(), name="send")

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
            self._lives.go_back()
            self._sender.end_all()
        self._lives.look()

    async def _watch_source(self) -> None:
        while True:
            self._lives.on_grown(await self._source.wait_grown())
