"""Batches as a spool makes them, arrivals without a network, the archive as a reader sees it."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import duckdb

from mesh.ports import Arrival, Refusal
from mesh.spool import batch
from mesh.spool.batch import Batch, Labels
from mesh.spool.frame import CHAIN_START, Owner, pack
from nodes.headquarters.ingest import Ingest
from schemas import wire
from schemas.messages import Account, Epoch, Event, Instant, Lane, Receipt, Severity, Stage
from schemas.ranges import Ranges
from simulator.clock import SimClock, VirtualLoop

__all__ = [
    "EPOCH",
    "LIFE",
    "CrashNow",
    "Desk",
    "Fuse",
    "Nowhere",
    "Sender",
    "Watcher",
    "audit_receipts",
    "identities",
    "ingest",
    "rows",
]

EPOCH = Epoch(1, 7)
LIFE = Epoch(1, 1)


class Nowhere(Executor):
    """Stands for a thread: on virtual time its calls run on the loop."""


class Watcher:
    """Port ``Observer``: keeps all events."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def observe(self, event: object) -> None:
        """Takes one event."""
        self.seen.append(event)


class Sender:
    """One lane of one node: makes consecutive batches, and repeats them."""

    def __init__(
        self, site: str = "hall", node: str = "pump", lane: Lane = Lane.EVENTS, epoch: Epoch = EPOCH
    ) -> None:
        self.labels = Labels(site, node)
        self.lane = lane
        self.owner = Owner(b"S" * 16, epoch, b"B" * 16)
        self.next_seq = 0
        self.chain = CHAIN_START

    def batch(self, records: Sequence[bytes] | int) -> Batch:
        """The next numbers; so many events, or these records."""
        if isinstance(records, int):
            records = [self.record(self.next_seq + index) for index in range(records)]
        body = b"".join(records)
        at = Instant(1_767_225_600_000_000_000, 0)
        _, header = pack(
            self.owner, 1, self.lane, self.next_seq, len(records), body, self.chain, at
        )
        self.next_seq, self.chain = header.stop, header.chain_after
        return batch.pack(self.labels, [header], [body])

    def record(self, number: int) -> bytes:
        """The event of a number."""
        text = f"{self.labels.node} {self.lane} {number}"
        return wire.encode(Event(0, 0, "tested", Severity.NOTICE, text))

    def account(self, about: "Sender", number: int, **explained: Ranges) -> Batch:
        """A statement about another lane of the same node."""
        account = Account(0, 0, about.lane, about.owner.epoch, number, about.next_seq, explained)
        return self.batch([wire.encode(account)])


class Desk:
    """Port ``Intake``: arrivals that a test puts there; each comes again until it is taken."""

    def __init__(self) -> None:
        self.waiting: list[Arrival] = []
        self.receipts: list[Receipt] = []
        self.refused: list[tuple[Arrival, Refusal]] = []
        self.accepted = 0

    def put(self, *found: Batch) -> list[Arrival]:
        """Lets batches arrive."""
        made = [
            Arrival(
                item.header.site,
                item.header.node,
                item.header.lane,
                item.data,
                redelivered=False,
                token=object(),
            )
            for item in found
        ]
        self.waiting += made
        return made

    async def batches(self) -> AsyncIterator[Sequence[Arrival]]:
        """What waits, again and again."""
        while True:
            if self.waiting:
                yield list(self.waiting)
            else:
                await asyncio.sleep(1)

    async def publish(self, receipts: Sequence[Receipt]) -> None:
        """Keeps receipts."""
        self.receipts += receipts

    async def accept(self, arrivals: Sequence[Arrival]) -> None:
        """Forgets arrivals."""
        self.accepted += len(arrivals)
        self.waiting = [item for item in self.waiting if item not in arrivals]

    async def refuse(self, arrival: Arrival, refusal: Refusal) -> None:
        """Forgets one that can never be taken."""
        self.refused.append((arrival, refusal))
        self.waiting = [item for item in self.waiting if item is not arrival]


def ingest(
    desk: object,
    ledgers: object,
    archive: object,
    watcher: Watcher | None = None,
    seed: int = 0,
    **more: object,
) -> Ingest:
    """A worker, on the running virtual loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return Ingest(
        "hq",
        LIFE,
        desk,  # type: ignore[arg-type]
        ledgers,  # type: ignore[arg-type]
        archive,  # type: ignore[arg-type]
        Nowhere(),
        SimClock(loop),
        random.Random(seed).randbytes,
        watcher or Watcher(),
        **more,  # type: ignore[arg-type]
    )


def rows(root: Path) -> list[tuple[str, str, str, int, str, bytes]]:
    """(node, epoch, lane, seq, kind, record) of all committed files, sorted."""
    if not list((root / "archive").rglob("*.parquet")):
        return []
    with duckdb.connect(":memory:") as database:
        found = database.execute(
            "SELECT node, epoch, lane, seq, kind, record FROM "
            f"read_parquet('{root}/archive/**/*.parquet', hive_partitioning = false) "
            "ORDER BY ALL"
        ).fetchall()
    return [tuple(row) for row in found]  # type: ignore[misc]


def identities(root: Path) -> list[tuple[str, str, int]]:
    """(node, lane, seq) of all committed rows, sorted, repetitions included."""
    return sorted((node, lane, seq) for node, _, lane, seq, *_ in rows(root))


def audit_receipts(desk: Desk, root: Path) -> None:
    """No receipt speaks of what is not in the archive; nothing is explained here."""
    there = {(node, epoch, lane, seq) for node, epoch, lane, seq, *_ in rows(root)}
    for receipt in desk.receipts:
        assert receipt.stage is Stage.ARCHIVED
        for seq in receipt.held | Ranges.of([(0, receipt.watermark)]):
            assert (receipt.node, str(receipt.epoch), receipt.lane, seq) in there


class CrashNow(BaseException):
    """The process is gone. No error: nobody may handle it but the test."""


class Fuse:
    """Lets so many calls through, over all that is wrapped; then the process is gone."""

    def __init__(self, calls: int, *, after: bool) -> None:
        self.left = calls
        self.after = after

    def wrap(self, thing: object, names: Sequence[str]) -> object:
        """The same thing, whose named calls count."""
        fuse = self

        class Fused:
            def __getattr__(self, name: str) -> Callable[..., Any]:
                found: Callable[..., Any] = getattr(thing, name)
                if name not in names:
                    return found
                if asyncio.iscoroutinefunction(found):

                    async def later(*arguments: object) -> object:
                        fuse.burn(last=False)
                        outcome = await found(*arguments)
                        fuse.burn(last=True)
                        return outcome

                    return later

                def now(*arguments: object) -> object:
                    fuse.burn(last=False)
                    outcome = found(*arguments)
                    fuse.burn(last=True)
                    return outcome

                return now

        return Fused()

    def burn(self, *, last: bool) -> None:
        """One call less."""
        if last is self.after:
            self.left -= 1
            if self.left < 0:
                raise CrashNow
