"""One connection to an MQTT broker, from CONNECT to its end: what its two kinds share.

A session lives for one connection and owns one paho client: paho keeps its state in memory, queues
what is published while it is disconnected, and would send it later; a client that is thrown away
does neither. What outlives a connection, the window of unacknowledged publications and the queue of
arrivals, belongs to the broker and is handed in. Only ``session``, ``buffered`` and ``plain``
import paho.
"""

import asyncio
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mesh.adapters.inbound import InboundQueue
from mesh.adapters.mqtt.packet import PACKET_HEAD_BYTES_MAX, packet_bytes
from mesh.adapters.mqtt.settings import MqttSettings
from mesh.adapters.mqtt.window import Window
from mesh.ports import Clock, Delivery, Publication
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.limits import PUBLISH_WINDOW_MAX

__all__ = ["Session", "Surroundings", "Tally", "describe"]

_UNSUPPORTED_VERSION: Final = 0x84
_FAILURE_MIN: Final = 0x80
_WORDS: Final = {
    "Not authorized": "not authorised",
    "Session taken over": "another client took over our client id",
}


@dataclass(slots=True)
class Tally:
    """What is counted over all connections.

    Args:
        refused: messages passed over for their topic or size, publications the broker did not take.
        refused_filters: what the broker does not let us read.
    """

    refused: int = 0
    refused_filters: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session shares with the broker that made it.

    Args:
        settings: of the broker.
        clock: looked at once a group.
        inbound: where messages go.
        window: what is not acknowledged.
        tally: what is counted.
        on_room: called when a publisher that waits may try again.
    """

    settings: MqttSettings
    clock: Clock
    inbound: InboundQueue
    window: Window
    tally: Tally
    on_room: Callable[[], None]


class Session(ABC):
    """One connection.

    Args:
        around: what is shared with the broker.
        number: counts sessions; part of each token.
        version: 5 or 4 (3.1.1).
    """

    def __init__(self, around: Surroundings, number: int, version: int) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.lost: asyncio.Future[str] = loop.create_future()
        """Done when the connection has ended; says why."""
        self.version_refused = False
        """Whether the broker does not speak this version."""
        self._around = around
        self._settings = around.settings
        self._inbound = around.inbound
        self._window = around.window
        self._tally = around.tally
        self._version = version
        self._accepted: asyncio.Future[None] = loop.create_future()
        self._subscribing: dict[int, list[str]] = {}
        self._subscribed: asyncio.Future[None] = loop.create_future()
        self._outstanding: set[object] = set()
        self._broker_packet_bytes_max: int | None = None
        self._publication_bytes_max = around.settings.publication_bytes_max
        self._client = self._make_client()

    @property
    def broker_packet_bytes_max(self) -> int | None:
        """The largest packet that the broker takes, where it told."""
        return self._broker_packet_bytes_max

    async def open(self, filters: Mapping[str, int]) -> None:
        """Connects, subscribes, says the birth and repeats what is not acknowledged.

        Raises:
            LinkDown: with the reason; the connection is closed.
        """
        settings = self._settings
        try:
            async with asyncio.timeout(settings.connect_seconds_max):
                await self._connect()
                await self._reach(self._accepted)
                if filters:
                    self.subscribe(filters)
                    await self._reach(self._subscribed)
        except TimeoutError:
            self.close(
                f"no answer from {settings.address} within {settings.connect_seconds_max:g} s"
            )
        except (OSError, ValueError) as error:
            self.close(describe(error, settings))
        except BaseException:
            self.close("stopped")
            raise
        refused = sorted(self._tally.refused_filters.intersection(filters))
        if refused and settings.filters_required:
            self.close(f"{settings.address} does not let us read {', '.join(refused)}")
        if self.lost.done():
            raise LinkDown(self.lost.result())
        if settings.birth is not None:
            self._put_birth(settings.birth._replace(qos=1, retain=True))
        self._repeat()

    def subscribe(self, filters: Mapping[str, int]) -> None:
        """Sends one SUBSCRIBE."""
        result, mid = self._client.subscribe(list(filters.items()))
        if result == MQTTErrorCode.MQTT_ERR_SUCCESS and mid is not None:
            self._subscribing[mid] = list(filters)

    @abstractmethod
    def put(self, publications: Sequence[Publication], start: int) -> int:
        """Hands over as many as there is room for, from ``start``; returns where it stopped.

        Raises:
            Refused: a publication that no broker would take; those before it are handed over.
        """

    @abstractmethod
    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Sends the PUBACKs of this connection's QoS 1 deliveries."""

    @abstractmethod
    def regulate(self) -> None:
        """Reads on or stops reading, as the inbound queue and the window demand."""

    @abstractmethod
    def tick(self) -> None:
        """Keeps the connection alive, or finds that it is not; called a few times a keepalive."""

    @property
    @abstractmethod
    def unsent_bytes(self) -> int:
        """What is handed over but not taken by the kernel."""

    def disconnect(self) -> None:
        """Says goodbye, so that the broker keeps the will to itself."""
        if not self.lost.done():
            self._client.disconnect()
            self._client.loop_write()
            self.close("closed")

    def close(self, reason: str) -> None:
        """Ends the connection without a word; the first reason stands."""
        if not self.lost.done():
            self.lost.set_result(reason)
        self._release()

    @abstractmethod
    async def _connect(self) -> None:
        """Opens the transport and sends CONNECT."""

    @abstractmethod
    def _make_client(self) -> Client:
        """The paho client, configured."""

    @abstractmethod
    def _put_birth(self, birth: Publication) -> None:
        """Publishes the birth outside of the window: each connection says its own."""

    @abstractmethod
    def _repeat(self) -> None:
        """Sends again what earlier connections left unacknowledged."""

    @abstractmethod
    def _release(self) -> None:
        """Gives the transport back; may be called twice."""

    async def _reach(self, answer: asyncio.Future[None]) -> None:
        either: set[asyncio.Future[Any]] = {answer, self.lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    def _must_pause(self) -> bool:
        """Whether to stop reading.

        A publisher that waits for a PUBACK may be the reader itself: with reading stopped its
        PUBACK would never come. So while one waits reading goes on: unacknowledged messages are
        bounded in number by their packet ids, and by the broker's own limit; a queue of twice
        its bytes stops it all the same, and the publisher's deadline ends the wait.
        """
        inbound = self._inbound
        return inbound.full and (not self._window.awaited or inbound.overflows)

    def _read_packet(self) -> None:
        try:
            self._client.loop_read()
        except Exception as error:  # noqa: BLE001, paho does not say what a stranger's bytes raise
            self.close(f"paho failed on what {self._settings.address} sent: {error!r}")

    def _check(self, publication: Publication) -> None:
        limit = self._broker_packet_bytes_max
        if limit is not None and packet_bytes(publication.topic, publication.payload) > limit:
            raise Refused(
                RefusedBecause.TOO_LARGE,
                f"publication on {publication.topic[:80]!r}: {len(publication.payload)} bytes; "
                f"{self._settings.address} takes packets of at most {limit}",
            )
        if publication.qos > 1 or len(publication.payload) > self._settings.publication_bytes_max:
            raise Refused(
                RefusedBecause.TOO_LARGE if publication.qos <= 1 else RefusedBecause.OUT_OF_RANGE,
                f"publication on {publication.topic[:80]!r}: {len(publication.payload)} bytes, "
                f"QoS {publication.qos}; at most {self._settings.publication_bytes_max} and 1",
            )

    def _configure(self, client: Client) -> Client:
        settings = self._settings
        # 0 is no bound of paho's own: ours is tighter, and paho scans its list at each PUBACK.
        client.max_inflight_messages_set(0)
        client.connect_timeout = settings.connect_seconds_max
        if settings.username is not None:
            client.username_pw_set(settings.username, settings.password)
        if settings.will is not None:
            client.will_set(settings.will.topic, settings.will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        return client

    def _client_arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "callback_api_version": CallbackAPIVersion.VERSION2,
            "client_id": self._settings.client_id,
            "protocol": MQTTProtocolVersion(self._version),
            "manual_ack": True,
            # paho would fall back to MQTT 3.1 and dial by itself.
            "reconnect_on_failure": False,
        }
        if self._version == MQTTProtocolVersion.MQTTv311:
            arguments["clean_session"] = self._settings.session_seconds == 0
        return arguments

    def _connect_arguments(self) -> dict[str, Any]:
        settings = self._settings
        arguments: dict[str, Any] = {
            "host": settings.host,
            "port": settings.port,
            "keepalive": settings.keepalive_seconds,
        }
        if self._version == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
            properties.ReceiveMaximum = settings.receive_maximum
            properties.MaximumPacketSize = settings.packet_bytes_max
            properties.SessionExpiryInterval = settings.session_seconds
            arguments["clean_start"] = settings.session_seconds == 0
            arguments["properties"] = properties
        return arguments

    def _on_connect(
        self,
        _client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if code.is_failure:
            self.version_refused = code.value == _UNSUPPORTED_VERSION
            self.close(f"refused by {self._settings.address}: {_in_words(code)}")
            return
        allowed = getattr(properties, "ReceiveMaximum", PUBLISH_WINDOW_MAX)
        self._window.limit = min(allowed, PUBLISH_WINDOW_MAX)
        limit = getattr(properties, "MaximumPacketSize", None)
        if limit is not None:
            self._broker_packet_bytes_max = limit
            # Whatever is larger is looked at more closely; a topic has at most three bytes a
            # character, of which the quick test counts one.
            self._publication_bytes_max = min(
                self._publication_bytes_max, max(0, limit - PACKET_HEAD_BYTES_MAX) // 3
            )
        if not self._accepted.done():
            self._accepted.set_result(None)

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        flags: DisconnectFlags,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        address = self._settings.address
        if flags.is_disconnect_packet_from_server:
            self.close(f"disconnected by {address}: {_in_words(code)}")
        else:
            # paho knows no more than that its socket ended.
            self.close(f"connection closed by {address}")

    def _on_subscribe(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        codes: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        for topic_filter, code in zip(self._subscribing.pop(mid, ()), codes, strict=False):
            if code.value >= _FAILURE_MIN:
                self._tally.refused_filters.add(topic_filter)
            else:
                self._tally.refused_filters.discard(topic_filter)
        if not self._subscribing and not self._subscribed.done():
            self._subscribed.set_result(None)


def _in_words(code: ReasonCode) -> str:
    words = str(code)
    return _WORDS.get(words, words[:1].lower() + words[1:])


def describe(error: Exception, settings: MqttSettings) -> str:
    """The one place where errors of sockets, TLS and paho become words for a person."""
    address = settings.address
    match error:
        case Refused():
            return f"{address} does not speak MQTT: {error.detail}"
        case socket.gaierror():
            return f"host name {settings.host!r} cannot be resolved: {error.strerror}"
        case ssl.SSLCertVerificationError():
            return f"certificate of {address} is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS with {address} failed: {error.reason or error}"
        case ConnectionRefusedError():
            return f"connection refused by {address}"
        case ConnectionResetError() | BrokenPipeError():
            return f"connection closed by {address}"
        case TimeoutError():
            return f"no answer from {address}"
        case OSError():
            return f"cannot reach {address}: {error.strerror or error}"
        case _:
            return f"cannot connect to {address}: {error}"
