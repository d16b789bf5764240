"""The link to an upstream MQTT broker: port ``Link``.

A part is one PUBLISH with QoS 1 to ``mesh/v1/<site>/<node>/up/<lane>``; ``parcel`` has its payload.
The broker's PUBACK says that it has the message, which moves the send window and nothing else:
brokers keep what they acknowledged in memory, drop what exceeds a queue, and of the two MQTT 3.1.1
lets them say neither. What was sent and not acknowledged is not sent again here, since whoever sent
it does so: the link keeps no session at the broker.

Receipts are retained under ``mesh/v1/<site>/<node>/down/receipt-<lane>``, so after each connection
the broker says the newest of each lane first. A connection on which it does not let us read them is
none: nothing would ever be released over it.

What the broker answers becomes, in MQTT 5:

=============================  =====================================================================
success                        ``Accepted``
0x10, nobody is subscribed     ``full``: the broker threw it away; an intake has to come first
0x95, packet too large         ``too_large``; ``part_bytes_max`` falls to half of what was refused
0x87, not authorised           ``foreign``: these credentials may not speak for this node
all others, 0x97 among them    ``full``: quota exceeded, or a trouble of the broker's own
=============================  =====================================================================

A packet that exceeds the size that the broker stated when we connected is never sent: the broker
would cut the connection. A broker of MQTT 3.1.1 states none; where it has one, it is configured
here.
"""

import random
from asyncio import Semaphore, timeout
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

from mesh.adapters.mqtt.broker import MqttBroker, MqttSettings
from mesh.adapters.mqtt.packet import PACKET_HEAD_BYTES_MAX
from mesh.adapters.mqtt.parcel import PARCEL_HEAD_BYTES, pack
from mesh.adapters.mqtt.reason import (
    FAILURE_CODE_MIN,
    NO_SUBSCRIBERS,
    NOT_AUTHORISED,
    PACKET_TOO_LARGE,
    in_words,
)
from mesh.ports import Accepted, Clock, Delivery, LinkState, Part, Publication, Refusal
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.limits import KIB, PUBLISH_WINDOW_MAX, RECEIPT_BYTES_MAX
from schemas.messages import Lane, Receipt
from schemas.topics import RECEIPT_PREFIX, Subject, upstream_filter
from schemas.wire import decode_as

__all__ = ["MqttLink", "MqttLinkSettings", "link_state"]

_LONGEST_NAME: Final = "x" * 63
_KERNEL_QUEUE_BYTES_MAX: Final = 32 * KIB


@dataclass(frozen=True, slots=True)
class MqttLinkSettings:
    """The settings of a link.

    Args:
        name: as configured.
        broker: where it connects. Session and keepalive are the link's own matter.
        site: whose receipts it reads; ``None`` for those of every site.
        node: whose receipts it reads; ``None`` for those of every node.
        keepalive_seconds: a silent broker is given up within twice this.
        steady_seconds: after a connection that stood this long the next is tried for soon.
        send_seconds: how long the broker may take to acknowledge a part.
        window_parts_max: how many parts may be under way; further ones wait, within their deadline.
        full_seconds: after how long a part that found no room may be offered again.
        refused_seconds: the same for one that these credentials may not send.
        part_bytes_max: the largest part that the broker takes, where it does not say so itself.
    """

    name: str
    broker: MqttSettings
    site: str | None
    node: str | None
    keepalive_seconds: int = 10
    steady_seconds: float = 1.0
    send_seconds: float = 20.0
    window_parts_max: int = PUBLISH_WINDOW_MAX
    full_seconds: float = 5.0
    refused_seconds: float = 60.0
    part_bytes_max: int | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.window_parts_max <= PUBLISH_WINDOW_MAX, "the adapter's window is no larger"
        assert self.part_bytes_max is None or self.part_bytes_max >= 1, "a part has a byte"


