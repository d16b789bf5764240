"""What only the MQTT link and its intake have: answers of the broker, its limits, its silences."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from mesh.adapters.mqtt.broker import MqttBroker, MqttSettings
from mesh.adapters.mqtt.intake import MqttIntake, MqttIntakeSettings
from mesh.adapters.mqtt.link import MqttLink, MqttLinkSettings
from mesh.adapters.mqtt.parcel import pack
from mesh.adapters.system import SystemClock
from mesh.ports import Accepted, Delivery, Part, Publication, Refusal
from mesh.transfer.parts import cut
from schemas.errors import LinkDown, Refused, RefusedBecause
from schemas.messages import Lane
from schemas.wire import encode
from tests.adapters.fake_mqtt import AnsweringBroker
from tests.contract.link_worlds import NODE, SITE, arrivals, part_of, receipt_of, send_all, up

MAXIMUM_PACKET_SIZE = b"\x27"
RECEIVE_MAXIMUM = b"\x21"


def link_on(
    port: int,
    *,
    buffered: bool = True,
    **changes: Any,  # noqa: ANN401, whatever the fields are
) -> MqttLink:
    """A link of ``NODE`` that speaks MQTT 5 and does not wait long."""
    broker = MqttSettings(
        "127.0.0.1", port, "link", protocol="5", buffered=buffered, drain_seconds_max=0.05
    )
    settings = MqttLinkSettings("up", broker, SITE, NODE, keepalive_seconds=1, send_seconds=2.0)
    return MqttLink(replace(settings, **changes), SystemClock(), Random(1))


def intake_on(port: int, **changes: Any) -> MqttIntake:  # noqa: ANN401, whatever the fields are
    """An intake that speaks MQTT 5 and does not wait long."""
    broker = MqttSettings("127.0.0.1", port, "intake", protocol="5", drain_seconds_max=0.05)
    settings = MqttIntakeSettings("intake", broker, publish_seconds=2.0)
    return MqttIntake(replace(settings, **changes), SystemClock(), Random(2))


def run(scenario: Callable[[], Awaitable[None]], seconds: float = 20.0) -> None:
    """Runs a scenario, not longer than it may take."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await scenario()

    asyncio.run(bounded())


def publish(topic: str, payload: bytes, packet_id: int, *, retain: bool = False) -> bytes:
    """A PUBLISH of MQTT 5 with QoS 1."""
    name = topic.encode()
    body = len(name).to_bytes(2) + name + packet_id.to_bytes(2) + b"\0" + payload
    assert len(body) < 1 << 14
    return bytes([0x32 | retain, len(body) & 0x7F | 0x80, len(body) >> 7]) + body


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what nothing announces; the scenario's deadline bounds it."""
    while not holds():  # noqa: ASYNC110, there is no event to wait for
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("code", "reason", "pause"),
    [
        (0x10, RefusedBecause.FULL, 5.0),
        (0x80, RefusedBecause.FULL, 5.0),
        (0x87, RefusedBecause.FOREIGN, 60.0),
        (0x95, RefusedBecause.TOO_LARGE, 0.0),
        (0x97, RefusedBecause.FULL, 5.0),
    ],
)
def test_a_reason_code_becomes_a_refusal(code: int, reason: RefusedBecause, pause: float) -> None:
    """Each answer that is no success says what the sender should do, and when; the link stays."""

    async def scenario() -> None:
        async with (
            AnsweringBroker(lambda _: code).serving() as broker,
            link_on(broker.port) as link,
        ):
            await up(link)
            outcome = await link.send(part_of(1))
            assert isinstance(outcome, Refusal)
            assert (outcome.reason, outcome.retry_after_seconds) == (reason, pause)
            assert f"({code:#04x})" in outcome.detail
            assert (link.state.up, link.state.sent_bytes) == (True, 0)

    run(scenario)


def test_the_size_that_a_broker_states_is_respected() -> None:
    """A part of ``part_bytes_max`` fits into the packet exactly; a larger one is never sent."""

    async def scenario() -> None:
        properties = MAXIMUM_PACKET_SIZE + (2000).to_bytes(4)
        async with (
            AnsweringBroker(properties=properties).serving() as broker,
            link_on(broker.port) as link,
        ):
            assert link.part_bytes_max is None
            await up(link)
            size = link.part_bytes_max
            assert size is not None
            # No lane has a longer name than decisions: others leave a few bytes unused.
            longest = max(Lane, key=len)
            assert await link.send(part_of(1, size, longest)) == Accepted()
            outcome = await link.send(part_of(1, size + 1, longest))
            assert isinstance(outcome, Refusal)
            assert outcome.reason is RefusedBecause.TOO_LARGE
            assert "at most 2000" in outcome.detail
            assert [len(payload) for _, payload in broker.published] == [size + 44]
            assert link.state.up

    run(scenario)


