"""The edge role: decides beside its chores, tells its health, ends in order. On virtual time."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from mesh.ports import BrokerState, Publication
from mesh.spool.batch import Labels, open_records
from mesh.spool.spool import Resources, Spool, SpoolSettings
from nodes.edge.edge import Edge, EdgeParts, state_publication
from nodes.edge.inference import Inference, Place
from nodes.edge.recorder import Recorder
from nodes.edge.rule import Rule
from nodes.health import edge_document
from nodes.settings import DecisionSection
from schemas import wire
from schemas.messages import Event, Lane
from simulator.broker import SimBroker, SimBrokerClient
from simulator.clock import SimClock, VirtualLoop, run
from simulator.disk import SimDisk
from tests.nodes.edge.fakes import FakeModel

PLACE = Place("plant", "edge-1", "0123456789abcdef")
STATE = "mesh/v1/plant/edge-1/state/node"
HEALTH = "mesh/v1/plant/edge-1/health/node"
DECISION = "mesh/v1/plant/edge-1/decision/pump"


class World:
    """An edge, a sensor and an actuator on one simulated bus."""

    def __init__(self, rng: random.Random) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.rng = rng
        self.clock = SimClock(loop)
        self.bus = SimBroker(rng)
        self.disk = SimDisk()
        self.heard: list[dict[str, Any]] = []
        self.sensor: SimBrokerClient | None = None

    @asynccontextmanager
    async def edge(self, **settings: Any) -> "Any":  # noqa: ANN401 - settings are of any type
        """A running edge; drained at the end."""
        model = FakeModel()
        section = {
            "name": "pump",
            "topics": ("plant/+/telemetry",),
            "model": "m",
            "qos": 1,
            "publish_qos": 1,
            **settings,
        }
        rule = Rule.of(DecisionSection.model_validate(section), model.contract)
        recorder = Recorder(self.clock)
        since = self.clock.now()
        with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as worker:
            resources = Resources(
                self.disk,
                self.clock,
                writer,
                worker,
                self.rng.randbytes,
                bytes(16),
                bytes(16),
                recorder,
            )
            spool = await Spool.open(resources, SpoolSettings(Labels("plant", "edge-1")))
            recorder.attach(spool)
            broker = self.bus.client(
                "edge-1",
                self.clock,
                will=state_publication(PLACE, since, online=False),
                birth=state_publication(PLACE, since, online=True),
            )
            async with broker:
                inference = Inference(
                    PLACE, [(rule, model)], spool, broker, self.clock, recorder, self.rng
                )
                parts = EdgeParts(
                    PLACE, inference, spool, broker, recorder, self.clock, health_seconds=10.0
                )
                edge = Edge(parts)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(edge.run())
                    # Health goes the same way as the subscriptions before it.
                    await until(lambda: HEALTH in self.bus.retained)
                    yield edge, spool
                    await edge.drain()
            await spool.close()

    @asynccontextmanager
    async def people(self) -> "Any":  # noqa: ANN401 - a context
        """A sensor that can speak, and an actuator that listens."""
        actuator = self.bus.client("actuator", self.clock)
        actuator.subscribe({DECISION: 1})
        async with self.bus.client("sensor", self.clock) as sensor, actuator:
            self.sensor = sensor
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(self._listen(actuator))
                await until(lambda: sensor.state.connected and actuator.state.connected)
                yield
                listening.cancel()

    async def _listen(self, actuator: SimBrokerClient) -> None:
        async for group in actuator.groups():
            self.heard += [json.loads(delivery.payload) for delivery in group]
            actuator.acknowledge(group)

    async def say(self, count: int, payload: bytes = b'{"a":1,"b":2}') -> None:
        """The sensor speaks."""
        assert self.sensor is not None
        await self.sensor.publish([Publication("plant/p1/telemetry", payload, 1)] * count)

    def retained(self, topic: str) -> dict[str, Any]:
        """What the bus keeps under a topic."""
        document: dict[str, Any] = json.loads(self.bus.retained[topic].payload)
        return document


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits on virtual time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def play(story: Callable[[World], Awaitable[None]]) -> None:
    """Runs a story on virtual time."""

    async def main(rng: random.Random) -> None:
        await story(World(rng))

    run(main, 7, seconds_max=600)


def test_it_decides_records_and_ends_in_order() -> None:
    """Readings become decisions that are heard and durable; the farewell says offline."""

    async def story(world: World) -> None:
        async with world.people():
            async with world.edge() as (_, spool):
                assert world.retained(STATE)["online"] is True
                await world.say(50)
                await world.say(1, b"{}")
                await until(lambda: len(world.heard) == 50)
                await until(lambda: spool.status().lanes[Lane.DECISIONS].pending_records == 50)
                before = spool.next_seq(Lane.ACCOUNT)
            status = spool.status()
            assert world.retained(STATE)["online"] is False
            assert world.retained(STATE)["session"] == PLACE.session
            assert [told["identity"]["seq"] for told in world.heard] == list(range(50))
            assert status.lanes[Lane.DECISIONS].waiting_records == 0
            assert spool.next_seq(Lane.ACCOUNT) > before
            health = world.retained(HEALTH)
            assert health["draining"] is True
            assert health["readings"]["received"] == 51
            assert health["readings"]["refused"] == {"missing_field": 1}
            assert health["decisions"]["total"] == 50

    play(story)


def test_health_is_told_at_intervals() -> None:
    """Retained, with the lanes, latency and links; metrics and accounts are recorded."""

    async def story(world: World) -> None:
        async with world.people(), world.edge() as (_, spool):
            await world.say(5)
            await until(lambda: len(world.heard) == 5)
            await asyncio.sleep(35)
            health = world.retained(HEALTH)
            assert health["status"] == "fine"
            assert health["up_seconds"] > 29
            assert health["spool"]["lanes"]["decisions"]["pending_records"] == 5
            assert health["broker"]["connected"] is True
            lanes = spool.status().lanes
            assert lanes[Lane.METRICS].next_seq > 20
            assert lanes[Lane.ACCOUNT].next_seq > 3

    play(story)


def test_silence_is_noticed_without_any_reading() -> None:
    """A sensor that dies gets its fallback on time, once."""

    async def story(world: World) -> None:
        async with world.people(), world.edge(silent_after_ms=2500):
            await world.say(1)
            await until(lambda: len(world.heard) == 1)
            begun = world.clock.now().mono_ns
            await until(lambda: len(world.heard) == 2)
            waited = (world.clock.now().mono_ns - begun) / 1e9
            assert world.heard[1]["reasons"] == ["input_silent"]
            assert 2.4 < waited < 2.7
            await asyncio.sleep(30)
            assert len(world.heard) == 2

    play(story)


def test_it_outlives_the_broker() -> None:
    """While the broker is away nothing ends; afterwards it decides again."""

    async def story(world: World) -> None:
        async with world.people(), world.edge() as (edge, spool):
            await world.say(1)
            await until(lambda: len(world.heard) == 1)
            world.bus.stop()
            await asyncio.sleep(60)
            assert edge.vitals().broker.connected is False
            world.bus.start()
            assert world.sensor is not None
            sensor = world.sensor
            await until(lambda: sensor.state.connected and edge.vitals().broker.connected, 60)
            await world.say(1)
            await until(lambda: len(world.heard) == 2)
            told = [name for name in await names(spool, Lane.EVENTS) if name == "broker_changed"]
            assert len(told) == 3, "it came, it went, it came again"

    play(story)


def test_what_the_broker_refuses_is_an_alarm() -> None:
    """A decision that reaches nobody, a filter that is not let through.

    Told, and not called fine.
    """

    async def story(world: World) -> None:
        async with world.edge() as (edge, spool):
            fine = BrokerState(connected=True)
            refusing = replace(fine, refused=2, refused_filters=frozenset({"plant/#"}))
            edge._tell_broker(fine, fine)
            assert await names(spool, Lane.ALARMS) == []
            edge._tell_broker(fine, refusing)
            assert await names(spool, Lane.ALARMS) == ["broker_refused"]
            vitals = edge.vitals()
            assert edge_document(replace(vitals, broker=fine))["status"] == "fine"
            assert edge_document(replace(vitals, broker=refusing))["status"] == "degraded"

    play(story)


async def names(spool: Spool, lane: Lane) -> list[str]:
    """The names of all events of a lane that are on disk."""
    await asyncio.sleep(0.1)
    await spool.commit()
    found: list[str] = []
    start = 0
    while (batch := await spool.next_batch(lane, start)) is not None:
        found += [wire.decode_as(Event, record).name for record in open_records(batch)]
        start = batch.header.last + 1
    return found


def test_it_ends_although_the_broker_is_gone() -> None:
    """Draining takes a bounded time with nobody to say farewell to."""

    async def story(world: World) -> None:
        async with world.edge() as (_, spool):
            world.bus.stop()
            await asyncio.sleep(1)
            before = spool.next_seq(Lane.ACCOUNT)
            begun = world.clock.now().mono_ns
        assert world.clock.now().mono_ns - begun < 10_000_000_000
        assert spool.next_seq(Lane.ACCOUNT) > before

    play(story)
