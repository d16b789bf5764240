"""What every ``LocalBroker`` promises, on the simulated bus and on real brokers alike."""

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from random import Random
from typing import Literal

import pytest

from mesh.adapters.mqtt.broker import MqttBroker, MqttSettings
from mesh.adapters.system import SystemClock
from mesh.ports import BrokerState, Delivery, Publication
from schemas.errors import LinkDown, Refused
from schemas.limits import BROKER_GROUP_MESSAGES_MAX, PUBLISH_WINDOW_MAX
from simulator.broker import SimBroker, SimBrokerClient
from tests.brokers import RunningBroker, mosquitto, nats_mqtt

Client = MqttBroker | SimBrokerClient
Groups = AsyncIterator[Sequence[Delivery]]
_numbers = itertools.count(1)


class Site(ABC):
    """A broker and the ways to do it harm."""

    def __init__(self) -> None:
        self.prefix = f"t{next(_numbers)}"

    @property
    def forgets_acknowledgements(self) -> bool:
        """Whether the broker may forget those of a client that is gone at once."""
        return False

    def topic(self, name: str) -> str:
        """A topic that no other test uses."""
        return f"{self.prefix}/{name}"

    @abstractmethod
    def client(
        self,
        name: str,
        *,
        will: Publication | None = None,
        birth: Publication | None = None,
        queue_messages_max: int = 8192,
        publish_seconds_max: float = 10.0,
    ) -> Client:
        """A client, not entered yet."""

    @abstractmethod
    async def stop(self) -> None:
        """The broker goes."""

    @abstractmethod
    async def start(self) -> None:
        """The broker comes back."""

    @abstractmethod
    def hang(self) -> None:
        """The broker takes nothing in and keeps its connections."""

    @abstractmethod
    def go_on(self) -> None:
        """Ends ``hang``."""

    @abstractmethod
    def cut(self, client: Client) -> None:
        """The connection breaks once; the client will connect again."""

    @abstractmethod
    def crash(self, client: Client) -> None:
        """The client's process dies."""


class SimSite(Site):
    """The simulated bus."""

    def __init__(self) -> None:
        super().__init__()
        self.bus = SimBroker(Random(7))

    def client(
        self,
        name: str,
        *,
        will: Publication | None = None,
        birth: Publication | None = None,
        queue_messages_max: int = 8192,
        publish_seconds_max: float = 10.0,
    ) -> Client:
        """A client on this site."""
        return self.bus.client(
            name,
            SystemClock(),
            will=will,
            birth=birth,
            queue_messages_max=queue_messages_max,
            publish_seconds_max=publish_seconds_max,
        )

    async def stop(self) -> None:
        """Stops the broker."""
        self.bus.stop()

    async def start(self) -> None:
        """Starts it again."""
        self.bus.start()

    def hang(self) -> None:
        """Stops the process, or what stands for it."""
        self.bus.hang()

    def go_on(self) -> None:
        """Lets it go on."""
        self.bus.go_on()

    def cut(self, client: Client) -> None:
        """Breaks the connection without a goodbye."""
        assert isinstance(client, SimBrokerClient)
        self.bus.cut(client.client_id)
        self.bus.mend(client.client_id)

    def crash(self, client: Client) -> None:
        """Kills what stands for its process."""
        assert isinstance(client, SimBrokerClient)
        client.crash()


