"""The parties of a site: its processes, the servers of headquarters, the WAN between them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from simulator.demo.parties import Party
from simulator.demo.run import MODEL
from simulator.demo.site.cluster import ServerCluster
from simulator.demo.site.configurations import EDGES, PUMPS, SiteFiles, SitePorts
from simulator.demo.site.script import CommitStep
from simulator.wan import WanProxy

__all__ = ["SiteParties", "Wan"]

_BYTES_PER_SECOND: Final = 192 * 1024


class Wan:
    """The network between the gateway and headquarters: a proxy for each server, cut together.

    It carries ``_BYTES_PER_SECOND`` on each, as a mobile link does, so that a drain takes a while.

    Args:
        proxies: one for each server.
    """

    def __init__(self, proxies: Sequence[WanProxy]) -> None:
        self._proxies = proxies

    @classmethod
    @asynccontextmanager
    async def running(cls, targets: Sequence[int]) -> AsyncIterator["Wan"]:
        """Opens it.

        Args:
            targets: the servers' ports, on loopback.
        """
        async with AsyncExitStack() as stack:
            proxies = []
            for port in targets:
                proxy = WanProxy("127.0.0.1", 0, "127.0.0.1", port)
                proxies.append(await stack.enter_async_context(proxy))
                proxy.throttle(_BYTES_PER_SECOND)
            yield cls(proxies)

    @property
    def ports(self) -> list[int]:
        """Its near ends."""
        return [proxy.port for proxy in self._proxies]

    async def cut(self) -> None:
        """Nothing passes any more."""
        for proxy in self._proxies:
            await proxy.cut()

    async def restore(self) -> None:
        """Everything passes again."""
        for proxy in self._proxies:
            await proxy.restore()


class SiteParties:
    """The processes of a run.

    Args:
        root: the run's folder.
        files: their configurations.
        ports: where they find each other.
        rate: readings a second, all edges together.
        seed: of the plant.
        cluster: headquarters' servers.
    """

    def __init__(
        self,
        root: Path,
        files: SiteFiles,
        ports: SitePorts,
        rate: float,
        seed: int,
        cluster: ServerCluster,
    ) -> None:
        self._root = root
        self._files = files
        self.edges = tuple(
            _role(name, "edge", file, root) for name, file in zip(EDGES, files.edges, strict=True)
        )
        self.gateway = _role("gateway", "gateway", files.gateway, root)
        self.workers = tuple(
            _role(f"worker-{number}", "headquarters", file, root)
            for number, file in enumerate(files.workers, start=1)
        )
        self.witness = Party(
            "witness",
            (
                *("-m", "simulator.demo.witness", "--mqtt", f"127.0.0.1:{ports.mqtt}"),
                *("--nats", cluster.urls[0], "--gateway", f"nats://127.0.0.1:{ports.gateway}"),
                *("--log", str(root / "witness.jsonl"), "--model", str(MODEL)),
                *("--rate", str(rate), "--seed", str(seed), "--pumps", str(PUMPS)),
            ),
            root,
        )
        self.away: set[str] = set()
        """Who was killed and is not back yet, by name."""

    @property
    def everybody(self) -> tuple[Party, ...]:
        """All processes but the servers of headquarters."""
        return (*self.workers, self.gateway, self.witness, *self.edges)

    def doomed(self, step: CommitStep) -> Party:
        """Worker 1 as it is killed after a step of a commit."""
        command = ("-m", "simulator.demo.site.worker", "--config", str(self._files.workers[0]))
        return Party(self.workers[0].name, (*command, "--die-after", step), self._root)

    def check_alive(self) -> None:
        """Raises when a party ended that was not killed.

        Raises:
            PartyFailed: which one, and what it said last.
        """
        for party in self.everybody:
            if party.started and party.name not in self.away:
                party.check_alive()


def _role(name: str, command: str, file: Path, root: Path) -> Party:
    return Party(name, ("-m", "nodes", command, "--config", str(file)), root)
