"""The books: ledgers made anew from the archive say what the files hold, and nothing else."""

import asyncio
import random
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from mesh.transfer import ledger
from nodes.headquarters.archive import Archive
from nodes.headquarters.books import Books
from nodes.headquarters.index import FileIndex, read_index, write_index
from schemas import wire
from schemas.messages import Epoch, Lane
from schemas.ranges import Ranges
from schemas.stored import PartitionLedger
from simulator.clock import run
from simulator.ledger_store import MemoryLedgerStore
from tests.nodes.headquarters.world import (
    EPOCH,
    LIFE,
    Desk,
    Nowhere,
    Sender,
    Watcher,
    identities,
    ingest,
)

PARTITION = ledger.partition_of("hall", "pump")


def _play(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run(lambda _: main(), seconds_max=3600.0)


def _books(ledgers: MemoryLedgerStore, archive: Archive, life: Epoch = LIFE) -> Books:
    entropy = random.Random(9).randbytes
    return Books("hq", life, ledgers, archive, Nowhere(), entropy, Watcher())


def test_a_rebuilt_ledger_is_the_one_that_was(tmp_path: Path) -> None:
    """Numbers, what is explained, and the chain at the watermark; in a life of its own."""

    async def main() -> None:
        desk, ledgers = Desk(), MemoryLedgerStore(random.Random(0))
        events, accounts = Sender(), Sender(lane=Lane.ACCOUNT)
        archive = Archive(tmp_path)
        worker = ingest(desk, ledgers, archive)
        first = events.batch(3)
        events.next_seq = 5
        told = accounts.account(events, 1, void=Ranges(((3, 5),)))
        await worker.ingest(desk.put(first, told))
        later = events.batch(4)
        events.batch(2)
        await worker.ingest(desk.put(later, events.batch(1)))
        before = wire.decode_as(PartitionLedger, (await ledgers.load(PARTITION)).state)
        made = await _books(ledgers, Archive(tmp_path), Epoch(2, 5)).rebuild(PARTITION)
        assert made.life.counter == 2
        assert made.life != before.life
        assert made.receipts == 0
        assert made.lanes == before.lanes
        found = ledger.find(made, "hall", "pump", EPOCH, Lane.EVENTS)
        assert (found.chain_at, found.chain) == (9, later.header.chain_after)
        fresh = await _books(MemoryLedgerStore(random.Random(1)), Archive(tmp_path)).rebuild(
            PARTITION
        )
        strip = {"duplicates": 0, "seen_wall_ns": 0}
        assert [replace(lane, **strip) for lane in fresh.lanes] == [  # type: ignore[arg-type]
            replace(lane, **strip)  # type: ignore[arg-type]
            for lane in before.lanes
        ]

    _play(main)


def test_a_rebuild_while_a_worker_commits_gives_no_row_twice(tmp_path: Path) -> None:
    """What the worker commits between two steps of the rebuild is in the ledger that it makes."""

    async def main() -> None:
        desk, ledgers, sender = Desk(), MemoryLedgerStore(random.Random(0)), Sender()
        worker = ingest(desk, ledgers, Archive(tmp_path))
        first, second = sender.batch(2), sender.batch(2)
        await worker.ingest(desk.put(first))

        class _Raced(Archive):
            raced = False

            def accounts(self) -> list[Any]:
                # The index has been read; the worker commits before the ledger is replaced.
                if not self.raced:
                    self.raced = True
                    loop = asyncio.get_running_loop()
                    racing.append(loop.create_task(worker.ingest(desk.put(second))))
                return super().accounts()

        racing: list[asyncio.Task[None]] = []
        await _books(ledgers, _Raced(tmp_path)).rebuild(PARTITION)
        await asyncio.gather(*racing)
        await worker.ingest(desk.put(first, second))
        assert identities(tmp_path) == [("pump", "events", n) for n in range(4)]
        state = wire.decode_as(PartitionLedger, (await ledgers.load(PARTITION)).state)
        assert ledger.find(state, "hall", "pump", EPOCH, Lane.EVENTS).held == Ranges(((0, 4),))

    _play(main)


def test_an_index_is_read_as_it_was_written() -> None:
    """Of several nodes and lives in one file."""
    index = {
        ("hall", "pump", Epoch(1, 2), Lane.LOGS): FileIndex(
            Ranges(((0, 3), (7, 9))), {0: bytes(16), 9: b"c" * 16}
        ),
        ("hall", "valve", Epoch(2, 2), Lane.LOGS): FileIndex(Ranges(((4, 5),)), {}),
    }
    assert read_index(write_index(index), "hall", "logs") == index


def test_a_file_that_a_tool_wrote_is_counted_row_by_row(tmp_path: Path) -> None:
    """Small files that somebody joined into one: without an index the rows tell."""

    async def main() -> None:
        desk, sender = Desk(), Sender()
        archive = Archive(tmp_path)
        worker = ingest(desk, MemoryLedgerStore(random.Random(0)), archive)
        for _ in range(3):
            await worker.ingest(desk.put(sender.batch(2)))
        before = archive.identities()
        (day,) = (tmp_path / "archive").glob("*/*/*")
        joined = tmp_path / "joined.parquet"
        with duckdb.connect(":memory:") as database:
            source = f"read_parquet('{day}/*.parquet', hive_partitioning = false)"
            database.execute(f"COPY (FROM {source}) TO '{joined}' (FORMAT parquet)")
        for path in list(day.iterdir()):
            path.unlink()
        shutil.move(joined, day / "joined.parquet")
        assert archive.identities() == before == Archive(tmp_path).identities()

    _play(main)
