"""What only the real MQTT adapter has: sockets, TLS, versions, brokers that misbehave."""

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client as PahoClient

from mesh.adapters.mqtt.broker import RECONNECT_SECONDS_MAX, MqttBroker, MqttSettings
from mesh.adapters.mqtt.buffered import BufferedSession, paho_allows_buffering
from mesh.adapters.mqtt.plain import PlainSession
from mesh.adapters.system import SystemClock
from mesh.ports import BrokerState, Delivery, Publication
from schemas.errors import LinkDown, Refused
from schemas.limits import MIB
from tests.brokers import RunningBroker, free_port, mosquitto, nats_mqtt

CONNACK = b"\x20\x02\x00\x00"
PINGRESP = b"\xd0\x00"


def settings(
    broker: RunningBroker,
    client_id: str = "node",
    **changes: Any,  # noqa: ANN401, whatever the fields are
) -> MqttSettings:
    """Settings for a broker, with some of them changed."""
    return replace(MqttSettings(broker.host, broker.port, client_id), **changes)


def client(given: MqttSettings) -> MqttBroker:
    """A client with the real clock and a fixed seed."""
    return MqttBroker(given, SystemClock(), Random(7))


def run(scenario: Callable[[], Awaitable[None]], seconds: float = 30.0) -> None:
    """Runs a scenario, not longer than it may take."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await scenario()

    asyncio.run(bounded())


async def until(node: MqttBroker, wanted: Callable[[BrokerState], bool]) -> BrokerState:
    """Waits for a state."""
    state = node.state
    while not wanted(state):
        state = await node.wait_changed(state)
    return state


async def take(groups: AsyncIterator[Sequence[Delivery]], count: int) -> list[Delivery]:
    """The next messages."""
    taken: list[Delivery] = []
    while len(taken) < count:
        taken.extend(await anext(groups))
    return taken


async def reason(given: MqttSettings) -> str:
    """Why it does not connect."""
    async with client(given) as node:
        state = await until(node, lambda state: state.reason != "not connected yet")
        assert not state.connected
        with pytest.raises(LinkDown, match=r"."):
            await node.publish([Publication("a", b"")])
        return state.reason


class FakeBroker:
    """Speaks just enough MQTT 3.1.1 to misbehave.

    Args:
        on_subscribe: what it sends after the SUBACK.
        answers_pings: whether it shows that it is alive.
        suback_code: what it grants each filter.
    """

    def __init__(
        self, on_subscribe: bytes = b"", *, answers_pings: bool = True, suback_code: int = 1
    ) -> None:
        self.received: list[tuple[int, bytes]] = []
        self.host, self.port = "127.0.0.1", 0
        self._on_subscribe = on_subscribe
        self._answers_pings = answers_pings
        self._suback_code = suback_code

    def kinds(self, kind: int) -> list[bytes]:
        """Bodies of the packets of one kind, so far."""
        return [body for head, body in self.received if head & 0xF0 == kind]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = (await reader.readexactly(1))[0]
                length, shift, more = 0, 0, True
                while more:
                    byte = (await reader.readexactly(1))[0]
                    length |= (byte & 0x7F) << shift
                    shift, more = shift + 7, byte >= 0x80
                body = await reader.readexactly(length)
                self.received.append((head, body))
                if head == 0x10:
                    writer.write(CONNACK)
                elif head == 0x82:
                    writer.write(b"\x90\x03" + body[:2] + bytes([self._suback_code]))
                    writer.write(self._on_subscribe)
                elif head == 0xC0 and self._answers_pings:
                    writer.write(PINGRESP)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server on a free port; every connection is ended at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


def packet(head: int, body: bytes) -> bytes:
    """A packet of up to 127 bytes."""
    assert len(body) < 128
    return bytes((head, len(body))) + body


@pytest.mark.integration
@pytest.mark.parametrize("buffered", [True, False])
def test_ten_megabytes_arrive_and_the_connection_stays(tmp_path: Path, *, buffered: bool) -> None:
    """A huge message is handed over whole; what comes before and after it is not disturbed."""

    async def scenario(broker: RunningBroker) -> None:
        payload = bytes(range(256)) * (10 * MIB // 256)
        given = settings(broker, buffered=buffered, publication_bytes_max=16 * MIB)
        node = client(given)
        node.subscribe({"a": 1})
        async with node:
            await until(node, lambda state: state.connected)
            sizes = [b"before", payload, b"after"]
            await node.publish([Publication("a", each, 1) for each in sizes])
            seen = await take(node.groups(), 3)
            node.acknowledge(seen)
            assert [d.payload for d in seen] == sizes
            assert node.state.connections == 1

    with mosquitto(tmp_path) as broker:
        run(lambda: scenario(broker))


@pytest.mark.integration
def test_a_message_beyond_the_bound_is_passed_over_once(tmp_path: Path) -> None:
    """It is counted, takes no memory, and is acknowledged, so that it does not come for ever."""

    async def scenario(broker: RunningBroker) -> None:
        given = settings(broker, protocol="3.1.1", packet_bytes_max=256 * 1024)
        node = client(given)
        node.subscribe({"a": 1})
        async with node, client(settings(broker, "writer")) as writer:
            await until(node, lambda state: state.connected)
            await until(writer, lambda state: state.connected)
            large, groups = b"x" * 900_000, node.groups()
            await writer.publish(
                [
                    Publication("a", b"1", 1),
                    Publication("a", large, 1),
                    Publication("a", large, 0),
                    Publication("a", b"2", 1),
                ]
            )
            seen = await take(groups, 2)
            node.acknowledge(seen)
            while len(seen) + node.refused < 4:
                seen += await anext(groups)
            assert [d.payload for d in seen] == [b"1", b"2"]
            assert node.refused == 2
            assert node._session is not None
            node._session.close("cut by the test")
            await until(node, lambda state: state.connections == 2)
            await writer.publish([Publication("a", b"3", 1)])
            assert [d.payload for d in await take(groups, 1)] == [b"3"]
            assert node.refused == 2

    with mosquitto(tmp_path) as broker:
        run(lambda: scenario(broker))


@pytest.mark.integration
def test_a_broker_of_version_3_is_probed_once(tmp_path: Path) -> None:
    """MQTT 5 is tried first; what the broker speaks is remembered over reconnections."""

    async def scenario(broker: RunningBroker) -> None:
        async with client(settings(broker)) as node:
            state = await until(node, lambda state: state.connected)
            assert state.protocol == "MQTT 3.1.1"
            assert node._session is not None
            node._session.close("cut by the test")
            await until(node, lambda state: state.connections == 2)

    with nats_mqtt(tmp_path) as broker:
        run(lambda: scenario(broker))
        assert broker.log_text().count("unacceptable protocol version of 5") == 1


@pytest.mark.integration
def test_a_broker_of_version_5_gets_version_5(tmp_path: Path) -> None:
    """The newer version is used where it is spoken, and can be forbidden."""

    async def scenario(broker: RunningBroker) -> None:
        for protocol, name in (("auto", "MQTT 5"), ("5", "MQTT 5"), ("3.1.1", "MQTT 3.1.1")):
            async with client(settings(broker, protocol=protocol)) as node:
                assert (await until(node, lambda state: state.connected)).protocol == name

    with mosquitto(tmp_path) as broker:
        run(lambda: scenario(broker))


@pytest.mark.integration
@pytest.mark.parametrize("buffered", [True, False])
def test_small_messages_leave_at_once(tmp_path: Path, *, buffered: bool) -> None:
    """TCP_NODELAY is set: a decision does not wait for the acknowledgement of the one before."""

    async def scenario(broker: RunningBroker) -> None:
        async with client(settings(broker, buffered=buffered)) as node:
            await until(node, lambda state: state.connected)
            session = node._session
            assert isinstance(session, BufferedSession | PlainSession)
            sock = session._socket._sock if isinstance(session, BufferedSession) else session._sock  # type: ignore[union-attr]
            assert sock is not None
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    with mosquitto(tmp_path) as broker:
        run(lambda: scenario(broker))


def test_only_a_tried_paho_is_given_our_socket() -> None:
    """Another version, or a client without the one name that is needed, gets the plain path."""
    assert paho_allows_buffering()
    assert not paho_allows_buffering("2.3.0", PahoClient)
    assert not paho_allows_buffering("3.0.0", PahoClient)
    assert not paho_allows_buffering("2.2.0", object)


@pytest.mark.integration
@pytest.mark.parametrize("buffered", [True, False])
def test_tls_is_spoken_and_a_strange_certificate_is_not_trusted(
    tmp_path: Path, *, buffered: bool
) -> None:
    """Messages larger than a TLS record come whole; without trust there is a clear reason."""
    certificate, key = _self_signed(tmp_path)

    async def scenario(broker: RunningBroker) -> None:
        trusting = ssl.create_default_context(cafile=str(certificate))
        node = client(settings(broker, buffered=buffered, tls=trusting))
        node.subscribe({"a": 0})
        async with node:
            await until(node, lambda state: state.connected)
            sent = [Publication("a", b"%d" % n * 20_000) for n in range(40)]
            await node.publish(sent)
            assert [d.payload for d in await take(node.groups(), 40)] == [p.payload for p in sent]
        if buffered:  # paho itself leaves a socket open whose handshake failed
            why = await reason(settings(broker, tls=ssl.create_default_context()))
            assert f"certificate of {broker.host}:{broker.port} is not trusted" in why

    with mosquitto(tmp_path, listener=f"certfile {certificate}\nkeyfile {key}") as broker:
        run(lambda: scenario(broker))


def _self_signed(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)  # noqa: TID251, OpenSSL looks at the real clock
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = directory / "broker.crt", directory / "broker.key"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path


@pytest.mark.parametrize("buffered", [True, False])
def test_a_refused_connection_names_the_address(*, buffered: bool) -> None:
    """The reason is what a person needs: what happened, and where."""

    async def scenario() -> None:
        port = free_port()
        why = await reason(MqttSettings("127.0.0.1", port, "node", buffered=buffered))
        assert why == f"connection refused by 127.0.0.1:{port}"

    run(scenario)


@pytest.mark.integration
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_missing_credentials_are_named(tmp_path: Path, protocol: str) -> None:
    """A broker that lets nobody in is told apart from one that is down."""

    async def scenario(broker: RunningBroker) -> None:
        why = await reason(settings(broker, protocol=protocol))
        assert why == f"refused by {broker.host}:{broker.port}: not authorised"

    with mosquitto(tmp_path, options="allow_anonymous false") as broker:
        run(lambda: scenario(broker))


@pytest.mark.parametrize("buffered", [True, False])
def test_a_server_that_says_nothing_is_given_up(*, buffered: bool) -> None:
    """An accepted TCP connection is not yet a broker: there is a deadline."""

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async def scenario() -> None:
        async with serving(silent) as port:
            why = await reason(
                MqttSettings("127.0.0.1", port, "node", buffered=buffered, connect_seconds_max=0.2)
            )
            assert why == f"no answer from 127.0.0.1:{port} within 0.2 s"

    run(scenario)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\xff\xff\xff\xff\x7f", b"\x20\x00"]
)
@pytest.mark.parametrize("buffered", [True, False])
def test_a_server_that_speaks_something_else_does_no_harm(answer: bytes, *, buffered: bool) -> None:
    """Whatever a stranger sends, there is a reason and another attempt."""

    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async def scenario() -> None:
        async with serving(babble) as port:
            given = MqttSettings("127.0.0.1", port, "node", buffered=buffered, protocol="3.1.1")
            assert f"127.0.0.1:{port}" in await reason(given)

    run(scenario)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_topic_that_is_none_is_counted_and_passed_over(*, buffered: bool) -> None:
    """It neither ends the connection nor comes again: a QoS 1 message is acknowledged."""
    wrong = packet(0x32, b"\x00\x02\xff\xfe\x00\x05payload")
    control = packet(0x30, b"\x00\x03a\x01bpayload")
    right = packet(0x30, b"\x00\x01apayload")

    async def scenario() -> None:
        broker = FakeBroker(wrong + control + right)
        async with serving(broker.serve) as port:
            node = client(
                MqttSettings("127.0.0.1", port, "node", buffered=buffered, protocol="3.1.1")
            )
            node.subscribe({"#": 1})
            async with node:
                (delivery,) = await take(node.groups(), 1)
                assert (delivery.topic, delivery.payload) == ("a", b"payload")
                assert node.refused == 2
                while not broker.kinds(0x40):  # noqa: ASYNC110, the fake has no events
                    await asyncio.sleep(0.005)
                assert broker.kinds(0x40) == [b"\x00\x05"]
                assert node.state.connected

    run(scenario)


def test_a_packet_that_is_cut_short_ends_the_connection_only() -> None:
    """After a breach of the framing no byte can be trusted: the client connects anew."""

    async def scenario() -> None:
        broker = FakeBroker(packet(0x30, b"\x00\x09a"))
        async with serving(broker.serve) as port:
            node = client(MqttSettings("127.0.0.1", port, "node", protocol="3.1.1"))
            node.subscribe({"#": 1})
            async with node:
                state = await until(node, lambda state: "does not speak MQTT" in state.reason)
                assert not state.connected

    run(scenario)


def test_a_broker_that_falls_silent_is_noticed() -> None:
    """A dead connection is found within twice the keepalive, without anything to send."""

    async def scenario() -> None:
        broker = FakeBroker(answers_pings=False)
        async with serving(broker.serve) as port:
            node = client(
                MqttSettings("127.0.0.1", port, "node", keepalive_seconds=1, protocol="3.1.1")
            )
            async with node:
                await until(node, lambda state: state.connected)
                async with asyncio.timeout(2.5):
                    state = await until(node, lambda state: not state.connected)
                assert "no sign of life" in state.reason
                assert broker.kinds(0xC0)

    run(scenario)


def test_a_slow_reader_keeps_its_connection_alive() -> None:
    """While reading is paused the broker hears pings, and its silence is not held against it."""
    many = b"".join(packet(0x32, b"\x00\x01a%c%cx" % divmod(n, 256)) for n in range(1, 200))

    async def scenario() -> None:
        broker = FakeBroker(many)
        async with serving(broker.serve) as port:
            node = client(
                MqttSettings(
                    "127.0.0.1",
                    port,
                    "node",
                    keepalive_seconds=1,
                    protocol="3.1.1",
                    queue_messages_max=10,
                )
            )
            node.subscribe({"#": 1})
            async with node:
                await until(node, lambda state: state.connected)
                await asyncio.sleep(2.2)
                assert node.state.connected
                assert len(broker.kinds(0xC0)) >= 3
                assert len(await take(node.groups(), 199)) == 199
                await asyncio.sleep(0.6)
                assert node.state == BrokerState(
                    connected=True, protocol="MQTT 3.1.1", connections=1
                )

    run(scenario)


def test_a_refused_filter_is_named() -> None:
    """A subscription that the broker does not grant is not taken for one that it does."""

    async def scenario() -> None:
        broker = FakeBroker(suback_code=0x80)
        async with serving(broker.serve) as port:
            node = client(MqttSettings("127.0.0.1", port, "node", protocol="3.1.1"))
            node.subscribe({"secret/#": 1})
            async with node:
                await until(node, lambda state: state.connected)
                assert node.refused_filters == {"secret/#"}

    run(scenario)


def test_a_broker_that_says_goodbye_is_quoted() -> None:
    """MQTT 5 tells why it disconnects; the usual riddle, a client id used twice, has words."""

    async def throw_out(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"\x20\x03\x00\x00\x00" + b"\xe0\x01\x8e")
        await reader.read(-1)

    async def scenario() -> None:
        async with (
            serving(throw_out) as port,
            client(MqttSettings("127.0.0.1", port, "node", protocol="5")) as node,
        ):
            state = await until(node, lambda state: "disconnected" in state.reason)
            assert state.reason == (
                f"disconnected by 127.0.0.1:{port}: another client took over our client id"
            )

    run(scenario)


@pytest.mark.integration
def test_clients_that_share_an_id_slow_down(tmp_path: Path) -> None:
    """Two that throw each other out do not do so ten times a second for ever."""

    async def scenario(broker: RunningBroker) -> None:
        first, second = client(settings(broker)), client(settings(broker))
        async with first, second:
            async with asyncio.timeout(10):
                await until(first, lambda _: first._attempts >= 5 and second._attempts >= 5)
            assert first.state.connections <= first._attempts + 1

    with mosquitto(tmp_path) as broker:
        run(lambda: scenario(broker))


def test_pauses_between_attempts_are_jittered_and_bounded() -> None:
    """Full jitter: below a bound that doubles from 0.1 s to 15 s, and never the same twice."""

    async def scenario() -> None:
        bounds = [min(0.1 * 2**n, RECONNECT_SECONDS_MAX) for n in range(60)]
        largest = 0.0
        for seed in range(50):
            node = MqttBroker(MqttSettings("127.0.0.1", 1, "node"), SystemClock(), Random(seed))
            pauses = [node._pause() for _ in bounds]
            assert all(0 <= pause <= bound for pause, bound in zip(pauses, bounds, strict=True))
            assert len(set(pauses)) == len(pauses)
            largest = max(largest, *pauses)
        assert largest > 0.9 * RECONNECT_SECONDS_MAX

    run(scenario)


@pytest.mark.integration
def test_a_publication_no_broker_takes_is_refused(tmp_path: Path) -> None:
    """A QoS 1 message that the broker answers by hanging up would do so after each reconnection."""

    async def scenario(broker: RunningBroker) -> None:
        node = client(settings(broker))
        node.subscribe({"a": 0})
        async with node:
            await until(node, lambda state: state.connected)
            for qos in (0, 1):
                with pytest.raises(Refused, match="1000001 bytes"):
                    await node.publish(
                        [Publication("a", b"first", qos), Publication("a", bytes(1_000_001), qos)]
                    )
            assert [d.payload for d in await take(node.groups(), 2)] == [b"first", b"first"]
            assert not node._window.unacknowledged or node.state.connected

    with nats_mqtt(tmp_path) as broker:
        run(lambda: scenario(broker))


@pytest.mark.integration
@pytest.mark.parametrize("buffered", [True, False])
def test_what_is_unsent_is_bounded(tmp_path: Path, *, buffered: bool) -> None:
    """While a broker takes nothing, QoS 0 waits for room and then fails, and memory stays."""

    async def scenario(broker: RunningBroker) -> None:
        given = settings(broker, buffered=buffered, publish_seconds_max=0.3)
        async with client(given) as node:
            await until(node, lambda state: state.connected)
            broker.hang()
            try:
                with pytest.raises(LinkDown, match=r"took nothing for 0\.3 s"):
                    await node.publish([Publication("a", bytes(500_000))] * 60)
                assert node._session is not None
                assert node._session.unsent_bytes <= 9 * MIB
                assert 0 < node.state.shed < 60
            finally:
                broker.go_on()
            await node.publish([Publication("a", b"again")])

    with mosquitto(tmp_path) as broker:
        run(lambda: scenario(broker))
