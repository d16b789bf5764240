"""Worlds for links and intakes: simulated ones on virtual time, the others on real servers.

A scenario is a coroutine that takes a ``World``; ``play`` runs it in one of them. All are set to
short deadlines, so that what takes minutes in the field takes a second here.
"""

import asyncio
import hashlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.mqtt.broker import MqttSettings
from mesh.adapters.mqtt.intake import MqttIntake, MqttIntakeSettings
from mesh.adapters.mqtt.link import MqttLink, MqttLinkSettings
from mesh.adapters.server.embedded import EmbeddedServer, ServerSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Accepted, Arrival, Intake, Link, Part
from schemas.messages import Epoch, Lane, Receipt, Stage
from simulator.clock import SimClock, VirtualLoop, run
from simulator.link import NetworkSettings, SimLink, SimNetwork
from tests.brokers import RunningBroker, mosquitto, nats_mqtt

__all__ = [
    "ACK_SECONDS",
    "NODE",
    "SITE",
    "Scenario",
    "World",
    "arrivals",
    "mqtt_settings",
    "part_of",
    "play",
    "receipt_of",
    "send_all",
    "session_settings",
    "up",
]

SITE = "hall"
NODE = "pump"
ACK_SECONDS = 0.5
_REAL_SECONDS_MAX = 20.0
_SIMULATED_SECONDS_MAX = 3600.0


class World(Protocol):
    """A receiving end, and links to it."""

    @property
    def intake(self) -> Intake:
        """The receiving end, which is up."""
        ...

    def link(self, node: str = NODE) -> AbstractAsyncContextManager[Link]:
        """A link of a node; entered, it comes up."""
        ...

    def unreachable_link(self) -> AbstractAsyncContextManager[Link]:
        """A link whose other end never answers."""
        ...

    async def interrupt(self, link: Link) -> None:
        """Breaks the link of ``NODE`` once; returns when that was seen, and it can come up."""
        ...


Scenario = Callable[[World], Awaitable[None]]


def part_of(number: int, size: int = 1000, lane: Lane = Lane.EVENTS, node: str = NODE) -> Part:
    """A whole batch of random bytes; the same number and size give the same bytes."""
    payload = random.Random(number).randbytes(size)
    return Part(SITE, node, lane, hashlib.sha256(payload).digest(), 0, size, payload)


def receipt_of(number: int, lane: Lane = Lane.EVENTS, node: str = NODE) -> Receipt:
    """A receipt that states ``number`` as its watermark."""
    epoch = Epoch(1, 7)
    return Receipt(
        "hq", epoch, number, Stage.ARCHIVED, SITE, node, epoch, lane, number, bytes(16), number
    )


async def up(link: "Link | MqttIntake") -> None:
    """Returns once the link is up."""
    state = link.state
    while not state.up:
        state = await link.wait_changed(state)


async def arrivals(groups: AsyncIterator[Sequence[Arrival]], count: int) -> list[Arrival]:
    """The next arrivals, at least ``count``."""
    taken: list[Arrival] = []
    while len(taken) < count:
        taken += await anext(groups)
    return taken


async def send_all(link: Link, parts: Sequence[Part]) -> None:
    """Sends all at once; each must be accepted."""

    async def send(part: Part) -> None:
        assert await link.send(part) == Accepted()

    async with asyncio.TaskGroup() as tasks:
        for part in parts:
            tasks.create_task(send(part))


def play(world: str, directory: Path, scenario: Scenario, up_bytes_max: int = 2**24) -> None:
    """Runs a scenario in the world of that name."""
    if world == "simulated":

        async def simulated(rng: random.Random) -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            await scenario(_SimWorld(SimClock(loop), rng, up_bytes_max))

        run(simulated, seconds_max=_SIMULATED_SECONDS_MAX)
    else:

        async def real() -> None:
            async with (
                asyncio.timeout(_REAL_SECONDS_MAX),
                _real(world, directory, up_bytes_max) as made,
            ):
                await scenario(made)

        asyncio.run(real())


