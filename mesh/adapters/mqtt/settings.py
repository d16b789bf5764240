"""What the MQTT adapter must be told, and the bounds that belong to it alone."""

import ssl
from dataclasses import dataclass, field
from typing import Literal

from mesh.ports import Publication
from schemas.limits import BROKER_GROUP_MESSAGES_MAX, MIB, PUBLISH_WINDOW_MAX

__all__ = ["MqttSettings"]

_PREFIX_BYTES_MAX = 128 * 1024


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """How to reach the local broker, and who we are there.

    Args:
        host: name or address.
        port: 1883, or 8883 with TLS.
        client_id: stable over restarts: a persistent session hangs on it.
        username: for the broker; ``None`` for none.
        password: for the broker; never shown.
        tls: the context to connect with; ``None`` for plain TCP.
        keepalive_seconds: a silent broker is given up after one and a half times this.
        protocol: ``auto`` tries MQTT 5 once, and remembers when the broker speaks only 3.1.1.
        will: what the broker says for us when we vanish; retained, QoS 1, whatever it says.
        birth: what we say after each connection; retained, QoS 1, whatever it says.
        session_seconds: how long the broker keeps our QoS 1 messages while we are away; 0 for a
            clean session. MQTT 3.1.1 knows only none and for ever.
        receive_maximum: how many QoS 1 messages the broker may send before the first is
            acknowledged. Only MQTT 5 can say it; other brokers have a setting of their own.
        kernel_queue_bytes_max: how many bytes the kernel may hold that it cannot send yet; ``None``
            for its own choice. On a slow way little shows that large messages move: what the
            kernel takes is a sign of life, and the sooner it takes no more, the truer.
        filters_required: whether a connection on which the broker refuses a filter is none.
        buffered: whether to use the fast path where the installed paho allows it.
        connect_seconds_max: from the first SYN to the last SUBACK.
        steady_seconds: a connection that stood this long was a good one: the next pause is the
            shortest again. Two clients that share an id throw each other out at once, and must not
            do so ten times a second.
        publish_seconds_max: how long a publication waits for room before ``LinkDown``.
        drain_seconds_max: how long leaving waits for what is not acknowledged.
        packet_bytes_max: a larger message is passed over and counted in ``refused``.
        publication_bytes_max: a larger payload is refused: a broker would cut the connection, and
            a QoS 1 message would do so again after each reconnection.
        queue_messages_max: how many messages wait for the reader.
        queue_bytes_max: how many bytes of payload wait for the reader.
    """

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    keepalive_seconds: int = 30
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    will: Publication | None = None
    birth: Publication | None = None
    session_seconds: int = 3600
    receive_maximum: int = BROKER_GROUP_MESSAGES_MAX
    kernel_queue_bytes_max: int | None = None
    filters_required: bool = False
    buffered: bool = True
    connect_seconds_max: float = 10.0
    steady_seconds: float = 5.0
    publish_seconds_max: float = 10.0
    drain_seconds_max: float = 1.0
    packet_bytes_max: int = 16 * MIB
    publication_bytes_max: int = 1_000_000
    queue_messages_max: int = 8 * BROKER_GROUP_MESSAGES_MAX
    queue_bytes_max: int = 32 * MIB

    def __post_init__(self) -> None:
        assert self.client_id, "a session needs a name"
        assert 1 <= self.keepalive_seconds <= 65_535, "MQTT counts keepalive in 16 bits"  # noqa: PLR2004
        assert PUBLISH_WINDOW_MAX <= self.receive_maximum <= 65_535, "packet ids have 16 bits"  # noqa: PLR2004
        assert _PREFIX_BYTES_MAX <= self.packet_bytes_max <= self.queue_bytes_max, (
            "the longest topic fits into a packet, and a packet into the queue"
        )

    @property
    def address(self) -> str:
        """For a person: ``host:port``."""
        return f"{self.host}:{self.port}"