class RealSite(Site):
    """A broker process and the real adapter."""

    def __init__(
        self, broker: RunningBroker, protocol: Literal["auto", "5", "3.1.1"], *, buffered: bool
    ) -> None:
        super().__init__()
        self.broker = broker
        self.protocol = protocol
        self.buffered = buffered

    @property
    def forgets_acknowledgements(self) -> bool:
        """A nats-server does."""
        return self.broker.log.name == "nats.log"

    def client(
        self,
        name: str,
        *,
        will: Publication | None = None,
        birth: Publication | None = None,
        queue_messages_max: int = 8192,
        publish_seconds_max: float = 10.0,
    ) -> Client:
        """A client on this site."""
        settings = MqttSettings(
            self.broker.host,
            self.broker.port,
            f"{self.prefix}-{name}",
            protocol=self.protocol,
            buffered=self.buffered,
            will=will,
            birth=birth,
            queue_messages_max=queue_messages_max,
            publish_seconds_max=publish_seconds_max,
        )
        return MqttBroker(settings, SystemClock(), Random(7))

    async def stop(self) -> None:
        """Stops the broker."""
        await asyncio.to_thread(self.broker.end)

    async def start(self) -> None:
        """Starts it again."""
        await asyncio.to_thread(self.broker.start)

    def hang(self) -> None:
        """Stops the process, or what stands for it."""
        self.broker.hang()

    def go_on(self) -> None:
        """Lets it go on."""
        self.broker.go_on()

    def cut(self, client: Client) -> None:
        """Breaks the connection without a goodbye."""
        assert isinstance(client, MqttBroker)
        assert client._session is not None
        client._session.close("cut by the test")

    def crash(self, client: Client) -> None:
        """Ends its only task: the socket closes without a DISCONNECT, nobody reconnects."""
        assert isinstance(client, MqttBroker)
        assert client._keeper is not None
        client._keeper.cancel()


_KINDS = [
    "sim",
    pytest.param("nats", marks=pytest.mark.integration),
    pytest.param("mosquitto 5", marks=pytest.mark.integration),
    pytest.param("mosquitto 3.1.1", marks=pytest.mark.integration),
    pytest.param("mosquitto 5 plain", marks=pytest.mark.integration),
    pytest.param("nats 3.1.1 plain", marks=pytest.mark.integration),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RunningBroker]]:
    """Starts each real broker once, when the first test asks for it."""
    brokers: dict[str, RunningBroker] = {}
    with ExitStack() as stack:

        def start(name: str) -> RunningBroker:
            if name not in brokers:
                kind: Callable[..., object] = {"nats": nats_mqtt, "mosquitto": mosquitto}[name]
                directory = tmp_path_factory.mktemp(name)
                brokers[name] = stack.enter_context(kind(directory))  # type: ignore[arg-type]
            return brokers[name]

        yield start


@pytest.fixture(params=_KINDS)
def site(request: pytest.FixtureRequest, running: Callable[[str], RunningBroker]) -> Site:
    """One of the places on which every test runs."""
    name, *rest = request.param.split()
    if name == "sim":
        return SimSite()
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    if rest:
        protocol = "5" if rest[0] == "5" else "3.1.1"
    return RealSite(running(name), protocol, buffered="plain" not in rest)


def run(scenario: Callable[[], Awaitable[None]], seconds: float = 30.0) -> None:
    """Runs a scenario, not longer than it may take."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await scenario()

    asyncio.run(bounded())


async def until(client: Client, wanted: Callable[[BrokerState], bool]) -> BrokerState:
    """Waits for a state."""
    state = client.state
    while not wanted(state):
        state = await client.wait_changed(state)
    return state


async def connected(client: Client, connections: int = 1) -> None:
    """Waits until the client is connected, at least for the nth time."""
    await until(client, lambda state: state.connected and state.connections >= connections)


async def eventually(holds: Callable[[], bool]) -> None:
    """Waits for what nothing announces; the scenario's deadline bounds it."""
    while not holds():  # noqa: ASYNC110, there is no event to wait for
        await asyncio.sleep(0.005)


async def take(groups: Groups, count: int) -> list[Delivery]:
    """The next ``count`` messages; fails through the scenario's deadline."""
    taken: list[Delivery] = []
    while len(taken) < count:
        taken.extend(await anext(groups))
    assert len(taken) == count
    return taken


async def take_all(groups: Groups, numbers: set[int]) -> list[Delivery]:
    """Messages until all these came, and perhaps others; fails through the deadline."""
    taken: list[Delivery] = []
    while not numbers <= set(payloads(taken)):
        taken.extend(await anext(groups))
    return taken


