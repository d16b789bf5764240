"""Three servers that keep each stream on all of them: one may be killed at any time."""

import asyncio
import os
import random
import signal
import socket
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Self

import pytest

from mesh.adapters.jetstream.intake import IntakeSettings, JetStreamIntake
from mesh.adapters.jetstream.link import JetStreamLink, LinkSettings
from mesh.adapters.jetstream.session import SessionSettings
from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import Cluster, ServerSettings
from mesh.adapters.system import SystemClock
from mesh.ports import Accepted, Part
from schemas.errors import LinkDown
from tests.contract.link_worlds import part_of, up

pytestmark = pytest.mark.integration

SERVERS = 3
WITHIN_SECONDS = 60.0


def test_a_server_that_is_killed_holds_nothing_up(tmp_path: Path) -> None:
    """What was accepted before, during and after it all arrives."""

    async def scenario() -> None:
        async with AsyncExitStack() as stack, asyncio.timeout(WITHIN_SECONDS):
            servers = [
                await stack.enter_async_context(EmbeddedServer(settings, random.Random(1)))
                for settings in clustered(tmp_path)
            ]
            session = SessionSettings(
                "up",
                tuple(server.client_url for server in servers),
                connect_seconds=2.0,
                request_seconds=5.0,
                ping_seconds=1.0,
                reconnect_seconds_max=0.5,
            )
            intake = await stack.enter_async_context(
                JetStreamIntake(
                    IntakeSettings(session, up_bytes_max=2**24, replicas=SERVERS, ack_seconds=5.0),
                    SystemClock(),
                    random.Random(2),
                )
            )
            link = await stack.enter_async_context(
                JetStreamLink(
                    LinkSettings(session, "hall", "pump", send_seconds=5.0),
                    SystemClock(),
                    random.Random(3),
                )
            )
            await up(link)
            missing = {part_of(number).payload for number in range(60)}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_send_all(link, [part_of(number) for number in range(60)]))
                async with aclosing(intake.batches()) as groups:
                    while missing:
                        group = await anext(groups)
                        await intake.accept(group)
                        missing -= {arrival.payload for arrival in group}
                        if servers[0].restarts == 0 and len(missing) < 50:
                            os.kill(servers[0].state.pid, signal.SIGKILL)

    asyncio.run(scenario())


async def _send_all(link: JetStreamLink, parts: list[Part]) -> None:
    """Each until it is accepted, a hundredth of a second between two."""
    for part in parts:
        while True:
            try:
                assert await link.send(part) == Accepted()
                break
            except LinkDown:
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.01)


def clustered(directory: Path) -> list[ServerSettings]:
    """The settings of servers that find each other on free ports."""
    with _Ports() as ports:
        found = [ports.free() for _ in range(SERVERS)]
    return [
        ServerSettings(
            f"server-{index}",
            directory / f"server-{index}",
            cluster=Cluster("headquarters", port, tuple(f"127.0.0.1:{each}" for each in found)),
            restart_seconds_min=0.05,
        )
        for index, port in enumerate(found)
    ]


class _Ports:
    """Ports that are free, and differ since all are held until the last was found."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._held:
            held.close()

    def free(self) -> int:
        """One of them."""
        held = socket.socket()
        held.bind(("127.0.0.1", 0))
        self._held.append(held)
        port: int = held.getsockname()[1]
        return port
