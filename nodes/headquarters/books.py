"""The books: the ledgers of all partitions as they stand at their store, held against the archive.

Whoever loads a ledger first publishes the files that it names: a worker that died after its commit
may have left them staged. Then two things may turn out, and each begins a new *life* of that
ledger, since receipts count within a life and senders compare nothing across two of them:

- the store has no ledger, and the archive has rows: the store was lost. What has a row is held;
- the ledger's newest file is not in the archive: the archive was restored from an older copy. What
  is not there is no longer held, however often it was receipted. A sender that sees a receipt of a
  life it does not know, below what it has released, offers again what it still has, and states the
  rest as forgotten.

Ledgers so made count no receipts yet; a worker that meets one *announces* it: a receipt for each of
its lanes, also for those of which nothing is left.

The newest files of a partition, as many as its ledger names, must therefore stay where they were
published; older ones may be moved away, and are counted as lost only when a ledger is rebuilt.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from mesh.ports import LedgerStore, Observer, Stored
from mesh.transfer import ledger
from nodes.headquarters.index import FileIndex, LaneKey, ledgers
from nodes.headquarters.rows import Rows
from schemas import wire
from schemas.errors import Conflict, Refused, StoreUnusable
from schemas.messages import Account, Epoch
from schemas.stored import LaneLedger, PartitionLedger

__all__ = ["ArchiveMissing", "Books", "LedgerRebuilt", "Loaded", "Shelves"]

_T = TypeVar("_T")
_DECODED_LANES_MAX: Final = 65_536
_DOUBT_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class LedgerRebuilt:
    """A partition's ledger was made from the archive, whose rows count as held."""

    partition: int
    records: int


@dataclass(frozen=True, slots=True)
class ArchiveMissing:
    """The ledger counts records as held whose newest file is not in the archive."""

    partition: int
    name: str
    held: int


class Shelves(Protocol):
    """What a worker asks of an archive. Blocking; ``Archive`` says what each does."""

    def stage(self, name: str, rows: Sequence[Rows]) -> None:
        """Writes rows that nobody reads yet."""
        ...

    def publish(self, name: str) -> None:
        """Puts staged files into their places."""
        ...

    def staged(self) -> list[str]:
        """The names of commits that are not wholly published."""
        ...

    def holds(self, name: str) -> bool:
        """Whether files of a commit are there."""
        ...

    def index(self) -> dict[LaneKey, FileIndex]:
        """What all published files hold."""
        ...

    def accounts(self) -> list[tuple[str, str, Epoch, Account]]:
        """The newest statements."""
        ...

    def discard(self, name: str) -> None:
        """Removes staged files."""
        ...

    def quarantine(self, payload: bytes) -> str:
        """Keeps what was refused."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A partition's ledger, and the version that it has at the store."""

    stored: Stored
    ledger: PartitionLedger