async def nothing_more(groups: Groups, seconds: float = 0.3) -> None:
    """Fails when a message comes; nothing can prove that none ever would."""
    surplus: Sequence[Delivery] = ()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            surplus = await anext(groups)
    assert not surplus


def numbered(topic: str, count: int, qos: int = 0, start: int = 0) -> list[Publication]:
    """Publications whose payloads are consecutive numbers."""
    return [Publication(topic, b"%d" % n, qos) for n in range(start, start + count)]


def payloads(deliveries: Sequence[Delivery]) -> list[int]:
    """The numbers that ``numbered`` wrote."""
    return [int(delivery.payload) for delivery in deliveries]


@pytest.mark.parametrize("qos", [0, 1])
def test_messages_come_in_order_in_bounded_groups_with_one_time_each(site: Site, qos: int) -> None:
    """Groups keep the order of arrival, hold at most the bound, and say when they came."""

    async def scenario() -> None:
        topic = site.topic("a")
        client = site.client("node")
        client.subscribe({site.topic("#"): qos})
        async with client:
            await connected(client)
            count = 3 * BROKER_GROUP_MESSAGES_MAX
            publishing = client.publish(numbered(topic, count, qos))
            groups, seen = client.groups(), []
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_await(publishing))
                while len(seen) < count:
                    group = await anext(groups)
                    client.acknowledge(group)
                    assert 0 < len(group) <= BROKER_GROUP_MESSAGES_MAX
                    seen.extend(group)
            assert payloads(seen) == list(range(count))
            assert {(d.topic, d.qos, d.retained, d.duplicate) for d in seen} == {
                (topic, qos, False, False)
            }
            times = [d.received.mono_ns for d in seen]
            assert times == sorted(times)
            assert len(set(times)) < count

    run(scenario)


async def _await(publishing: Awaitable[None]) -> None:
    await publishing


def test_what_was_not_acknowledged_comes_again_as_a_duplicate(site: Site) -> None:
    """After a reconnection the broker repeats exactly the unacknowledged QoS 1 messages.

    A nats-server takes acknowledgements behind its back: one whose client is gone at once may be
    forgotten, and then it repeats more than that, as if it were new. It never repeats less.
    """

    async def scenario() -> None:
        client = site.client("node")
        client.subscribe({site.topic("#"): 1})
        async with client:
            await connected(client)
            groups = client.groups()
            await client.publish(numbered(site.topic("a"), 6, 1))
            first = await take(groups, 6)
            client.acknowledge([d for d in first if int(d.payload) % 2])
            await client.publish(numbered(site.topic("a"), 1, 0, start=99))
            # Seen after the acknowledgements: the broker has taken them.
            await take(groups, 1)
            site.cut(client)
            await connected(client, 2)
            if site.forgets_acknowledgements:
                again = await take_all(groups, {0, 2, 4})
                client.acknowledge(again)
                return
            again = await take(groups, 3)
            assert payloads(again) == [0, 2, 4]
            assert all(d.duplicate and d.qos == 1 for d in again)
            # Acknowledging what an earlier connection brought is passed over.
            client.acknowledge(first)
            site.cut(client)
            await connected(client, 3)
            once_more = await take(groups, 3)
            assert payloads(once_more) == [0, 2, 4]
            client.acknowledge(once_more)
            client.acknowledge(once_more)
            await client.publish(numbered(site.topic("a"), 1, 0, start=99))
            await take(groups, 1)
            site.cut(client)
            await connected(client, 4)
            await nothing_more(groups)

    run(scenario)


def test_publications_keep_their_order_whatever_their_quality(site: Site) -> None:
    """One call publishes in order; QoS 0 and 1 are not sorted apart."""

    async def scenario() -> None:
        reader, writer = site.client("reader"), site.client("writer")
        reader.subscribe({site.topic("a"): 1})
        async with reader, writer:
            await connected(reader)
            await connected(writer)
            mixed = [Publication(site.topic("a"), b"%d" % n, n % 3 == 0) for n in range(50)]
            await writer.publish(mixed)
            groups, seen = reader.groups(), []
            while len(seen) < len(mixed):
                group = await anext(groups)
                reader.acknowledge(group)
                seen.extend(group)
            for qos in (0, 1):
                # A broker may hand QoS 1 over later than QoS 0, never among themselves.
                same = [n for n in payloads(seen) if (n % 3 == 0) == qos]
                assert same == sorted(same)

    run(scenario)


