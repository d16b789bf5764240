"""The fast path of a connection: messages are read and written a buffer at a time.

paho is given a ``BufferedSocket`` by overriding ``_create_socket``, the one private name of it that
is used. paho then does CONNECT, SUBSCRIBE, DISCONNECT and their answers; PUBLISH, PUBACK and
PINGREQ, the packets of the hot path, are read and written here.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

import paho.mqtt
from paho.mqtt.client import Client

from mesh.adapters.mqtt.packet import PINGREQ, PacketReader, TopicWriter, encode_pubacks
from mesh.adapters.mqtt.reason import FAILURE_CODE_MIN
from mesh.adapters.mqtt.session import Session, Surroundings, describe
from mesh.adapters.mqtt.stream import BufferedSocket, open_socket
from mesh.ports import Delivery, Publication
from schemas.errors import Refused
from schemas.limits import PUBLISH_QUEUE_BYTES_MAX

__all__ = ["BufferedSession", "paho_allows_buffering"]

# Below those that the window gives out, above those that paho does.
_BIRTH_ID: Final = 0x7FFF
_BUFFERED_VERSIONS: Final = re.compile(r"2\.2(\.\d+)?")
_WRITE_BYTES: Final = 64 * 1024


class BufferedSession(Session):
    """The fast path: messages are read and written a buffer at a time."""

    def __init__(self, around: Surroundings, number: int, version: int) -> None:
        super().__init__(around, number, version)
        self._loop = asyncio.get_running_loop()
        self._reader = PacketReader(version, self._settings.packet_bytes_max, number)
        self._writer = TopicWriter(version)
        self._socket: BufferedSocket | None = None
        self._heard = self._pinged = self._loop.time()
        self._taken_bytes = 0
        self._was_waiting = False

    @property
    def unsent_bytes(self) -> int:
        """What is handed over but not taken by the kernel."""
        return self._socket.unsent_bytes if self._socket else 0

    def put(self, publications: Sequence[Publication], start: int) -> int:
        """Hands over as many as there is room for, from ``start``; returns where it stopped."""
        assert self._socket is not None, "put is called on an open session"
        window, encode = self._window, self._writer.encode
        bytes_max = self._publication_bytes_max
        parts: list[bytes] = []
        waiting, gathered, stopped = self._socket.unsent_bytes, 0, start
        try:
            for publication in islice(publications, start, None):
                topic, payload, qos, retain = publication
                size = len(topic) + len(payload)
                total = waiting + gathered
                if total and total + size > PUBLISH_QUEUE_BYTES_MAX:
                    break
                packet_id = 0
                if qos:
                    if not window.has_room:
                        break
                    self._check(publication)
                    self._writer.check(topic)
                    packet_id = window.add(publication)
                elif size > bytes_max:
                    self._check(publication)
                parts.append(encode(topic, payload, packet_id, retain))
                stopped += 1
                gathered += size
                if gathered >= _WRITE_BYTES:
                    self._socket.write(b"".join(parts))
                    parts.clear()
                    waiting, gathered = self._socket.unsent_bytes, 0
        finally:
            if parts:
                self._socket.write(b"".join(parts))
        return stopped

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Sends the PUBACKs of this connection's QoS 1 deliveries."""
        outstanding = self._outstanding
        packet_ids = []
        for delivery in deliveries:
            token = delivery.token
            if token in outstanding:
                outstanding.remove(token)
                assert isinstance(token, int), "only our own tokens are outstanding"
                packet_ids.append(token & 0xFFFF)
        if packet_ids and self._socket is not None:
            self._socket.write(encode_pubacks(packet_ids))

    def regulate(self) -> None:
        """Reads on or stops reading, as the inbound queue and the window demand."""
        if self._socket is None or self.lost.done():
            return
        if self._must_pause():
            self._socket.pause()
        elif not self._socket.reading:
            self._heard = self._loop.time()
            self._socket.resume()

    def tick(self) -> None:
        """Pings twice a keepalive; gives up a broker that says nothing.

        While reading is paused the answers wait behind the messages, so silence means nothing.
        While a large message goes out over a slow way its answer, and that to a ping, is yet to
        come: that bytes which had to wait go out is a sign of life too.
        """
        if self._socket is None or self.lost.done():
            return
        now, keepalive = self._loop.time(), self._settings.keepalive_seconds
        if self._was_waiting and self._socket.taken_bytes != self._taken_bytes:
            self._heard = now
        self._was_waiting = self._socket.unsent_bytes > 0
        self._taken_bytes = self._socket.taken_bytes
        if self._socket.reading and now - self._heard >= 1.5 * keepalive:
            self.close(
                f"no sign of life from {self._settings.address} for {now - self._heard:.0f} s"
            )
        elif now - self._pinged >= keepalive / 2:
            self._pinged = now
            self._socket.write(PINGREQ)

    async def _connect(self) -> None:
        settings = self._settings
        sock = await open_socket(
            settings.host, settings.port, settings.tls, settings.kernel_queue_bytes_max
        )
        self._socket = BufferedSocket(
            sock,
            self._on_readable,
            self._around.on_room,
            lambda error: self.close(describe(error, settings)),
        )
        self._client.connect(**self._connect_arguments())
        self._socket.resume()

    def _make_client(self) -> Client:
        return self._configure(_client_on(lambda: self._socket, self._client_arguments()))

    def _put_birth(self, birth: Publication) -> None:
        self._write(birth, _BIRTH_ID, duplicate=False)

    def _repeat(self) -> None:
        for packet_id, publication in self._window.unacknowledged.items():
            self._write(publication, packet_id, duplicate=True)

    def _write(self, publication: Publication, packet_id: int, *, duplicate: bool) -> None:
        if self._socket is not None:
            topic, payload, _, retain = publication
            self._socket.write(
                self._writer.encode(topic, payload, packet_id, retain, duplicate=duplicate)
            )

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _on_readable(self) -> None:
        assert self._socket is not None, "a socket that is readable exists"
        try:
            data = self._socket.read()
            if data is None:
                return
            if not data:
                self.close(f"connection closed by {self._settings.address}")
                return
            deliveries = self._reader.feed(data, self._around.clock.now())
        except (OSError, Refused) as error:
            self.close(describe(error, self._settings))
            return
        self._heard = self._loop.time()
        self._follow_up(self._reader, self._socket)
        if deliveries:
            self._outstanding.update([d.token for d in deliveries if d.qos])
            self._inbound.extend(deliveries)
            if self._inbound.full:
                self.regulate()

    def _follow_up(self, reader: PacketReader, sock: BufferedSocket) -> None:
        """What else was in the bytes: acknowledgements, what cannot be read, what paho knows."""
        if reader.acknowledged:
            settle = self._window.settle
            for packet_id, code in reader.acknowledged:
                settle(packet_id, code)
                self._tally.refused += code >= FAILURE_CODE_MIN
            reader.acknowledged.clear()
            if self._window.is_worth_waking:
                self._around.on_room()
        if reader.unreadable:
            sock.write(encode_pubacks(reader.unreadable))
            reader.unreadable.clear()
        if reader.refused:
            self._tally.refused += reader.refused
            reader.refused = 0
        if reader.others:
            sock.hand_over(reader.others)
            reader.others.clear()
            while sock.pending() and not self.lost.done():
                self._read_packet()


def paho_allows_buffering(version: str = paho.mqtt.__version__, client: type = Client) -> bool:
    """Whether the fast path has been tried with this paho.

    Args:
        version: of paho.
        client: its client class.
    """
    return _BUFFERED_VERSIONS.fullmatch(version) is not None and hasattr(client, "_create_socket")


def _client_on(sock: Callable[[], BufferedSocket | None], arguments: dict[str, Any]) -> Client:
    """A paho client whose socket we bring along."""

    class BufferedClient(Client):
        """Asks nobody for a connection: there is one."""

        def _create_socket(self) -> Any:  # noqa: ANN401, paho's own type for it is private
            return sock()

    return BufferedClient(**arguments)
