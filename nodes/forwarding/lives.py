"""The lives in a source, and which of them may have something to send.

Of thousands of lives few have anything to say at a moment. Those are *awake*: what each could begin
with is worked out once, and again only when something of it has changed. The others sleep until
something changes or their time comes; they cost nothing meanwhile.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final, NamedTuple

from mesh.transfer.delivery import Delivery, DeliverySettings
from mesh.transfer.source import Life, Source
from mesh.transfer.turns import LaneRule
from nodes.forwarding.transfer import Place, Transfer
from schemas.messages import Lane

__all__ = ["Flow", "Fresh", "Lives"]

_NEVER: Final = float("inf")
_FLOWS_MAX: Final = 4096
_TIMERS_SPARE: Final = 64


class Fresh(NamedTuple):
    """A batch that could be begun."""

    place: Place
    start: int
    """It holds a number at or above this."""


@dataclass(eq=False, slots=True)
class Flow:
    """One life on its way upstream.

    Args:
        life: which.
        delivery: what was sent of it and released.
        heads: the batches that are being cut into parts.
        dry: places from which nothing more can be sent until something changes.
        fresh: what could be begun now; ``None`` where that is to be worked out.
        again_at: when to look again though nothing else happens.
        returns: how often it went back to what was sent already.
    """

    life: Life
    delivery: Delivery
    heads: dict[Place, Transfer] = field(default_factory=dict)
    dry: set[Place] = field(default_factory=set)
    fresh: Sequence[Fresh] | None = None
    again_at: float = _NEVER
    returns: int = 0


class Lives:
    """The lives in a source.

    Args:
        source: holds them.
        settings: how batches are delivered.
        rules: what each lane asks for.
        relays: whether others' records come through here, late ones too.
    """

    def __init__(
        self,
        source: Source,
        settings: DeliverySettings,
        rules: Mapping[Lane, LaneRule],
        *,
        relays: bool,
    ) -> None:
        self._source = source
        self._settings = settings
        self._rules = rules
        self._relays = relays
        self._flows: dict[Life, Flow] = {}
        self._pending: dict[Life, Flow] = {}
        self._newest: Flow | None = None
        self._awake: dict[Flow, None] = {}
        self._untimed: dict[Flow, None] = {}
        self._timers: list[tuple[float, int, Flow]] = []
        self._numbers = count()
        self._flows_max = _FLOWS_MAX
        self._stirred = asyncio.Event()
        self.stirs = 0
        """Counts what has happened."""
        self.look()

    def __repr__(self) -> str:
        return f"<Lives {len(self._awake)} awake of {len(self._pending)}>"

    # --- queries -----------------------------------------------------------------------------

    @property
    def newest(self) -> Flow | None:
        """The present life of a node's own spool; ``None`` where there is none."""
        return self._newest

    @property
    def awake(self) -> list[Flow]:
        """Those that may have something to send."""
        return list(self._awake)

    def flows(self) -> Iterable[Flow]:
        """All that are known."""
        return self._flows.values()

    def get(self, life: Life) -> Flow | None:
        """A life that is known."""
        return self._flows.get(life)

    def find(self, life: Life) -> Flow | None:
        """A life that is known here or to the source."""
        known = self._flows.get(life)
        if known is None and any(self._source.stop_of(life, lane) for lane in Lane):
            return self._begin(life)
        return known

    def is_pending(self, flow: Flow) -> bool:
        """Whether a life is the present one, or has something pending."""
        return flow is self._newest or any(
            self._source.has_pending(flow.life, lane, 0) for lane in Lane
        )

    def fresh(self, flow: Flow, now: float) -> Sequence[Fresh]:
        """What a life could begin with now; it sleeps where that is nothing."""
        if flow.fresh is None:
            flow.fresh = self._work_out(flow, now)
        if not flow.fresh:
            self._awake.pop(flow, None)
        return flow.fresh

    def _work_out(self, flow: Flow, now: float) -> list[Fresh]:
        delivery, dry = flow.delivery, flow.dry
        if not delivery.has_room:
            return []
        found = []
        for lane in delivery.lanes_due(now):
            if Place(lane, live=False) in dry and (
                not self._rules[lane].live or Place(lane, live=True) in dry
            ):
                continue
            for front in delivery.fronts(lane, now):
                place = Place(lane, front.live)
                if place in dry or place in flow.heads:
                    continue
                if self._source.has_pending(flow.life, lane, front.start):
                    found.append(Fresh(place, front.start))
                elif delivery.on_dry(lane):
                    return self._work_out(flow, now)
                else:
                    dry.add(place)
        return found

    # --- what happens ------------------------------------------------------------------------

    def look(self) -> None:
        """Something has changed, nobody knows where."""
        self._pending = {
            life: self._flows.get(life) or self._begin(life) for life in self._source.lives()
        }
        self._newest = next(reversed(self._pending.values()), None)
        for flow in self._pending.values():
            self.look_at(flow)
        self._forget()
        self.rouse()

    def on_grown(self, lives: Iterable[Life]) -> None:
        """Something has become pending of these lives; the others are as they were."""
        for life in lives:
            flow = self._flows.get(life) or self._begin(life)
            self._pending[life] = flow
            self.look_at(flow)
        if len(self._flows) > self._flows_max:
            self.look()

    def look_at(self, flow: Flow) -> None:
        """Something of a life has changed: what was dry may be pending again."""
        flow.dry.clear()
        for lane in Lane:
            stop = self._source.stop_of(flow.life, lane)
            if stop:
                # Only others' records come late, in a range that a receipt covered already.
                released = self._source.released(flow.life, lane) if self._relays else None
                flow.delivery.on_grown(lane, stop, released)
        self.stir(flow)

    def go_back(self) -> None:
        """A link broke: what has no receipt is to be sent again, whichever life it is of."""
        for flow in self._flows.values():
            flow.delivery.on_break()
            flow.returns += 1
            self.stir(flow)

    def stir(self, flow: Flow) -> None:
        """Something of a life has changed: it may be able to send."""
        self.touch(flow)
        self.rouse()

    def touch(self, flow: Flow) -> None:
        """What a life could begin with is to be worked out again."""
        flow.fresh = None
        self._awake[flow] = None
        self._untimed[flow] = None

    def rouse(self) -> None:
        """Something has happened: whoever waits looks what to send now."""
        self.stirs += 1
        self._stirred.set()

    # --- waiting -----------------------------------------------------------------------------

    def begin_turn(self, now: float) -> None:
        """What happened until now is known, and the lives whose time has come are awake."""
        self._stirred.clear()
        while self._timers and self._timers[0][0] <= now:
            at, _, flow = heappop(self._timers)
            if at != flow.again_at:
                continue
            flow.again_at = _NEVER
            flow.returns += flow.delivery.on_timer(now)
            flow.dry.clear()
            self.touch(flow)

    async def wait_turn(self, until: float) -> None:
        """Returns once something has happened, or the time has come."""
        if self._stirred.is_set():
            return
        try:
            async with asyncio.timeout_at(until):
                await self._stirred.wait()
        except TimeoutError:
            return

    def get_timer(self, now: float) -> float:
        """When the time of the next life comes."""
        for flow in self._untimed:
            at = flow.delivery.get_timer(now)
            before, flow.again_at = flow.again_at, _NEVER if at is None else at
            if flow.again_at not in {before, _NEVER}:
                self._set_timer(flow)
        self._untimed.clear()
        while self._timers and self._timers[0][0] != self._timers[0][2].again_at:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else _NEVER

    # --- privates ----------------------------------------------------------------------------

    def _set_timer(self, flow: Flow) -> None:
        """What is out of date stays until its time comes, or until there is too much of it."""
        if len(self._timers) > 2 * len(self._flows) + _TIMERS_SPARE:
            set_ones = [it for it in self._flows.values() if it.again_at < _NEVER]
            self._timers = [(it.again_at, next(self._numbers), it) for it in set_ones]
            heapify(self._timers)
        else:
            heappush(self._timers, (flow.again_at, next(self._numbers), flow))

    def _begin(self, life: Life) -> Flow:
        released = {lane: self._source.released(life, lane) for lane in Lane}
        flow = Flow(life, Delivery(*life, released, self._settings, self._rules))
        self._flows[life] = flow
        return flow

    def _forget(self) -> None:
        """Forgets the oldest of which nothing is pending, where there are many."""
        kept = max(_FLOWS_MAX // 2, len(self._pending))
        idle = [
            life
            for life, flow in self._flows.items()
            if life not in self._pending and not flow.heads
        ]
        for life in idle[: max(0, len(self._flows) - kept)]:
            flow = self._flows.pop(life)
            flow.again_at = _NEVER
            self._awake.pop(flow, None)
            self._untimed.pop(flow, None)
        self._flows_max = 2 * kept