def test_a_size_that_a_broker_keeps_to_itself_is_learnt() -> None:
    """What it found too large is halved until it fits; a batch that is cut so arrives in parts."""

    async def scenario() -> None:
        def answer(payload: bytes) -> int:
            return 0x95 if len(payload) > 3000 else 0

        async with AnsweringBroker(answer).serving() as broker, link_on(broker.port) as link:
            await up(link)
            whole = part_of(1, 20_000)
            sizes = []
            part = whole
            while isinstance(await link.send(part), Refusal):
                assert link.part_bytes_max is not None
                sizes.append(link.part_bytes_max)
                part = next(cut(whole, link.part_bytes_max))
            assert sizes == [10_000, 5_000, 2_500]
            await send_all(link, list(cut(whole, 2_500)))
            assert link.part_bytes_max == 2_500

    run(scenario)


def test_a_size_can_be_configured() -> None:
    """For a broker of MQTT 3.1.1, which would hang up instead of telling."""

    async def scenario() -> None:
        async with (
            AnsweringBroker().serving() as broker,
            link_on(broker.port, part_bytes_max=500) as link,
        ):
            await up(link)
            outcome = await link.send(part_of(1, 501))
            assert isinstance(outcome, Refusal)
            assert outcome.reason is RefusedBecause.TOO_LARGE
            assert await link.send(part_of(1, 500)) == Accepted()
            assert link.part_bytes_max == 500
            assert len(broker.published) == 1

    run(scenario)


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("allowed", [1, 3, 65_535])
def test_the_window_is_the_brokers_or_ours(allowed: int, *, buffered: bool) -> None:
    """Receive maximum bounds what is under way, and 64 where the broker allows more."""

    async def scenario() -> None:
        properties = RECEIVE_MAXIMUM + allowed.to_bytes(2)
        async with (
            AnsweringBroker(properties=properties).serving() as broker,
            link_on(broker.port, buffered=buffered) as link,
        ):
            await up(link)
            await send_all(link, [part_of(number, 100) for number in range(200)])
            assert broker.most_under_way <= min(allowed, 64)
            assert len(broker.published) == 200

    run(scenario)


def test_what_is_not_acknowledged_in_time_is_not_known_to_have_arrived() -> None:
    """``LinkDown`` after ``send_seconds``, naming the lane and the node; the link stays up."""

    async def scenario() -> None:
        async with (
            AnsweringBroker(lambda _: None).serving() as broker,
            link_on(broker.port, send_seconds=0.2) as link,
        ):
            await up(link)
            with pytest.raises(
                LinkDown, match=r"events of pump was not acknowledged within 0\.2 s"
            ):
                await link.send(part_of(1))
            assert link.state.up

    run(scenario)


@pytest.mark.parametrize("buffered", [True, False])
def test_what_was_given_up_keeps_its_place_until_the_broker_answers(*, buffered: bool) -> None:
    """The broker still counts it, so no more is sent than it allows; after a reset all is free.

    It is not sent again either: whoever gave it up sends it again, or something newer.
    """

    async def scenario() -> None:
        silent = True
        properties = RECEIVE_MAXIMUM + (2).to_bytes(2)
        broker = AnsweringBroker(lambda _: None if silent else 0, properties=properties)
        async with (
            broker.serving(),
            link_on(broker.port, buffered=buffered, send_seconds=0.2) as link,
        ):
            await up(link)
            for number in range(4):
                with pytest.raises(LinkDown):
                    await link.send(part_of(number))
            assert len(broker.published) == 2
            silent = False
            link.reset("nothing comes of it")
            assert (link.state.up, link.state.reason) == (False, "nothing comes of it")
            await up(link)
            assert await link.send(part_of(7)) == Accepted()
            sent = [payload for _, payload in broker.published]
            assert sent == [pack(part_of(number)) for number in (0, 1, 7)]

    run(scenario)


def test_senders_that_are_cancelled_leave_the_link_as_it_was() -> None:
    """However many are cancelled, waiting for room or for an answer, the next part goes out."""

    async def scenario() -> None:
        late: list[int | None] = [None] * 5
        broker = AnsweringBroker(
            lambda _: late.pop() if late else 0, properties=RECEIVE_MAXIMUM + (8).to_bytes(2)
        )
        async with broker.serving(), link_on(broker.port, window_parts_max=6) as link:
            await up(link)
            for _ in range(5):
                before = len(broker.published)
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(link.send(part_of(1)))
                    await until(lambda seen=before: len(broker.published) > seen)  # type: ignore[misc]
                    sending.cancel()
            await send_all(link, [part_of(number) for number in range(20)])

    run(scenario)


