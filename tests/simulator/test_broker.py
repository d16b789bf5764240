"""The simulated bus on virtual time: its faults happen, and the same seed gives the same ones."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from random import Random

from mesh.ports import BrokerState, Delivery, Publication
from simulator.broker import BusFaults, SimBroker, SimBrokerClient
from simulator.clock import SimClock, VirtualLoop, run

Groups = AsyncIterator[Sequence[Delivery]]


def clock() -> SimClock:
    """The running virtual loop's clock."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return SimClock(loop)


def simulate(
    scenario: Callable[[SimBroker], Awaitable[None]], faults: BusFaults | None = None, seed: int = 0
) -> None:
    """Runs a scenario on a bus of its own, on virtual time."""

    async def main(rng: Random) -> None:
        await scenario(SimBroker(rng, faults))

    run(main, seed, seconds_max=3600)


async def up(client: SimBrokerClient, connections: int = 1) -> BrokerState:
    """Waits for a connection."""
    state = client.state
    while not (state.connected and state.connections >= connections):
        state = await client.wait_changed(state)
    return state


async def gather(client: SimBrokerClient, seconds: float) -> list[Delivery]:
    """All that comes within a time, acknowledged."""
    seen: list[Delivery] = []
    groups = client.groups()
    try:
        async with asyncio.timeout(seconds):
            while True:
                group = await anext(groups)
                client.acknowledge(group)
                seen.extend(group)
    except TimeoutError:
        return seen


def test_delay_keeps_the_order_and_costs_no_real_time() -> None:
    """Each packet is late by its own delay, never earlier than the one before it."""

    async def scenario(bus: SimBroker) -> None:
        time = clock()
        node = bus.client("node", time)
        node.subscribe({"a": 1})
        async with node:
            await up(node)
            begin = time.now().mono_ns
            await node.publish([Publication("a", b"%d" % n) for n in range(100)])
            seen = await gather(node, 100)
            assert [int(d.payload) for d in seen] == list(range(100))
            times = [d.received.mono_ns - begin for d in seen]
            assert times == sorted(times)
            assert 2e9 <= times[0] <= times[-1] <= 20e9
            assert len(set(times)) > 1

    simulate(scenario, BusFaults(delay_seconds=(1.0, 10.0)))


def test_loss_takes_qos_0_only() -> None:
    """A lossy bus loses about its share; QoS 1 comes through it whole."""

    async def scenario(bus: SimBroker) -> None:
        node = bus.client("node", clock())
        node.subscribe({"#": 1})
        async with node:
            await up(node)
            await node.publish([Publication("a", b"%d" % n) for n in range(1000)])
            await node.publish([Publication("b", b"%d" % n, 1) for n in range(30)])
            seen = await gather(node, 1)
            lossy = [int(d.payload) for d in seen if d.topic == "a"]
            # Lost on the way up or on the way down: 1 - 0.8 * 0.8.
            assert 550 < len(lossy) < 730
            assert lossy == sorted(lossy)
            assert [int(d.payload) for d in seen if d.topic == "b"] == list(range(30))

    simulate(scenario, BusFaults(loss=0.2))


def test_duplicates_are_flagged_and_acknowledged_once() -> None:
    """A QoS 1 message that comes twice has one token and the DUP flag the second time."""

    async def scenario(bus: SimBroker) -> None:
        node = bus.client("node", clock())
        node.subscribe({"a": 1})
        async with node:
            await up(node)
            await node.publish([Publication("a", b"%d" % n, 1) for n in range(50)])
            seen = await gather(node, 1)
            firsts = [d for d in seen if not d.duplicate]
            seconds = [d for d in seen if d.duplicate]
            assert [int(d.payload) for d in firsts] == list(range(50))
            assert 10 < len(seconds) < 40
            assert {d.token for d in seconds} < {d.token for d in firsts}
            bus.cut("node")
            bus.mend("node")
            assert await gather(node, 60) == []

    simulate(scenario, BusFaults(duplication=0.5))


def test_a_cut_says_the_will_and_lasts_until_it_is_mended() -> None:
    """Cut off, a client keeps trying with growing pauses, and comes back by itself."""

    async def scenario(bus: SimBroker) -> None:
        will, birth = Publication("state", b"offline"), Publication("state", b"online")
        node = bus.client("node", clock(), will=will, birth=birth)
        async with node:
            await up(node)
            await asyncio.sleep(1)
            assert bus.retained["state"].payload == b"online"
            bus.cut("node")
            assert bus.retained["state"].payload == b"offline"
            await asyncio.sleep(600)
            assert node.state.reason == "no answer from the simulated broker"
            bus.mend("node")
            async with asyncio.timeout(16):
                await up(node, 2)
            await asyncio.sleep(1)
            assert bus.retained["state"].payload == b"online"

    simulate(scenario)


def test_a_broker_that_forgets_loses_what_was_not_acknowledged() -> None:
    """Sessions and retained messages in memory do not outlive their broker."""

    async def scenario(bus: SimBroker) -> None:
        node = bus.client("node", clock())
        node.subscribe({"a": 1})
        async with node:
            await up(node)
            await node.publish([Publication("a", b"1", 1, retain=True)])
            await anext(node.groups())
            bus.stop(forget=True)
            bus.start()
            await up(node, 2)
            assert await gather(node, 60) == []
            assert not bus.retained

    simulate(scenario)


def test_a_session_holds_so_much_and_no_more() -> None:
    """What comes for a client that is away is queued to a bound; the rest is counted."""

    async def scenario(bus: SimBroker) -> None:
        away, writer = bus.client("away", clock()), bus.client("writer", clock())
        away.subscribe({"a": 1})
        async with away, writer:
            await up(away)
            await up(writer)
            bus.cut("away")
            await writer.publish([Publication("a", b"%d" % n, 1) for n in range(1500)])
            await asyncio.sleep(1)
            bus.mend("away")
            seen = await gather(away, 60)
            assert [int(d.payload) for d in seen] == list(range(1000))
            assert bus.dropped == 500

    simulate(scenario)


def test_the_same_seed_gives_the_same_world() -> None:
    """A failing seed replays exactly; another one gives another world."""

    def world(seed: int) -> list[tuple[bytes, bool, int]]:
        told: list[tuple[bytes, bool, int]] = []

        async def scenario(bus: SimBroker) -> None:
            node = bus.client("node", clock())
            node.subscribe({"#": 1})
            async with node:
                await up(node)
                await node.publish([Publication("a", b"%d" % n, n % 2) for n in range(60)])
                bus.cut("node")
                bus.mend("node")
                seen = await gather(node, 60)
                told.extend((d.payload, d.duplicate, d.received.mono_ns) for d in seen)

        simulate(scenario, BusFaults((0.001, 0.1), loss=0.3, duplication=0.3), seed)
        return told

    assert world(1) == world(1)
    assert world(1) != world(2)
