"""One node's way to the simulated bus: the ``LocalBroker`` that simulations hand out."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Final, Protocol, Self

from mesh.adapters.inbound import InboundQueue
from mesh.adapters.mqtt.window import Window
from mesh.adapters.waiting import WaitingLine, leave
from mesh.ports import BrokerState, Clock, Delivery, Publication
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.limits import PUBLISH_QUEUE_BYTES_MAX
from schemas.topics import check_filter, check_topic
from simulator.broker_wire import AnyPacket, Greeting, Packet, Wire

__all__ = ["Bus", "SimBrokerClient"]

_BIRTH_ID: Final = 0x7FFF
_RECONNECT_SECONDS_MIN: Final = 0.1
_RECONNECT_SECONDS_MAX: Final = 15.0
_DOUBLINGS_MAX: Final = 32


class Bus(Protocol):
    """What a client asks of the broker at the other end of its wire."""

    def accept(self, client: "SimBrokerClient") -> Wire:
        """A new connection; an older one of the same id ends.

        Raises:
            LinkDown: the broker is down, or the way to it is cut.
        """
        ...

    def leave(self, client_id: str) -> None:
        """A goodbye: the will is not said."""
        ...

    def crash(self, client_id: str) -> None:
        """The connection ends without a goodbye: the will is said."""
        ...


class SimBrokerClient:
    """A simulated ``LocalBroker``. Used as ``async with``; made by ``SimBroker.client``."""

    def __init__(
        self,
        bus: Bus,
        client_id: str,
        clock: Clock,
        rng: Random,
        *,
        will: Publication | None,
        birth: Publication | None,
        queue_messages_max: int,
        queue_bytes_max: int,
        publish_seconds_max: float,
    ) -> None:
        self.client_id = client_id
        self.will = will
        self._bus = bus
        self._clock = clock
        self._rng = rng
        self._birth = birth
        self._publish_seconds_max = publish_seconds_max
        self._inbound = InboundQueue(queue_messages_max, queue_bytes_max, self._regulate)
        self._window = Window()
        self._filters: dict[str, int] = {}
        self._outstanding: set[object] = set()
        self._wire: Wire | None = None
        self._up = False
        self._reason = "not connected yet"
        self._connections = 0
        self._attempts = 0
        self._shed = 0
        self._waiting_room = WaitingLine()
        self._waiting_change = WaitingLine()
        self._tasks: asyncio.TaskGroup | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        assert self._tasks is None, "a broker is entered once"
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._keeper = self._tasks.create_task(self._keep_connected(), name=self.client_id)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        assert self._tasks is not None, "entered before left"
        if self._wire is not None:
            self._wire.up.flush()
            self._bus.leave(self.client_id)
        self._stop("closed")
        await leave(self._tasks, error)

    def __repr__(self) -> str:
        return f"<SimBrokerClient {self.client_id} {self._reason or 'connected'}>"

    @property
    def state(self) -> BrokerState:
        """How it stands now."""
        return BrokerState(
            connected=self._up,
            reason=self._reason,
            protocol="MQTT 5" if self._connections else "",
            connections=self._connections,
            shed=self._inbound.shed + self._shed,
        )

    async def wait_changed(self, seen: BrokerState) -> BrokerState:
        """Returns once the state differs from ``seen`` in more than ``shed``."""
        while _essence(state := self.state) == _essence(seen):
            await self._waiting_change.wait()
        return state

    def crash(self) -> None:
        """Ends as a process does that is killed: no goodbye, so its will is said."""
        if self._wire is not None:
            self._bus.crash(self.client_id)
        self._stop("crashed")

    def subscribe(self, filters: Mapping[str, int]) -> None:
        """Subscribes to topic filters with a QoS of 0 or 1 each, now and after each reconnection.

        Raises:
            Refused: ``bad_name`` for a filter, ``out_of_range`` for a QoS; nothing is subscribed.
        """
        for topic_filter, qos in filters.items():
            check_filter(topic_filter)
            if qos not in {0, 1}:
                raise Refused(
                    RefusedBecause.OUT_OF_RANGE, f"filter {topic_filter!r}: QoS {qos} is not 0 or 1"
                )
        self._filters.update(filters)
        if self._wire is not None:
            self._wire.up.send(Greeting(dict(filters)))

    def groups(self) -> AsyncIterator[Sequence[Delivery]]:
        """What has arrived since the reader last asked, in order; ends when the client is left."""
        return self._inbound

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Sends the PUBACK of each QoS 1 delivery of this connection; others are passed over."""
        for delivery in deliveries:
            token = delivery.token
            if token in self._outstanding and self._wire is not None:
                self._outstanding.remove(token)
                assert isinstance(token, tuple), "only our own tokens are outstanding"
                self._wire.up.send(Packet(token[1]))

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Hands many messages to the transport in one go, in order.

        Raises:
            LinkDown: not connected, or no room within ``publish_seconds_max``.
            Refused: a topic or QoS that no broker takes; those before it are handed over.
        """
        wire = self._wire
        if wire is None or not self._up:
            raise LinkDown(self._reason)
        done = self._put(wire, publications, 0)
        if done == len(publications):
            return
        self._window.awaited += 1
        self._regulate()
        try:
            while done < len(publications):
                async with asyncio.timeout(self._publish_seconds_max):
                    await self._waiting_room.wait()
                if wire is not self._wire:
                    raise LinkDown(self._reason)
                done = self._put(wire, publications, done)
        except TimeoutError:
            self._shed += len(publications) - done
            raise LinkDown(
                f"the simulated broker took nothing for {self._publish_seconds_max:g} s"
            ) from None
        finally:
            self._window.awaited -= 1
            self._regulate()

    def make_room(self) -> None:
        """Lets publishers that wait try again; called by the bus."""
        self._waiting_room.wake()

    def _put(self, wire: Wire, publications: Sequence[Publication], start: int) -> int:
        for index in range(start, len(publications)):
            publication = publications[index]
            size = len(publication.payload)
            if (len(wire.up) and wire.up.size + size > PUBLISH_QUEUE_BYTES_MAX) or (
                publication.qos and not self._window.has_room
            ):
                return index
            check_topic(publication.topic)
            if publication.qos > 1:
                raise Refused(RefusedBecause.OUT_OF_RANGE, f"QoS {publication.qos} is not 0 or 1")
            packet_id = self._window.add(publication) if publication.qos else 0
            wire.up.send(Packet(packet_id, publication))
        return len(publications)

    async def _keep_connected(self) -> None:
        while True:
            try:
                self._wire = wire = self._bus.accept(self)
                wire.up.send(Greeting(dict(self._filters)))
                self._change(await wire.lost)
            except LinkDown as down:
                self._change(str(down))
            finally:
                self._wire, self._up = None, False
                self._outstanding.clear()
                self._waiting_room.wake()
                self._waiting_change.wake()
            bound = _RECONNECT_SECONDS_MIN * 2 ** min(self._attempts, _DOUBLINGS_MAX)
            self._attempts += 1
            await asyncio.sleep(self._rng.uniform(0, min(bound, _RECONNECT_SECONDS_MAX)))

    def receive(self, packets: Sequence[AnyPacket]) -> None:
        """Takes what came over the wire; called by the bus."""
        now = self._clock.now()
        arrived = []
        for packet in packets:
            if isinstance(packet, Greeting):
                if not self._up:
                    self._admit()
            elif packet.publication is None:
                self._window.unacknowledged.pop(packet.packet_id, None)
                self._waiting_room.wake()
            else:
                topic, payload, qos, retained = packet.publication
                token = (self._connections, packet.packet_id) if qos else None
                if qos:
                    self._outstanding.add(token)
                arrived.append(
                    Delivery(topic, payload, qos, retained, packet.duplicate, now, token)
                )
        if arrived:
            self._inbound.extend(arrived)
            self._regulate()

    def _admit(self) -> None:
        assert self._wire is not None, "packets come over a wire"
        self._up = True
        self._connections += 1
        self._attempts = 0
        if self._birth is not None:
            self._wire.up.send(Packet(_BIRTH_ID, self._birth._replace(qos=1, retain=True)))
        for packet_id, publication in self._window.unacknowledged.items():
            self._wire.up.send(Packet(packet_id, publication, duplicate=True))
        self._change("")

    def _regulate(self) -> None:
        """Stops reading where the real adapter does."""
        if self._wire is not None:
            inbound = self._inbound
            self._wire.down.pause(
                paused=inbound.full and (not self._window.awaited or inbound.overflows)
            )

    def _stop(self, reason: str) -> None:
        self._wire, self._up = None, False
        self._inbound.close()
        if self._keeper is not None:
            self._keeper.cancel()
        self._change(reason)
        self._waiting_room.wake()

    def _change(self, reason: str) -> None:
        self._reason = reason
        self._waiting_change.wake()


def _essence(state: BrokerState) -> tuple[bool, str, int]:
    return state.connected, state.reason, state.connections
