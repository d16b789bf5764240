"""What is done beside appending: sealing journals, writing the cursor, unlinking, giving up.

All that blocks runs in the worker, one job after another. The orders that matter:

- a journal is retired once its pending frames are durable on the shelf, the losses among them are
  stated, the cursor covers what was released of it, and a newer journal is durable;
- what was released stays, and is unlinked when its space is needed, before anything pending is
  given up for that, once the cursor that says so is durable;
- a batch that is given up is unlinked once a journal's header that says so is durable, or ``STORE``
  for a batch of a past epoch;
- a batch that is damaged is taken off the shelf once the same is true of it.

While a link is up a closed journal waits a while for its release before it is sealed, so what goes
upstream at once is written to the medium once; it then stays as it is, one of the last few, until a
later journal begins in it. What a holder has lost is taken out of what stays, and is pending, in
the very turn of the loop in which it says so; a journal is read for it before it is sealed. What
fails is tried again a few seconds later. What a crash leaves undone is done after the next opening,
since the files tell of it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from mesh.spool import events, journal, sealing, shelf, store
from mesh.spool.commit import Located
from mesh.spool.lane import WhenFull
from mesh.spool.lives import Lives, Shelved, found_in, states
from mesh.spool.losses import Losses
from mesh.spool.pump import Pump
from mesh.spool.reclaims import Reclaims
from mesh.spool.releases import Releases
from mesh.spool.retained import ClosedJournal, Retained
from mesh.spool.retention import Shelf, plan
from mesh.spool.settings import Resources, SpoolSettings
from mesh.spool.shelf import Sealed
from schemas.errors import Damaged, DiskFailed
from schemas.limits import BLOCK_BYTES, JOURNALS_CLOSED_MAX
from schemas.messages import Epoch, Explained, Lane
from schemas.stored import StoreIdentity

__all__ = ["Chores"]

_T = TypeVar("_T")
_RETRY_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.2
_TELL_SECONDS: Final = 600.0
_LOOK_SECONDS: Final = 60.0
_EXPIRED_AT_ONCE_MAX: Final = 64


class Chores:
    """Keeps the spool's house: journals, shelves, quotas, ages, the spare.

    Args:
        resources: the spool's.
        settings: the spool's.
        identity: the spool's.
        lives: the state of each lane, shared with the spool on the loop.
        pump: makes losses durable.
        survey: what was found on opening.
        state_accounts: states what was given up.
    """

    def __init__(
        self,
        resources: Resources,
        settings: SpoolSettings,
        identity: StoreIdentity,
        lives: Lives,
        pump: Pump,
        survey: store.Survey,
        state_accounts: Callable[[], Awaitable[None]],
    ) -> None:
        self._resources = resources
        self._settings = settings
        self._identity = identity
        self._lives = lives
        self._pump = pump
        self._loop = asyncio.get_running_loop()
        disk, worker = resources.disk, self._in_worker
        self.releases = Releases(disk, lives, survey, worker, resources.observer)
        found = found_in(survey, identity.epoch, lambda found: found.retained)
        # In which order they were released nobody knows any more: the least urgent go first.
        self.retained = Retained(sorted(found, key=lambda item: -item.lane.priority))
        self.losses = Losses(
            *(disk, identity, lives, pump, self.releases, survey, worker),
            resources.observer,
            state_accounts,
        )
        self.reclaims = Reclaims(
            *(disk, identity, lives, pump, self.retained, self.releases, self.losses, worker)
        )
        self._closed_at: dict[int, float] = {}
        self._ages: dict[tuple[Epoch, Lane], tuple[Sealed, int]] = {}
        self._free_bytes: int | None = None
        self._full = False
        self._spare_names = journal.spare_names(settings.spares_kept)
        self._told: tuple[events.ChoreFailed, float] | None = None
        self._due = asyncio.Event()
        self._due.set()
        self.linked = False
        """Whether a link is up, so that closed journals may wait for their release."""

    # --- queries -----------------------------------------------------------------------------

    def used_bytes(self) -> int:
        """What the spool takes on disk, in blocks, less what is only retained."""
        backlogs = [state.backlog for _, _, state in states(self._lives)]
        shelved = sum(backlog.sealed_bytes for backlog in backlogs)
        journals = [self._pump.journal_allocated, *self._pump.closed_journals.values()]
        journals += self._pump.spares.values()
        return shelved + sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in journals)

    def bytes_max(self) -> int:
        """What the spool may take: its quota, or less where the file system has less to give."""
        if self._free_bytes is None:
            return self._settings.bytes_max
        room = self.used_bytes() + self.retained.bytes + self._free_bytes
        return max(0, min(self._settings.bytes_max, room - self._settings.headroom_bytes))

    def _retained_bytes_max(self) -> int:
        """How much of what was released may stay now: what nobody else wants."""
        settings = self._settings
        most = min(settings.retained_bytes, settings.bytes_max - self.used_bytes())
        if self._free_bytes is not None:
            room = self.retained.bytes + self._free_bytes - settings.retained_leave_bytes
            most = min(most, room)
        return max(0, most)

    def shelves(self) -> list[Shelf]:
        """What each lane has, by epoch from the oldest."""
        return [
            Shelf(
                epoch,
                lane,
                state.backlog.on_shelf,
                state.backlog.sealed_bytes + state.backlog.fresh_bytes,
            )
            for epoch, lane, state in states(self._lives)
        ]

    # --- what happens ------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to do."""
        self._due.set()

    def note_release(self, epoch: Epoch, lane: Lane, gone: Sequence[Sealed], holder: str) -> None:
        """A holder has released; of these batches nothing is pending any more."""
        self.retained.add([Shelved(epoch, lane, item) for item in gone])
        self.releases.note_holder(epoch, lane, holder)
        self.wake()

    # --- what is done ------------------------------------------------------------------------

    async def run(self) -> None:
        """Does what is due, when it is. Runs until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_again_seconds()):
                    await self._due.wait()
            self._due.clear()
            try:
                await self.do()
            except DiskFailed as failure:
                self._tell(events.ChoreFailed(str(failure)))
                self._loop.call_later(_RETRY_SECONDS, self._due.set)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _look_again_seconds(self) -> float | None:
        """Until a journal has waited long enough, or records may be too old; ``None`` for never."""
        waiting = min(self._closed_at.values(), default=None)
        if self.linked and waiting is not None:
            left = waiting + self._settings.release_seconds - self._loop.time()
            return min(_LOOK_SECONDS, max(_PAUSE_SECONDS, left))
        ageing = any(lane.age_seconds_max is not None for lane in self._settings.lanes.values())
        return _LOOK_SECONDS if ageing or self._full or self.retained.bytes else None

    async def do(self) -> None:
        """Does all that is due now.

        Raises:
            DiskFailed: something is left to be done.
        """
        if self._pump.degraded:
            # Before anything else takes what a full disk has to give: a new journal needs it.
            for chore in (self._make_room, self._keep_spare):
                with suppress(DiskFailed):
                    await chore()
        failures = []
        # What fails is no reason not to do the rest: a full disk fails the sealing, and is what
        # evicting helps against.
        for chore in (
            self.losses.state_forgotten,
            self.flush,
            self._make_room,
            self._seal_journals,
            self._make_room,
            self._expire,
            self._evict,
            self.losses.set_aside,
            self._keep_spare,
        ):
            try:
                await chore()
            except DiskFailed as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    async def _make_room(self) -> None:
        """Looks how much space there is, and lets go of what is retained beyond that.

        Raises:
            DiskFailed: something is left to be unlinked.
        """
        self._free_bytes = await self._in_worker(self._resources.disk.free_bytes)
        surplus = self.retained.take_surplus(self._settings.journals_retained_max)
        going = self.retained.take_oldest(self._retained_bytes_max())
        if not surplus and not going:
            return
        journals = [item for item in going if isinstance(item, ClosedJournal)]
        for closed in (*surplus, *journals):
            self._let_go(closed)
        self.releases.note([item for item in going if isinstance(item, Shelved)])
        await self.flush()
        for closed in surplus:
            await self._retire(closed.number)
        for closed in journals:
            await self._retire(closed.number, spares_max=1)
        self._free_bytes = await self._in_worker(self._resources.disk.free_bytes)

    def _let_go(self, closed: ClosedJournal) -> None:
        """A journal is retained no more; where it cannot go now, it goes with the closed ones."""
        self.reclaims.forget(closed.number)
        self.reclaims.put_back(closed)

    async def flush(self) -> None:
        """Makes durable what was released and lost, then unlinks what is to be unlinked.

        Raises:
            DiskFailed: the cursor before still stands, or something is left to be unlinked.
        """
        await self.releases.flush()

    # --- sealing -----------------------------------------------------------------------------

    async def _seal_journals(self) -> None:
        """Retires what is released, seals what has waited long enough, oldest first.

        Until the first journal of this life is durable, the old ones alone tell the numbers.

        Raises:
            DiskFailed: something is left to be done.
        """
        if not self._pump.journal:
            return
        self._rotate_old()
        now = self._loop.time()
        for number in self._pump.closed_journals:
            self._closed_at.setdefault(number, now)
        # All are looked through once, not once for each journal.
        states_now = self._lives[self._identity.epoch].values()
        held = set[int]().union(*(state.backlog.journals for state in states_now))
        sealed = 0
        unread: DiskFailed | None = None
        for number in list(self._pump.closed_journals):
            if sealed == JOURNALS_CLOSED_MAX:
                # What is on the shelf now may have to be given up before more comes.
                self._due.set()
                return
            wanted = self.reclaims.is_wanted(number)
            few = len(self._pump.closed_journals) <= self._settings.journals_waiting
            few = few and not self._pump.behind
            waits = few and now < self._closed_at[number] + self._settings.release_seconds
            if (number in held or wanted) and self.linked and waits:
                continue
            frames = self._pending_in(number)
            if wanted:
                try:
                    await self.reclaims.read_back(number)
                except DiskFailed as failure:
                    # It is no reason not to seal the others.
                    unread = failure
                    continue
                frames = self._pending_in(number)
            if frames:
                await self._seal(number, frames)
                sealed += 1
            if self.reclaims.is_wanted(number) or self._pending_in(number):
                # A holder has lost something of it meanwhile.
                self._due.set()
            elif not self._retain(number):
                await self._retire(number)
        if unread is not None:
            raise unread

    def _rotate_old(self) -> None:
        """Begins a new journal where the open one is old: then what is in it can be given up."""
        age_ns = self._resources.clock.now().mono_ns + self._pump.running_offset_ns
        age_ns -= self._pump.journal_since_ns
        if age_ns > self._settings.journal_seconds_max * 1e9 and self._pending_in(
            self._pump.journal
        ):
            self._pump.rotate()

    def _pending_in(self, number: int) -> dict[Lane, tuple[Located, ...]]:
        return {
            lane: pending
            for lane, state in self._lives[self._identity.epoch].items()
            if (pending := state.backlog.in_journal(number))
        }

    async def _seal(self, number: int, frames: Mapping[Lane, tuple[Located, ...]]) -> None:
        """Shelves what is pending of a closed journal."""
        lanes = self._lives[self._identity.epoch]
        disk, labels = self._resources.disk, self._settings.labels
        done = await self._in_worker(sealing.seal, disk, labels, frames, self._resources.packer)
        for lane in frames:
            self.losses.note_damaged_frames(lane, done.damaged[lane])
            gone = lanes[lane].backlog.seal(number, done.batches[lane])
            self.retained.add([Shelved(self._identity.epoch, lane, item) for item in gone])
        if any(done.damaged.values()) and not await self._pump.commit():
            raise DiskFailed(f"journal {number} stays: a loss could not be stated")

    def _retain(self, number: int) -> bool:
        """Lets a closed journal stay that holds what was released, and nothing that is pending.

        What of it was sealed stands on the shelf as well, and is got back from there.

        Returns:
            Whether it stays.
        """
        settings = self._settings
        allowed = settings.journals_retained_max and settings.retained_bytes
        if not allowed or not self.reclaims.is_kept(number):
            return False
        size, reusable = self._pump.closed_journals[number], number in self._pump.reusable
        self._pump.retired(number)
        self._closed_at.pop(number, None)
        self.retained.add_journal(ClosedJournal(number, size, reusable))
        return True

    async def _retire(self, number: int, spares_max: int | None = None) -> None:
        """Removes a journal of which nothing is pending, or keeps its blocks for a later one.

        Args:
            number: which.
            spares_max: whether there are so many spares that it is removed; where none is given,
                as many as are kept in a spool that has much room.
        """
        self.reclaims.forget(number)
        await self.flush()
        names = [name for name in self._spare_names if name not in self._pump.spares]
        if spares_max is None:
            spares_max = len(self._spare_names) if 2 * self.used_bytes() < self.bytes_max() else 1
        kept = len(self._pump.spares) < spares_max
        spare = names[0] if names and kept and number in self._pump.reusable else ""
        size = await self._in_worker(journal.retire, self._resources.disk, number, spare)
        self._pump.retired(number)
        self._closed_at.pop(number, None)
        if size:
            self._pump.spares[spare] = size

    async def _keep_spare(self) -> None:
        """Sees to it that there is a spare, which is also the reserve of a full disk."""
        if self._pump.spares:
            return
        found, _ = await self._in_worker(journal.spares, self._resources.disk)
        if found:
            self._pump.spares |= found
            return
        # A full disk has none to give but what is retained, evicted or released.
        with suppress(DiskFailed):
            size = await self._in_worker(
                journal.make_spare, self._resources.disk, self._settings.reserve_bytes
            )
            self._pump.spares[journal.SPARE] = size
            return
        closed = self.retained.take_reusable()
        if closed is not None:
            self._let_go(closed)
            await self._retire(closed.number)

    # --- giving up ---------------------------------------------------------------------------

    async def _expire(self) -> None:
        """Gives up batches that are older than their lane keeps records."""
        running_ns = self._resources.clock.now().mono_ns + self._pump.running_offset_ns
        expired: list[Shelved] = []
        for epoch, lane, state in states(self._lives):
            age = self._settings.lanes[lane].age_seconds_max
            if age is None:
                continue
            for item in state.backlog.on_shelf[:_EXPIRED_AT_ONCE_MAX]:
                since_ns = await self._running_ns(epoch, lane, item)
                if since_ns is None or running_ns - since_ns <= age * 1e9:
                    break
                expired.append(Shelved(epoch, lane, item))
        await self.losses.give_up(expired, Explained.EXPIRED)

    async def _running_ns(self, epoch: Epoch, lane: Lane, item: Sealed) -> int | None:
        """The running time of a batch's last frame; ``None`` where it cannot be read now."""
        known = self._ages.get((epoch, lane))
        if known is not None and known[0] == item:
            return known[1]
        disk = self._resources.disk
        try:
            found = await self._in_worker(shelf.read, disk, lane, epoch, item)
        except Damaged as damage:
            self.losses.note_damaged_batch(epoch, lane, item, str(damage))
            return None
        except (DiskFailed, FileNotFoundError):
            return None
        self._ages[epoch, lane] = item, found.header.running_ns
        return found.header.running_ns

    async def _evict(self) -> None:
        """Gives up what does not fit, and lets those lanes refuse that never give up anything."""
        shelves = self.shelves()
        evictions = plan(shelves, self._settings.lanes, self.used_bytes(), self.bytes_max())
        given_up = [Shelved(item.epoch, item.lane, item.batch) for item in evictions]
        await self.losses.give_up(given_up, Explained.EVICTED)
        self._refuse_where_full(self.shelves() if evictions else shelves)

    def _refuse_where_full(self, shelves: Sequence[Shelf]) -> None:
        used, allowed = self.used_bytes(), self.bytes_max()
        shelved = Counter[Lane]()
        for one in shelves:
            shelved[one.lane] += one.bytes
        self._full = used > allowed
        for lane, state in self._lives[self._identity.epoch].items():
            settings = self._settings.lanes[lane]
            if not settings.enabled:
                continue
            held = shelved[lane]
            state.refuses = ""
            if settings.when_full is WhenFull.REFUSE and lane is not Lane.ACCOUNT:
                if settings.bytes_max is not None and held >= settings.bytes_max:
                    self._full = True
                    state.refuses = f"full, {held} bytes of {settings.bytes_max}"
                elif used > allowed:
                    state.refuses = f"the spool is full, {used} bytes of {allowed}"

    async def _in_worker(self, job: Callable[..., _T], *arguments: object, **more: object) -> _T:
        call = partial(job, *arguments, **more)
        return await self._loop.run_in_executor(self._resources.worker, call)

    def _tell(self, failed: events.ChoreFailed) -> None:
        """Tells a failure once in a while: telling is itself recorded."""
        now = self._loop.time()
        if self._told is None or self._told[0] != failed or now >= self._told[1]:
            self._told = (failed, now + _TELL_SECONDS)
            self._observe(failed)

    def _observe(self, event: object) -> None:
        self._resources.observer.observe(event)
