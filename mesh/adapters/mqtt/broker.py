"""The local broker over MQTT: one connection after another, for ever.

``MqttBroker`` keeps a session open, and what must outlive a session: the filters, the queue of
arrivals, the window of unacknowledged publications, the counts. Sessions are made and watched by
one task; everything happens on the loop that entered the broker, nothing in threads.

What is promised. QoS 1 publications that were handed over are sent again after a reconnection until
the broker acknowledges them, or this process ends: they are kept in memory. QoS 1 messages that
were not acknowledged come again, flagged as duplicates, while the broker keeps the session. Between
two connections nothing is queued: ``publish`` raises ``LinkDown``.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Final, Self

from mesh.adapters.inbound import InboundQueue
from mesh.adapters.mqtt.buffered import BufferedSession, paho_allows_buffering
from mesh.adapters.mqtt.plain import PlainSession
from mesh.adapters.mqtt.session import Session, Surroundings, Tally
from mesh.adapters.mqtt.settings import MqttSettings
from mesh.adapters.mqtt.window import Window
from mesh.adapters.waiting import WaitingLine, leave
from mesh.ports import BrokerState, Clock, Delivery, Publication
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.topics import check_filter

__all__ = ["RECONNECT_SECONDS_MAX", "RECONNECT_SECONDS_MIN", "MqttBroker", "MqttSettings"]

RECONNECT_SECONDS_MIN: Final = 0.1
RECONNECT_SECONDS_MAX: Final = 15.0
_TICK_SECONDS_MAX: Final = 1.0
_DOUBLINGS_MAX: Final = 32
_MQTT_5: Final = 5
_MQTT_311: Final = 4
_NAMES: Final = {_MQTT_5: "MQTT 5", _MQTT_311: "MQTT 3.1.1"}


class MqttBroker:
    """The real ``LocalBroker``. Used as ``async with MqttBroker(settings, clock, rng) as broker``.

    Entering starts to connect and does not wait for it. Leaving waits at most
    ``drain_seconds_max`` for what is not acknowledged, then says goodbye.

    Args:
        settings: where, and who we are.
        clock: looked at once a group.
        rng: for the pauses between attempts.
        changes: where changes of its state are told, when several brokers share one line.
    """

    def __init__(
        self,
        settings: MqttSettings,
        clock: Clock,
        rng: Random,
        changes: WaitingLine | None = None,
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._filters: dict[str, int] = {}
        self._inbound = InboundQueue(
            settings.queue_messages_max, settings.queue_bytes_max, self._regulate
        )
        self._window = Window()
        self._tally = Tally()
        self._around = Surroundings(
            settings, clock, self._inbound, self._window, self._tally, self._on_room
        )
        self._version = _MQTT_311 if settings.protocol == "3.1.1" else _MQTT_5
        # The broker may send before it has granted all filters: the latest session is one that is
        # up, or about to be.
        self._session: Session | None = None
        self._latest: Session | None = None
        self._sessions = 0
        self._reason = "not connected yet"
        self._protocol = ""
        self._connections = 0
        self._attempts = 0
        self._since_mono_ns = clock.now().mono_ns
        self._shed = 0
        self._waiting_room = WaitingLine()
        self._waiting_change = changes or WaitingLine()
        self._tasks: asyncio.TaskGroup | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        assert self._tasks is None, "a broker is entered once"
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._keeper = self._tasks.create_task(self._keep_connected(), name="mqtt")
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        assert self._tasks is not None, "entered before left"
        assert self._keeper is not None, "entered before left"
        try:
            await self._drain()
        finally:
            session, self._session, self._latest = self._session, None, None
            if session is not None:
                session.disconnect()
            self._change("closed")
            self._inbound.close()
            self._keeper.cancel()
            await leave(self._tasks, error)

    def __repr__(self) -> str:
        state = self.state
        return (
            f"<MqttBroker {self._settings.address} {state.protocol} {state.reason or 'connected'}>"
        )

    @property
    def state(self) -> BrokerState:
        """How it stands now."""
        return BrokerState(
            connected=self._session is not None,
            reason=self._reason,
            protocol=self._protocol,
            connections=self._connections,
            shed=self._inbound.shed + self._shed,
            refused=self.refused,
            refused_filters=self.refused_filters,
        )

    @property
    def refused(self) -> int:
        """Messages passed over for their topic or size, publications the broker did not take."""
        return self._tally.refused

    @property
    def refused_filters(self) -> frozenset[str]:
        """Filters that the broker does not let us read."""
        return frozenset(self._tally.refused_filters)

    @property
    def since_mono_ns(self) -> int:
        """Since when it is connected, or is not, on the monotonic clock."""
        return self._since_mono_ns

    @property
    def broker_packet_bytes_max(self) -> int | None:
        """The largest packet that the broker takes; ``None`` where it did not tell."""
        return None if self._session is None else self._session.broker_packet_bytes_max

    def is_current(self, delivery: Delivery) -> bool:
        """Whether a QoS 1 delivery came on the present connection, so that it can be answered."""
        token = delivery.token
        return (
            self._latest is not None
            and isinstance(token, int)
            and token >> 16 == self._latest.number
        )

    async def wait_changed(self, seen: BrokerState) -> BrokerState:
        """Returns once the state differs from ``seen`` in more than ``shed``."""
        while _essence(state := self.state) == _essence(seen):
            await self._waiting_change.wait()
        return state

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
        if self._session is not None and filters:
            self._session.subscribe(filters)

    def groups(self) -> AsyncIterator[Sequence[Delivery]]:
        """What has arrived since the reader last asked, in order; ends when the broker is left."""
        return self._inbound

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Sends the PUBACK of each QoS 1 delivery of this connection; others are passed over."""
        if self._latest is not None:
            self._latest.acknowledge(deliveries)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Hands many messages to the transport in one go, in order.

        Raises:
            LinkDown: not connected, or no room within ``publish_seconds_max``.
            Refused: a topic, QoS or size that no broker takes; those before it are handed over.
        """
        session = self._session
        if session is None:
            raise LinkDown(self._reason)
        done = session.put(publications, 0)
        if done < len(publications):
            await self._publish_rest(session, publications, done)

    async def publish_answered(self, publications: Sequence[Publication]) -> list[int]:
        """Publishes with QoS 1, in order, and returns what the broker answered to each.

        Unlike those of ``publish`` they are never sent again: what was not answered when the
        connection ended, or when the caller stopped waiting, may or may not have arrived.

        Returns:
            Reason codes of MQTT 5; a broker of 3.1.1 knows only 0, success.

        Raises:
            LinkDown: not connected, or the connection ended first. Set a deadline: there is none.
            Refused: a topic or size that the broker does not take; those before it are sent.
        """
        session = self._session
        if session is None:
            raise LinkDown(self._reason)
        answers: list[asyncio.Future[int | None]] = []
        self._window.awaited += 1
        session.regulate()
        try:
            for publication in publications:
                while not session.put((publication._replace(qos=1),), 0):
                    await self._waiting_room.wait()
                    if session is not self._session:
                        raise LinkDown(session.lost.result())
                answers.append(self._window.expect())
            codes = [await answer for answer in answers]
        finally:
            for answer in answers:
                answer.cancel()
            self._window.awaited -= 1
            session.regulate()
        if None in codes:
            raise LinkDown(session.lost.result())
        return [code for code in codes if code is not None]

    def reset(self, reason: str) -> None:
        """Tears the connection down, and makes it anew; fine while there is none."""
        if self._session is not None:
            self._session.close(reason)
            self._dismiss(self._session)

    async def _publish_rest(
        self, session: Session, publications: Sequence[Publication], done: int
    ) -> None:
        """The slow path: the buffer or the window is full."""
        self._window.awaited += 1
        session.regulate()
        try:
            while done < len(publications):
                async with asyncio.timeout(self._settings.publish_seconds_max):
                    await self._waiting_room.wait()
                if session is not self._session:
                    raise LinkDown(self._reason)
                done = session.put(publications, done)
        except TimeoutError:
            self._shed += len(publications) - done
            raise LinkDown(
                f"{self._settings.address} took nothing for "
                f"{self._settings.publish_seconds_max:g} s: {session.unsent_bytes} bytes unsent, "
                f"{len(self._window.unacknowledged)} messages unacknowledged"
            ) from None
        finally:
            self._window.awaited -= 1
            session.regulate()

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            session = self._latest = self._new_session()
            try:
                await session.open(self._filters)
                self._admit(session)
                since = loop.time()
                await self._watch(session)
                if loop.time() - since >= self._settings.steady_seconds:
                    self._attempts = 0
            except LinkDown as down:
                self._change(str(down))
                if session.version_refused and self._fall_back():
                    continue
            finally:
                self._dismiss(session)
            await asyncio.sleep(self._pause())

    def _new_session(self) -> Session:
        kind = (
            BufferedSession if self._settings.buffered and paho_allows_buffering() else PlainSession
        )
        self._sessions += 1
        return kind(self._around, self._sessions, self._version)

    def _admit(self, session: Session) -> None:
        self._connections += 1
        self._session = session
        self._since_mono_ns = self._around.clock.now().mono_ns
        self._protocol = _NAMES[self._version]
        self._change("")

    async def _watch(self, session: Session) -> None:
        """Returns when the connection is lost."""
        tick_seconds = min(_TICK_SECONDS_MAX, self._settings.keepalive_seconds / 4)
        while not session.lost.done():
            await asyncio.wait({session.lost}, timeout=tick_seconds)
            session.tick()

    def _dismiss(self, session: Session) -> None:
        session.close("stopped")
        self._window.abandon()
        if self._latest is session:
            self._latest = None
        if self._session is session:
            self._session = None
            self._since_mono_ns = self._around.clock.now().mono_ns
            self._change(session.lost.result())
        self._on_room()

    def _fall_back(self) -> bool:
        """Remembers that the broker speaks only 3.1.1; whether that is to be tried."""
        if self._settings.protocol != "auto" or self._version == _MQTT_311:
            return False
        self._version = _MQTT_311
        return True

    def _pause(self) -> float:
        """Full jitter: anything between nothing and a bound that doubles with each attempt."""
        bound = RECONNECT_SECONDS_MIN * 2 ** min(self._attempts, _DOUBLINGS_MAX)
        self._attempts += 1
        return self._rng.uniform(0, min(bound, RECONNECT_SECONDS_MAX))

    async def _drain(self) -> None:
        """Waits for what was handed over to leave and be acknowledged, not longer than it may."""
        try:
            async with asyncio.timeout(self._settings.drain_seconds_max):
                while (session := self._session) is not None and (
                    session.unsent_bytes or self._window.unacknowledged
                ):
                    await self._waiting_room.wait()
        except TimeoutError:
            pass

    def _regulate(self) -> None:
        if self._session is not None:
            self._session.regulate()

    def _on_room(self) -> None:
        self._waiting_room.wake()

    def _change(self, reason: str) -> None:
        self._reason = reason
        self._waiting_change.wake()


def _essence(state: BrokerState) -> tuple[bool, str, int]:
    return state.connected, state.reason, state.connections