def test_the_window_holds_publishers_back(site: Site) -> None:
    """With no acknowledgement coming, the window's worth returns and one more does not."""

    async def scenario() -> None:
        client = site.client("node")
        client.subscribe({site.topic("a"): 1})
        async with client:
            await connected(client)
            window = client._window.limit
            assert 0 < window <= PUBLISH_WINDOW_MAX
            site.hang()
            try:
                await client.publish(numbered(site.topic("a"), window, 1))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await client.publish(numbered(site.topic("a"), 1, 1, start=1000))
            finally:
                site.go_on()
            groups, seen = client.groups(), []
            while len(seen) < window:
                group = await anext(groups)
                client.acknowledge(group)
                seen.extend(group)
            assert payloads(seen) == list(range(window))
            await client.publish(numbered(site.topic("a"), 1, 1, start=window))
            assert payloads(await take(groups, 1)) == [window]

    run(scenario)


def test_a_broker_that_takes_nothing_is_link_down_after_a_deadline(site: Site) -> None:
    """A publisher never waits for ever; what it gave up is counted."""

    async def scenario() -> None:
        client = site.client("node", publish_seconds_max=0.2)
        async with client:
            await connected(client)
            site.hang()
            try:
                with pytest.raises(LinkDown):
                    await client.publish(numbered(site.topic("a"), client._window.limit + 5, 1))
                assert client.state.shed == 5
            finally:
                site.go_on()

    run(scenario)


def test_publishing_while_disconnected_raises_and_sends_nothing_later(site: Site) -> None:
    """``LinkDown`` means that the message is the caller's again: it does not turn up afterwards."""

    async def scenario() -> None:
        client = site.client("node")
        client.subscribe({site.topic("#"): 1})
        with pytest.raises(LinkDown):
            await client.publish(numbered(site.topic("a"), 1))
        async with client:
            await connected(client)
            await site.stop()
            try:
                state = await until(client, lambda state: not state.connected)
                assert state.reason
                for qos in (0, 1):
                    with pytest.raises(LinkDown):
                        await client.publish(numbered(site.topic("a"), 1, qos))
            finally:
                await site.start()
            await connected(client, 2)
            groups = client.groups()
            await client.publish(numbered(site.topic("a"), 1, 0, start=7))
            assert payloads(await take(groups, 1)) == [7]
            await nothing_more(groups)

    run(scenario)


def test_a_publisher_that_waits_hears_of_the_end_of_the_connection(site: Site) -> None:
    """Waiting for room ends with the connection, and what was handed over is sent again."""

    async def scenario() -> None:
        reader, writer = site.client("reader"), site.client("writer")
        reader.subscribe({site.topic("a"): 1})
        async with reader, writer:
            await connected(reader)
            await connected(writer)
            window = writer._window.limit
            site.hang()
            publishing = asyncio.timeout(5)
            try:
                async with publishing, asyncio.TaskGroup() as tasks:
                    waiting = tasks.create_task(
                        _expect_link_down(writer, numbered(site.topic("a"), window + 1, 1))
                    )
                    await eventually(lambda: writer._window.awaited == 1)
                    site.cut(writer)
                    await waiting
            finally:
                site.go_on()
            groups, seen = reader.groups(), set[int]()
            while len(seen) < window:
                group = await anext(groups)
                reader.acknowledge(group)
                seen.update(payloads(group))
            assert seen == set(range(window))

    run(scenario)


async def _expect_link_down(client: Client, publications: list[Publication]) -> None:
    with pytest.raises(LinkDown):
        await client.publish(publications)


