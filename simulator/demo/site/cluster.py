"""Headquarters' JetStream: three servers that keep each stream on all of them."""

import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from mesh.adapters.jetstream.session import Session, SessionSettings
from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import Cluster, ServerSettings
from schemas.errors import LinkDown
from simulator.demo.ports import free_ports

__all__ = ["SERVERS", "ServerCluster"]

SERVERS: Final = ("server-1", "server-2", "server-3")
_STREAM: Final = "MESH_UP"
_RESTART_SECONDS: Final = 1.0


class ServerCluster:
    """The servers of one run; each comes back by itself.

    Args:
        servers: by name.
    """

    def __init__(self, servers: dict[str, EmbeddedServer]) -> None:
        self._servers = servers

    @classmethod
    @asynccontextmanager
    async def running(cls, root: Path, rng: random.Random) -> AsyncIterator["ServerCluster"]:
        """Starts the servers, and ends them.

        Args:
            root: the run's folder.
            rng: for the jitter of restarts.

        Raises:
            ServerUnusable: one does not start.
        """
        ports = free_ports(len(SERVERS))
        routes = tuple(f"127.0.0.1:{port}" for port in ports)
        async with AsyncExitStack() as stack:
            servers = {}
            for name, port in zip(SERVERS, ports, strict=True):
                settings = ServerSettings(
                    name,
                    root / name,
                    cluster=Cluster("headquarters", port, routes),
                    restart_seconds_min=_RESTART_SECONDS,
                )
                servers[name] = await stack.enter_async_context(EmbeddedServer(settings, rng))
            yield cls(servers)

    @property
    def ports(self) -> list[int]:
        """Where clients connect, in order."""
        return [int(url.rpartition(":")[2]) for url in self.urls]

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients connect, in order."""
        return tuple(server.client_url for server in self._servers.values())

    def states(self) -> dict[str, bool]:
        """Which of them run."""
        return {name: server.state.running for name, server in self._servers.items()}

    async def leader(self) -> str:
        """Which server leads the stream of batches; the last one's name when nobody says."""
        session = Session(SessionSettings("demo", self.urls, request_seconds=2.0))
        try:
            await session.open()
            about = await session.call(f"STREAM.INFO.{_STREAM}", {})
            return str(about["cluster"]["leader"])
        except (LinkDown, KeyError):
            return SERVERS[-1]
        finally:
            session.lose("asked")
            await session.close()

    def kill(self, name: str) -> None:
        """Ends one at once, with no chance to say anything (SIGKILL)."""
        pid = self._servers[name].state.pid
        if pid:
            os.kill(pid, signal.SIGKILL)