class _SimWorld:
    def __init__(self, clock: SimClock, rng: random.Random, up_bytes_max: int) -> None:
        settings = NetworkSettings(ack_seconds=ACK_SECONDS, queue_bytes_max=up_bytes_max)
        self._network = SimNetwork(clock, rng, settings)
        self.intake = self._network.intake()

    def link(self, node: str = NODE) -> SimLink:
        return self._network.link(SITE, node)

    def unreachable_link(self) -> SimLink:
        self._network.cut("nowhere")
        return self._network.link(SITE, "nowhere")

    async def interrupt(self, link: Link) -> None:
        self._network.cut(NODE)
        assert not link.state.up
        self._network.mend(NODE)


@dataclass
class _RealWorld:
    server: EmbeddedServer
    intake: JetStreamIntake

    def link(self, node: str = NODE) -> JetStreamLink:
        return self._link(self.server.client_url, node)

    def unreachable_link(self) -> JetStreamLink:
        # Port 1 (tcpmux) is reserved, and nobody listens there.
        return self._link("nats://127.0.0.1:1", NODE)

    async def interrupt(self, link: Link) -> None:
        seen = link.state
        os.kill(self.server.state.pid, signal.SIGKILL)
        await link.wait_changed(seen)

    def _link(self, url: str, node: str) -> JetStreamLink:
        settings = LinkSettings(
            session_settings(url), SITE, node, send_seconds=3.0, full_seconds=0.5, pull_seconds=2.0
        )
        return JetStreamLink(settings, SystemClock(), random.Random(1))


def session_settings(url: str, name: str = "up", ping_seconds: float = 1.0) -> SessionSettings:
    """How a test connects: soon, or it is told."""
    return SessionSettings(
        name,
        (url,),
        connect_seconds=2.0,
        request_seconds=3.0,
        ping_seconds=ping_seconds,
        reconnect_seconds_min=0.05,
        reconnect_seconds_max=0.2,
    )


@dataclass
class _MqttWorld:
    broker: RunningBroker
    intake: MqttIntake

    def link(self, node: str = NODE) -> MqttLink:
        return self._link(mqtt_settings(self.broker.port, f"link-{node}"), node)

    def unreachable_link(self) -> MqttLink:
        return self._link(mqtt_settings(1, "link"), NODE)

    async def interrupt(self, link: Link) -> None:
        seen = link.state
        await asyncio.to_thread(self.broker.end)
        await link.wait_changed(seen)
        await asyncio.to_thread(self.broker.start)
        await up(self.intake)

    def _link(self, broker: MqttSettings, node: str) -> MqttLink:
        settings = MqttLinkSettings(
            "up", broker, SITE, node, keepalive_seconds=1, send_seconds=3.0, full_seconds=0.5
        )
        return MqttLink(settings, SystemClock(), random.Random(1))


def mqtt_settings(port: int, client_id: str) -> MqttSettings:
    """How a test connects: soon, or it is told."""
    return MqttSettings(
        "127.0.0.1", port, client_id, connect_seconds_max=2.0, drain_seconds_max=0.1
    )


@asynccontextmanager
async def _real(
    world: str, directory: Path, up_bytes_max: int
) -> "AsyncIterator[_RealWorld | _MqttWorld]":
    if world == "jetstream":
        async with _jetstream(directory, up_bytes_max) as made:
            yield made
    else:
        start = {"mosquitto": mosquitto, "nats mqtt": nats_mqtt}[world]
        with start(directory) as broker:
            settings = MqttIntakeSettings(
                "intake", mqtt_settings(broker.port, "intake"), ack_seconds=ACK_SECONDS
            )
            async with MqttIntake(settings, SystemClock(), random.Random(3)) as intake:
                await up(intake)
                yield _MqttWorld(broker, intake)


@asynccontextmanager
async def _jetstream(directory: Path, up_bytes_max: int) -> AsyncIterator[_RealWorld]:
    settings = ServerSettings("headquarters", directory, restart_seconds_min=0.05)
    async with EmbeddedServer(settings, random.Random(2)) as server:
        intake_settings = IntakeSettings(
            session_settings(server.client_url, "intake"),
            up_bytes_max=up_bytes_max,
            ack_seconds=ACK_SECONDS,
            pull_seconds=2.0,
        )
        intake = JetStreamIntake(intake_settings, SystemClock(), random.Random(3))
        async with intake:
            while not intake.state.up:
                await intake.wait_changed(intake.state)
            yield _RealWorld(server, intake)