def test_subscriptions_outlive_a_restart_of_the_broker(site: Site) -> None:
    """The client comes back by itself, and reads what it read before."""

    async def scenario() -> None:
        reader, writer = site.client("reader"), site.client("writer")
        reader.subscribe({site.topic("a"): 0})
        reader.subscribe({site.topic("b"): 1})
        async with reader, writer:
            await connected(reader)
            await connected(writer)
            await site.stop()
            await until(reader, lambda state: not state.connected)
            await site.start()
            await connected(reader, 2)
            await until(writer, lambda state: state.connected and state.connections == 2)
            await writer.publish(numbered(site.topic("a"), 1) + numbered(site.topic("b"), 1, 1, 1))
            assert sorted(payloads(await take(reader.groups(), 2))) == [0, 1]

    run(scenario)


def test_a_filter_can_be_added_while_connected(site: Site) -> None:
    """``subscribe`` adds to earlier calls at once."""

    async def scenario() -> None:
        client = site.client("node")
        client.subscribe({site.topic("a"): 0})
        async with client:
            await connected(client)
            client.subscribe({site.topic("b"): 1})
            # One connection: the broker sees the filter before the messages.
            await client.publish(
                [Publication(site.topic("b"), b"1", 1), Publication(site.topic("a"), b"2")]
            )
            assert sorted(payloads(await take(client.groups(), 2))) == [1, 2]

    run(scenario)


def test_filters_and_topics_that_are_none_are_refused(site: Site) -> None:
    """Nothing malformed reaches the broker, which would end the connection for it."""

    async def scenario() -> None:
        client = site.client("node")
        for wrong in ({"a/#/b": 0}, {"a+": 1}, {"": 0}, {"a": 2}):
            with pytest.raises(Refused):
                client.subscribe(wrong)
        client.subscribe({site.topic("#"): 0})
        async with client:
            await connected(client)
            for publication in (
                Publication("a/+", b""),
                Publication("", b"", 1),
                Publication("a\0b", b"", 1),
                Publication("a", b"", 2),
            ):
                with pytest.raises(Refused):
                    await client.publish([publication])
            await client.publish(numbered(site.topic("a"), 1))
            await take(client.groups(), 1)
            assert client.state.connections == 1

    run(scenario)


def test_birth_and_will_are_retained_and_a_goodbye_keeps_the_will_silent(site: Site) -> None:
    """Who comes late learns whether the node is there; a will is said after a crash only."""

    async def scenario() -> None:
        topic = site.topic("state")
        birth, will = Publication(topic, b"online s1"), Publication(topic, b"offline s1")
        witness = site.client("witness")
        witness.subscribe({topic: 1})
        async with witness:
            await connected(witness)
            groups = witness.groups()
            async with site.client("node", birth=birth, will=will) as leaver:
                await connected(leaver)
                assert (await take(groups, 1))[0].payload == birth.payload
            await nothing_more(groups)
            assert await _retained(site, topic, "late-1") == birth.payload

            async with site.client("node", birth=birth, will=will) as victim:
                await connected(victim)
                assert (await take(groups, 1))[0].payload == birth.payload
                site.crash(victim)
                assert (await take(groups, 1))[0].payload == will.payload
            assert await _retained(site, topic, "late-2") == will.payload

    run(scenario)


async def _retained(site: Site, topic: str, name: str) -> bytes:
    late = site.client(name)
    late.subscribe({topic: 1})
    async with late:
        (delivery,) = await take(late.groups(), 1)
        assert delivery.retained
        late.acknowledge([delivery])
        return delivery.payload


def test_birth_is_said_again_after_each_reconnection(site: Site) -> None:
    """A will that came in between does not stay the last word.

    Whether there is one, and when it comes, is the broker's affair: nats-server says none for a
    client that came back before it noticed that it had gone.
    """

    async def scenario() -> None:
        topic = site.topic("state")
        birth, will = Publication(topic, b"online"), Publication(topic, b"offline")
        witness = site.client("witness")
        witness.subscribe({topic: 0})
        # The witness is there first: nats-server can lose a retained message to a subscriber that
        # comes while it is being kept.
        async with witness:
            await connected(witness)
            async with site.client("node", birth=birth, will=will) as node:
                await connected(node)
                groups = witness.groups()
                said = [d.payload for d in await take(groups, 1)]
                site.cut(node)
                while said.count(b"online") < 2:
                    said.extend(d.payload for d in await anext(groups))
        if said == [b"online", b"online"]:
            assert isinstance(site, RealSite), "only nats-server may leave the will unsaid"
            assert site.broker.log.name == "nats.log", "only nats-server may leave the will unsaid"
        else:
            assert said == [b"online", b"offline", b"online"]

    run(scenario)


