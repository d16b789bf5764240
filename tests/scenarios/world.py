"""An edge and a headquarters on virtual time: both crash, and the network does what it can."""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mesh.ports import Arrival, Refusal, Stored
from mesh.spool.spool import Spool
from mesh.transfer import ledger
from mesh.transfer.delivery import DeliverySettings
from nodes.forwarder import Forwarder
from nodes.headquarters.archive import Archive, Rows
from nodes.headquarters.ingest import Ingest
from schemas import wire
from schemas.errors import DiskFailed, Overloaded
from schemas.messages import Epoch, Lane, Receipt
from schemas.ranges import Ranges
from schemas.stored import LaneLedger, PartitionLedger
from simulator.clock import SimClock, VirtualLoop
from simulator.disk import SimDisk
from simulator.ledger_store import MemoryLedgerStore
from simulator.link import NetworkSettings, SimIntake, SimLink, SimNetwork
from tests.nodes.forwards import forward
from tests.spool.world import SMALL, Nowhere, Said, Watcher, resources

__all__ = ["ROUGH", "CrashNow", "Edge", "Headquarters", "Identity", "network", "settled_lines"]

Identity = tuple[str, str, Lane, int]

ROUGH = NetworkSettings(
    delay_seconds_max=0.5,
    loss=0.1,
    repetition=0.1,
    send_seconds=3.0,
    ping_seconds=2.0,
    reconnect_seconds_max=5.0,
    ack_seconds=4.0,
)
"""Loses, repeats and reorders."""

_DELIVERY = DeliverySettings(window_batches=4, receipt_seconds=8.0, full_bytes=2000)


class CrashNow(BaseException):
    """The process is gone. No error: nobody may handle it but the test."""


def network(rng: random.Random, settings: NetworkSettings = ROUGH) -> SimNetwork:
    """A network on the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return SimNetwork(SimClock(loop), rng, settings)


@dataclass
class Edge:
    """A node that records, forwards, crashes, and starts again."""

    rng: random.Random
    net: SimNetwork
    node: str = "pump"
    disk: SimDisk = field(default_factory=SimDisk)
    said: Said = field(default_factory=Said)
    watcher: Watcher = field(default_factory=Watcher)
    lives: int = 0
    spool: Spool = field(init=False)
    forwarder: Forwarder = field(init=False)
    link: SimLink = field(init=False)
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def start(self) -> None:
        """Opens the spool, connects, forwards."""
        self.lives += 1
        settings = replace(
            SMALL,
            labels=replace(SMALL.labels, node=self.node),
            journal_bytes_max=self.rng.choice([1, 2000, 100_000]),
        )
        self.spool = await Spool.open(
            resources(self.disk, self.rng.randrange(2**32), self.watcher), settings
        )
        self.link = self.net.link("hall", self.node)
        self.forwarder = forward(self.node, self.spool, self.link, _DELIVERY, self.watcher)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(work) for work in (self.spool.maintain(), self._forward())]

    async def _forward(self) -> None:
        async with self.link:
            await self.forwarder.run()

    async def crash(self) -> None:
        """The power goes; what the disk kept is what the next life finds."""
        image = self.disk.crash(self.rng, block_bytes=self.rng.choice([512, 4096]))
        await self._end()
        self.disk = image
        await self.start()

    async def _end(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Ends in order."""
        await self._end()
        await self.spool.close()

    async def append(self, lane: Lane, count: int) -> None:
        """Records something; what the spool does not take is forgone."""
        texts = [f"{self.lives} {self.rng.random()}" for _ in range(count)]
        try:
            await self.said.append(self.spool, lane, texts)
        except (Overloaded, DiskFailed):
            self.spool.forgo(lane, count)

    def pending(self) -> int:
        """How many records wait for a receipt."""
        lanes = self.spool.status().lanes.values()
        return sum(lane.pending_records + lane.waiting_records for lane in lanes)


