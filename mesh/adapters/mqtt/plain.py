"""The slow path of a connection: nothing but paho's documented interface, a message at a time.

For a paho that the fast path was never tried with. While its reader is slow it cannot answer the
broker's keepalive, and so may be reconnected.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from mesh.adapters.mqtt.session import Session, Surroundings
from mesh.ports import Delivery, Publication
from schemas.errors import LinkDown, Refused
from schemas.limits import BROKER_GROUP_MESSAGES_MAX, PUBLISH_QUEUE_BYTES_MAX
from schemas.topics import check_topic

__all__ = ["PlainSession"]


class PlainSession(Session):
    """The documented interface of paho, a message at a time."""

    def __init__(self, around: Surroundings, number: int, version: int) -> None:
        super().__init__(around, number, version)
        self._loop = asyncio.get_running_loop()
        self._gathered: list[Delivery] = []
        self._unsent = 0
        self._sock: socket.socket | None = None
        self._reading = False
        self._poll = select.poll()

    @property
    def unsent_bytes(self) -> int:
        """What is handed over but not taken by the kernel."""
        return self._unsent

    def put(self, publications: Sequence[Publication], start: int) -> int:
        """Hands over as many as there is room for, from ``start``; returns where it stopped."""
        for index in range(start, len(publications)):
            publication = publications[index]
            size = len(publication.topic) + len(publication.payload)
            if (self._unsent and self._unsent + size > PUBLISH_QUEUE_BYTES_MAX) or (
                publication.qos and not self._window.has_room
            ):
                return index
            self._check(publication)
            check_topic(publication.topic)
            packet_id = self._publish(publication)
            if publication.qos:
                self._window.unacknowledged[packet_id] = publication
        return len(publications)

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Sends the PUBACKs of this connection's QoS 1 deliveries."""
        for delivery in deliveries:
            token = delivery.token
            if token in self._outstanding:
                self._outstanding.remove(token)
                assert isinstance(token, int), "only our own tokens are outstanding"
                self._client.ack(token & 0xFFFF, 1)

    def regulate(self) -> None:
        """Reads on or stops reading, as the inbound queue and the window demand."""
        if self._sock is None or self.lost.done():
            return
        must_read = not self._must_pause()
        if must_read and not self._reading:
            self._loop.add_reader(self._sock, self._on_readable)
        elif self._reading and not must_read:
            self._loop.remove_reader(self._sock)
        self._reading = must_read

    def tick(self) -> None:
        """Lets paho ping, or find that nobody answers; not while its answers are not read."""
        if self._reading:
            self._client.loop_misc()

    async def _connect(self) -> None:
        client = self._client
        await asyncio.to_thread(client.connect, **self._connect_arguments())
        sock = client.socket()
        assert isinstance(sock, socket.socket), "paho connects over TCP or TLS"
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._poll.register(sock, select.POLLIN)
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write
        client.on_socket_unregister_write = self._on_unregister_write
        self.regulate()
        if client.want_write():
            self._loop.add_writer(sock, self._on_writable)

    def _make_client(self) -> Client:
        client = Client(**self._client_arguments())
        if self._settings.tls is not None:
            client.tls_set_context(self._settings.tls)
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return self._configure(client)

    def _put_birth(self, birth: Publication) -> None:
        self._publish(birth)

    def _repeat(self) -> None:
        """Sends them under new packet ids: paho numbers publications itself."""
        again = list(self._window.unacknowledged.values())
        self._window.unacknowledged.clear()
        for publication in again:
            self._window.unacknowledged[self._publish(publication)] = publication

    def _publish(self, publication: Publication) -> int:
        topic, payload, qos, retain = publication
        answer = self._client.publish(topic, payload, qos=qos, retain=retain)
        if answer.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise LinkDown(f"connection to {self._settings.address} lost: {answer.rc.name}")
        self._unsent += len(topic) + len(payload)
        return answer.mid

    def _release(self) -> None:
        """Shuts the socket down; paho, whose socket it is, closes it when it goes.

        This may be called from within one of paho's callbacks, which go on with the socket.
        """
        sock = self._forget_socket()
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _forget_socket(self) -> socket.socket | None:
        """Takes the socket out of the loop and ourselves out of paho; returns what it was."""
        client, sock = self._client, self._sock
        self._sock, self._reading = None, False
        client.on_connect = client.on_disconnect = client.on_subscribe = None
        client.on_message = client.on_publish = None
        client.on_socket_register_write = client.on_socket_unregister_write = None
        client.on_socket_close = None
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
        return sock

    def _on_readable(self) -> None:
        """Reads until the socket is dry: ``loop_read`` takes one packet a call."""
        for _ in range(BROKER_GROUP_MESSAGES_MAX):
            self._read_packet()
            if self._sock is None or self.lost.done():
                break
            pending = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()
            if not pending and not self._poll.poll(0):
                break
        if self._gathered:
            self._inbound.extend(self._gathered)
            self._gathered = []
            self.regulate()

    def _on_writable(self) -> None:
        self._client.loop_write()
        if not self._client.want_write():
            self._unsent = 0
            self._around.on_room()

    def _on_message(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        received = self._gathered[0].received if self._gathered else self._around.clock.now()
        token = self.number << 16 | message.mid if message.qos else None
        try:
            topic = check_topic(message.topic)
        except (UnicodeDecodeError, Refused):
            self._tally.refused += 1
            client.ack(message.mid, message.qos)
            return
        payload = bytes(message.payload)
        if message.qos:
            self._outstanding.add(token)
        self._gathered.append(
            Delivery(
                topic,
                payload,
                message.qos,
                bool(message.retain),
                bool(message.dup),
                received,
                token,
            )
        )

    def _on_publish(
        self,
        _client: Client,
        _userdata: object,
        mid: int,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._window.settle(mid, code.value):
            self._tally.refused += code.is_failure
            if self._window.is_worth_waking:
                self._around.on_room()

    def _on_register_write(self, _client: Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401
        self._loop.add_writer(sock, self._on_writable)

    def _on_unregister_write(self, _client: Client, _userdata: object, sock: Any) -> None:  # noqa: ANN401
        self._loop.remove_writer(sock)

    def _on_socket_close(self, _client: Client, _userdata: object, _sock: object) -> None:
        """Comes before paho closes the socket, and before it tells of the end.

        The loop must forget the socket now: its number goes to the next one that is opened.
        """
        if self._sock is not None:
            self._reading = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock = None