def test_a_slow_reader_loses_the_oldest_qos_0_and_it_is_counted(site: Site) -> None:
    """The queue is bounded: the newest stay, and read plus shed is what came."""

    async def scenario() -> None:
        reader, writer = site.client("reader", queue_messages_max=50), site.client("writer")
        reader.subscribe({site.topic("a"): 0})
        async with reader, writer:
            await connected(reader)
            await connected(writer)
            for start in range(0, 500, 100):
                await writer.publish(numbered(site.topic("a"), 100, start=start))
            await eventually(lambda: reader.state.shed >= 450)
            seen = payloads(await take(reader.groups(), 50))
            assert seen == list(range(450, 500))
            assert reader.state.shed == 450
            assert reader.state.connected

    run(scenario)


def test_a_slow_reader_loses_no_qos_1(site: Site) -> None:
    """Where QoS 1 fills the queue, reading stops, and goes on with the reader."""

    async def scenario() -> None:
        reader, writer = site.client("reader", queue_messages_max=20), site.client("writer")
        reader.subscribe({site.topic("a"): 1})
        async with reader, writer:
            await connected(reader)
            await connected(writer)
            await writer.publish(numbered(site.topic("a"), 300, 1))
            await asyncio.sleep(0.1)
            groups, seen = reader.groups(), []
            while len(seen) < 300:
                group = await anext(groups)
                seen.extend(payloads(group))
                await asyncio.sleep(0)
                reader.acknowledge(group)
            assert seen == list(range(300))
            assert reader.state.shed == 0

    run(scenario)


def test_a_reader_that_publishes_qos_1_does_not_lock_itself_out(site: Site) -> None:
    """The reader waits for PUBACKs that come behind messages: reading must not stop for ever."""

    async def scenario() -> None:
        node, writer = site.client("node", queue_messages_max=5), site.client("writer")
        node.subscribe({site.topic("a"): 1})
        async with node, writer, asyncio.TaskGroup() as tasks:
            await connected(node)
            await connected(writer)
            tasks.create_task(_await(writer.publish(numbered(site.topic("a"), 200, 1))))
            groups, count = node.groups(), 0
            while count < 200:
                group = await anext(groups)
                count += len(group)
                await node.publish(numbered(site.topic("b"), 2 * PUBLISH_WINDOW_MAX, 1))
                node.acknowledge(group)

    run(scenario)


def test_groups_end_when_the_broker_is_left(site: Site) -> None:
    """A reader gets what is left and then an end, not a silence."""

    async def scenario() -> None:
        client = site.client("node")
        client.subscribe({site.topic("a"): 0})
        seen: list[Delivery] = []

        async def read(reading: Groups) -> None:
            async for group in reading:
                seen.extend(group)

        async with asyncio.TaskGroup() as tasks:
            async with client:
                await connected(client)
                tasks.create_task(read(client.groups()))
                await client.publish(numbered(site.topic("a"), 3))
                await eventually(lambda: len(seen) == 3)
            assert not client.state.connected
            assert client.state.reason == "closed"

    run(scenario)


def test_entering_does_not_wait_for_the_broker(site: Site) -> None:
    """A node that starts without its broker goes on, and is connected once there is one."""

    async def scenario() -> None:
        await site.stop()
        try:
            client = site.client("node")
            async with client:
                state = await until(client, lambda state: state.reason != "not connected yet")
                assert not state.connected
                assert "refused" in state.reason
                await site.start()
                await connected(client)
        finally:
            await site.start()

    run(scenario)
