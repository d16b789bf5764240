"""The ingest: takes batches, subtracts what is known, archives the rest, and answers with receipts.

The order of a commit, for the arrivals of one partition that came together, as many as open to
``INGEST_RAW_BYTES_MAX``:

1. *verify*: header, digest, body, chain; what does not verify is refused and set aside, never
   receipted. A record whose layout is not known here is archived as it is: the batch proves what it
   is, and a newer node must not be blocked by an older headquarters;
2. *subtract*: the ledger says which numbers are new;
3. *stage*: the new rows go to staged files, synced, under a name that is never used again;
4. *commit*: compare-and-set of the partition's ledger, which counts the numbers as held and names
   the staged files. This is the commit point. Where its outcome is not known, the ledger is read
   again: the name is in it, or not yet. Then the ledger is replaced by itself: a commit that is
   still under way expects the version before, and can no longer take effect;
5. *publish*: the staged files are renamed into the archive;
6. *receipt*: the new ledger's statement goes to the origin;
7. *accept*: the transport may forget the batches.

Killed before 4: the batches come again, the staged files are named by no ledger, nor will be, and
are discarded. Killed between 4 and 5: the next ingest finds the files staged and named, and
publishes them. Killed before 6 or 7: the batches come again, bring nothing new, and are receipted.
So each number has one row, and a receipt never speaks of what is not durable.

An archive's folder is one worker's alone: another's staged files look like a crash's leaving.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from mesh.ports import Arrival, Clock, Intake, LedgerStore, Observer, Refusal, Stored
from mesh.spool import batch as batches
from mesh.transfer import ledger
from nodes.headquarters.archive import Archive, ArchivedLane, Rows, rows_of
from schemas import wire
from schemas.errors import (
    Conflict,
    DiskFailed,
    LinkDown,
    Refused,
    RefusedBecause,
    StoreUnusable,
)
from schemas.limits import INGEST_RAW_BYTES_MAX, INTAKE_BATCHES_MAX, PARTITIONS
from schemas.messages import Account, BatchHeader, Epoch, Lane, Receipt, Stage
from schemas.stored import LaneLedger, PartitionLedger
from schemas.topics import check_identifier
from schemas.wire import Message

__all__ = [
    "ArchiveMissing",
    "BatchSetAside",
    "Committed",
    "Ingest",
    "IngestDelayed",
    "LedgerRebuilt",
]

_T = TypeVar("_T")
_RETRY_SECONDS: Final = 1.0
_FILES_KEPT: Final = 64


@dataclass(frozen=True, slots=True)
class BatchSetAside:
    """A batch did not verify; it was refused, and is kept under this name."""

    origin: str
    reason: str
    kept_as: str


@dataclass(frozen=True, slots=True)
class Committed:
    """Arrivals were archived: how many batches, new records, and records that came again."""

    batches: int
    records: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class IngestDelayed:
    """The ledgers or the archive cannot be reached; the same arrivals are tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class LedgerRebuilt:
    """The store had no ledger of a partition, and the archive has rows of it.

    These count as held.
    """

    partition: int
    records: int


@dataclass(frozen=True, slots=True)
class ArchiveMissing:
    """The ledger counts records as held whose newest file is not in the archive."""

    partition: int
    name: str
    held: int


@dataclass(frozen=True, slots=True)
class _Opened:
    """An arrival that verifies."""

    arrival: Arrival
    header: BatchHeader
    records: Sequence[bytes]
    messages: Sequence[Message | None]


