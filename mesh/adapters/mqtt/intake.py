"""The receiving end of the MQTT link: port ``Intake``.

It subscribes to ``mesh/v1/<site>/+/up/+`` with QoS 1, under a stable client id and with a session
that the broker keeps, so that what is published while it is away waits at the broker.

What is transport here, and what is custody:

- A batch that came whole, in one message, is *withheld*: its PUBACK leaves with ``accept`` or
  ``refuse``. If this process ends before, the broker sends it again. What is withheld is bounded by
  the broker (``max_inflight_messages`` of mosquitto, ``max_ack_pending`` of nats-server), and by
  the receive maximum that is asked for in MQTT 5; beyond it the broker waits, which slows the
  senders down.
- Parts of a larger batch are acknowledged as they come: so many could be withheld that the last one
  would never be sent. They, and the batch that they become, are in this process's memory alone.
  If it ends before the receipt, the sender sends again: it had no receipt.
- An arrival that was neither accepted nor refused within ``ack_seconds`` comes again out of memory.
  What the broker sends again after a reconnection is known by its digest, and only takes the place
  of the message that was withheld.
- What was accepted while there was no connection is acknowledged when the broker sends it again.

A broker may drop what exceeds a client's queue after it has acknowledged it to the sender
(mosquitto, beyond ``max_queued_messages``, in silence). Nothing rests on that acknowledgement.

A topic that is none of ours, a payload that is no parcel, or bytes that do not have the digest that
they state are counted, acknowledged, and never reach a reader.

Receipts leave on a connection of their own. The PUBACKs that they wait for would otherwise come
behind the batches that nobody takes until these receipts are out.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from mesh.adapters.mqtt.broker import MqttBroker, MqttSettings
from mesh.adapters.mqtt.link import link_state
from mesh.adapters.mqtt.parcel import unpack
from mesh.adapters.mqtt.pending import BatchKey, Pending, PendingBatch
from mesh.adapters.mqtt.reason import FAILURE_CODE_MIN, in_words
from mesh.adapters.waiting import WaitingLine
from mesh.ports import Arrival, Clock, Delivery, LinkState, Part, Publication, Refusal
from mesh.transfer.parts import Assembly
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.limits import BATCH_BYTES_MAX, MIB, PUBLISH_WINDOW_MAX, RECEIPT_BYTES_MAX
from schemas.messages import Receipt
from schemas.topics import RECEIPT_PREFIX, Subject, upstream_filter
from schemas.wire import encode

__all__ = ["MqttIntake", "MqttIntakeSettings"]

_OWED_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class MqttIntakeSettings:
    """The settings of an intake.

    Args:
        name: as configured.
        broker: where it connects. Its client id is the intake's; session, keepalive and receive
            maximum are the intake's own matter.
        site: whose batches it takes; ``None`` for those of every site.
        session_seconds: how long the broker keeps what comes while the intake is away.
        keepalive_seconds: a silent broker is given up within twice this.
        steady_seconds: after a connection that stood this long the next is tried for soon.
        ack_seconds: after how long an arrival that was neither accepted nor refused comes again.
        publish_seconds: how long the broker may take to acknowledge a group of receipts.
        pending_bytes_max: how many bytes of arrivals may wait to be accepted or refused; while
            there are more nothing is taken from the broker. One group may exceed it.
        parts_bytes_max: how many bytes of parts may wait for the rest of their batch.
    """

    name: str
    broker: MqttSettings
    site: str | None = None
    session_seconds: int = 7 * 86_400
    keepalive_seconds: int = 10
    steady_seconds: float = 1.0
    ack_seconds: float = 60.0
    publish_seconds: float = 20.0
    pending_bytes_max: int = 16 * MIB
    parts_bytes_max: int = 16 * MIB

    def __post_init__(self) -> None:
        assert self.session_seconds > 0, "what comes while the intake is away must wait"
        assert self.pending_bytes_max >= BATCH_BYTES_MAX, "the largest batch can be pending"


class MqttIntake:
    """The receiving end, over MQTT: ``async with MqttIntake(...) as intake``.

    Entering does not wait for the network.

    Args:
        settings: where, and how much.
        clock: for the time of changes.
        rng: for the jitter of reconnections.

    Raises:
        Refused: ``bad_name``, when the site is no identifier.
    """

    def __init__(self, settings: MqttIntakeSettings, clock: Clock, rng: random.Random) -> None:
        self._settings = settings
        self._changes = WaitingLine()
        given = replace(
            settings.broker,
            keepalive_seconds=settings.keepalive_seconds,
            steady_seconds=settings.steady_seconds,
        )
        self._inward = MqttBroker(
            replace(
                given,
                session_seconds=settings.session_seconds,
                filters_required=True,
                receive_maximum=PUBLISH_WINDOW_MAX,
            ),
            clock,
            rng,
            self._changes,
        )
        self._inward.subscribe({upstream_filter("up", settings.site, None): 1})
        self._outward = MqttBroker(
            replace(given, client_id=f"{given.client_id}-receipts", session_seconds=0),
            clock,
            rng,
            self._changes,
        )
        self._pending = Pending(settings.ack_seconds, settings.pending_bytes_max)
        self._assembly = Assembly(settings.parts_bytes_max)
        self._owed: dict[BatchKey, None] = {}
        self._settled = WaitingLine()
        self._refused = 0
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<MqttIntake {self.state} {self._pending} {self._assembly}>"

    @property
    def state(self) -> LinkState:
        """How its connections stand now: up when both are."""
        return link_state(self._settings.name, self._inward, (self._outward,))

    @property
    def refused(self) -> int:
        """How many arrivals were refused, here or by ``refuse``."""
        return self._refused

    @property
    def forgotten(self) -> int:
        """How many batches were forgotten before all of their parts had come."""
        return self._assembly.forgotten

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        while ((state := self.state).up, state.connections) == (seen.up, seen.connections):
            await self._changes.wait()
        return state

    def reset(self, reason: str) -> None:
        """Tears the connections down, and makes them anew."""
        self._inward.reset(reason)
        self._outward.reset(reason)

    async def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        """Arrivals in groups; each comes again until it is accepted or refused. One reader."""
        loop = asyncio.get_running_loop()
        while True:
            arrivals = self._pending.hand_out(loop.time())
            if arrivals:
                yield arrivals
                continue
            try:
                async with asyncio.timeout_at(self._pending.next_at()):
                    if self._pending.full:
                        await self._settled.wait()
                        continue
                    group = await anext(self._inward.groups(), None)
            except TimeoutError:
                continue
            if group is None:
                return
            for delivery in group:
                self._take(delivery, loop.time())

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        """Makes receipts reach their nodes, and stay for those that connect later.

        Raises:
            LinkDown: some were not handed over.
            Refused: ``too_large``: one of them, and those after it were not handed over.
        """
        written = [_written(receipt) for receipt in receipts]
        seconds = self._settings.publish_seconds
        try:
            async with asyncio.timeout(seconds):
                codes = await self._outward.publish_answered(written)
        except TimeoutError:
            raise LinkDown(
                f"{self._settings.name}: receipts were not acknowledged within {seconds:g} s"
            ) from None
        for publication, code in zip(written, codes, strict=True):
            if code >= FAILURE_CODE_MIN:
                address = self._settings.broker.address
                raise LinkDown(f"{address} does not take {publication.topic}: {in_words(code)}")

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        """Lets the transport forget them; when it cannot be told, they may come again."""
        for arrival in arrivals:
            self._settle(arrival)
        self._settled.wake()

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Takes an arrival that can never be taken out of the queue."""
        assert refusal.reason, "there is a reason"
        self._refused += 1
        await self.accept([arrival])

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._outward)
            await stack.enter_async_context(self._inward)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    def _take(self, delivery: Delivery, now: float) -> None:
        try:
            part = unpack(delivery.topic, delivery.payload)
            key = BatchKey(part.site, part.node, part.lane, part.digest)
            payload = self._assembly.take(part, now)
        except Refused:
            self._refused += 1
            self._inward.acknowledge((delivery,))
            return
        if payload is None:
            self._inward.acknowledge((delivery,))
        else:
            self._arrive(key, payload, part, delivery)

    def _arrive(self, key: BatchKey, payload: bytes, part: Part, delivery: Delivery) -> None:
        whole = len(part.payload) == part.total
        entry = self._pending.find(key)
        if not whole:
            self._inward.acknowledge((delivery,))
        elif delivery.duplicate and entry is None and key in self._owed:
            del self._owed[key]
            self._inward.acknowledge((delivery,))
            return
        withheld = delivery._replace(payload=b"") if whole and delivery.qos else None
        if entry is None:
            self._pending.add(key, PendingBatch(payload, delivery.duplicate, withheld))
        elif withheld is not None:
            self._withhold(entry, withheld)

    def _withhold(self, entry: PendingBatch, withheld: Delivery) -> None:
        """A batch that is here already came in another message: one of the two is withheld."""
        before = entry.withheld
        if before is None or not self._inward.is_current(before):
            entry.withheld = withheld
        elif before.token != withheld.token:
            self._inward.acknowledge((withheld,))

    def _settle(self, arrival: Arrival) -> None:
        key = arrival.token
        assert isinstance(key, BatchKey), "a token of this intake"
        entry = self._pending.settle(key)
        if entry is None or entry.withheld is None:
            return
        if self._inward.is_current(entry.withheld):
            self._inward.acknowledge((entry.withheld,))
            return
        self._owed[key] = None
        if len(self._owed) > _OWED_MAX:
            del self._owed[next(iter(self._owed))]


def _written(receipt: Receipt) -> Publication:
    subject = Subject(receipt.site, receipt.node, "down", f"{RECEIPT_PREFIX}{receipt.lane}")
    data = encode(receipt)
    if len(data) > RECEIPT_BYTES_MAX:
        raise Refused(RefusedBecause.TOO_LARGE, f"{receipt}: {len(data)} bytes")
    return Publication(subject.topic, data, 1, retain=True)
