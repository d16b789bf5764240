"""The ingest: takes batches, subtracts what is known, archives the rest, and answers with receipts.

The order of a commit, for the arrivals of one partition that came together, as many as open to
``INGEST_RAW_BYTES_MAX``:

1. *verify*: header, digest, body, chain; what does not verify is refused and set aside, never
   receipted. A record whose layout is not known here is archived as it is: the batch proves what it
   is, and a newer node must not be blocked by an older headquarters. The next group is
   verified while this one goes through the steps below;
2. *subtract*: the ledger says which numbers are new;
3. *stage*: the new rows go to staged files, synced, under a name that is never used again;
4. *commit*: compare-and-set of the partition's ledger, which counts the numbers as held and names
   the staged files. This is the commit point. Where its outcome is not known, the ledger is read
   again: the name is in it, or not yet. Then the ledger is replaced by itself: a commit that is
   still under way expects the version before, and can no longer take effect;
5. *publish*: the staged files are renamed into the archive;
6. *receipt*: the new ledger's statement goes to the origin;
7. *accept*: the transport may forget the batches.

Any number of workers do this on one transport, one store and one archive folder. Two that commit to
one partition at once: the store takes one of them, the other discards what it staged and begins
again at 2. Killed before 4: the batches come again, to whichever worker; the staged files are named
by no ledger, nor will be, and are discarded by the next worker of the same name, which is part of
theirs. Killed between 4 and 5: whoever loads that ledger next finds the files named, and publishes
them. Killed before 6 or 7: the batches come again, bring nothing new, and are receipted. So each
number has one row, and a receipt never speaks of what is not durable.

Other records under numbers that are held are refused, kept, and told as an alarm, once: both sides
of the dispute are there to be looked at.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

from mesh.ports import Arrival, Clock, Intake, LedgerStore, Observer, Refusal, Stored
from mesh.transfer import ledger
from nodes.headquarters.books import ArchiveMissing, Books, LedgerRebuilt, Loaded, Shelves
from nodes.headquarters.credit import Room, credit
from nodes.headquarters.linger import Linger
from nodes.headquarters.rows import Rows, accounts, rows_of
from nodes.headquarters.verification import Parsed, Verified, open_all, parse_all, portions
from schemas.errors import Conflict, DiskFailed, LinkDown, Refused, RefusedBecause
from schemas.limits import PARTITIONS
from schemas.messages import Epoch, Lane, Receipt, Severity, Stage
from schemas.stored import LaneLedger, PartitionLedger
from schemas.topics import check_identifier

__all__ = [
    "ArchiveMissing",
    "BatchSetAside",
    "Committed",
    "Ingest",
    "IngestDelayed",
    "LedgerRebuilt",
    "NumbersDisputed",
]

_RETRY_SECONDS: Final = 1.0
_FILES_KEPT: Final = 64
_SENDERS_MAX: Final = 65_536
_RATE_WEIGHT: Final = 0.2


@dataclass(frozen=True, slots=True)
class BatchSetAside:
    """A batch did not verify; it was refused, and is kept under this name."""

    origin: str
    reason: str
    kept_as: str


@dataclass(frozen=True, slots=True)
class NumbersDisputed:
    """Other records came under numbers that are held; they are kept under this name.

    Two nodes have one name and one past: a store was copied, or restored and written on.
    """

    origin: str
    reason: str
    kept_as: str

    @property
    def severity(self) -> Severity:
        """An alarm: a person must decide which of the two is right."""
        return Severity.CRITICAL


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


class Ingest:
    """One ingest worker. Stateless: what it must not forget is in the ledger store.

    Args:
        holder: who signs the receipts.
        life: the holder's life; its counter goes into the lives of new ledgers.
        intake: where batches come from.
        store: where ledgers are.
        archive: where rows go.
        executor: of one thread, for everything that blocks at the archive.
        clock: for the time at which something was last seen.
        entropy: random bytes, for the names of commits.
        observer: is told what happens.
        linger_seconds: how long to let arrivals gather after a small group, at most, so that they
            share a file (``nodes.headquarters.linger``).
        verifier: for verifying, of one thread; ``executor`` where none is given.
        worker: this worker's name, an identifier; no two that run have the same.
        room: tells how full the way in is.
        survey_seconds: how long a look at all partitions takes, again and again: so what a dead
            worker left is published, and what the archive lost is found out, though nothing comes;
            ``None`` for never.
    """

    def __init__(
        self,
        holder: str,
        life: Epoch,
        intake: Intake,
        store: LedgerStore,
        archive: Shelves,
        executor: Executor,
        clock: Clock,
        entropy: Callable[[int], bytes],
        observer: Observer,
        linger_seconds: float = 0.0,
        *,
        verifier: Executor | None = None,
        worker: str = "main",
        room: Callable[[], Room] = Room,
        survey_seconds: float | None = None,
    ) -> None:
        self._books = Books(holder, life, store, archive, executor, entropy, observer)
        self._intake = intake
        self._archive = archive
        self._clock = clock
        self._entropy = entropy
        self._observer = observer
        self._linger = Linger(linger_seconds)
        self._verifier = verifier or executor
        self._worker = check_identifier("worker", worker)
        self._room = room
        self._survey_seconds = survey_seconds
        self._rng = random.Random(entropy(16))  # noqa: S311 - spreads waiting, no secret
        self._senders: set[tuple[str, str]] = set()
        self._bytes_per_second = 0.0

    async def run(self) -> None:
        """Ingests until cancelled.

        A link or disk that fails is tried again; nothing is acknowledged meanwhile.
        """
        if self._survey_seconds is None:
            await self._work()
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._survey(self._survey_seconds), name="survey")
            tasks.create_task(self._work(), name="work")

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        await self._insist((), tidy=True)
        async for arrivals in self._intake.batches():
            came, size = clock(), sum(len(arrival.payload) for arrival in arrivals)
            await self._insist(arrivals, tidy=False)
            await asyncio.sleep(self._linger.after(len(arrivals), size, came, clock()))

    async def _insist(self, arrivals: Sequence[Arrival], *, tidy: bool) -> None:
        while True:
            try:
                if tidy:
                    await self.finish()
                await self.ingest(arrivals)
            except (LinkDown, DiskFailed, Conflict, Refused) as failure:
                tidy = True
                self._observer.observe(IngestDelayed(str(failure)))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def finish(self) -> None:
        """Publishes or discards what an earlier worker of this name left staged.

        Raises:
            LinkDown: the ledgers cannot be asked.
            DiskFailed: the archive cannot be written.
        """
        for name in await self._books.blocking(self._archive.staged):
            number, worker = _parsed(name)
            if worker not in {self._worker, None}:
                continue
            if number is not None and await self._books.is_committed(number, name):
                await self._books.blocking(self._archive.publish, name)
            else:
                await self._books.blocking(self._archive.discard, name)

    async def _survey(self, seconds: float) -> None:
        """Looks at all partitions, one after another, again and again."""
        while True:
            for number in range(PARTITIONS):
                try:
                    if not await self._books.is_unused(number):
                        await self._load(number)
                except (LinkDown, DiskFailed, Conflict, Refused) as failure:
                    self._observer.observe(IngestDelayed(str(failure)))
                await asyncio.sleep(seconds / PARTITIONS)

    async def ingest(self, arrivals: Sequence[Arrival]) -> None:
        """Takes a group of arrivals, each to its end.

        Raises:
            LinkDown, DiskFailed: some were not taken; calling it again takes them, each number
            once.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        good: list[Parsed] = []
        for arrival, found in await loop.run_in_executor(self._verifier, parse_all, arrivals):
            if isinstance(found, Refused):
                await self._set_aside(arrival, found)
            else:
                good.append((arrival, found))
        opening = None
        for portion in portions(good):
            following = loop.run_in_executor(self._verifier, open_all, portion)
            if opening is not None:
                # Meanwhile the next portion is verified, and no more than that.
                await self._take(await opening)
            opening = following
        if opening is not None:
            await self._take(await opening)
        self._measure(sum(len(it.payload) for it in arrivals), begun)

    async def _take(self, group: Sequence[tuple[Arrival, Verified | Refused]]) -> None:
        by_partition: dict[int, list[Verified]] = {}
        for arrival, found in group:
            if isinstance(found, Refused):
                await self._set_aside(arrival, found)
                continue
            number = ledger.partition_of(found.header.site, found.header.node)
            by_partition.setdefault(number, []).append(found)
        for number, share in sorted(by_partition.items()):
            await self._commit(number, share)

    def _measure(self, size: int, begun: float) -> None:
        """How fast arrivals are taken, the newer ones weighing more."""
        seconds = asyncio.get_running_loop().time() - begun
        if size and seconds > 0:
            found = size / seconds
            known = self._bytes_per_second or found
            self._bytes_per_second = known + _RATE_WEIGHT * (found - known)

    async def _set_aside(
        self, arrival: Arrival, refused: Refused, *, disputed: bool = False
    ) -> None:
        name = ""
        if refused.reason is not RefusedBecause.FULL:
            name = await self._books.blocking(self._archive.quarantine, arrival.payload)
        origin = f"{arrival.site}/{arrival.node}/{arrival.lane}"
        self._observer.observe(BatchSetAside(origin, str(refused), name))
        if disputed:
            self._observer.observe(NumbersDisputed(origin, str(refused), name))
        await self._intake.refuse(arrival, Refusal(refused.reason, refused.detail, 0.0))

    async def _commit(self, number: int, group: Sequence[Verified]) -> None:
        """Steps 2 to 7 for one partition."""
        while True:
            loaded = await self._load(number)
            plan = _plan(loaded.ledger, group, self._clock.now().wall_ns)
            if not plan.changed:
                made, name = loaded.ledger, ""
                break
            name = f"{number:03d}-{self._worker}-{self._entropy(8).hex()}" if plan.rows else ""
            if name:
                await self._books.blocking(self._archive.stage, name, plan.rows)
            files = loaded.ledger.files
            made = replace(
                ledger.store(loaded.ledger, plan.changed),
                files=(*files[-_FILES_KEPT:], name) if name else files,
                receipts=loaded.ledger.receipts + len(plan.changed),
            )
            try:
                if await self._set(number, loaded.stored, made, name):
                    break
            except Refused as outgrown:
                await self._refuse_growth(number, group, outgrown)
                return
        if name:
            await self._books.blocking(self._archive.publish, name)
        for opened, refused in plan.refused:
            disputed = opened in plan.disputed
            await self._set_aside(opened.arrival, refused, disputed=disputed)
        if not plan.changed:
            return
        self._count_senders(plan.taken)
        await self._intake.publish(self._granted(_receipts(made, plan.changed)))
        await self._intake.accept([opened.arrival for opened in plan.taken])
        records = sum(len(rows) for rows in plan.rows)
        self._observer.observe(Committed(len(plan.taken), records, plan.duplicates))

    async def _refuse_growth(
        self, number: int, group: Sequence[Verified], outgrown: Refused
    ) -> None:
        """Takes of a group what does not make the ledger too large; the rest may come again."""
        if len(group) > 1:
            middle = len(group) // 2
            await self._commit(number, group[:middle])
            await self._commit(number, group[middle:])
            return
        detail = f"the ledger of partition {number} has outgrown its store: {outgrown.detail}"
        await self._set_aside(group[0].arrival, Refused(RefusedBecause.FULL, detail))

    async def _set(self, number: int, stored: Stored, made: PartitionLedger, name: str) -> bool:
        """Whether the ledger now counts this commit as held.

        Raises:
            Refused: ``too_large`` for the store; nothing has changed.
        """
        try:
            await self._books.write(number, stored, made)
        except Conflict:
            taken = False
        except Refused:
            if name:
                await self._books.blocking(self._archive.discard, name)
            raise
        except LinkDown:
            # Nobody knows. The name tells: it is in the ledger, or never will be.
            taken = name != "" and await self._books.is_committed(number, name)
        else:
            return True
        if not taken and name:
            await self._books.blocking(self._archive.discard, name)
        return taken

    async def _load(self, number: int) -> Loaded:
        """A partition's ledger; one that was made anew is announced to its nodes first."""
        while True:
            loaded = await self._books.load(number)
            lanes = loaded.ledger.lanes
            if not loaded.stored.version or loaded.ledger.receipts or not lanes:
                return loaded
            # The newest life of each lane comes last: one receipt waits for a node that is away.
            ordered = sorted(lanes, key=lambda it: (it.seen_wall_ns, it.epoch.counter))
            told = replace(loaded.ledger, receipts=len(lanes))
            receipts = [
                ledger.receipt(told, lane, index, Stage.ARCHIVED)
                for index, lane in enumerate(ordered, start=1)
            ]
            await self._intake.publish(self._granted(receipts))
            try:
                await self._books.write(number, loaded.stored, told)
            except Conflict:
                continue

    def _count_senders(self, taken: Sequence[Verified]) -> None:
        if len(self._senders) >= _SENDERS_MAX:
            self._senders.clear()
        self._senders.update((it.header.site, it.header.node) for it in taken)

    def _granted(self, receipts: Sequence[Receipt]) -> list[Receipt]:
        """Receipts with what they grant."""
        room, senders = self._room(), len(self._senders)
        granted = []
        for receipt in receipts:
            given = credit(receipt.lane, room, senders, self._bytes_per_second, self._rng)
            granted.append(
                replace(
                    receipt,
                    credit_bytes=given.credit_bytes,
                    not_before_ms=given.not_before_ms,
                )
            )
        return granted


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a group changes."""

    rows: tuple[Rows, ...]
    changed: tuple[LaneLedger, ...]
    taken: tuple[Verified, ...]
    refused: tuple[tuple[Verified, Refused], ...]
    disputed: tuple[Verified, ...]
    duplicates: int


def _plan(partition: PartitionLedger, group: Sequence[Verified], now_wall_ns: int) -> _Plan:
    """Step 2, pure: which rows are new, and what the ledgers say with them."""
    changed: dict[tuple[str, str, Epoch, Lane], LaneLedger] = {}
    rows: list[Rows] = []
    taken: list[Verified] = []
    refused: list[tuple[Verified, Refused]] = []
    disputed: list[Verified] = []
    duplicates = 0
    known = {(it.site, it.node, it.epoch, it.lane): it for it in partition.lanes}

    def look(key: tuple[str, str, Epoch, Lane]) -> LaneLedger:
        return changed.get(key) or known.get(key) or LaneLedger(*key)

    for opened in group:
        header = opened.header
        key = (header.site, header.node, header.epoch, header.lane)
        try:
            outcome = ledger.take(look(key), header, now_wall_ns, opened.chain_inside)
            touched = {key: outcome.ledger}
            fresh = (
                rows_of(header, outcome.new, opened.records, opened.shown) if outcome.new else None
            )
            for account in accounts(fresh) if fresh else ():
                about = (header.site, header.node, account.epoch, account.lane)
                known_of = touched.get(about) or look(about)
                # An epoch that is never recorded is as old as the life that states it.
                own = account.epoch.counter == header.epoch.counter
                touched[about] = ledger.explain(known_of, account, own=own)
            ledger.check_room(len(known.keys() | changed.keys() | touched.keys()))
        except Refused as wrong:
            refused.append((opened, wrong))
            if wrong.reason is RefusedBecause.BAD_CHAIN:
                noted = ledger.dispute(look(key), header)
                if noted != look(key):
                    changed[key] = noted
                    disputed.append(opened)
            continue
        taken.append(opened)
        changed |= touched
        duplicates += outcome.duplicates
        if fresh:
            rows.append(fresh)
    return _Plan(
        tuple(rows),
        tuple(changed.values()),
        tuple(taken),
        tuple(refused),
        tuple(disputed),
        duplicates,
    )


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


def _parsed(name: str) -> tuple[int | None, str | None]:
    """Partition and worker in the name of a commit; ``None`` where it is the name of none."""
    number, _, rest = name.partition("-")
    worker, dash, _ = rest.rpartition("-")
    if not number.isdecimal() or int(number) >= PARTITIONS:
        return None, None
    return int(number), worker if dash else None
