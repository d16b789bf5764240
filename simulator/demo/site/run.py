"""Carries out the demonstration of a site.

Starts the parties, follows the script, waits for the drain, and asks an auditor.

Processes: three edges at one local broker; a gateway with its JetStream server; the WAN; a cluster
of three JetStream servers; two workers of headquarters; the witness. All are on loopback, on ports
chosen free, and all end with the run.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.adapters.server.embedded import EmbeddedServer
from mesh.adapters.server.settings import ServerSettings
from schemas.messages import Lane
from simulator.demo.audit import LaneAccount
from simulator.demo.log import read
from simulator.demo.parties import Party, running
from simulator.demo.ports import free_ports
from simulator.demo.site.auditor import account_of
from simulator.demo.site.cluster import ServerCluster
from simulator.demo.site.configurations import EDGES, SitePorts, write_site
from simulator.demo.site.outcome import SiteOutcome, judge_site
from simulator.demo.site.parties import SiteParties, Wan
from simulator.demo.site.script import site_plan
from simulator.demo.site.stage import SiteProgress, SiteStage

__all__ = ["SiteSettings", "run_site"]

_AUDIT_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """What a run is asked for.

    Args:
        root: an empty folder for everything that the run writes; absolute.
        seconds: how long the plant runs.
        outage: how long the network is cut.
        rate: readings a second at each edge.
        seed: of the plant.
    """

    root: Path
    seconds: float
    outage: float
    rate: float
    seed: int


async def run_site(
    settings: SiteSettings, show: Callable[[SiteProgress], None]
) -> tuple[SiteOutcome, dict[Lane, LaneAccount]]:
    """Runs a demonstration to its end.

    Args:
        settings: what is asked for.
        show: is told what happens, a few times a second.

    Raises:
        PartyFailed: a process ended, or did not become ready.
        ServerUnusable: a server does not start.
    """
    steps = site_plan(settings.seconds, settings.outage)
    rng = random.Random(settings.seed)  # noqa: S311 - jitter, not a secret
    local = ServerSettings("plant", settings.root / "broker", mqtt_port=0, sync_always=False)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(EmbeddedServer(local, rng))
        assert broker.mqtt_port is not None, "asked for"
        cluster = await stack.enter_async_context(ServerCluster.running(settings.root, rng))
        wan = await stack.enter_async_context(Wan.running(cluster.ports))
        (gateway_port,) = free_ports(1)
        ports = SitePorts(broker.mqtt_port, gateway_port, wan.ports, cluster.ports)
        files = write_site(settings.root, ports)
        rate = settings.rate * len(EDGES)
        parties = SiteParties(settings.root, files, ports, rate, settings.seed, cluster)
        site = SiteStage(parties, cluster, wan, f"nats://127.0.0.1:{gateway_port}", show)
        beside = (*parties.workers, parties.gateway, parties.witness)
        await stack.enter_async_context(running(*beside))
        await site.until("starting headquarters and the gateway", lambda it: bool(it["listening"]))
        await stack.enter_async_context(running(*parties.edges))
        await site.until("starting the edges", _is_ready)
        await site.play(steps)
        await site.end()
    lanes = await _audited(settings.root)
    seen = read(settings.root / "witness.jsonl")
    return judge_site(seen, lanes, site.happened, site.died_after), lanes


def _is_ready(standing: Mapping[str, Any]) -> bool:
    """Whether all edges are online with their links up, and something of each was archived."""
    nodes = [standing["nodes"].get(name) for name in EDGES]
    return all(
        node
        and node["online"]
        and all(link["up"] for link in node["health"].get("links", [{"up": False}]))
        and f"{node['health']['spool']['epoch']}/events" in standing["delivered"]
        for node in nodes
    )


async def _audited(root: Path) -> dict[Lane, LaneAccount]:
    """The account, by a process that knows nothing but the folder."""
    auditor = Party("auditor", ("-m", "simulator.demo.site.auditor", str(root)), root)
    async with running(auditor), asyncio.timeout(_AUDIT_SECONDS):
        return account_of(await auditor.hear())