class MqttLink:
    """One way upstream, over MQTT: ``async with MqttLink(...) as link``.

    Entering does not wait for the network.

    Args:
        settings: where, whose, how patiently.
        clock: for the time of changes.
        rng: for the jitter of reconnections.

    Raises:
        Refused: ``bad_name``, when site or node is no identifier.
    """

    def __init__(self, settings: MqttLinkSettings, clock: Clock, rng: random.Random) -> None:
        self._settings = settings
        self._broker = MqttBroker(
            replace(
                settings.broker,
                session_seconds=0,
                filters_required=True,
                kernel_queue_bytes_max=_KERNEL_QUEUE_BYTES_MAX,
                keepalive_seconds=settings.keepalive_seconds,
                steady_seconds=settings.steady_seconds,
            ),
            clock,
            rng,
        )
        self._broker.subscribe({upstream_filter("down", settings.site, settings.node): 1})
        self._window = Semaphore(settings.window_parts_max)
        self._unread: deque[Delivery] = deque()
        self._part_bytes_max = settings.part_bytes_max
        self._sent_bytes = 0
        self._undecodable = 0

    def __repr__(self) -> str:
        return f"<MqttLink {self.state}>"

    @property
    def state(self) -> LinkState:
        """How it stands now."""
        return replace(link_state(self._settings.name, self._broker), sent_bytes=self._sent_bytes)

    @property
    def undecodable(self) -> int:
        """How many receipts were passed over because they could not be read."""
        return self._undecodable

    @property
    def part_bytes_max(self) -> int | None:
        """The largest part that is known to have a chance; ``None`` where no limit is known.

        It follows from what was configured, what the broker stated when it connected, and what it
        has refused since this link was made.
        """
        packet_bytes_max = self._broker.broker_packet_bytes_max
        if packet_bytes_max is None:
            return self._part_bytes_max
        site, node = self._settings.site or _LONGEST_NAME, self._settings.node or _LONGEST_NAME
        topic = Subject(site, node, "up", max(Lane, key=len)).topic
        stated = max(1, packet_bytes_max - PACKET_HEAD_BYTES_MAX - len(topic) - PARCEL_HEAD_BYTES)
        return min(stated, self._part_bytes_max or stated)

    async def wait_changed(self, seen: LinkState) -> LinkState:
        """Returns once the state differs from ``seen`` in ``up`` or ``connections``."""
        while ((state := self.state).up, state.connections) == (seen.up, seen.connections):
            await self._broker.wait_changed(self._broker.state)
        return state

    def reset(self, reason: str) -> None:
        """Tears the connection down, and makes it anew."""
        self._broker.reset(reason)

    async def send(self, part: Part) -> Accepted | Refusal:
        """Sends one part; many may be under way at once.

        Raises:
            LinkDown: it is not up, broke, or did not answer in time.
        """
        settings = self._settings
        try:
            if settings.part_bytes_max is not None and len(part.payload) > settings.part_bytes_max:
                return self._too_large(part, f"at most {settings.part_bytes_max} are configured")
            publication = Publication(
                Subject(part.site, part.node, "up", part.lane).topic, pack(part), 1
            )
            async with timeout(settings.send_seconds), self._window:
                (code,) = await self._broker.publish_answered((publication,))
        except TimeoutError:
            raise LinkDown(
                f"{settings.name}: {part.lane} of {part.node} was not acknowledged within"
                f" {settings.send_seconds:g} s"
            ) from None
        except Refused as error:
            return Refusal(error.reason, error.detail, 0.0)
        if code >= FAILURE_CODE_MIN or code == NO_SUBSCRIBERS:
            return self._refusal(part, code)
        self._sent_bytes += len(part.payload)
        return Accepted()

    async def receipts(self) -> AsyncIterator[Receipt]:
        """Receipts as they come; after every connection the newest of each lane come first.

        Those that were left over from an earlier connection are passed over.
        """
        async for group in self._broker.groups():
            self._unread.extend(group)
            while self._unread:
                delivery = self._unread.popleft()
                if self._broker.is_current(delivery):
                    self._broker.acknowledge((delivery,))
                    receipt = self._decoded(delivery)
                    if receipt is not None:
                        yield receipt

    async def __aenter__(self) -> Self:
        await self._broker.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._broker.__aexit__(kind, error, trace)

    def _refusal(self, part: Part, code: int) -> Refusal:
        where = f"{self._settings.broker.address}: {in_words(code)}"
        match code:
            case _ if code == PACKET_TOO_LARGE:
                self._part_bytes_max = max(
                    1, min(len(part.payload) // 2, self._part_bytes_max or len(part.payload))
                )
                return self._too_large(part, f"{where}; {self._part_bytes_max} may be taken")
            case _ if code == NOT_AUTHORISED:
                return Refusal(RefusedBecause.FOREIGN, where, self._settings.refused_seconds)
            case _:
                return Refusal(RefusedBecause.FULL, where, self._settings.full_seconds)

    @staticmethod
    def _too_large(part: Part, why: str) -> Refusal:
        detail = f"a part of {len(part.payload)} bytes: {why}"
        return Refusal(RefusedBecause.TOO_LARGE, detail, 0.0)

    def _decoded(self, delivery: Delivery) -> Receipt | None:
        try:
            subject = Subject.parse_topic(delivery.topic)
            if not subject.name.startswith(RECEIPT_PREFIX) or not delivery.payload:
                return None
            return decode_as(Receipt, delivery.payload[: RECEIPT_BYTES_MAX + 1])
        except Refused:
            self._undecodable += 1
            return None


def link_state(name: str, broker: MqttBroker, others: Sequence[MqttBroker] = ()) -> LinkState:
    """How a link stands that is up when all of its connections are.

    Args:
        name: of the link.
        broker: the connection whose life is counted.
        others: further ones that it needs.
    """
    every = (broker, *others)
    down = [each for each in every if not each.state.connected]
    return LinkState(
        name=name,
        up=not down,
        reason=down[0].state.reason if down else "",
        since_mono_ns=min(each.since_mono_ns for each in down)
        if down
        else max(each.since_mono_ns for each in every),
        connections=broker.state.connections,
    )
