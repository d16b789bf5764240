"""The contract of the ports ``Link`` and ``Intake``, on the simulated pair and the real ones."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from itertools import zip_longest
from pathlib import Path

import pytest

from mesh.ports import Accepted, Arrival, Refusal
from mesh.transfer.parts import cut
from schemas.errors import LinkDown, RefusedBecause
from schemas.limits import INTAKE_BATCHES_MAX
from schemas.messages import Lane, Receipt
from tests.contract.link_worlds import (
    ACK_SECONDS,
    NODE,
    SITE,
    Scenario,
    World,
    arrivals,
    part_of,
    play,
    receipt_of,
    send_all,
    up,
)

_REAL = ("jetstream", "mosquitto", "nats mqtt")
WORLDS = ("simulated", *_REAL)
"""Where every scenario is played."""
REFUSING_WORLDS = ("simulated", "jetstream")
"""Where a receiver without room refuses. An MQTT broker has a queue for each client, and what does
not fit into it the broker drops: some say so in MQTT 5, mosquitto never does. The sender then gets
no receipt, and sends again."""


def _in(worlds: Sequence[str]) -> list[object]:
    return [
        pytest.param(world, marks=pytest.mark.integration) if world in _REAL else world
        for world in worlds
    ]


class Stage:
    """Where a scenario is played."""

    def __init__(self, world: str, directory: Path) -> None:
        self._world = world
        self._directory = directory

    def play(self, scenario: Scenario, up_bytes_max: int = 2**24) -> None:
        """Plays one there."""
        play(self._world, self._directory, scenario, up_bytes_max)


@pytest.fixture(params=_in(WORLDS))
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    """Each world in turn."""
    return Stage(request.param, tmp_path / "server")


def test_what_is_sent_arrives(stage: Stage) -> None:
    """A part that was accepted arrives with its bytes, and names its site, node and lane."""

    async def scenario(world: World) -> None:
        part = part_of(1, 70_000, Lane.ALARMS)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            assert await link.send(part) == Accepted()
            (arrival,) = await arrivals(groups, 1)
        assert arrival[:5] == (SITE, NODE, "alarms", part.payload, False)
        assert link.state.sent_bytes == len(part.payload)

    stage.play(scenario)


def test_many_parts_are_under_way_at_once(stage: Stage) -> None:
    """Parts sent at once all arrive, in groups of at most ``INTAKE_BATCHES_MAX``."""

    async def scenario(world: World) -> None:
        parts = [part_of(number) for number in range(INTAKE_BATCHES_MAX + 44)]
        missing = {part.payload for part in parts}
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            await send_all(link, parts)
            while missing:
                group = await anext(groups)
                assert 0 < len(group) <= INTAKE_BATCHES_MAX
                missing -= {arrival.payload for arrival in group}
                await world.intake.accept(group)

    stage.play(scenario)


def test_a_link_that_is_not_up_sends_nothing(stage: Stage) -> None:
    """Without the other end entering returns, the link says why it is down, and ``send`` raises."""

    async def scenario(world: World) -> None:
        async with world.unreachable_link() as link:
            await asyncio.sleep(0.2)
            assert not link.state.up
            assert link.state.connections == 0
            assert link.state.reason
            with pytest.raises(LinkDown):
                await link.send(part_of(1))

    stage.play(scenario)


def test_an_arrival_comes_again_until_it_is_accepted(stage: Stage) -> None:
    """What was neither accepted nor refused comes again, marked; what was accepted never does."""

    async def scenario(world: World) -> None:
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            await link.send(part_of(1))
            (first,) = await arrivals(groups, 1)
            (again,) = await arrivals(groups, 1)
            assert (first.redelivered, again.redelivered) == (False, True)
            assert again.payload == first.payload
            await world.intake.accept([again])
            await _nothing_comes(groups)

    stage.play(scenario)


def test_a_refused_arrival_does_not_come_again(stage: Stage) -> None:
    """``refuse`` takes one arrival out of the queue; those beside it still come again."""

    async def scenario(world: World) -> None:
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            await link.send(part_of(1))
            await link.send(part_of(2))
            bad, good = sorted(await arrivals(groups, 2), key=_payload)
            await world.intake.refuse(bad, Refusal(RefusedBecause.BAD_CHECKSUM, "torn\r\n", 0.0))
            again = (await arrivals(groups, 1))[0]
            assert again.payload == good.payload
            await world.intake.accept([again])
            await _nothing_comes(groups)

    stage.play(scenario)


def test_what_is_no_whole_batch_never_arrives(stage: Stage) -> None:
    """A piece of a batch, or bytes that are not what they state, never come; the next does."""

    async def scenario(world: World) -> None:
        whole = part_of(3)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            await link.send(whole._replace(total=2 * whole.total))
            await link.send(whole._replace(offset=1))
            await link.send(whole._replace(digest=bytes(32)))
            await link.send(whole)
            taken = await arrivals(groups, 1)
            assert [arrival.payload for arrival in taken] == [whole.payload]
            await world.intake.accept(taken)
            await _nothing_comes(groups)

    stage.play(scenario)


def test_a_part_with_a_bad_name_is_refused(stage: Stage) -> None:
    """A node's name that could act as a wildcard is refused before it becomes a subject."""

    async def scenario(world: World) -> None:
        async with world.link() as link:
            await up(link)
            outcome = await link.send(part_of(1, node="*"))
            assert isinstance(outcome, Refusal)
            assert outcome.reason == RefusedBecause.BAD_NAME

    stage.play(scenario)