def test_a_slow_way_is_not_taken_for_a_dead_one() -> None:
    """A part that takes more than twice as long as silence may last keeps its connection.

    Nothing comes back until all of it is there, not even the answer to a ping.
    """

    async def scenario() -> None:
        async with (
            AnsweringBroker(bytes_per_second=40_000).serving() as broker,
            link_on(broker.port, send_seconds=15.0) as link,
        ):
            await up(link)
            assert await link.send(part_of(1, 160_000)) == Accepted()
            assert link.state.connections == 1

    run(scenario)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reset_fails_what_is_under_way(*, buffered: bool) -> None:
    """It does not wait for its deadline; the link comes up again by itself, counted."""

    async def scenario() -> None:
        async with (
            AnsweringBroker(lambda _: None).serving() as broker,
            link_on(broker.port, buffered=buffered) as link,
        ):
            await up(link)

            async def send(number: int) -> None:
                with pytest.raises(LinkDown, match="does not carry"):
                    await link.send(part_of(number))

            async with asyncio.timeout(1), asyncio.TaskGroup() as tasks:
                for number in range(100):
                    tasks.create_task(send(number))
                await until(lambda: len(broker.published) == 64)
                link.reset("does not carry")
                link.reset("twice does no harm")
            await up(link)
            assert link.state.connections == 2

    run(scenario)


def test_leaving_does_not_wait_for_a_silent_broker() -> None:
    """What is under way fails when the link is left, soon, and nobody is left waiting."""

    async def scenario() -> None:
        async with (
            AnsweringBroker(lambda _: None).serving() as broker,
            asyncio.TaskGroup() as tasks,
        ):
            async with link_on(broker.port) as link:
                await up(link)
                sending = [
                    tasks.create_task(_refused_or_down(link, number)) for number in range(100)
                ]
                await until(lambda: len(broker.published) == 64)
            async with asyncio.timeout(0.5):
                assert await asyncio.gather(*sending) == ["down"] * 100
            assert not link.state.up

    run(scenario)


def test_a_link_that_may_not_read_its_receipts_is_down() -> None:
    """Nothing would ever be released over it; once it may read them it comes up."""

    async def scenario() -> None:
        async with (
            AnsweringBroker(suback_code=0x87).serving() as broker,
            link_on(broker.port) as link,
        ):
            await until(lambda: "does not let us read" in link.state.reason)
            assert not link.state.up
            assert link.state.connections == 0
            assert f"mesh/v1/{SITE}/{NODE}/down/+" in link.state.reason
            broker.suback_code = 1
            await up(link)

    run(scenario)


def test_what_is_no_receipt_is_counted_and_passed_over() -> None:
    """Bytes that cannot be read, and names that are none, do not stop those that follow.

    A receipt that was taken back, an empty message, is nothing at all.
    """
    down = f"mesh/v1/{SITE}/{NODE}/down"
    said = (
        publish(f"{down}/receipt-events", b"\x92\x05garbage", 1, retain=True)
        + publish(f"{down}/Receipt", b"", 2, retain=True)
        + publish(f"{down}/receipt-logs", b"", 3, retain=True)
        + publish(f"{down}/receipt-events", encode(receipt_of(3)), 4)
    )

    async def scenario() -> None:
        async with (
            AnsweringBroker(on_subscribe=said).serving() as broker,
            link_on(broker.port) as link,
            aclosing(link.receipts()) as receipts,
        ):
            assert await anext(receipts) == receipt_of(3)
            assert link.undecodable == 2
            await until(lambda: broker.acknowledged == [1, 2, 3, 4])

    run(scenario)


def test_what_comes_with_the_suback_is_acknowledged() -> None:
    """A broker may send before it has granted all filters; its window would shrink for good."""

    async def scenario() -> None:
        broker = AnsweringBroker(on_subscribe=publish("a", b"early", 9))
        async with broker.serving():
            node = MqttBroker(
                MqttSettings("127.0.0.1", broker.port, "node", protocol="5"),
                SystemClock(),
                Random(3),
            )
            node.subscribe({"a": 1})
            async with node:
                group = await anext(node.groups())
                node.acknowledge(group)
                await until(lambda: broker.acknowledged == [9])

    run(scenario)


def test_publications_keep_to_the_size_that_the_broker_states() -> None:
    """For the local broker too: a larger one would cut the connection, and again when repeated."""

    async def scenario() -> None:
        broker = AnsweringBroker(properties=MAXIMUM_PACKET_SIZE + (1000).to_bytes(4))
        async with broker.serving():
            settings = MqttSettings("127.0.0.1", broker.port, "node", protocol="5")
            async with MqttBroker(settings, SystemClock(), Random(3)) as node:
                await until(lambda: node.state.connected)
                for qos in (0, 1):
                    with pytest.raises(Refused, match="at most 1000"):
                        await node.publish([Publication("ä" * 100, bytes(791), qos)])
                    await node.publish([Publication("ä" * 100, bytes(790), qos)])

    run(scenario)