class Ingest:
    """One ingest worker. Stateless: what it must not forget is in the ledger store.

    Args:
        holder: who signs the receipts.
        life: the holder's life; its counter goes into the lives of new ledgers.
        intake: where batches come from.
        store: where ledgers are.
        archive: where rows go.
        executor: of one thread, for everything that blocks.
        clock: for the time at which something was last seen.
        entropy: random bytes, for the names of commits.
        observer: is told what happens.
        linger_seconds: how long to let arrivals gather after a small group, so that they share a
            file.
    """

    def __init__(
        self,
        holder: str,
        life: Epoch,
        intake: Intake,
        store: LedgerStore,
        archive: Archive,
        executor: Executor,
        clock: Clock,
        entropy: Callable[[int], bytes],
        observer: Observer,
        linger_seconds: float = 0.0,
    ) -> None:
        self._linger_seconds = linger_seconds
        self._archived: list[ArchivedLane] | None = None
        self._looked: set[int] = set()
        self._holder = holder
        self._life = life
        self._intake = intake
        self._store = store
        self._archive = archive
        self._executor = executor
        self._clock = clock
        self._entropy = entropy
        self._observer = observer

    async def run(self) -> None:
        """Ingests until cancelled.

        A link or disk that fails is tried again; nothing is acknowledged meanwhile.
        """
        await self._insist((), tidy=True)
        async for arrivals in self._intake.batches():
            await self._insist(arrivals, tidy=False)
            if len(arrivals) < INTAKE_BATCHES_MAX // 4:
                await asyncio.sleep(self._linger_seconds)

    async def _insist(self, arrivals: Sequence[Arrival], *, tidy: bool) -> None:
        while True:
            try:
                if tidy:
                    await self.finish()
                await self.ingest(arrivals)
            except (LinkDown, DiskFailed, Conflict) as failure:
                tidy = True
                self._observer.observe(IngestDelayed(str(failure)))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def finish(self) -> None:
        """Publishes or discards what a crash left staged.

        Raises:
            LinkDown: the ledgers cannot be asked.
            DiskFailed: the archive cannot be written.
        """
        for name in await self._blocking(self._archive.staged):
            number = _partition_in(name)
            if number is not None and await self._is_committed(number, name):
                await self._blocking(self._archive.publish, name)
            else:
                await self._blocking(self._archive.discard, name)

    async def _is_committed(self, number: int, name: str) -> bool:
        """Whether the ledger names a commit; where it does not, it never will."""
        while True:
            loaded = await self._load(number)
            if name in loaded.ledger.files:
                return True
            state = wire.encode(loaded.ledger)
            try:
                await self._store.compare_and_set(number, loaded.stored.version, state)
            except Conflict:
                continue
            return False

    async def ingest(self, arrivals: Sequence[Arrival]) -> None:
        """Takes a group of arrivals, each to its end.

        Raises:
            LinkDown, DiskFailed: some were not taken; calling it again takes them, each number
            once.
        """
        group: list[_Opened] = []
        raw_bytes = 0
        for arrival in arrivals:
            opened = await self._open(arrival)
            if opened is None:
                continue
            if raw_bytes + opened.header.raw_bytes > INGEST_RAW_BYTES_MAX:
                await self._commit_all(group)
                group, raw_bytes = [], 0
            group.append(opened)
            raw_bytes += opened.header.raw_bytes
        await self._commit_all(group)

    async def _commit_all(self, group: Sequence[_Opened]) -> None:
        by_partition: dict[int, list[_Opened]] = {}
        for opened in group:
            number = ledger.partition_of(opened.header.site, opened.header.node)
            by_partition.setdefault(number, []).append(opened)
        for number, share in sorted(by_partition.items()):
            await self._commit(number, share)

    async def _open(self, arrival: Arrival) -> _Opened | None:
        try:
            return await self._blocking(_verify, arrival)
        except Refused as refused:
            await self._set_aside(arrival, refused)
            return None

    async def _set_aside(self, arrival: Arrival, refused: Refused) -> None:
        name = ""
        if refused.reason is not RefusedBecause.FULL:
            name = await self._blocking(self._archive.quarantine, arrival.payload)
        origin = f"{arrival.site}/{arrival.node}/{arrival.lane}"
        self._observer.observe(BatchSetAside(origin, str(refused), name))
        await self._intake.refuse(arrival, Refusal(refused.reason, refused.detail, 0.0))

    async def _commit(self, number: int, group: Sequence[_Opened]) -> None:
        """Steps 2 to 7 for one partition."""
        while True:
            loaded = await self._load(number)
            plan = _plan(loaded.ledger, group, self._clock.now().wall_ns)
            if not plan.taken:
                made, name = loaded.ledger, ""
                break
            name = f"{number:03d}-{self._entropy(8).hex()}" if plan.rows else ""
            if name:
                await self._blocking(self._archive.stage, name, plan.rows)
            files = loaded.ledger.files
            made = replace(
                ledger.store(loaded.ledger, plan.changed),
                files=(*files[-_FILES_KEPT:], name) if name else files,
                receipts=loaded.ledger.receipts + len(plan.changed),
            )
            if await self._set(number, loaded.stored, made, name):
                break
        if name:
            await self._blocking(self._archive.publish, name)
        for opened, refused in plan.refused:
            await self._set_aside(opened.arrival, refused)
        if not plan.taken:
            return
        await self._intake.publish(_receipts(made, plan.changed))
        await self._intake.accept([opened.arrival for opened in plan.taken])
        records = sum(len(rows.seqs) for rows in plan.rows)
        self._observer.observe(Committed(len(plan.taken), records, plan.duplicates))

    async def _set(self, number: int, stored: Stored, made: PartitionLedger, name: str) -> bool:
        """Whether the ledger now counts this commit as held."""
        try:
            await self._store.compare_and_set(number, stored.version, wire.encode(made))
        except Conflict:
            taken = False
        except LinkDown:
            # Nobody knows. The name tells: it is in the ledger, or never will be.
            taken = name != "" and await self._is_committed(number, name)
        else:
            return True
        if not taken and name:
            await self._blocking(self._archive.discard, name)
        return taken

    async def _load(self, number: int) -> "_Loaded":
        stored = await self._store.load(number)
        if not stored.version:
            return _Loaded(stored, await self._anew(number))
        try:
            loaded = _Loaded(stored, wire.decode_as(PartitionLedger, stored.state))
        except Refused as wrong:
            raise StoreUnusable(
                f"the ledger of partition {number} cannot be read ({wrong}): it is of a newer "
                "version, or damaged"
            ) from wrong
        await self._look_for_files(number, loaded.ledger)
        return loaded

    async def _anew(self, number: int) -> PartitionLedger:
        """A ledger where the store has none: of a new life, holding what the archive has.

        A life of its own, since receipts count within a life; and what has a row already must
        not be given another, should the store have been lost and the archive not.
        """
        if self._archived is None:
            self._archived = await self._blocking(self._archive.identities)
        lanes = [
            LaneLedger(site, node, Epoch.parse(epoch), Lane(lane), held, next_seq=held.end)
            for site, node, epoch, lane, held in self._archived
            if ledger.partition_of(site, node) == number
        ]
        if lanes and number not in self._looked:
            self._looked.add(number)
            self._observer.observe(LedgerRebuilt(number, sum(len(lane.held) for lane in lanes)))
        random = int.from_bytes(self._entropy(8), "little")
        life = replace(self._life, random=random)
        return ledger.store(PartitionLedger(self._holder, life), lanes)

    async def _look_for_files(self, number: int, partition: PartitionLedger) -> None:
        """Tells, once, when the archive lacks what the ledger committed last."""
        if number in self._looked or not partition.files:
            return
        self._looked.add(number)
        newest = partition.files[-1]
        if not await self._blocking(self._archive.holds, newest):
            held = sum(len(lane.held) for lane in partition.lanes)
            self._observer.observe(ArchiveMissing(number, newest, held))

    async def _blocking(self, job: Callable[..., _T], *arguments: object) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, job, *arguments)


