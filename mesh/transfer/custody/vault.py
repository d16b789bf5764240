"""The vault: what is held, where it stands, and the one way in which that becomes durable.

The index of a store and its writer, kept in step: each change of the index that a receipt may rest
on follows the sync that makes it durable. It knows nothing of arrivals and receipts. One caller at
a time for what is ``async``; ``release`` and ``reclaim`` may come in between.

Room is made only of what the next holder has: journals in which nothing is pending go, the oldest
first, once its release is durable; a journal of which less than half is pending is copied into the
newest.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, TypeVar, TypeVarTuple

from mesh.transfer.custody.entry import ENTRY_HEAD_BYTES, Draft, Entry, Kind
from mesh.transfer.custody.events import (
    BatchesLost,
    CustodyDegraded,
    CustodyOpened,
    CustodyRecovered,
    LifeBegun,
)
from mesh.transfer.custody.files import Files
from mesh.transfer.custody.lane import Holding, Kept, LaneKey, Place, key_of
from mesh.transfer.custody.offer import fetch
from mesh.transfer.custody.opening import LOCK, Opened, open_store
from mesh.transfer.custody.settings import CustodyResources, CustodySettings
from mesh.transfer.custody.writer import RESERVE_BYTES, Writer, Written
from mesh.transfer.source import Life
from schemas import wire
from schemas.errors import DiskFailed, DiskFull, Refused
from schemas.limits import (
    BLOCK_BYTES,
    CUSTODY_GROUP_BYTES_MAX,
    CUSTODY_JOURNALS_MAX,
    CUSTODY_LANES_MAX,
    CUSTODY_SPANS_MAX,
    INTAKE_BATCHES_MAX,
)
from schemas.messages import BatchHeader, Epoch
from schemas.ranges import Ranges
from schemas.stored import CustodyHead, CustodyLane, CustodyRelease, LaneLedger

__all__ = ["Vault"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_LIFE_BYTES: Final = 8
_RELEASES_MAX: Final = 4096
_OPENING_SHIFT: Final = 32
_NOTHING: Final = Ranges()


class Vault:
    """The index and the writer of a store.

    Args:
        resources: what it needs of the world.
        settings: how much it may hold.
        on_stated: called when the holder's life is durable.
        on_change: called when ``tend`` has something to do.
    """

    def __init__(
        self,
        resources: CustodyResources,
        settings: CustodySettings,
        on_stated: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._resources = resources
        self._settings = settings
        self._on_stated = on_stated
        self._on_change = on_change
        self._writer = Writer(resources.disk)
        self._store = b""
        self._number = 0
        self._snapshot_bytes = 0
        self._spans = 0
        self._pending: dict[Life, int] = {}
        self._lives: list[Life] | None = None
        self._unsaved: dict[tuple[LaneKey, str], Ranges] = {}
        self._removable: set[int] = set()
        self._must_rotate = False
        self.files = Files({})
        self.holdings: dict[LaneKey, Holding] = {}
        self.life = Epoch(0, 0)
        self.is_life_durable = False
        self.receipts = 0
        """How many were given; counts up within a life, across openings too."""
        self.may_expire = settings.max_age_seconds is not None
        self.degraded = ""
        """Why nothing is taken; empty where it is."""

    def __repr__(self) -> str:
        return f"<Vault {self.life} {self.files} {self.degraded}>"

    async def open(self) -> None:
        """Opens the store, whatever is left of it, and begins a journal.

        Raises:
            StoreInUse: another process has it.
            StoreUnusable: it is of another holder or format.
            DiskFailed: there is no writing here at all.
        """
        resources = self._resources
        opened = await self.in_writer(
            open_store,
            resources.disk,
            self._settings.holder,
            resources.machine,
            resources.entropy,
            resources.clock.now(),
        )
        await self._adopt(opened)

    async def close(self) -> None:
        """Gives the store back."""
        await self.in_writer(self._writer.close)
        self._resources.disk.unlock(LOCK)

    def lives(self) -> Sequence[Life]:
        """The lives of which something is pending; of one node the oldest first."""
        if self._lives is None:
            self._lives = sorted(self._pending, key=_by_age)
        return self._lives

    def room(self) -> int:
        """How many bytes more the store may take."""
        return self._settings.bytes_max - RESERVE_BYTES - self.files.used_bytes

    def why_full(self, size: int, room: int, lanes: int) -> str:
        """Why a batch finds no room; empty where it does.

        Args:
            size: its bytes.
            room: how much there is, as ``make_room`` says.
            lanes: how many lanes are about to be known for the first time, its own among them.
        """
        if self.degraded:
            return f"the store is degraded: {self.degraded}"
        if size + ENTRY_HEAD_BYTES > room:
            return f"{self.files.used_bytes} of {self._settings.bytes_max} bytes are taken"
        if self.files.batches >= self._settings.batches_max:
            return f"{self.files.batches} batches are here, as many as may be"
        if len(self.files) >= CUSTODY_JOURNALS_MAX - 1:
            return f"{len(self.files)} journals are here, as many as may be"
        if len(self.holdings) + lanes > CUSTODY_LANES_MAX:
            return f"{len(self.holdings)} lanes are known, as many as may be"
        if self._spans >= CUSTODY_SPANS_MAX:
            return f"what is held has {self._spans} spans, as many as may be"
        return ""

    async def commit(self, drafts: Sequence[Draft]) -> Written:
        """Makes a group durable, with the releases that wait.

        Raises:
            DiskFull: there is no room for it.
            DiskFailed: the disk does not take it, in a new journal either.
        """
        released = dict(islice(self._unsaved.items(), _RELEASES_MAX))
        are_all = len(released) == len(self._unsaved)
        newest = self.files.newest()
        due = not newest or self._due(newest[-1])
        if self._writer.is_open and self.is_life_durable and not self._must_rotate and not due:
            idle = set(self.files.idle()) if are_all else set()
            group = [*drafts, *(self._draft(name, it) for name, it in released.items())]
            try:
                written = await self.in_writer(
                    self._writer.append, group, self._resources.clock.now()
                )
            except DiskFailed:
                if self._writer.is_open:
                    raise
            else:
                self.files.grow(written.journal, written.size)
                self._saved(released, idle)
                self._recovered()
                return written._replace(entries=written.entries[: len(drafts)])
        return await self._begin(drafts)

    def keep(self, headers: Sequence[BatchHeader], entries: Sequence[Entry]) -> None:
        """These batches stand in these entries, durably."""
        now = self._resources.clock.now()
        for header, entry in zip(headers, entries, strict=True):
            key = key_of(header)
            kept = Kept.of(header, _place(entry), now.mono_ns, entry.at)
            self.may_expire |= kept.expires_wall_ns is not None
            pending = self._holding(key).add(kept)
            self.files.put(key, kept, pending=pending)
            if pending:
                self._count_pending(key.life, 1)

    def put_ledger(self, key: LaneKey, changed: LaneLedger) -> None:
        """What is known of a lane, once that is durable."""
        holding = self._holding(key)
        spans = holding.spans
        holding.ledger = changed
        self._spans += holding.spans - spans

    def release(self, key: LaneKey, numbers: Ranges, holder: str, mark: int) -> None:
        """The next holder has these numbers: they are no longer pending; durable a little later."""
        holding = self.holdings.get(key)
        if holding is None:
            return
        new = numbers - holding.released
        spans = holding.spans
        done = holding.release(numbers, holder, mark)
        self._spans += holding.spans - spans
        if done:
            self.files.settle(done)
            self._count_pending(key.life, -len(done))
        if new:
            self._unsaved[key, holder] = self._unsaved.get((key, holder), _NOTHING) | new
        self._on_change()

    def reclaim(self, key: LaneKey, numbers: Ranges, holder: str) -> tuple[Ranges, Ranges]:
        """The next holder has lost these numbers.

        Returns:
            Those that are pending again, and those of which nothing is here any more.
        """
        holding = self.holdings.get(key)
        if holding is None:
            return _NOTHING, _NOTHING
        lost = numbers & holding.released
        back, gone = holding.reclaim(lost, holder)
        self.files.revive(back)
        if back:
            self._count_pending(key.life, len(back))
        self._removable -= {kept.place.journal for kept in back}
        for saved in [name for name in self._unsaved if name[0] == key]:
            del self._unsaved[saved]
        self._must_rotate = True
        self._on_change()
        return lost - gone, gone

    def take_out(self, key: LaneKey, gone: Sequence[Kept]) -> Ranges:
        """Pending batches are here no more; returns the numbers that go with them."""
        holding = self.holdings[key]
        holding.remove(gone)
        for kept in gone:
            self.files.take_out(kept, pending=True)
        self._count_pending(key.life, -len(gone))
        return holding.missing(gone)

    def lose(self, key: LaneKey, numbers: Ranges, reason: str, name: str = "") -> None:
        """Numbers leave ``held``, under a new life, which ends all appending to the old journal."""
        self.observe(BatchesLost(str(key), str(numbers), reason, name))
        if not numbers:
            return
        holding = self.holdings[key]
        spans = holding.spans
        holding.lose(numbers)
        self._spans += holding.spans - spans
        if self.is_life_durable:
            random = int.from_bytes(self._resources.entropy(_LIFE_BYTES), "little")
            self.life = Epoch(self.life.counter + 1, random)
            self.is_life_durable = False
            self.observe(LifeBegun(str(self.life), f"{key} {numbers}: {reason}"))

    async def tend(self) -> None:
        """Makes durable what waits for it, and gives space back.

        Raises:
            DiskFailed: the disk does not take it.
        """
        if self._must_rotate or not self.is_life_durable or self.degraded:
            await self._begin([])
        elif self._unsaved:
            await self._save()
        await self._collect(0)
        await self.in_writer(self._writer.reserve)

    async def state_life(self) -> None:
        """Makes the present life durable, so that receipts can be given in it.

        Raises:
            DiskFailed: the disk does not take it.
        """
        if not self.is_life_durable:
            await self._begin([])

    async def settle(self) -> None:
        """Makes durable what was released until now.

        Raises:
            DiskFailed: not all of it is.
        """
        if self._unsaved or self._must_rotate:
            await self._save()

    async def make_room(self, size: int) -> int:
        """Makes room out of what the next holder has; returns how much there is."""
        # A new journal may have to be begun for it.
        apart = self._snapshot_bytes + 2 * BLOCK_BYTES
        wanted = size + apart
        if self.room() < wanted:
            await self._collect(wanted)
        while self.room() < wanted and (number := self.files.sparsest()) is not None:
            try:
                await self._compact(number)
            except DiskFailed:
                break
            await self._collect(wanted)
        return self.room() - apart

    async def _save(self) -> None:
        """Makes releases durable; where the disk is full, with what was kept for that."""
        try:
            await self.commit([])
        except DiskFull:
            await self.in_writer(self._writer.spend_reserve)
            await self.commit([])

    async def _collect(self, wanted: int) -> None:
        """Removes journals in which nothing is pending, as far as their space is needed."""
        retained_max = self._settings.bytes_max * self._settings.retained_share
        idle = [number for number in self.files.idle() if number in self._removable]
        going: list[int] = []
        room, retained, files = self.room(), self.files.idle_bytes(), len(self.files)
        batches_left = self._settings.batches_max - self.files.batches
        for number in idle:
            enough = room >= wanted and retained <= retained_max
            if enough and files < CUSTODY_JOURNALS_MAX // 2 and batches_left > INTAKE_BATCHES_MAX:
                break
            freed = self.files.occupied(number)
            room, retained, files = room + freed, retained - freed, files - 1
            batches_left += self.files.count(number)
            going.append(number)
        if not going:
            return
        # Forgotten first: what is on its way out can no longer be taken back.
        for number in going:
            self._removable.discard(number)
            self._forget(self.files.remove(number))
        await self.in_writer(self._writer.remove, going)

    def _forget(self, gone: Sequence[tuple[LaneKey, Kept]]) -> None:
        by_key: dict[LaneKey, list[Kept]] = {}
        for key, kept in gone:
            by_key.setdefault(key, []).append(kept)
        for key, several in by_key.items():
            self.holdings[key].remove(several)

    async def _compact(self, number: int) -> None:
        """Copies what is pending in a journal into the newest one.

        Raises:
            DiskFailed: it could not be written; nothing is lost.
        """
        moving: list[tuple[LaneKey, Kept]] = []
        drafts: list[Draft] = []
        for key, kept in list(self.files.batches_in(number)):
            if not self.holdings[key].rest(kept):
                continue
            try:
                batch = await self.in_worker(fetch, self._resources.disk, kept)
            except (Refused, FileNotFoundError) as wrong:
                self.lose(key, self.take_out(key, [kept]), str(wrong))
                continue
            moving.append((key, kept))
            drafts.append(Draft(Kind.BATCH, batch.data))
            if sum(len(draft.body) for draft in drafts) >= CUSTODY_GROUP_BYTES_MAX // 2:
                await self._move(moving, drafts)
                moving, drafts = [], []
        await self._move(moving, drafts)
        # Now it is idle; that what was released of it is durable, this commit says.
        await self.commit([])

    async def _move(self, moving: Sequence[tuple[LaneKey, Kept]], drafts: Sequence[Draft]) -> None:
        written = await self.commit(drafts)
        for (key, kept), entry in zip(moving, written.entries, strict=True):
            pending = bool(self.holdings[key].rest(kept))
            self.files.take_out(kept, pending=pending)
            kept.place = _place(entry)
            self.files.put(key, kept, pending=pending)

    async def _begin(self, drafts: Sequence[Draft]) -> Written:
        """Begins a journal: a snapshot, and a group behind it.

        Raises:
            DiskFailed: the disk does not take it.
        """
        if len(self.files) >= CUSTODY_JOURNALS_MAX:
            raise DiskFull(f"{len(self.files)} journals are here, as many as may be")
        self._number += 1
        lanes = [holding.state for holding in self.holdings.values()]
        released, idle, life = dict(self._unsaved), set(self.files.idle()), self.life
        now = self._resources.clock.now()
        head = CustodyHead(
            self._store,
            self._settings.holder,
            life,
            self._resources.machine,
            self._number,
            now.wall_ns,
            len(lanes),
            self.files.ends(),
        )
        rotate, self._must_rotate = self._must_rotate, False
        try:
            written = await self.in_writer(self._writer.begin, head, lanes, drafts, now)
        except DiskFailed as failure:
            self._must_rotate |= rotate
            if not self.degraded:
                self.degraded = str(failure)
                self.observe(CustodyDegraded(self.degraded))
            self._on_change()
            raise
        self.files.grow(self._number, written.size)
        self._snapshot_bytes = written.size - sum(
            len(draft.body) + ENTRY_HEAD_BYTES for draft in drafts
        )
        self._saved(released, idle)
        self._recovered()
        if not self.is_life_durable and life == self.life:
            self.is_life_durable = True
            self._on_stated()
            # Later than all of an earlier opening in the same life.
            self.receipts = max(self.receipts, self._number << _OPENING_SHIFT)
        return written

    def _due(self, newest: int) -> bool:
        """Whether the open journal is large enough; a snapshot is never most of what is written."""
        size = self.files.end(newest) - self._snapshot_bytes
        return size >= max(self._settings.journal_bytes_max, self._snapshot_bytes)

    def _draft(self, name: tuple[LaneKey, str], numbers: Ranges) -> Draft:
        key, holder = name
        mark = self.holdings[key].holders.get(holder, 0)
        said = CustodyRelease(*key.life, key.lane, numbers, holder, mark)
        return Draft(Kind.RELEASE, wire.encode(said))

    def _saved(self, released: dict[tuple[LaneKey, str], Ranges], idle: set[int]) -> None:
        """These releases are durable, so what was idle with them may go."""
        for name, numbers in released.items():
            rest = self._unsaved.get(name, _NOTHING) - numbers
            if rest:
                self._unsaved[name] = rest
            else:
                self._unsaved.pop(name, None)
        self._removable |= idle & set(self.files.idle())

    def _recovered(self) -> None:
        if self.degraded:
            self.degraded = ""
            self.observe(CustodyRecovered())

    def _holding(self, key: LaneKey) -> Holding:
        holding = self.holdings.get(key)
        if holding is None:
            holding = Holding(CustodyLane(LaneLedger(*key.life, key.lane)))
            self.holdings[key] = holding
        return holding

    def _count_pending(self, life: Life, more: int) -> None:
        count = self._pending.get(life, 0) + more
        if (life in self._pending) != bool(count):
            self._lives = None
        if count:
            self._pending[life] = count
        else:
            self._pending.pop(life, None)

    async def _adopt(self, opened: Opened) -> None:
        """Makes of what opening found what is held, and begins a journal."""
        self._store, self.life = opened.store, opened.life
        self._number = opened.number - 1
        self.files = Files(opened.ends)
        self.holdings = dict(opened.found.holdings)
        for key, holding in self.holdings.items():
            self._spans += holding.spans
            for kept in holding.kept():
                pending = bool(holding.rest(kept))
                self.files.put(key, kept, pending=pending)
                self.may_expire |= kept.expires_wall_ns is not None
                if pending:
                    self._count_pending(key.life, 1)
        lost = sum(len(numbers) for numbers in opened.found.lost.values())
        if opened.reason and opened.number > 1:
            self.observe(LifeBegun(str(self.life), opened.reason))
        records = sum(
            len(holding.ledger.held - holding.released) for holding in self.holdings.values()
        )
        self.observe(CustodyOpened(str(self.life), self.files.pending, records, lost))
        with suppress(DiskFailed):
            await self._begin([])
            await self.in_writer(self._writer.remove, opened.useless)
            await self.in_writer(self._writer.reserve)
        self._on_change()

    async def in_writer(self, job: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Runs something that writes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resources.writer, job, *arguments)

    async def in_worker(self, job: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
        """Runs something that reads or computes."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._resources.worker, job, *arguments)

    def observe(self, event: object) -> None:
        """Tells what happened."""
        self._resources.observer.observe(event)


def _place(entry: Entry) -> Place:
    return Place(entry.journal, entry.body_offset, entry.body_bytes)


def _by_age(life: Life) -> tuple[str, str, int]:
    return (life.site, life.node, life.epoch.counter)
