"""The headquarters of the world: real ingest workers on a simulated archive and ledger store.

Two of them share the work; each dies between any two of its calls to the world, and goes on later.
Each receipt is judged before it leaves.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from mesh.ports import Arrival, LedgerStore, Refusal, Stored
from nodes.headquarters.ingest import Ingest
from schemas import wire
from schemas.limits import PARTITIONS
from schemas.messages import Epoch, Receipt
from schemas.stored import LaneLedger, PartitionLedger
from simulator.clock import SimClock
from simulator.crash.stage import Thread
from simulator.ledger_store import MemoryLedgerStore
from simulator.link import SimIntake, SimNetwork
from simulator.world.archive import ArchiveDisk, SimArchive
from simulator.world.observer import Ear
from simulator.world.oracle import Oracle
from simulator.world.process import Fuse, Process
from simulator.world.trace import Trace

__all__ = ["SimHeadquarters"]

_NAME: Final = "headquarters"
_HOLDER: Final = "hq"
_WORKERS: Final = ("worker1", "worker2")
_DELAY_SECONDS: Final = 0.01
_CRASH_SECONDS: Final = 60
_WIPED: Final = 0.5
_LINGER_SECONDS: Final = 1.0
_CALLS_MAX: Final = 24


class SimHeadquarters:
    """The archive, the ledgers, and workers that die and are followed by others.

    Args:
        network: where batches come from.
        clock: for the time at which something was last seen.
        rng: draws all that is random to it.
        oracle: judges.
        disk: the archive.
        trace: is told.
        tasks: where it runs.
        report: is told of what it raises.
        archive: makes a worker's hand on the archive.
        ingest: makes a worker.
    """

    def __init__(
        self,
        network: SimNetwork,
        clock: SimClock,
        rng: random.Random,
        oracle: Oracle,
        disk: ArchiveDisk,
        trace: Trace,
        tasks: asyncio.TaskGroup,
        report: Callable[[str, str], None],
        archive: Callable[[ArchiveDisk, Fuse], SimArchive] = SimArchive,
        ingest: type[Ingest] = Ingest,
    ) -> None:
        self.network = network
        self.disk = disk
        self.ledgers = MemoryLedgerStore(rng, _DELAY_SECONDS)
        self.crashes = 0
        self._clock = clock
        self._rng = rng
        self._oracle = oracle
        self._trace = trace
        self._archive = archive
        self._ingest = ingest
        self._workers = [_Worker(Process(tasks, name, report), name) for name in _WORKERS]

    def __repr__(self) -> str:
        return f"<SimHeadquarters after {self.crashes} crashes>"

    def start(self) -> None:
        """All workers that do not run begin."""
        for worker in self._workers:
            if not worker.process.running:
                worker.fuse = Fuse()
                worker.process.start(self._work(worker))

    async def crash(self) -> None:
        """A worker dies at one of its next calls, or a minute later, and its power goes."""
        self.crashes += 1
        worker = self._rng.choice(self._workers)
        worker.fuse.left = self._rng.randrange(_CALLS_MAX)
        for _ in range(_CRASH_SECONDS):
            if not worker.process.running:
                break
            await asyncio.sleep(1)
        await self._stop(worker)

    async def stop(self) -> None:
        """All workers are gone, and what was not synced."""
        for worker in self._workers:
            await self._stop(worker)

    async def _stop(self, worker: "_Worker") -> None:
        if worker.ear is not None:
            worker.ear.mute()
        await worker.process.kill()
        self.disk.cut_power()
        self._trace.note("stopped", worker.name)

    async def restore(self, backup: ArchiveDisk) -> None:
        """The archive is put back from a backup; half of the time the ledgers are gone as well."""
        await self.stop()
        before = {key: dict(rows) for key, rows in self.disk.rows.items()}
        self.disk.put_back(backup)
        if self._rng.random() < _WIPED:
            self.ledgers.wipe()
        self._oracle.put_back(before)
        self._trace.note("put back", _NAME)
        self.start()

    async def _work(self, worker: "_Worker") -> None:
        worker.ear = Ear(
            worker.name, self._trace, lambda site, node: self._oracle.alarmed.add((site, node))
        )
        await self._ingest(
            _HOLDER,
            Epoch(1, 1),
            _Witness(self.network.intake(worker.name), self._oracle, worker.fuse),
            _Ledgers(self.ledgers, worker.fuse),
            self._archive(self.disk, worker.fuse),
            Thread(),
            self._clock,
            self._rng.randbytes,
            worker.ear,
            linger_seconds=_LINGER_SECONDS,
            worker=worker.name,
        ).run()

    def lanes(self) -> list[LaneLedger]:
        """All ledgers, whatever the store's manners."""
        return [
            lane
            for partition in range(PARTITIONS)
            if (stored := self.ledgers.peek(partition)).version
            for lane in wire.decode_as(PartitionLedger, stored.state).lanes
        ]


@dataclass(slots=True)
class _Worker:
    """One ingest worker, through all its lives."""

    process: Process
    name: str
    fuse: Fuse = field(default_factory=Fuse)
    ear: Ear | None = None


class _Witness:
    """The intake of a worker; each receipt is judged before it leaves."""

    def __init__(self, intake: SimIntake, oracle: Oracle, fuse: Fuse) -> None:
        self._intake = intake
        self._oracle = oracle
        self._fuse = fuse
        self.batches = intake.batches

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        self._fuse.burn()
        for receipt in receipts:
            self._oracle.archived_by(receipt)
        await self._intake.publish(receipts)
        self._fuse.burn()

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        self._fuse.burn()
        await self._intake.accept(arrivals)

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        self._oracle.keep_refused(arrival)
        await self._intake.refuse(arrival, refusal)


class _Ledgers(LedgerStore):
    """The store of a worker, which may die before and after each call."""

    def __init__(self, store: MemoryLedgerStore, fuse: Fuse) -> None:
        self._store = store
        self._fuse = fuse

    async def load(self, partition: int) -> Stored:
        self._fuse.burn()
        return await self._store.load(partition)

    async def compare_and_set(self, partition: int, version: int, state: bytes) -> int:
        self._fuse.burn()
        found = await self._store.compare_and_set(partition, version, state)
        self._fuse.burn()
        return found