@dataclass(frozen=True, slots=True)
class _Loaded:
    stored: Stored
    ledger: PartitionLedger


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a group changes."""

    rows: tuple[Rows, ...]
    changed: tuple[LaneLedger, ...]
    taken: tuple[_Opened, ...]
    refused: tuple[tuple[_Opened, Refused], ...]
    duplicates: int


def _verify(arrival: Arrival) -> _Opened:
    """Step 1. The subject must be the header's: nobody speaks in another's name."""
    batch = batches.parse(arrival.payload)
    header = batch.header
    for what, name in (("site", header.site), ("node", header.node)):
        check_identifier(what, name)
    if (header.site, header.node, header.lane) != (arrival.site, arrival.node, arrival.lane):
        raise Refused(
            RefusedBecause.FOREIGN,
            f"{header} came as {arrival.site}/{arrival.node}/{arrival.lane}",
        )
    records = batches.open_records(batch)
    return _Opened(arrival, header, records, [_read(record) for record in records])


def _read(record: bytes) -> Message | None:
    try:
        return wire.decode(record)
    except Refused:
        return None


def _plan(partition: PartitionLedger, group: Sequence[_Opened], now_wall_ns: int) -> _Plan:
    """Step 2, pure: which rows are new, and what the ledgers say with them."""
    changed: dict[tuple[str, str, Epoch, Lane], LaneLedger] = {}
    rows: list[Rows] = []
    taken: list[_Opened] = []
    refused: list[tuple[_Opened, Refused]] = []
    duplicates = 0
    known = {(it.site, it.node, it.epoch, it.lane): it for it in partition.lanes}

    def look(key: tuple[str, str, Epoch, Lane]) -> LaneLedger:
        return changed.get(key) or known.get(key) or LaneLedger(*key)

    for opened in group:
        header = opened.header
        key = (header.site, header.node, header.epoch, header.lane)
        try:
            outcome = ledger.take(look(key), header, now_wall_ns)
            fresh = rows_of(header, outcome.new, opened.records, opened.messages)
            touched = {key: outcome.ledger}
            for account in fresh.messages:
                if isinstance(account, Account):
                    about = (header.site, header.node, account.epoch, account.lane)
                    touched[about] = ledger.explain(touched.get(about) or look(about), account)
            ledger.check_room(len(known.keys() | changed.keys() | touched.keys()))
        except Refused as wrong:
            refused.append((opened, wrong))
            continue
        taken.append(opened)
        changed |= touched
        duplicates += outcome.duplicates
        if fresh.seqs:
            rows.append(fresh)
    return _Plan(tuple(rows), tuple(changed.values()), tuple(taken), tuple(refused), duplicates)


def _receipts(partition: PartitionLedger, changed: Sequence[LaneLedger]) -> list[Receipt]:
    """A receipt for each lane of which something is held.

    Where nothing is, as of an epoch that was never recorded, nobody keeps anything to release; and
    only the newest receipt of a lane waits for a node that is away.
    """
    first = partition.receipts - len(changed) + 1
    return [
        ledger.receipt(partition, lane, first + index, Stage.ARCHIVED)
        for index, lane in enumerate(changed)
        if lane.held
    ]


def _partition_in(name: str) -> int | None:
    """The partition in the name of a commit; ``None`` when it is the name of none."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() and int(number) < PARTITIONS else None
