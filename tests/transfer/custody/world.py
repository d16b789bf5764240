"""A store of custody on a simulated disk, batches to give to it, and what it owes for them."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from mesh.ports import Arrival
from mesh.spool import batch as batches
from mesh.spool.batch import Batch, Labels
from mesh.spool.frame import CHAIN_START, Owner, chain, pack
from mesh.transfer.custody.custody import Custody, Outcome
from mesh.transfer.custody.lane import LaneKey
from mesh.transfer.custody.settings import CustodyResources, CustodySettings
from mesh.transfer.source import Life
from schemas import wire
from schemas.messages import Epoch, Event, Instant, Lane, Receipt, Severity, Stage
from schemas.ranges import Ranges
from simulator.clock import SimClock, VirtualLoop, run
from simulator.crash.stage import Thread
from simulator.disk import SimDisk
from tests.spool.world import Watcher

__all__ = [
    "EPOCH",
    "KEY",
    "LIFE",
    "SMALL",
    "Owed",
    "arrival_of",
    "batch_of",
    "drained",
    "opened",
    "play",
    "receipt_for",
    "resources",
]

EPOCH = Epoch(1, 5)
LIFE = Life("hall", "pump", EPOCH)
KEY = LaneKey(LIFE, Lane.EVENTS)
SMALL = CustodySettings("gateway", bytes_max=4 << 20, journal_bytes_max=4000, release_seconds=0.1)
"""A few batches fill a journal."""


@cache
def _frame(first: int, salt: str) -> bytes:
    # Bytes that do not shrink: a batch of 250 has some 50 KB.
    noise = random.Random(f"{salt}{first}").randbytes(100).hex()
    return wire.encode(Event(first, first, "tested", Severity.NOTICE, f"{salt}{first} {noise}", {}))


_CHAINS: dict[str, list[bytes]] = {}


def chain_at(number: int, salt: str = "") -> bytes:
    """The chain before a number; each record is a frame of its own."""
    links = _CHAINS.setdefault(salt, [CHAIN_START])
    while len(links) <= number:
        links.append(chain(links[-1], _frame(len(links) - 1, salt)))
    return links[number]


_OWNER = Owner(b"S" * 16, EPOCH, b"B" * 16)
_AT = Instant(0, 0)


@cache
def batch_of(
    first: int,
    stop: int,
    *,
    lane: Lane = Lane.EVENTS,
    node: str = "pump",
    salt: str = "",
    epoch: Epoch = EPOCH,
) -> Batch:
    """A batch of the numbers ``first <= n < stop``."""
    owner, link, headers = replace(_OWNER, epoch=epoch), chain_at(first, salt), []
    for index in range(first, stop):
        _, head = pack(owner, 1, lane, index, 1, _frame(index, salt), link, _AT)
        headers.append(head)
        link = head.chain_after
    bodies = [_frame(index, salt) for index in range(first, stop)]
    return batches.pack(Labels("hall", node), headers, bodies)


def arrival_of(batch: Batch, token: object = None) -> Arrival:
    """A batch as it comes in."""
    header = batch.header
    return Arrival(header.site, header.node, str(header.lane), batch.data, False, token)  # noqa: FBT003


def receipt_for(
    key: LaneKey,
    watermark: int,
    held: Ranges | None = None,
    *,
    holder: str = "hq",
    stage: Stage = Stage.ARCHIVED,
    number: int = 1,
) -> Receipt:
    """What the next holder says."""
    life = key.life
    return Receipt(
        *(holder, Epoch(1, 9), number, stage, life.site, life.node, life.epoch, key.lane),
        *(watermark, b"", 0, held or Ranges()),
    )


def resources(disk: SimDisk, watcher: Watcher, seed: int = 0) -> CustodyResources:
    """What a store needs, on the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    rng = random.Random(seed)
    return CustodyResources(
        *(disk, SimClock(loop), Thread(), Thread(), rng.randbytes, rng, b"m" * 16, watcher)
    )


@asynccontextmanager
async def opened(
    disk: SimDisk,
    settings: CustodySettings = SMALL,
    *,
    seed: int = 0,
    watcher: Watcher | None = None,
    close: bool = True,
) -> AsyncIterator[Custody]:
    """A store with its chores running; closed in order at the end, unless told otherwise."""
    custody = await Custody.open(resources(disk, watcher or Watcher(), seed), settings)
    chores = asyncio.get_running_loop().create_task(custody.maintain())
    try:
        yield custody
    finally:
        if chores.done():
            chores.result()
        chores.cancel()
        await asyncio.wait([chores])
    if close:
        await custody.close()


async def drained(custody: Custody, key: LaneKey) -> Ranges:
    """The numbers of all pending batches of a lane, read back one after another."""
    found, start = Ranges(), 0
    while (batch := await custody.next_batch(key.life, key.lane, start)) is not None:
        found |= batch.header.present
        start = batch.header.last + 1
    return found


@dataclass
class Owed:
    """What a store has promised: what it stated in receipts, and what was released since."""

    stated: dict[LaneKey, Ranges] = field(default_factory=dict)
    released: dict[LaneKey, Ranges] = field(default_factory=dict)
    offered: dict[LaneKey, Ranges] = field(default_factory=dict)
    last: dict[LaneKey, Receipt] = field(default_factory=dict)

    async def give(self, custody: Custody, *given: Batch) -> list[Outcome]:
        """Offers batches, and takes the receipts for them."""
        for batch in given:
            key = LaneKey(
                Life(batch.header.site, batch.header.node, batch.header.epoch), batch.header.lane
            )
            self.offered[key] = self.offered.get(key, Ranges()) | batch.header.present
        outcomes = await custody.take([arrival_of(batch) for batch in given])
        self.hear(custody.receipts([it.key for it in outcomes if it.key and not it.refused]))
        return outcomes

    def hear(self, receipts: Iterable[Receipt]) -> None:
        """Takes receipts as an origin would: one of a new life replaces, others add."""
        for receipt in receipts:
            key = LaneKey(Life(receipt.site, receipt.node, receipt.epoch), receipt.lane)
            stated = Ranges.of([(0, receipt.watermark)]) | receipt.held
            known = self.last.get(key)
            if known is not None and known.life == receipt.life:
                assert receipt.number > known.number, "receipts count up within a life"
                stated |= self.stated[key]
            self.stated[key] = stated
            self.last[key] = receipt

    def release(self, custody: Custody, key: LaneKey, watermark: int) -> None:
        """The next holder has all below a number."""
        numbers = Ranges.of([(0, watermark)])
        self.released[key] = self.released.get(key, Ranges()) | numbers
        custody.release(key.life, key.lane, numbers, receipt_for(key, watermark))

    async def audit(self, custody: Custody, *, damaged: bool = False) -> None:
        """What was stated and not released is pending, whole; nothing is there that never came.

        Args:
            custody: just opened, or at rest.
            damaged: whether something was damaged on purpose; then a new life may take it back.
        """
        for key, offered in self.offered.items():
            pending = await drained(custody, key)
            if damaged:
                self.hear(custody.receipts([key]))
            stated = self.stated.get(key, Ranges())
            owed = stated - self.released.get(key, Ranges())
            assert not owed - pending, f"{key}: stated and not here: {owed - pending}"
            assert not pending - offered, f"{key}: never came: {pending - offered}"
            self.hear(custody.receipts([key]))


def play(main: Callable[[random.Random], Any], seed: int = 0) -> None:
    """Runs a coroutine on virtual time."""
    run(main, seed, seconds_max=1e6)
