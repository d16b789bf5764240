"""Batches that cross JetStream in parts: the last one says that the batch is complete."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest

from mesh.adapters.jetstream.streams import STREAM_PARTS
from mesh.ports import Accepted, Refusal
from mesh.transfer.parts import cut
from schemas.errors import RefusedBecause
from schemas.messages import Lane
from tests.contract.link_worlds import World, arrivals, part_of, play, up

pytestmark = pytest.mark.integration


def _play(directory: Path, scenario: Callable[[World], Awaitable[None]]) -> None:
    play("jetstream", directory / "server", scenario)


def test_parts_in_any_order_make_the_batch_and_leave_nothing(tmp_path: Path) -> None:
    """All but the last in any order, some twice; accepted, the parts are gone from the server."""

    async def scenario(world: World) -> None:
        batch = part_of(1, 100_000, Lane.LOGS)
        *first, last = cut(batch, 7000)
        shuffled = [*first, *first[:3]]
        Random(1).shuffle(shuffled)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            for part in shuffled:
                assert await link.send(part) == Accepted()
            assert await link.send(last) == Accepted()
            (arrival,) = await arrivals(groups, 1)
            assert arrival.payload == batch.payload
            await world.intake.accept([arrival])
            assert await _parts_left(world) == 0

    _play(tmp_path, scenario)


def test_batches_whose_parts_alternate_do_not_mix(tmp_path: Path) -> None:
    """Each part waits under the digest of its batch."""

    async def scenario(world: World) -> None:
        batches = [part_of(number, 20_000, node="pump") for number in range(4)]
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            for parts in zip(*(cut(batch, 6000) for batch in batches), strict=True):
                for part in parts:
                    assert await link.send(part) == Accepted()
            found = await arrivals(groups, 4)
            assert {arrival.payload for arrival in found} == {batch.payload for batch in batches}

    _play(tmp_path, scenario)


def test_a_last_part_without_the_others_is_refused(tmp_path: Path) -> None:
    """It never reaches a reader and does not come again; sent whole, the batch passes."""

    async def scenario(world: World) -> None:
        batch = part_of(1, 20_000)
        first, _, *rest = cut(batch, 5000)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            await link.send(first)
            for part in rest:
                await link.send(part)
            await link.send(batch)
            (arrival,) = await arrivals(groups, 1)
            assert arrival.payload == batch.payload
            await world.intake.accept([arrival])
            assert world.intake.refused == 1  # type: ignore[attr-defined]
            assert await _parts_left(world) == 0

    _play(tmp_path, scenario)


def test_parts_with_other_bytes_are_refused(tmp_path: Path) -> None:
    """The whole must have the digest that each of its parts states."""

    async def scenario(world: World) -> None:
        batch = part_of(1, 20_000)
        *first, last = cut(batch, 5000)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            for part in first:
                await link.send(part._replace(payload=random.Random(2).randbytes(5000)))
            await link.send(last)
            await link.send(part_of(2))
            (arrival,) = await arrivals(groups, 1)
            assert arrival.payload == part_of(2).payload
            assert world.intake.refused == 1  # type: ignore[attr-defined]

    _play(tmp_path, scenario)


def test_a_batch_that_comes_again_in_parts_is_put_together_again(tmp_path: Path) -> None:
    """Until it is accepted its parts stay: whichever worker gets it next finds them."""

    async def scenario(world: World) -> None:
        batch = part_of(1, 20_000)
        async with world.link() as link, aclosing(world.intake.batches()) as groups:
            await up(link)
            for part in cut(batch, 5000):
                await link.send(part)
            for redelivered in (False, True):
                (arrival,) = await arrivals(groups, 1)
                assert arrival.payload == batch.payload
                assert arrival.redelivered is redelivered
            await world.intake.refuse(arrival, Refusal(RefusedBecause.MALFORMED, "bad", 0.0))
            assert await _parts_left(world) == 0

    _play(tmp_path, scenario)


async def _parts_left(world: World) -> int:
    """How many parts the server keeps, once it has had a moment."""
    session = world.intake._connection.session  # type: ignore[attr-defined]
    for _ in range(100):
        left = (await session.call(f"STREAM.INFO.{STREAM_PARTS}", {}))["state"]["messages"]
        if not left:
            return 0
        await asyncio.sleep(0.02)
    return int(left)
