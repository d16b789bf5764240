"""Through a gateway that dies at any step: never without a custodian, each identity once."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from mesh.ports import DiskFile
from mesh.transfer.custody.entry import Draft, Entry
from mesh.transfer.custody.journal import Journal
from mesh.transfer.custody.settings import CustodySettings
from nodes.gateway.reception import Reception
from schemas.messages import Instant, Lane
from simulator.clock import run
from tests.scenarios.gateway_world import GatewayNode, Shore, audit, drain
from tests.scenarios.world import Edge, network

LANES = [Lane.ALARMS, Lane.DECISIONS, Lane.EVENTS, Lane.LOGS]


async def _trouble(
    rng: random.Random, edges: Sequence[Edge], gateways: Sequence[GatewayNode], steps: int
) -> None:
    """Records, and trouble, in any order."""
    for _ in range(steps):
        edge, gateway = rng.choice(edges), rng.choice(gateways)
        net, path = rng.choice([(edge.net, edge.node), (gateway.above, gateway.name)])
        match rng.choices(
            ["append", "account", "cut", "silence", "mend", "crash", "wait"],
            [40, 4, 2, 2, 8, 1, 20],
        )[0]:
            case "append":
                await edge.append(rng.choice(LANES), rng.randint(1, 12))
            case "account":
                await edge.spool.state_accounts()
            case "cut":
                net.cut(path)
            case "silence":
                net.silence(path)
            case "mend":
                net.mend(path)
            case "crash":
                await edge.crash()
            case _:
                await asyncio.sleep(rng.expovariate(1.0))


async def _play(
    rng: random.Random,
    edges: Sequence[Edge],
    gateways: Sequence[GatewayNode],
    shore: Shore,
    steps: int,
) -> int:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(part.run()) for part in (*gateways, shore)]
        for edge in edges:
            await edge.start()
        await _trouble(rng, edges, gateways, steps)
        await drain(edges, gateways, shore)
        for edge in edges:
            await edge.close()
        for task in running:
            task.cancel()
    return audit(edges, gateways, shore)


def _scenario(seed: int, *, gateways: int = 1, steps: int = 250) -> None:
    async def main(rng: random.Random) -> None:
        nets = [network(rng) for _ in range(gateways + 1)]
        edges = [Edge(rng, nets[0], node) for node in ("pump", "fan")]
        chain = [
            GatewayNode(
                *(rng, nets[n], nets[n + 1], f"gateway-{n}"),
                calls=lambda: rng.choice([rng.randint(0, 40), 10_000]),
                changes=lambda: rng.randint(4, 60),
            )
            for n in range(gateways)
        ]
        count = await _play(rng, edges, chain, Shore(nets[-1]), steps)
        deaths = [gateway.deaths for gateway in chain]
        print(f"seed {seed}: {count} records, the gateways died {deaths} times")
        assert count > 100
        assert min(deaths) > 3
        assert sum(gateway.checks for gateway in chain) > 0

    run(main, seed, seconds_max=1e6)


@pytest.mark.parametrize("seed", range(6))
def test_each_identity_passes_a_gateway_that_dies(seed: int) -> None:
    """Rows 2, 36 and 39: at random calls and random changes of its disk; nothing unaccounted."""
    _scenario(seed)


@pytest.mark.parametrize("seed", range(3))
def test_gateways_chain(seed: int) -> None:
    """Row 39: two gateways, both die; what the shore says comes down through both."""
    _scenario(seed, gateways=2)


def _dying(*, calls: int | None = None, changes: int | None = None) -> None:
    async def main(rng: random.Random) -> None:
        below, above = network(rng), network(rng)
        edges = [Edge(rng, below, "pump")]
        lasting = iter([calls] * 4) if calls is not None else iter([])
        written = iter([changes] * 4) if changes is not None else iter([])
        gateway = GatewayNode(
            *(rng, below, above),
            calls=lambda: next(lasting, None) or 10**9,
            changes=lambda: next(written, None) or 10**9,
        )
        shore = Shore(above)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(part.run()) for part in (gateway, shore)]
            await edges[0].start()
            for _ in range(15):
                await edges[0].append(Lane.EVENTS, 3)
                await edges[0].append(Lane.ALARMS, 1)
                await asyncio.sleep(0.5)
            await drain(edges, [gateway], shore)
            await edges[0].close()
            for task in running:
                task.cancel()
        assert audit(edges, [gateway], shore) >= 60
        assert gateway.deaths > 0

    run(main, 1, seconds_max=1e6)


@pytest.mark.parametrize("calls", range(1, 30, 2))
def test_a_gateway_that_always_dies_at_the_same_step(calls: int) -> None:
    """Row 39: between every two steps of a handover, in and out, there is a custodian."""
    _dying(calls=calls)


@pytest.mark.parametrize("changes", range(1, 30, 4))
def test_a_gateway_whose_power_always_goes_before_the_same_change(changes: int) -> None:
    """Row 39: before each write, sync, rename and unlink of its store."""
    _dying(changes=changes)


def test_a_full_gateway_leaves_the_rest_with_its_edges() -> None:
    """Refused, not evicted: while the uplink is away edges keep what does not fit."""

    async def main(rng: random.Random) -> None:
        below, above = network(rng), network(rng)
        edge = Edge(rng, below, "pump")
        settings = CustodySettings(
            "gateway", bytes_max=(2 << 20) + (1 << 17), journal_bytes_max=20_000
        )
        gateway, shore = GatewayNode(rng, below, above, settings=settings), Shore(above)
        above.cut("gateway")
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(part.run()) for part in (gateway, shore)]
            await edge.start()
            for _ in range(150):
                texts = [rng.randbytes(1000).hex() for _ in range(8)]
                await edge.said.append(edge.spool, Lane.EVENTS, texts)
                await asyncio.sleep(1)
            await asyncio.sleep(600)
            assert edge.pending() > 0, "the gateway is full"
            assert gateway.custody is not None
            assert gateway.custody.status().used_bytes <= settings.bytes_max
            await drain([edge], [gateway], shore)
            await edge.close()
            for task in running:
                task.cancel()
        assert audit([edge], [gateway], shore) >= 1200

    run(main, 1, seconds_max=1e6)


def test_a_small_origin_does_not_wait_behind_a_large_one() -> None:
    """Fair between edges: a backlog of one node does not hold up another one's records."""

    async def main(rng: random.Random) -> None:
        below, above = network(rng), network(rng)
        large, small = Edge(rng, below, "pump"), Edge(rng, below, "fan")
        gateway, shore = GatewayNode(rng, below, above), Shore(above)
        above.cut("gateway")
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(part.run()) for part in (gateway, shore)]
            await large.start()
            await small.start()
            for _ in range(120):
                await large.append(Lane.EVENTS, 20)
                await asyncio.sleep(0.1)
            await asyncio.sleep(600)
            await small.append(Lane.EVENTS, 5)
            await asyncio.sleep(60)
            above.mend("gateway")
            while not any(node == "fan" for node, *_ in shore.records):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            before = sum(node == "pump" for node, *_ in shore.records)
            await drain([large, small], [gateway], shore)
            after = sum(node == "pump" for node, *_ in shore.records)
            assert before < after / 4
            for edge in (large, small):
                await edge.close()
            for task in running:
                task.cancel()
        audit([large, small], [gateway], shore)

    run(main, 2, seconds_max=1e6)


