"""From the edge's disk to the archive: each identity once or explained, whatever happens between.

A seed decides the network's delays, losses, repetitions and cuts, when the edge loses its power and
what its disk keeps, and at which call the ingest worker dies. A failing seed is noted on the error.
"""

import asyncio
import random
from pathlib import Path

import pytest

from nodes.headquarters.books import Books
from nodes.headquarters.ingest import Ingest
from schemas.messages import Lane
from simulator.clock import run
from simulator.ledger_store import MemoryLedgerStore
from tests.nodes.headquarters.world import rows
from tests.scenarios.world import ROUGH, Edge, Headquarters, network, settled_lines

LANES = [Lane.ALARMS, Lane.DECISIONS, Lane.EVENTS, Lane.LOGS]


async def _trouble(rng: random.Random, edge: Edge, steps: int) -> None:
    """Records, and trouble, in any order."""
    for _ in range(steps):
        match rng.choices(
            ["append", "account", "cut", "silence", "mend", "crash", "wait"],
            [40, 4, 2, 2, 6, 2, 20],
        )[0]:
            case "append":
                await edge.append(rng.choice(LANES), rng.randint(1, 12))
            case "account":
                await edge.spool.state_accounts()
            case "cut":
                edge.net.cut(edge.node)
            case "silence":
                edge.net.silence(edge.node)
            case "mend":
                edge.net.mend(edge.node)
            case "crash":
                await edge.crash()
            case _:
                await asyncio.sleep(rng.expovariate(1.0))


async def _drain(edge: Edge, home: Headquarters) -> None:
    """The trouble ends: then all goes through, in bounded time."""
    edge.net.mend(edge.node)
    home.ledgers.loss = 0.0
    home.calls = lambda: 10_000
    await edge.spool.commit()
    await edge.spool.state_accounts()
    async with asyncio.timeout(3600):
        while edge.pending() or await settled_lines(home, edge.node):  # noqa: ASYNC110 - virtual
            await asyncio.sleep(1)


async def _audit(root: Path, edge: Edge, home: Headquarters) -> int:
    found = rows(root)
    identities = [(node, epoch, lane, seq) for node, epoch, lane, seq, *_ in found]
    assert len(identities) == len(set(identities)), "each identity stands in one row"
    delivered = {(lane, seq): record for _, _, lane, seq, _, record in found}
    for lane, produced in edge.said.produced.items():
        there = {seq: record for (name, seq), record in delivered.items() if name == lane}
        for seq, record in there.items():
            assert produced[seq] == record, f"{lane}/{seq} is another record"
        lost = edge.said.acknowledged.get(lane, set()) - there.keys()
        assert not lost, f"acknowledged and lost: {lane} {sorted(lost)}"
    assert await settled_lines(home, edge.node) == [], "nothing is unaccounted for"
    assert home.refused == []
    staged = root / "staging"
    assert not list(staged.iterdir())
    return len(identities)


def _scenario(seed: int, root: Path, steps: int = 250, loss: float = 0.1) -> None:
    async def main(rng: random.Random) -> None:
        net = network(rng)
        edge = Edge(rng, net)
        ledgers = MemoryLedgerStore(rng, 0.05, loss=loss)
        home = Headquarters(rng, net, root, lambda: rng.randint(0, 60), ledgers)
        async with asyncio.TaskGroup() as tasks:
            worker = tasks.create_task(home.run())
            await edge.start()
            await _trouble(rng, edge, steps)
            await _drain(edge, home)
            await edge.close()
            worker.cancel()
        count = await _audit(root, edge, home)
        print(f"seed {seed}: {count} records, {edge.lives} lives of the edge, {home.deaths} deaths")
        assert count > 100
        assert home.deaths > 3

    run(main, seed, seconds_max=100_000)


def _scenarios(root: Path) -> None:
    for seed in range(6):
        _scenario(seed, root / str(seed))


@pytest.mark.parametrize("seed", range(6))
def test_each_identity_arrives_once_or_is_explained(seed: int, tmp_path: Path) -> None:
    """I1 to I5 and I7, rows 2, 31, 32, 33, 36, 39 of the faults: unaccounted is zero."""
    _scenario(seed, tmp_path)


@pytest.mark.parametrize("calls", range(0, 40, 3))
def test_a_worker_that_always_dies_at_the_same_call(calls: int, tmp_path: Path) -> None:
    """Row 39: between every two steps; progress is made as long as a commit fits between two."""

    async def main(rng: random.Random) -> None:
        net = network(rng, ROUGH)
        edge = Edge(rng, net)
        lives = iter([calls, calls, calls])
        home = Headquarters(
            rng, net, tmp_path, lambda: next(lives, 10_000), MemoryLedgerStore(rng, 0.05)
        )
        async with asyncio.TaskGroup() as tasks:
            worker = tasks.create_task(home.run())
            await edge.start()
            for _ in range(15):
                await edge.append(Lane.EVENTS, 3)
                await edge.append(Lane.ALARMS, 1)
                await asyncio.sleep(0.5)
            await _drain(edge, home)
            await edge.close()
            worker.cancel()
        assert await _audit(tmp_path, edge, home) >= 60

    run(main, calls, seconds_max=100_000)


def test_a_long_outage_is_caught_up(tmp_path: Path) -> None:
    """Row 31: ninety days without a link, then all of it, in order of urgency, nothing twice."""

    async def main(rng: random.Random) -> None:
        net = network(rng)
        edge = Edge(rng, net)
        home = Headquarters(rng, net, tmp_path, lambda: 10_000, MemoryLedgerStore(rng))
        async with asyncio.TaskGroup() as tasks:
            worker = tasks.create_task(home.run())
            net.cut("pump")
            await edge.start()
            for _ in range(90):
                await edge.append(Lane.LOGS, 12)
                await edge.append(Lane.ALARMS, 1)
                await asyncio.sleep(86_400)
            assert edge.pending() > 1000
            await _drain(edge, home)
            await edge.close()
            worker.cancel()
        assert await _audit(tmp_path, edge, home) >= 90 * 13

    run(main, 1, seconds_max=100 * 86_400)


def test_a_worker_that_discards_what_it_does_not_know_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: staged files are discarded without asking the ledger, nor missed. It is noticed."""

    async def careless(self: Ingest) -> None:
        for name in self._archive.staged():
            self._archive.discard(name)

    async def unconcerned(*_: object) -> bool:
        return False

    monkeypatch.setattr(Ingest, "finish", careless)
    monkeypatch.setattr(Books, "_is_missing", unconcerned)
    with pytest.raises(BaseException, match=r".") as caught:
        _scenarios(tmp_path)
    assert "ahead of the archive" in _told(caught.value) or "lost" in _told(caught.value)


def test_a_receipt_before_the_commit_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: the transport forgets the batches, and the node its records, before the commit."""

    async def hasty(self: Ingest, number: int, _stored: object, made: object, name: str) -> bool:
        del self, number, made, name
        return True

    monkeypatch.setattr(Ingest, "_set", hasty)
    with pytest.raises(BaseException, match=r".") as caught:
        _scenario(0, tmp_path)
    assert caught.value is not None


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return " ".join(map(_told, error.exceptions))
    return str(error)