def test_the_intake_counts_and_acknowledges_what_it_cannot_take() -> None:
    """A foreign topic, a foreign payload, a wrong digest, a part that cannot be: none comes again.

    What is right between them arrives, and its acknowledgement is withheld until it is accepted.
    """
    good, topic = part_of(1, 100), f"mesh/v1/{SITE}/{NODE}/up"
    said = b"".join(
        publish(name, payload, packet_id)
        for packet_id, (name, payload) in enumerate(
            [
                ("plant/flow", b"1.5"),
                (f"{topic}/unknown", pack(good)),
                (f"{topic}/events", b"1.5"),
                (f"{topic}/events", pack(good._replace(digest=bytes(32)))),
                (f"{topic}/events", pack(good._replace(offset=1))),
                (f"{topic}/events", pack(good)),
            ],
            start=1,
        )
    )

    async def scenario() -> None:
        async with AnsweringBroker(on_subscribe=said).serving() as broker:
            intake = intake_on(broker.port)
            async with intake, aclosing(intake.batches()) as groups:
                taken = await arrivals(groups, 1)
                assert [arrival.payload for arrival in taken] == [good.payload]
                assert intake.refused == 5
                await until(lambda: broker.acknowledged == [1, 2, 3, 4, 5])
                await intake.accept([*taken, *taken])
                await until(lambda: broker.acknowledged == [1, 2, 3, 4, 5, 6])

    run(scenario)


def test_one_of_several_copies_is_withheld() -> None:
    """A batch that is sent again while it is pending does not use the broker's window up."""
    whole = part_of(1, 100)
    topic = f"mesh/v1/{SITE}/{NODE}/up/events"
    said = b"".join(publish(topic, pack(whole), packet_id) for packet_id in range(1, 5))

    async def scenario() -> None:
        async with AnsweringBroker(on_subscribe=said).serving() as broker:
            intake = intake_on(broker.port)
            async with intake, aclosing(intake.batches()) as groups:
                taken = await arrivals(groups, 1)
                await until(lambda: broker.acknowledged == [2, 3, 4])
                await intake.accept(taken)
                await until(lambda: broker.acknowledged == [2, 3, 4, 1])

    run(scenario)


def test_a_full_intake_takes_nothing_until_something_is_settled() -> None:
    """Beyond ``pending_bytes_max`` the broker's messages stay where they are."""
    topic = f"mesh/v1/{SITE}/{NODE}/up/events"
    first, second = part_of(1, 3000), part_of(2, 100)

    async def scenario() -> None:
        broker = AnsweringBroker(on_subscribe=publish(topic, pack(first), 1))
        async with broker.serving():
            intake = intake_on(broker.port, ack_seconds=0.2)
            intake._pending._bytes_max = 3000
            async with intake, aclosing(intake.batches()) as groups:
                (taken,) = await arrivals(groups, 1)
                intake._inward._inbound.extend([_delivery(topic, second)])
                for _ in range(3):
                    (again,) = await arrivals(groups, 1)
                    assert again.payload == first.payload
                await intake.accept([taken])
                (next_one,) = await arrivals(groups, 1)
                assert next_one.payload == second.payload

    run(scenario)


def test_a_receipt_that_the_broker_does_not_take_is_told() -> None:
    """``publish`` returns once all are acknowledged; a refusal or silence is ``LinkDown``."""

    async def scenario() -> None:
        codes: list[int | None] = [0, 0, 0x97, 0, None]
        async with (
            AnsweringBroker(lambda _: codes.pop(0)).serving() as broker,
            intake_on(broker.port, publish_seconds=0.3) as intake,
        ):
            with pytest.raises(LinkDown):
                await intake.publish([receipt_of(1)])
            while not intake.state.up:
                await intake.wait_changed(intake.state)
            await intake.publish([receipt_of(1), receipt_of(1, Lane.LOGS)])
            with pytest.raises(LinkDown, match=r"receipt-events: quota exceeded \(0x97\)"):
                await intake.publish([receipt_of(2), receipt_of(2, Lane.LOGS)])
            with pytest.raises(LinkDown, match=r"not acknowledged within 0\.3 s"):
                await intake.publish([receipt_of(3)])
        names = [topic.rpartition("/")[2] for topic, _ in broker.published]
        assert names == [*["receipt-events", "receipt-logs"] * 2, "receipt-events"]

    run(scenario)


async def _refused_or_down(link: MqttLink, number: int) -> str:
    try:
        return str(await link.send(part_of(number)))
    except LinkDown:
        return "down"


def _delivery(topic: str, part: Part) -> Delivery:
    now = SystemClock().now()
    return Delivery(topic, pack(part), 0, retained=False, duplicate=False, received=now, token=None)
