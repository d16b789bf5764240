"""The simulated network's faults: they happen, they are seen, and a seed replays them."""

import asyncio
import random
from contextlib import aclosing

from mesh.ports import Accepted, Refusal
from schemas.errors import LinkDown
from simulator.clock import SimClock, VirtualLoop, run
from simulator.link import NetworkSettings, SimLink, SimNetwork
from tests.contract.link_worlds import NODE, SITE, part_of, up

COUNT = 50


def test_what_is_sent_until_it_is_accepted_arrives() -> None:
    """Over a path that loses and repeats, each part that was accepted arrives, some twice."""
    arrived = run(_lossy, seed=1, seconds_max=10_000.0)
    assert {number for number, _ in arrived} == set(range(COUNT))
    assert len(arrived) > COUNT


def test_a_seed_replays() -> None:
    """The same seed brings the same parts in the same order at the same times; another does not."""
    assert run(_lossy, seed=2) == run(_lossy, seed=2)
    assert run(_lossy, seed=2) != run(_lossy, seed=3)


def test_parts_overtake_each_other() -> None:
    """Unequal delays reorder what was sent in order."""
    order = [number for number, _ in run(_lossy, seed=4)]
    assert order != sorted(order)


def test_silence_is_noticed_in_time() -> None:
    """A path that swallows everything takes the link down within twice its ping time, no sooner."""

    async def scenario(rng: random.Random) -> None:
        network = _network(rng, NetworkSettings(ping_seconds=5.0, send_seconds=60.0))
        async with network.link(SITE, NODE) as link:
            await up(link)
            network.silence(NODE)
            began = asyncio.get_running_loop().time()
            outcome = await _sent(link, 1)
            took = asyncio.get_running_loop().time() - began
            assert isinstance(outcome, LinkDown)
            assert 5.0 <= took <= 10.0
            assert not link.state.up
            network.mend(NODE)
            await up(link)
            assert await _sent(link, 1) == Accepted()

    run(scenario, seconds_max=1000.0)


def test_a_cut_fails_what_is_under_way() -> None:
    """A cut is seen at once by all sends under way, and the intake's own cut stops its arrivals."""

    async def scenario(rng: random.Random) -> None:
        network = _network(rng, NetworkSettings())
        intake = network.intake()
        async with network.link(SITE, NODE) as link, aclosing(intake.batches()) as groups:
            await up(link)
            async with asyncio.TaskGroup() as tasks:
                sends = [tasks.create_task(_sent(link, number)) for number in range(5)]
                await asyncio.sleep(0)
                network.cut(NODE)
            assert all(isinstance(send.result(), LinkDown) for send in sends)
            network.mend(NODE)
            await up(link)
            network.cut("intake")
            assert await _sent(link, 9) == Accepted()
            began = asyncio.get_running_loop().time()
            asyncio.get_running_loop().call_later(100.0, network.mend, "intake")
            (arrival,) = await anext(groups)
            assert arrival.payload == part_of(9).payload
            assert asyncio.get_running_loop().time() - began >= 100.0

    run(scenario, seconds_max=1000.0)


async def _lossy(rng: random.Random) -> list[tuple[int, float]]:
    settings = NetworkSettings(loss=0.2, repetition=0.2, send_seconds=1.0, ack_seconds=600.0)
    network = _network(rng, settings)
    numbers = {part_of(number).payload: number for number in range(COUNT)}
    arrived: list[tuple[int, float]] = []
    intake = network.intake()

    async def take() -> None:
        async with aclosing(intake.batches()) as groups:
            async for group in groups:
                now = asyncio.get_running_loop().time()
                arrived.extend((numbers[arrival.payload], now) for arrival in group)
                await intake.accept(group)

    async def insist(link: SimLink, number: int) -> None:
        while await _sent(link, number) != Accepted():
            pass

    async with network.link(SITE, NODE) as link, asyncio.TaskGroup() as tasks:
        await up(link)
        taking = tasks.create_task(take())
        async with asyncio.TaskGroup() as sends:
            for number in range(COUNT):
                sends.create_task(insist(link, number))
        await asyncio.sleep(10.0)
        taking.cancel()
    return arrived


def _network(rng: random.Random, settings: NetworkSettings) -> SimNetwork:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return SimNetwork(SimClock(loop), rng, settings)


async def _sent(link: SimLink, number: int) -> Accepted | Refusal | LinkDown:
    try:
        return await link.send(part_of(number))
    except LinkDown as error:
        return error
