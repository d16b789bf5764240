"""What a worker finds out by looking at all partitions, though nothing comes."""

import asyncio
import random
from pathlib import Path

from nodes.headquarters.archive import Archive
from nodes.headquarters.index import FileIndex, LaneKey
from nodes.headquarters.ingest import Ingest
from schemas.limits import PARTITIONS
from simulator.clock import run
from simulator.ledger_store import MemoryLedgerStore
from tests.nodes.headquarters.world import Desk, Sender, identities, ingest


async def _survey(worker: Ingest, seconds: float) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(worker.run())
        await asyncio.sleep(seconds)
        running.cancel()


def test_headquarters_that_lost_its_ledgers_tells_idle_nodes(tmp_path: Path) -> None:
    """The archive is older than what was receipted: what it lacks is offered again at once."""

    async def main() -> None:
        desk, sender = Desk(), Sender()
        worker = ingest(desk, MemoryLedgerStore(random.Random(0)), Archive(tmp_path / "restored"))
        await worker.ingest(desk.put(sender.batch(2)))
        (before,) = desk.receipts
        lost = MemoryLedgerStore(random.Random(1))
        again = ingest(desk, lost, Archive(tmp_path / "restored"), seed=2, survey_seconds=10.0)
        await _survey(again, 30.0)
        (told,) = desk.receipts[1:]
        assert (told.watermark, told.chain) == (2, before.chain)
        assert told.life != before.life
        await again.ingest(desk.put(sender.batch(1)))
        assert identities(tmp_path / "restored") == [("pump", "events", n) for n in range(3)]

    run(lambda _: main(), seconds_max=3600.0)


class _Counted(Archive):
    """Counts how often all of it is looked through."""

    looks = 0

    def index(self) -> dict[LaneKey, FileIndex]:
        """As ever."""
        self.looks += 1
        return super().index()


def test_partitions_that_nobody_uses_cost_one_look_at_the_archive(tmp_path: Path) -> None:
    """However often they are surveyed; the first batch of a node looks once more."""

    async def main() -> None:
        desk, archive = Desk(), _Counted(tmp_path)
        ledgers = MemoryLedgerStore(random.Random(0))
        worker = ingest(desk, ledgers, archive, survey_seconds=10.0)
        await _survey(worker, 60.0)
        assert archive.looks == PARTITIONS
        await worker.ingest(desk.put(Sender().batch(1)))
        assert archive.looks == PARTITIONS + 1
        await _survey(worker, 60.0)
        assert archive.looks == PARTITIONS + 1

    run(lambda _: main(), seconds_max=3600.0)
