"""The MQTT link and its intake on real brokers that hang, die, forget, and allow little."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from mesh.adapters.mqtt.broker import MqttSettings
from mesh.adapters.mqtt.intake import MqttIntake, MqttIntakeSettings
from mesh.adapters.mqtt.link import MqttLink, MqttLinkSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Accepted, Link, Part, Refusal
from mesh.transfer.parts import cut
from schemas.errors import LinkDown, RefusedBecause
from schemas.messages import Lane, Receipt
from simulator.wan import WanProxy
from tests.brokers import RunningBroker, mosquitto, nats_mqtt
from tests.contract.link_worlds import NODE, SITE, part_of, receipt_of, send_all, up

pytestmark = pytest.mark.integration

KEEPALIVE_SECONDS = 1
RESEND_SECONDS = 1.0


@dataclass
class Ends:
    """Both ends of a link over one broker."""

    link: MqttLink
    intake: MqttIntake


def play(
    scenario: Callable[[Ends], Awaitable[None]],
    port: int,
    *,
    link_port: int = 0,
    protocol: Literal["auto", "5", "3.1.1"] = "auto",
    **changes: Any,  # noqa: ANN401, whatever the fields of the link are
) -> None:
    """Runs a scenario with both ends up, not longer than it may take."""

    async def bounded() -> None:
        clock = SystemClock()
        broker = MqttSettings(
            *("127.0.0.1", port, "intake"), protocol=protocol, connect_seconds_max=2.0
        )
        broker = replace(broker, drain_seconds_max=0.05)
        there = replace(broker, port=link_port or port, client_id="link")
        intake_settings = MqttIntakeSettings(
            "intake", broker, keepalive_seconds=KEEPALIVE_SECONDS, ack_seconds=2.0
        )
        link_settings = MqttLinkSettings(
            *("up", there, SITE, NODE), keepalive_seconds=KEEPALIVE_SECONDS, send_seconds=2.0
        )
        async with asyncio.timeout(50), AsyncExitStack() as stack:
            intake = await stack.enter_async_context(MqttIntake(intake_settings, clock, Random(1)))
            await up(intake)
            link = MqttLink(replace(link_settings, **changes), clock, Random(2))
            await stack.enter_async_context(link)
            await up(link)
            await scenario(Ends(link, intake))

    asyncio.run(bounded())


async def send_until(link: Link, part: Part, arrived: set[bytes]) -> None:
    """Sends as a sender with custody does: again until it is known to be there."""
    while part.digest not in arrived:
        await up(link)
        try:
            await link.send(part)
        except LinkDown:
            await asyncio.sleep(0.05)
        else:
            for _ in range(20):
                if part.digest in arrived:
                    return
                await asyncio.sleep(RESEND_SECONDS / 20)


async def transfer(ends: Ends, parts: Sequence[Part], trouble: Awaitable[None]) -> None:
    """Sends all, takes all, while something goes wrong; ends when all of it has arrived.

    The trouble begins before the first part is sent.
    """
    arrived: set[bytes] = set()
    wanted = {part.digest for part in parts}

    async def take() -> None:
        async with aclosing(ends.intake.batches()) as groups:
            while not wanted <= arrived:
                group = await anext(groups)
                arrived.update(sha256(arrival.payload).digest() for arrival in group)
                await ends.intake.accept(group)

    async with asyncio.TaskGroup() as tasks:
        for part in parts:
            tasks.create_task(send_until(ends.link, part, arrived))
        tasks.create_task(take())
        await trouble


async def hang(broker: RunningBroker, link: MqttLink, seconds: float) -> None:
    """A broker that stands still; the link must notice within twice its keepalive."""
    loop = asyncio.get_running_loop()
    broker.hang()
    try:
        since = loop.time()
        async with asyncio.timeout(2 * KEEPALIVE_SECONDS + 0.5):
            while link.state.up:
                await link.wait_changed(link.state)
        assert "no sign of life" in link.state.reason
        await asyncio.sleep(max(0.0, seconds - (loop.time() - since)))
    finally:
        broker.go_on()


@pytest.mark.parametrize("kind", ["mosquitto 5", "mosquitto 3.1.1", "nats auto"])
def test_a_broker_that_stands_still_is_left_and_found_again(tmp_path: Path, kind: str) -> None:
    """Stopped for five seconds in the middle of a transfer: all arrives, nothing is restarted.

    Row 34: both ends notice within twice their keepalive, and come back by themselves.
    """
    name, protocol = kind.split()
    start = {"mosquitto": mosquitto, "nats": nats_mqtt}[name]
    parts = [part_of(number, 5_000) for number in range(40)]

    async def scenario(broker: RunningBroker, ends: Ends) -> None:
        await transfer(ends, parts[:20], asyncio.sleep(0))
        await transfer(ends, parts[20:], hang(broker, ends.link, 5.0))
        assert ends.link.state.connections >= 2

    with start(tmp_path) as broker:
        play(partial(scenario, broker), broker.port, protocol=protocol)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["mosquitto", "nats"])
def test_a_broker_that_is_killed_and_forgets_loses_nothing(tmp_path: Path, kind: str) -> None:
    """Killed with batches that it has acknowledged, and again while more are sent: all arrive.

    Row 35: mosquitto forgets what it acknowledged, queued and retained; the sender sends what has
    not arrived again, and the next receipts are said anew.
    """
    parts = [part_of(number, 2_000) for number in range(150)]

    async def kill(broker: RunningBroker) -> None:
        await asyncio.sleep(0.02)
        await asyncio.to_thread(broker.end, signal.SIGKILL)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(broker.start)

    async def scenario(broker: RunningBroker, ends: Ends) -> None:
        await ends.intake.publish([receipt_of(1)])
        await send_all(ends.link, parts[:100])
        await kill(broker)
        for half in (parts[:100], parts[100:]):
            await transfer(ends, half, kill(broker))
        await up(ends.intake)
        await ends.intake.publish([receipt_of(2)])
        async with aclosing(ends.link.receipts()) as receipts:
            while await anext(receipts) != receipt_of(2):
                pass

    start = {"mosquitto": mosquitto, "nats": nats_mqtt}[kind]
    with start(tmp_path) as broker:
        play(partial(scenario, broker), broker.port)


def test_a_way_that_swallows_bytes_is_left(tmp_path: Path) -> None:
    """Row 33: the link notices within twice its keepalive, and all arrives once bytes pass again.

    What was under way fails with the connection, not first at its own deadline.
    """
    parts = [part_of(number, 2_000) for number in range(30)]

    async def swallow(proxy: WanProxy, link: MqttLink) -> None:
        await proxy.half_open()
        async with asyncio.timeout(2 * KEEPALIVE_SECONDS + 0.5):
            while link.state.up:
                await link.wait_changed(link.state)
        await asyncio.sleep(1)
        await proxy.restore()

    async def bounded(broker: RunningBroker) -> None:
        clock = SystemClock()
        given = MqttSettings("127.0.0.1", broker.port, "intake", drain_seconds_max=0.05)
        async with (
            asyncio.timeout(40),
            WanProxy("127.0.0.1", 0, "127.0.0.1", broker.port) as proxy,
            MqttIntake(MqttIntakeSettings("intake", given), clock, Random(1)) as intake,
        ):
            await up(intake)
            there = replace(given, port=proxy.port, client_id="link", connect_seconds_max=1.0)
            settings = MqttLinkSettings(
                *("up", there, SITE, NODE), keepalive_seconds=KEEPALIVE_SECONDS, send_seconds=30.0
            )
            async with MqttLink(settings, clock, Random(2)) as link:
                await up(link)
                await transfer(Ends(link, intake), parts, swallow(proxy, link))
                assert link.state.connections >= 2

    with mosquitto(tmp_path) as broker:
        asyncio.run(bounded(broker))


def test_flaps_leave_nothing_behind(tmp_path: Path) -> None:
    """Row 32: after fifty resets in the middle of transfers there are no more tasks than before."""
    parts = [part_of(number, 1_000) for number in range(100)]

    async def flap(link: MqttLink) -> None:
        for number in range(50):
            await up(link)
            link.reset(f"flap {number}")

    async def scenario(ends: Ends) -> None:
        before = len(asyncio.all_tasks())
        await transfer(ends, parts, flap(ends.link))
        await up(ends.link)
        gc.collect()
        assert len(asyncio.all_tasks()) == before
        assert ends.link.state.connections >= 50
        assert ends.link._broker._window.unacknowledged == {}
        assert ends.link._broker._window.expected == {}

    with mosquitto(tmp_path) as broker:
        play(scenario, broker.port, steady_seconds=0.0)


def test_retained_receipts_come_first_after_each_connection(tmp_path: Path) -> None:
    """The newest of each lane, whatever was said before, also after the broker was restarted."""

    async def newest(link: MqttLink, count: int) -> set[Receipt]:
        async with aclosing(link.receipts()) as receipts:
            return {await anext(receipts) for _ in range(count)}

    async def scenario(broker: RunningBroker, ends: Ends) -> None:
        for number in range(1, 4):
            await ends.intake.publish([receipt_of(number, lane) for lane in Lane])
        wanted = {receipt_of(3, lane) for lane in Lane}
        ends.link.reset("cut by the test")
        await up(ends.link)
        assert await newest(ends.link, len(Lane)) == wanted
        seen = ends.link.state
        await asyncio.to_thread(broker.end)
        await ends.link.wait_changed(seen)
        await asyncio.to_thread(broker.start)
        await up(ends.link)
        assert await newest(ends.link, len(Lane)) == wanted

    with mosquitto(tmp_path) as broker:
        play(partial(scenario, broker), broker.port)


def test_a_link_of_no_node_reads_the_receipts_of_all(tmp_path: Path) -> None:
    """A gateway forwards for many nodes, and passes their receipts on."""

    async def scenario(ends: Ends) -> None:
        said = [receipt_of(1), receipt_of(2, node="other"), receipt_of(3, Lane.LOGS, "third")]
        await ends.intake.publish(said)
        async with aclosing(ends.link.receipts()) as receipts:
            assert [await anext(receipts) for _ in said] == said

    with mosquitto(tmp_path) as broker:
        play(scenario, broker.port, site=None, node=None)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_allows_one_message_at_a_time(
    tmp_path: Path, protocol: Literal["5", "3.1.1"]
) -> None:
    """With a window of one, both ways, whole batches and parts of larger ones all arrive."""

    async def scenario(ends: Ends) -> None:
        parts = [part_of(number, 2_000) for number in range(20)]
        await transfer(ends, parts, asyncio.sleep(0))
        whole = part_of(99, 50_000)
        async with asyncio.TaskGroup() as tasks:
            async with aclosing(ends.intake.batches()) as groups:
                taking = tasks.create_task(anext(groups))  # type: ignore[arg-type]
                for part in cut(whole, 8_000):
                    assert await ends.link.send(part) == Accepted()
                group = await taking
            assert [arrival.payload for arrival in group] == [whole.payload]

    with mosquitto(tmp_path, options="max_inflight_messages 1") as broker:
        play(scenario, broker.port, protocol=protocol)


def test_a_broker_that_allows_small_messages_gets_small_parts(tmp_path: Path) -> None:
    """``message_size_limit`` is not stated: what was refused tells how to cut, and all arrives."""

    async def scenario(ends: Ends) -> None:
        whole = part_of(1, 100_000)
        assert ends.link.part_bytes_max is None
        outcome: Accepted | Refusal = await ends.link.send(whole)
        while isinstance(outcome, Refusal):
            assert outcome.reason is RefusedBecause.TOO_LARGE
            size = ends.link.part_bytes_max
            assert size is not None
            outcome = await ends.link.send(next(cut(whole, size)))
        assert size > 10_000
        async with aclosing(ends.intake.batches()) as groups:
            for part in cut(whole, size):
                assert await ends.link.send(part) == Accepted()
            group = await anext(groups)
        assert [arrival.payload for arrival in group] == [whole.payload]

    with mosquitto(tmp_path, options="message_size_limit 20000") as broker:
        play(scenario, broker.port, protocol="5")


def test_what_came_while_the_intake_was_away_waits_at_the_broker(tmp_path: Path) -> None:
    """A session that the broker keeps: batches sent to nobody arrive when the intake is back."""

    async def scenario(broker: RunningBroker) -> None:
        clock = SystemClock()
        given = MqttSettings("127.0.0.1", broker.port, "intake", drain_seconds_max=0.05)
        intake_settings = MqttIntakeSettings("intake", given)
        link_settings = MqttLinkSettings("up", replace(given, client_id="link"), SITE, NODE)
        async with MqttLink(link_settings, clock, Random(2)) as link:
            await up(link)
            outcome = await link.send(part_of(1))
            assert isinstance(outcome, Refusal)
            assert "nobody is subscribed" in outcome.detail
            async with MqttIntake(intake_settings, clock, Random(1)) as intake:
                await up(intake)
            assert await link.send(part_of(2)) == Accepted()
            intake = MqttIntake(intake_settings, clock, Random(1))
            async with intake, aclosing(intake.batches()) as groups:
                (arrival,) = await anext(groups)
                assert arrival.payload == part_of(2).payload
            again = MqttIntake(intake_settings, clock, Random(1))
            async with again, aclosing(again.batches()) as groups:
                (arrival,) = await anext(groups)
                assert (arrival.payload, arrival.redelivered) == (part_of(2).payload, True)
                await again.accept([arrival])

    async def bounded(broker: RunningBroker) -> None:
        async with asyncio.timeout(20):
            await scenario(broker)

    with mosquitto(tmp_path) as broker:
        asyncio.run(bounded(broker))