class Books:
    """The ledgers of all partitions, for one worker.

    Args:
        holder: who signs the receipts.
        life: the holder's life; its counter goes into the lives of ledgers that are made here.
        store: where ledgers are.
        archive: where rows are.
        executor: of one thread, for everything that blocks.
        entropy: random bytes, for lives.
        observer: is told what turns out.
    """

    def __init__(
        self,
        holder: str,
        life: Epoch,
        store: LedgerStore,
        archive: Shelves,
        executor: Executor,
        entropy: Callable[[int], bytes],
        observer: Observer,
    ) -> None:
        self._holder = holder
        self._life = life
        self._store = store
        self._archive = archive
        self._executor = executor
        self._entropy = entropy
        self._observer = observer
        self._looked: set[int] = set()
        self._empty: set[int] = set()
        self._published: dict[int, tuple[str, ...]] = {}
        # What this worker read or wrote last, so that it need not be decoded again.
        self._decoded: dict[int, tuple[bytes, PartitionLedger]] = {}

    async def load(self, number: int) -> Loaded:
        """A partition's ledger, all files that it names published.

        Raises:
            LinkDown: the store cannot be asked.
            DiskFailed: the archive cannot be read or written.
            StoreUnusable: the ledger cannot be read; a person must look.
        """
        while True:
            loaded = await self.look(number)
            if not loaded.stored.version:
                made = await self._made(number, loaded.ledger)
                if not made.lanes:
                    self._empty.add(number)
                    return Loaded(loaded.stored, made)
                # The archive knows more than the store does: once written it can be announced.
                with suppress(Conflict):
                    await self.write(number, loaded.stored, made)
                continue
            await self._publish(number, loaded.ledger.files)
            if number in self._looked or not await self._is_missing(number, loaded.ledger):
                self._looked.add(number)
                return loaded
            await self.rebuild(number)

    async def is_unused(self, number: int) -> bool:
        """Whether there is no ledger, and at the last look the archive had nothing for it either.

        Cheap: for who looks at all partitions, again and again, and changes nothing.

        Raises:
            LinkDown: the store cannot be asked.
        """
        return number in self._empty and not (await self._store.load(number)).version

    async def rebuild(self, number: int) -> PartitionLedger:
        """Makes a partition's ledger anew from the archive, in a new life.

        Returns:
            The ledger as it now stands at the store; without lanes, nothing was written.

        Raises:
            LinkDown, DiskFailed, StoreUnusable: as ``load``; calling it again goes on.
        """
        while True:
            loaded = await self.look(number)
            # What is named and staged is held. So published first, then looked for.
            await self._publish(number, loaded.ledger.files)
            made = await self._made(number, loaded.ledger)
            if not made.lanes and not loaded.stored.version:
                return made
            try:
                await self.write(number, loaded.stored, made)
            except Conflict:
                continue
            return made

    async def write(self, number: int, before: Stored, made: PartitionLedger) -> None:
        """Puts a ledger into the place of the one that was loaded.

        Raises:
            Conflict: another worker has replaced that meanwhile.
            LinkDown: nobody knows whether it is written.
        """
        state = wire.encode(made)
        await self._store.compare_and_set(number, before.version, state)
        self._remember(number, state, made)

    async def is_committed(self, number: int, name: str) -> bool:
        """Whether the ledger names a commit; where it does not, it never will.

        Raises:
            LinkDown, StoreUnusable: as ``load``.
        """
        while True:
            loaded = await self.look(number)
            if name in loaded.ledger.files:
                return True
            try:
                await self.write(number, loaded.stored, loaded.ledger)
            except Conflict:
                continue
            return False

    async def look(self, number: int) -> Loaded:
        """A partition's ledger as it stands; an empty one where there is none.

        Raises:
            LinkDown, StoreUnusable: as ``load``.
        """
        stored = await self._store.load(number)
        if not stored.version:
            return Loaded(stored, PartitionLedger(self._holder, self._life))
        known = self._decoded.get(number)
        if known is not None and known[0] == stored.state:
            return Loaded(stored, known[1])
        try:
            found = wire.decode_as(PartitionLedger, stored.state)
        except Refused as wrong:
            raise StoreUnusable(
                f"the ledger of partition {number} cannot be read ({wrong}): it is of a newer "
                "version, or damaged"
            ) from wrong
        self._remember(number, stored.state, found)
        return Loaded(stored, found)

    def _remember(self, number: int, state: bytes, decoded: PartitionLedger) -> None:
        self._decoded.pop(number, None)
        self._decoded[number] = state, decoded
        lanes = sum(len(known.lanes) for _, known in self._decoded.values())
        while lanes > _DECODED_LANES_MAX:
            _, oldest = self._decoded.pop(next(iter(self._decoded)))
            lanes -= len(oldest.lanes)

    async def _publish(self, number: int, files: tuple[str, ...]) -> None:
        known = self._published.get(number, ())
        for name in files:
            if name not in known:
                await self.blocking(self._archive.publish, name)
        self._published[number] = files

    async def _is_missing(self, number: int, partition: PartitionLedger) -> bool:
        """Whether the archive lacks what the ledger committed last."""
        if not partition.files or await self.blocking(self._archive.holds, partition.files[-1]):
            return False
        # A shared file system may show a folder as it was a moment ago.
        await asyncio.sleep(_DOUBT_SECONDS)
        newest = partition.files[-1]
        if await self.blocking(self._archive.holds, newest):
            return False
        held = sum(len(lane.held) for lane in partition.lanes)
        self._observer.observe(ArchiveMissing(number, newest, held))
        return True

    async def _made(self, number: int, was: PartitionLedger) -> PartitionLedger:
        """A ledger of a new life, holding what the archive has of its partition."""

        def is_ours(site: str, node: str) -> bool:
            return ledger.partition_of(site, node) == number

        index = await self.blocking(self._archive.index)
        share: Mapping[LaneKey, FileIndex] = {
            key: held for key, held in index.items() if is_ours(key[0], key[1])
        }
        lanes: list[LaneLedger] = []
        if share or was.lanes:
            accounts = await self.blocking(self._archive.accounts)
            ours = [it for it in accounts if is_ours(it[0], it[1])]
            lanes = ledgers(share, ours, was.lanes)
            held = sum(len(lane.held) for lane in lanes)
            if number not in self._looked:
                self._observer.observe(LedgerRebuilt(number, held))
        self._looked.add(number)
        counter = max(self._life.counter, was.life.counter + bool(was.lanes))
        life = Epoch(counter, int.from_bytes(self._entropy(8), "little"))
        # No file is named: all of them are where they belong.
        return ledger.store(
            replace(was, holder=self._holder, life=life, receipts=0, files=()), lanes
        )

    async def blocking(self, job: Callable[..., _T], *arguments: object) -> _T:
        """Runs a call that blocks in the executor."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, job, *arguments)