def test_a_receipt_before_the_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: groups are written and not synced. The scenario must notice."""

    def hasty(self: Journal, drafts: Sequence[Draft], at: Instant) -> list[Entry]:
        file, self._file = self._file, _Unsynced(self._file)  # type: ignore[assignment]
        try:
            return honest(self, drafts, at)
        finally:
            self._file = file

    honest = Journal.append
    monkeypatch.setattr(Journal, "append", hasty)
    with pytest.raises(BaseException, match=r".") as caught:
        _some_seeds()
    assert "ahead of the disk" in _told(caught.value) or "lost" in _told(caught.value)


class _Unsynced:
    """A file that forgets to sync."""

    def __init__(self, file: DiskFile) -> None:
        self.write = file.write

    def sync(self) -> None:
        """Says that it did."""


def test_an_acknowledgement_before_custody_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the gateway receipts what it only means to take. The scenario must notice."""

    async def hasty(self: Reception, arrivals: Sequence[object]) -> bool:
        await self._intake.accept(arrivals)  # type: ignore[arg-type]
        return True

    monkeypatch.setattr(Reception, "receive", hasty)
    with pytest.raises(BaseException, match=r"."):
        _scenario(0, steps=40)


def _some_seeds() -> None:
    for seed in range(4):
        _scenario(seed)


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return " ".join(map(_told, error.exceptions))
    return str(error)