@pytest.mark.parametrize("stage", _in(REFUSING_WORLDS), indirect=True)
def test_a_full_receiver_refuses(stage: Stage) -> None:
    """Without room a part is refused as ``full`` with a time to wait; with room it is accepted."""

    async def scenario(world: World) -> None:
        sent = 0
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            outcome = await link.send(part_of(0, 60_000))
            while isinstance(outcome, Accepted):
                sent += 1
                assert sent < 5, "room for four parts at most"
                outcome = await link.send(part_of(sent, 60_000))
            assert sent >= 3
            assert outcome.reason == RefusedBecause.FULL
            assert outcome.retry_after_seconds > 0
            assert link.state.up
            await world.intake.accept(await arrivals(groups, sent))
            assert await link.send(part_of(sent, 60_000)) == Accepted()

    stage.play(scenario, up_bytes_max=256_000)


def test_the_newest_receipts_come_first(stage: Stage) -> None:
    """One that connects later gets the newest receipt of each lane, then those that follow."""

    async def scenario(world: World) -> None:
        await world.intake.publish(
            [receipt_of(1), receipt_of(2, Lane.LOGS), receipt_of(7, node="x")]
        )
        await world.intake.publish([receipt_of(3)])
        async with world.link() as link, aclosing(link.receipts()) as receipts:
            kept = [await anext(receipts), await anext(receipts)]
            assert sorted(kept, key=_number) == [receipt_of(2, Lane.LOGS), receipt_of(3)]
            await world.intake.publish([receipt_of(4)])
            assert await anext(receipts) == receipt_of(4)

    stage.play(scenario)


def test_a_broken_link_comes_up_by_itself(stage: Stage) -> None:
    """After a break it reconnects, counts it, brings the newest receipts again, and sends."""

    async def scenario(world: World) -> None:
        await world.intake.publish([receipt_of(5)])
        async with (
            world.link() as link,
            aclosing(link.receipts()) as receipts,
            aclosing(world.intake.batches()) as groups,
        ):
            await up(link)
            assert await anext(receipts) == receipt_of(5)
            await world.interrupt(link)
            await up(link)
            assert link.state.connections == 2
            assert await anext(receipts) == receipt_of(5)
            assert await link.send(part_of(1)) == Accepted()
            assert (await arrivals(groups, 1))[0].payload == part_of(1).payload

    stage.play(scenario)


def test_an_acknowledgement_outlives_the_connection(stage: Stage) -> None:
    """Arrivals from before a break can be accepted after it."""

    async def scenario(world: World) -> None:
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            await link.send(part_of(1))
            taken = await arrivals(groups, 1)
            await world.interrupt(link)
            await up(link)
            again = await arrivals(groups, 1)
            assert again[0].payload == taken[0].payload
            await world.intake.accept([*taken, *again])
            await _nothing_comes(groups)

    stage.play(scenario)


def test_a_batch_sent_in_parts_arrives_whole_and_once(stage: Stage) -> None:
    """Parts in any order, some of them twice, the last one last: one arrival, all of its bytes."""

    async def scenario(world: World) -> None:
        whole = part_of(1, 100_000, Lane.LOGS)
        *parts, last = cut(whole, 7_000)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            await send_all(link, [*reversed(parts), *parts[::3]])
            assert await link.send(last) == Accepted()
            (arrival,) = await arrivals(groups, 1)
            assert arrival[:5] == (SITE, NODE, "logs", whole.payload, False)
            (again,) = await arrivals(groups, 1)
            assert (again.payload, again.redelivered) == (whole.payload, True)
            await world.intake.accept([again])
            await _nothing_comes(groups)

    stage.play(scenario)


def test_parts_of_two_batches_may_be_interleaved(stage: Stage) -> None:
    """Two lanes share the link part by part, with a whole alarm in between; each arrives whole."""

    async def scenario(world: World) -> None:
        logs, events = part_of(1, 60_000, Lane.LOGS), part_of(2, 40_000, Lane.EVENTS)
        alarm = part_of(3, 500, Lane.ALARMS)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            for pair in zip_longest(cut(logs, 10_000), cut(events, 10_000)):
                await send_all(link, [part for part in pair if part is not None])
                if pair[0] is not None and pair[0].offset == 0:
                    assert await link.send(alarm) == Accepted()
            missing = {part.payload: str(part.lane) for part in (alarm, logs, events)}
            while missing:
                group = await anext(groups)
                for arrival in group:
                    assert missing.pop(arrival.payload) == arrival.lane
                await world.intake.accept(group)
            await _nothing_comes(groups)

    stage.play(scenario)


async def _nothing_comes(groups: AsyncIterator[Sequence[Arrival]]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3 * ACK_SECONDS):
            await anext(groups)


def _payload(arrival: Arrival) -> bool:
    return arrival.payload != part_of(1).payload


def _number(receipt: Receipt) -> int:
    return receipt.number
