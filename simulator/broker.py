"""An MQTT broker inside the process: delay, loss, duplication and cuts, all from one seed.

``SimBroker`` is the bus, ``SimBrokerClient`` the ``LocalBroker`` of one node on it. They use only
the running loop's clock and timers, so they run as well under a loop whose time is virtual.

What it keeps of MQTT: order within a connection; QoS 0 at most once, QoS 1 at least once; packet
ids and the DUP flag; sessions that outlive connections, with a bounded queue for a client that is
away; retained messages; wills, said when a connection ends without a goodbye. What it leaves out:
bytes, QoS 2, shared subscriptions, permissions. The queue of arrivals and the window of
publications are those of the real adapter.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from mesh.ports import Clock, Publication
from schemas.errors import LinkDown
from schemas.limits import BROKER_GROUP_MESSAGES_MAX, MIB
from schemas.topics import matches
from simulator.broker_client import SimBrokerClient
from simulator.broker_wire import AnyPacket, Greeting, Packet, Wire

__all__ = ["BusFaults", "SimBroker", "SimBrokerClient"]

# Mosquitto's default for a client that is away or does not acknowledge; beyond it the newest go.
_SESSION_MESSAGES_MAX: Final = 1000
# What a stalled connection holds, in packets, before QoS 0 messages for it are dropped.
_PIPE_PACKETS_MAX: Final = 4096
_IDS: Final = 0x7FFF


@dataclass(frozen=True, slots=True)
class BusFaults:
    """What goes wrong on the bus.

    Args:
        delay_seconds: the shortest and the longest way of a packet, one direction.
        loss: chance for a QoS 0 message to vanish, each direction.
        duplication: chance for a QoS 1 message to be handed to a client twice.
    """

    delay_seconds: tuple[float, float] = (0.0, 0.0)
    loss: float = 0.0
    duplication: float = 0.0


class SimBroker:
    """The bus.

    Args:
        rng: decides all delays and faults.
        faults: may be replaced while it runs.
    """

    def __init__(self, rng: Random, faults: BusFaults | None = None) -> None:
        self.faults = faults or BusFaults()
        self.dropped = 0
        """Messages that the broker gave up because a session's queue or a pipe was full."""
        self._rng = rng
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[str, Publication] = {}
        self._down = ""
        self._hangs = False
        self._severed: set[str] = set()

    def __repr__(self) -> str:
        online = sum(session.wire is not None for session in self._sessions.values())
        return f"<SimBroker {self._down or 'up'}, {online} of {len(self._sessions)} connected>"

    @property
    def retained(self) -> Mapping[str, Publication]:
        """Retained messages by topic."""
        return self._retained

    def client(
        self,
        client_id: str,
        clock: Clock,
        *,
        will: Publication | None = None,
        birth: Publication | None = None,
        queue_messages_max: int = 8 * BROKER_GROUP_MESSAGES_MAX,
        queue_bytes_max: int = 32 * MIB,
        publish_seconds_max: float = 10.0,
    ) -> SimBrokerClient:
        """A node's way to this bus; the arguments are those of the real adapter's settings."""
        return SimBrokerClient(
            self,
            client_id,
            clock,
            Random(self._rng.getrandbits(64)),  # noqa: S311, a seeded world
            will=will,
            birth=birth,
            queue_messages_max=queue_messages_max,
            queue_bytes_max=queue_bytes_max,
            publish_seconds_max=publish_seconds_max,
        )

    def stop(self, *, forget: bool = False) -> None:
        """Ends all connections, says no wills, accepts nobody until ``start``.

        Args:
            forget: loses sessions and retained messages, as a broker does that kept them in memory.
        """
        self._down = "connection refused by the simulated broker"
        for session in self._sessions.values():
            self._hang_up(session, "connection closed by the simulated broker")
        if forget:
            self._sessions.clear()
            self._retained.clear()

    def start(self) -> None:
        """Accepts connections again."""
        self._down = ""

    def hang(self) -> None:
        """Takes in nothing more, keeps all connections: a process that was stopped."""
        self._set_hanging(hangs=True)

    def go_on(self) -> None:
        """Ends ``hang``; what was sent meanwhile arrives."""
        self._set_hanging(hangs=False)

    def cut(self, client_id: str) -> None:
        """Cuts a client off until ``mend``; what was on its way is lost, its will is said."""
        self._severed.add(client_id)
        session = self._sessions.get(client_id)
        if session is not None:
            self._bury(session, "lost connection to the simulated broker")

    def mend(self, client_id: str) -> None:
        """Lets a client connect again; fine when it was not cut off."""
        self._severed.discard(client_id)

    def accept(self, client: SimBrokerClient) -> Wire:
        """A new connection; an older one of the same id ends.

        Raises:
            LinkDown: the broker is down, or the way to it is cut.
        """
        if self._down:
            raise LinkDown(self._down)
        if client.client_id in self._severed:
            raise LinkDown("no answer from the simulated broker")
        session = self._sessions.setdefault(client.client_id, _Session())
        self._bury(session, "another client took over our client id")
        session.will = client.will
        session.wire = Wire(
            lambda: self.faults.delay_seconds,
            self._rng,
            lambda packets: self._receive(session, packets),
            client.receive,
            client.make_room,
        )
        session.wire.up.pause(paused=self._hangs)
        return session.wire

    def leave(self, client_id: str) -> None:
        """A goodbye: the will is not said."""
        session = self._sessions.get(client_id)
        if session is not None:
            session.will = None
            self._hang_up(session, "closed")

    def crash(self, client_id: str) -> None:
        """The connection ends without a goodbye: the will is said."""
        session = self._sessions.get(client_id)
        if session is not None:
            self._bury(session, "crashed")

    def _set_hanging(self, *, hangs: bool) -> None:
        self._hangs = hangs
        for session in self._sessions.values():
            if session.wire is not None:
                session.wire.up.pause(paused=hangs)

    def _bury(self, session: "_Session", reason: str) -> None:
        if session.wire is not None:
            will, session.will = session.will, None
            self._hang_up(session, reason)
            if will is not None:
                self._route(will._replace(retain=True))

    def _hang_up(self, session: "_Session", reason: str) -> None:
        wire, session.wire = session.wire, None
        if wire is not None:
            wire.break_off(reason)

    def _receive(self, session: "_Session", packets: Sequence[AnyPacket]) -> None:
        for packet in packets:
            if isinstance(packet, Greeting):
                self._welcome(session, packet.filters)
            elif packet.publication is None:
                session.unacknowledged.pop(packet.packet_id, None)
                self._pump(session)
            elif packet.publication.qos or self._rng.random() >= self.faults.loss:
                self._route(packet.publication)
                if packet.packet_id and session.wire is not None:
                    session.wire.down.send(Packet(packet.packet_id))

    def _welcome(self, session: "_Session", filters: Mapping[str, int]) -> None:
        """Answers CONNECT or SUBSCRIBE, then says again what was not acknowledged."""
        assert session.wire is not None, "packets come over a wire"
        session.filters.update(filters)
        session.wire.down.send(Greeting(filters))
        if not session.greeted_on(session.wire):
            for packet_id, publication in session.unacknowledged.items():
                session.wire.down.send(Packet(packet_id, publication, duplicate=True))
        for publication in self._retained.values():
            qos = _granted(filters, publication)
            if qos is not None:
                self._hand(session, publication._replace(qos=qos, retain=True))
        self._pump(session)

    def _route(self, publication: Publication) -> None:
        if publication.retain:
            if publication.payload:
                self._retained[publication.topic] = publication
            else:
                self._retained.pop(publication.topic, None)
        for session in self._sessions.values():
            qos = _granted(session.filters, publication)
            if qos is not None:
                self._hand(session, publication._replace(qos=qos, retain=False))

    def _hand(self, session: "_Session", publication: Publication) -> None:
        wire = session.wire
        if publication.qos:
            if len(session.waiting) + len(session.unacknowledged) >= _SESSION_MESSAGES_MAX:
                self.dropped += 1
            else:
                session.waiting.append(publication)
                self._pump(session)
        elif wire is not None and self._rng.random() >= self.faults.loss:
            if len(wire.down) >= _PIPE_PACKETS_MAX:
                self.dropped += 1
            else:
                wire.down.send(Packet(0, publication))

    def _pump(self, session: "_Session") -> None:
        """Sends what waits in a session, each under a packet id of its own."""
        if session.wire is None:
            return
        while session.waiting:
            publication = session.waiting.popleft()
            packet_id = session.next_id()
            session.unacknowledged[packet_id] = publication
            session.wire.down.send(Packet(packet_id, publication))
            if self._rng.random() < self.faults.duplication:
                session.wire.down.send(Packet(packet_id, publication, duplicate=True))


@dataclass(slots=True)
class _Session:
    """What the broker keeps of a client."""

    filters: dict[str, int] = field(default_factory=dict)
    unacknowledged: dict[int, Publication] = field(default_factory=dict)
    waiting: deque[Publication] = field(default_factory=deque)
    will: Publication | None = None
    wire: Wire | None = None
    _greeted: Wire | None = None
    _last: int = 0

    def next_id(self) -> int:
        """A packet id that no message of this session has; there are always some."""
        while True:
            self._last = self._last % _IDS + 1
            if self._last not in self.unacknowledged:
                return self._last

    def greeted_on(self, wire: Wire) -> bool:
        """Whether this wire was greeted before; from now on it was."""
        before, self._greeted = self._greeted, wire
        return before is wire


def _granted(filters: Mapping[str, int], publication: Publication) -> int | None:
    """The QoS of a message for these filters; ``None`` when none selects it."""
    selected = [qos for each, qos in filters.items() if matches(each, publication.topic)]
    return min(max(selected), publication.qos) if selected else None
