"""PUBLISH and PUBACK as bytes: the two packets of the hot path, a buffer at a time. Pure.

The formats are those of MQTT 3.1.1 and 5.0, chapter 3 in both::

    PUBLISH  0011 dup qos qos retain | remaining length | topic length (2) | topic
             | packet id (2, QoS 1) | properties (MQTT 5: length, then as many bytes) | payload
    PUBACK   0100 0000 | 2 | packet id (2)      (MQTT 5 may add a reason code and properties)

Remaining length is a variable byte integer: seven bits a byte, the lowest first, the top bit says
that another one follows, four bytes at most.

Invariants. Every byte fed in comes out exactly once: inside a message, as an acknowledgement, in
``others`` (whole packets that somebody else understands), or counted in ``refused``. A packet never
spans two answers. Memory is bounded by ``packet_bytes_max``: a larger PUBLISH is passed over as it
streams by, and its acknowledgement is still made, or the broker would send it again for ever. A
topic that is no valid topic is passed over in the same way. A breach of the framing itself raises:
after it no byte can be trusted.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from mesh.ports import Delivery
from schemas.errors import Refused, RefusedBecause
from schemas.messages import Instant
from schemas.topics import check_topic

__all__ = [
    "PACKET_HEAD_BYTES_MAX",
    "PINGREQ",
    "PacketReader",
    "TopicWriter",
    "encode_pubacks",
    "packet_bytes",
]

PINGREQ: Final = b"\xc0\x00"
PACKET_HEAD_BYTES_MAX: Final = 1 + 4 + 2 + 2 + 1
"""A PUBLISH beside topic and payload: head, length, topic length, packet id, properties."""

_PUBLISH: Final = 0x30
_PUBACK: Final = 0x40
_KIND: Final = 0xF0
_DUP: Final = 0x08
_QOS: Final = 0x06
_QOS_1: Final = 0x02
_RETAIN: Final = 0x01
_MORE: Final = 0x80
_LENGTH_BYTES_MAX: Final = 4
# Everything before the payload: head, length, topic, packet id. Properties come on top, but of them
# nothing is needed.
_PREFIX_BYTES_MAX: Final = 1 + 4 + 2 + 65_535 + 2
_TOPICS_MAX: Final = 4096
_new_delivery: Final = tuple.__new__


class PacketReader:
    """Cuts the stream of one connection into messages, acknowledgements and other packets.

    Args:
        version: 5 or 4 (3.1.1), as in CONNECT.
        packet_bytes_max: a larger PUBLISH is passed over.
        connection: the number of the connection, part of each token.
    """

    def __init__(self, version: int, packet_bytes_max: int, connection: int) -> None:
        self.refused = 0
        """Messages passed over: too large, or their topic is none."""
        self.unreadable: list[int] = []
        """Packet ids of QoS 1 messages that were passed over and want a PUBACK."""
        self.acknowledged: list[tuple[int, int]] = []
        """Packet ids that the broker acknowledged, and its reason code; 0 is success."""
        self.others = bytearray()
        """Whole packets of other kinds, in order."""
        self._version5 = version == 5  # noqa: PLR2004, the protocol's number
        self._packet_bytes_max = packet_bytes_max
        self._connection = connection << 16
        self._topics: dict[bytes, str | None] = {}
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._need_bytes = 0
        self._skip_bytes = 0

    def feed(self, data: bytes, received: Instant) -> list[Delivery]:
        """The messages that these bytes complete.

        Args:
            data: as they came from the socket.
            received: the one look at the clock for all of them.

        Raises:
            Refused: ``malformed``; the connection cannot go on.
        """
        if self._skip_bytes:
            skipped = min(self._skip_bytes, len(data))
            self._skip_bytes -= skipped
            data = data[skipped:]
        if self._rest_bytes:
            # A large message arrives in many pieces: joined once, not once a piece.
            self._rest.append(data)
            self._rest_bytes += len(data)
            if self._rest_bytes < self._need_bytes:
                return []
            data = b"".join(self._rest)
            self._rest.clear()
            self._rest_bytes = 0
        try:
            deliveries, done = self._cut(data, received)
        except IndexError:
            raise Refused(
                RefusedBecause.MALFORMED, "an MQTT packet is shorter than what it holds"
            ) from None
        if done < len(data):
            self._rest.append(data[done:])
            self._rest_bytes = len(data) - done
        return deliveries

    def _cut(self, data: bytes, received: Instant) -> tuple[list[Delivery], int]:
        """The loop that runs once a message: everything in it is local on purpose."""
        deliveries: list[Delivery] = []
        append = deliveries.append
        topics, version5, connection = self._topics, self._version5, self._connection
        end, at = len(data), 0
        self._need_bytes = 2
        while end - at >= 2:  # noqa: PLR2004, the smallest packet
            head = data[at]
            length = data[at + 1]
            body = at + 2
            if length >= _MORE:
                length, body = _read_length(data, at + 1, end)
                if not body:
                    self._need_bytes = end - at + 1
                    break
            stop = body + length
            if stop > end:
                if stop - at > self._packet_bytes_max:
                    at = self._pass_over(data, at, body, stop)
                else:
                    self._need_bytes = stop - at
                break
            kind = head & _KIND
            if kind != _PUBLISH:
                if kind == _PUBACK:
                    self._take_puback(data, body, stop)
                else:
                    self.others += data[at:stop]
                at = stop
                continue
            payload_at = body + 2 + (data[body] << 8 | data[body + 1])
            name = data[body + 2 : payload_at]
            qos = (head & _QOS) >> 1
            token = None
            if qos:
                token = connection | data[payload_at] << 8 | data[payload_at + 1]
                payload_at += 2
            if version5:
                length = data[payload_at]
                payload_at += 1
                if length >= _MORE:
                    length, payload_at = _read_length(data, payload_at - 1, stop)
                payload_at = payload_at + length if payload_at else stop + 1
            if payload_at > stop or qos > 1:
                raise Refused(RefusedBecause.MALFORMED, f"PUBLISH of {stop - at} bytes, QoS {qos}")
            try:
                topic = topics[name]
            except KeyError:
                topic = self._learn(name)
            if topic is None:
                self.refused += 1
                if token is not None:
                    self.unreadable.append(token & 0xFFFF)
            else:
                append(
                    _new_delivery(
                        Delivery,
                        (
                            topic,
                            data[payload_at:stop],
                            qos,
                            head & _RETAIN != 0,
                            head & _DUP != 0,
                            received,
                            token,
                        ),
                    )
                )
            at = stop
        return deliveries, at

    def _learn(self, name: bytes) -> str | None:
        """The topic as text, ``None`` when it is none; remembered, for sensors repeat theirs."""
        if len(self._topics) >= _TOPICS_MAX:
            self._topics.clear()
        try:
            topic = check_topic(name.decode())
        except (UnicodeDecodeError, Refused):
            topic = None
        self._topics[name] = topic
        return topic

    def _take_puback(self, data: bytes, body: int, stop: int) -> None:
        if stop - body < 2:  # noqa: PLR2004, a packet id
            raise Refused(RefusedBecause.MALFORMED, f"PUBACK of {stop - body} bytes")
        code = data[body + 2] if stop - body > 2 else 0  # noqa: PLR2004
        self.acknowledged.append((data[body] << 8 | data[body + 1], code))

    def _pass_over(self, data: bytes, at: int, body: int, stop: int) -> int:
        """Skips a packet that is too large; returns where the rest that must be kept begins."""
        head = data[at]
        if head & _KIND != _PUBLISH:
            raise Refused(RefusedBecause.MALFORMED, f"packet {head:#04x} of {stop - at} bytes")
        if head & _QOS:
            if len(data) - at < min(_PREFIX_BYTES_MAX, stop - at):
                # The packet id stands behind the topic: wait until it must be there.
                self._need_bytes = min(_PREFIX_BYTES_MAX, stop - at)
                return at
            id_at = body + 2 + (data[body] << 8 | data[body + 1])
            self.unreadable.append(data[id_at] << 8 | data[id_at + 1])
        self.refused += 1
        self._skip_bytes = stop - len(data)
        return len(data)


class TopicWriter:
    """Writes PUBLISH packets; remembers what it has written of each topic.

    Args:
        version: 5 or 4 (3.1.1), as in CONNECT.
    """

    def __init__(self, version: int) -> None:
        self._properties = b"\0" if version == 5 else b""  # noqa: PLR2004, the protocol's number
        self._names: dict[str, bytes] = {}

    def check(self, topic: str) -> None:
        """Passes for a topic that ``encode`` will take.

        Raises:
            Refused: ``bad_name``: nothing can be published there.
        """
        if topic not in self._names:
            self._learn(topic)

    def encode(
        self,
        topic: str,
        payload: bytes,
        packet_id: int,
        retain: bool,  # noqa: FBT001, the field of a Publication, once a message
        *,
        duplicate: bool = False,
    ) -> bytes:
        """One PUBLISH packet.

        Args:
            topic: checked once, then remembered.
            payload: as it is.
            packet_id: 0 for QoS 0, else QoS 1.
            retain: whether the broker keeps it.
            duplicate: whether it was sent before.

        Raises:
            Refused: ``bad_name``: nothing can be published there.
        """
        name = self._names.get(topic) or self._learn(topic)
        head = _PUBLISH | retain
        if packet_id:
            head |= _QOS_1 | (_DUP if duplicate else 0)
            name += packet_id.to_bytes(2, "big")
        properties = self._properties
        length = len(name) + len(properties) + len(payload)
        if length < _MORE:
            start = bytes((head, length))
        elif length < _MORE << 7:
            start = bytes((head, length & 0x7F | _MORE, length >> 7))
        else:
            start = bytes((head, *_encode_length(length)))
        return b"".join((start, name, properties, payload))

    def _learn(self, topic: str) -> bytes:
        if len(self._names) >= _TOPICS_MAX:
            self._names.clear()
        name = check_topic(topic).encode()
        self._names[topic] = encoded = len(name).to_bytes(2, "big") + name
        return encoded


def encode_pubacks(packet_ids: Sequence[int]) -> bytes:
    """One PUBACK for each packet id, without reason: success, in both versions."""
    return struct.pack(f">{len(packet_ids)}I", *[0x4002_0000 | i for i in packet_ids])


def packet_bytes(topic: str, payload: bytes) -> int:
    """The most bytes that a PUBLISH of these has."""
    return PACKET_HEAD_BYTES_MAX + len(topic.encode()) + len(payload)


def _encode_length(length: int) -> Iterable[int]:
    while length >= _MORE:
        yield length & 0x7F | _MORE
        length >>= 7
    yield length


def _read_length(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A variable byte integer and where it ends; ``(0, 0)`` when bytes of it are still to come."""
    length = 0
    for index in range(_LENGTH_BYTES_MAX):
        if at + index >= end:
            return 0, 0
        byte = data[at + index]
        length |= (byte & 0x7F) << (7 * index)
        if byte < _MORE:
            return length, at + index + 1
    raise Refused(RefusedBecause.MALFORMED, "a remaining length of more than four bytes")