class _Fuse:
    """Lets so many calls through, then the process is gone."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def burn(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CrashNow


class _Archive(Archive):
    """Remembers what was published, and may be where the process ends."""

    def __init__(self, root: Path, home: "Headquarters", fuse: _Fuse) -> None:
        super().__init__(root)
        self._home = home
        self._fuse = fuse

    def stage(self, name: str, rows: Iterable[Rows]) -> None:
        self._fuse.burn()
        rows = list(rows)
        self._home.staged[name] = {
            (item.header.node, str(item.header.epoch), item.header.lane, seq)
            for item in rows
            for seq in item.seqs
        }
        super().stage(name, rows)
        self._fuse.burn()

    def publish(self, name: str) -> None:
        self._fuse.burn()
        super().publish(name)
        self._home.published |= self._home.staged[name]
        self._fuse.burn()

    def discard(self, name: str) -> None:
        self._fuse.burn()
        super().discard(name)


class _Ledgers:
    def __init__(self, store: MemoryLedgerStore, fuse: _Fuse) -> None:
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


class _Intake:
    """Checks each receipt before it leaves."""

    def __init__(self, intake: SimIntake, home: "Headquarters", fuse: _Fuse) -> None:
        self._intake = intake
        self._home = home
        self._fuse = fuse
        self.batches = intake.batches

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        self._fuse.burn()
        for receipt in receipts:
            await self._home.check(receipt)
        await self._intake.publish(receipts)
        self._fuse.burn()

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        self._fuse.burn()
        await self._intake.accept(arrivals)

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        self._home.refused.append((arrival, refusal))
        await self._intake.refuse(arrival, refusal)


@dataclass
class Headquarters:
    """An ingest worker that dies after so many calls, and the next one, and the next."""

    rng: random.Random
    net: SimNetwork
    root: Path
    calls: Callable[[], int]
    ledgers: MemoryLedgerStore
    staged: dict[str, set[Identity]] = field(default_factory=dict)
    published: set[Identity] = field(default_factory=set)
    refused: list[tuple[Arrival, Refusal]] = field(default_factory=list)
    watcher: Watcher = field(default_factory=Watcher)
    deaths: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        while True:
            fuse = _Fuse(self.calls())
            archive = _Archive(self.root, self, fuse)
            worker = Ingest(
                "hq",
                Epoch(1, 1),
                _Intake(self.net.intake(), self, fuse),  # type: ignore[arg-type]
                _Ledgers(self.ledgers, fuse),  # type: ignore[arg-type]
                archive,
                Nowhere(),
                SimClock(loop),
                self.rng.randbytes,
                self.watcher,
            )
            try:
                await worker.run()
            except CrashNow:
                self.deaths += 1
                await asyncio.sleep(self.rng.uniform(0, 3))
            finally:
                archive.close()

    async def lanes(self, node: str) -> list[LaneLedger]:
        """The ledgers of a node, whatever the store's manners."""
        stored = self.ledgers._stored[ledger.partition_of("hall", node)]
        partition = wire.decode_as(PartitionLedger, stored.state)
        return [lane for lane in partition.lanes if lane.node == node]

    async def check(self, receipt: Receipt) -> None:
        """A receipt is never ahead of the archive: what it covers is there, or explained."""
        (known,) = (
            lane
            for lane in await self.lanes(receipt.node)
            if (lane.epoch, lane.lane) == (receipt.epoch, receipt.lane)
        )
        stated = Ranges.of([(0, receipt.watermark)]) | receipt.held
        for numbers in known.explained.values():
            stated -= numbers - known.held
        for seq in stated:
            identity = (receipt.node, str(receipt.epoch), receipt.lane, seq)
            assert identity in self.published, f"{receipt} is ahead of the archive at {seq}"


async def settled_lines(home: Headquarters, node: str) -> list[str]:
    """What is wrong with a node's account: nothing, when all is delivered or explained."""
    wrong = []
    for lane in await home.lanes(node):
        line = ledger.account_line(lane)
        explained = sum(line.explained.values())
        if line.missing or line.produced != line.delivered + explained:
            wrong.append(f"{lane.epoch}/{lane.lane}: {line}")
    return wrong
