"""The spool: all lanes of one node, durable, bounded, truthful. The single writer of its folder.

Promises, in the order in which the code keeps them:

1. A number is handed out only below a reservation that is durable, so none is ever used twice.
2. ``Appended.settled`` becomes true only after the records' bytes are synced. Where it becomes
   false, their numbers are explained.
3. Only ``release`` releases, and it is only called with what a receipt said. The cursor is durable
   before anything is unlinked.
4. What is given up is stated in a durable journal header before it is unlinked, and in an account.
5. For each lane of each epoch: ``next_seq = released + pending + waiting + explained``, counted as
   sets of numbers, at every instant and across every crash.
6. What an earlier life of this spool left pending keeps its identities and is handed on with the
   rest: ``epochs`` names the lives, the present one last.
7. What was released stays while there is space, and is counted nowhere but as retained. A holder
   that has lost it (``reclaim``) makes it pending again; what is no longer there is stated as
   ``forgotten``. A crash before that is durable leaves it released and still there, for the holder
   to say again: it is never unlinked unless that is durable, and never gone without a statement.

Two threads serve the loop. The *writer* frames, writes and syncs groups, nothing else. The *worker*
reads back, seals, writes the cursor and unlinks; its jobs run one after another, so a file is never
unlinked under a reader. The loop owns all state and never waits for either. When the disk fails
twice in a row the spool is *degraded*: it refuses records, deciding goes on with numbers of an
epoch that is never recorded (``forgo``), and a new journal is tried every few seconds.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mesh.ports import Disk
from mesh.spool import epochs, events, journal, sealing, shelf, store
from mesh.spool.accounts import statements
from mesh.spool.age import running_offset_ns
from mesh.spool.ahead import ReadAhead
from mesh.spool.batch import Batch
from mesh.spool.chores import Chores
from mesh.spool.commit import Located, Writer
from mesh.spool.epochs import OUTDATED
from mesh.spool.explained import all_of
from mesh.spool.frame import Owner
from mesh.spool.lane import LaneState, LaneStatus
from mesh.spool.lives import Lives
from mesh.spool.pump import Appended, Pump
from mesh.spool.retention import first_to_go
from mesh.spool.settings import DEFAULT_LANES, Resources, SpoolSettings
from mesh.spool.shelf import Sealed
from schemas import wire
from schemas.errors import (
    Damaged,
    DiskFailed,
    DiskReadOnly,
    Overloaded,
    Refused,
    RefusedBecause,
    StoreUnusable,
)
from schemas.limits import READ_AHEAD_BATCHES_MAX
from schemas.messages import Epoch, Identity, Lane
from schemas.ranges import Ranges
from schemas.stored import StoreIdentity

__all__ = ["DEFAULT_LANES", "Appended", "Resources", "Spool", "SpoolSettings", "SpoolStatus"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """How the spool stands.

    Args:
        epoch: its present life.
        degraded: why it takes nothing; empty when it does.
        used_bytes: what it takes on disk.
        bytes_max: what it may take.
        retained_bytes: what was released and stays while there is space takes beside that.
        hours_left: how long until it is full at the present rate; ``None`` while nothing grows.
        lanes: how each lane stands.
        first_to_go: the lanes that give up records when it is full, in that order.
        epochs: the lives that have something pending, the present one last.
    """

    epoch: Epoch
    degraded: str
    used_bytes: int
    bytes_max: int
    hours_left: float | None
    lanes: Mapping[Lane, LaneStatus]
    first_to_go: tuple[Lane, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    retained_bytes: int = 0


class Spool:
    """Made by ``Spool.open``; ``maintain`` must run beside it; ended by ``close``."""

    def __init__(
        self,
        resources: Resources,
        settings: SpoolSettings,
        opened: "_Opened",
    ) -> None:
        identity, survey = opened.identity, opened.survey
        self._resources = resources
        self._settings = settings
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        found = [*survey.past.items(), (identity.epoch, survey.lanes)]
        self._lives = {
            epoch: {
                lane: LaneState.after(standing, settings.lanes[lane])
                for lane, standing in lanes.items()
            }
            for epoch, lanes in found
        }
        self._lanes = self._lives[identity.epoch]
        for state in self._lanes.values():
            if not state.settings.enabled:
                state.refuses = "switched off in the configuration"
        self._unrecorded = Epoch(identity.epoch.counter, _random(resources))
        self._grown = asyncio.Event()
        journals = {content.number: content.size for content in survey.journals}
        marks = {lane: found.mark for lane, found in survey.lanes.items()}
        owner = Owner(identity.store, identity.epoch, resources.boot)
        number = max([opened.highest, *journals])
        writer = Writer(resources.disk, owner, marks, number)
        # What lies ready is what the first journal needs on a full disk.
        self._pump = Pump(
            self._lanes,
            identity.epoch,
            writer,
            resources,
            journals,
            self._after_commit,
            settings.journal_bytes,
            settings.unsealed_bytes_max,
            opened.running_offset_ns,
        )
        self._pump.spares |= opened.spares
        self._chores = Chores(
            resources,
            settings,
            identity,
            self._lives,
            self._pump,
            survey,
            partial(self.state_accounts, past=True),
        )
        read = partial(_read_sealed, resources.disk)
        self._ahead = ReadAhead(resources.worker, read, lambda piece: piece.size)

    def _after_commit(self) -> None:
        self._grown.set()
        if self._pump.closed_journals or self._pump.degraded:
            self._chores.wake()

    # --- opening and closing -----------------------------------------------------------------

    @classmethod
    async def open(cls, resources: Resources, settings: SpoolSettings) -> "Spool":
        """Opens a spool, or makes one. No damage prevents it; what is lost is stated first.

        Raises:
            StoreInUse: another process owns it.
            StoreUnusable: it is another node's, of an unknown format, or cannot be written.
        """
        loop = asyncio.get_running_loop()
        work = partial(_open_files, resources, settings)
        found = await loop.run_in_executor(resources.worker, work)
        spool = cls(resources, settings, found)
        survey = found.survey
        for event in found.told:
            spool._observe(event)
        await spool.commit()
        spool._observe_opening(survey)
        await spool.state_accounts(past=True)
        return spool

    def _observe_opening(self, survey: store.Survey) -> None:
        newly = {
            lane: {why: len(numbers) for why, numbers in found.newly.items()}
            for lane, found in survey.lanes.items()
            if found.newly
        }
        pending = {
            lane: sum(
                lanes[lane].backlog.records for lanes in self._lives.values() if lane in lanes
            )
            for lane in Lane
        }
        self._observe(events.SpoolOpened(str(self.epoch), pending, newly))
        for lane, state in self._lanes.items():
            if pending[lane] and not state.settings.enabled:
                self._observe(events.LaneOff(lane, pending[lane]))

    async def close(self) -> None:
        """Commits what waits, closes in order: the next opening finds nothing void.

        Where the disk fails, it is left as after a crash. ``maintain`` must have ended.
        """
        try:
            await self._pump.close()
            await self._chores.flush()
        except DiskFailed as failure:
            self._observe(events.ChoreFailed(str(failure)))
        finally:
            await self._in_worker(self._resources.disk.unlock, store.LOCK)

    # --- queries -----------------------------------------------------------------------------

    @property
    def epoch(self) -> Epoch:
        """The present life."""
        return self._identity.epoch

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The lives that have something pending, the oldest first; the present one always, last."""
        return tuple(
            epoch
            for epoch, lanes in self._lives.items()
            if epoch == self.epoch or any(state.backlog.records for state in lanes.values())
        )

    @property
    def degraded(self) -> str:
        """Why it takes nothing; empty when it does."""
        return self._pump.degraded

    def next_seq(self, lane: Lane) -> int:
        """The number that the lane's next record will take."""
        return self._lanes[lane].next_seq

    def durable(self, lane: Lane, epoch: Epoch | None = None) -> int:
        """Numbers below this are durable, or explained, or on their way to the disk."""
        state = self._lane(lane, epoch)
        return 0 if state is None else state.next_seq - len(state.waiting)

    def released(self, lane: Lane, epoch: Epoch | None = None) -> Ranges:
        """What was released of a lane."""
        state = self._lane(lane, epoch)
        return Ranges() if state is None else state.backlog.released

    def explained(self, lane: Lane, epoch: Epoch | None = None) -> Ranges:
        """The numbers of a lane that will never arrive, whatever the reason."""
        state = self._lane(lane, epoch)
        return Ranges() if state is None else all_of(state.explained)

    def held_by(self, lane: Lane, holder: str, epoch: Epoch | None = None) -> int:
        """A holder, the only one that is known of the lane, has released the numbers below this.

        0 where there are others too: what each of them has is not told apart.
        """
        holders = self._chores.releases.holders(epoch or self.epoch, lane)
        return holders.get(holder, 0) if len(holders) == 1 else 0

    def _lane(self, lane: Lane, epoch: Epoch | None) -> LaneState | None:
        """The lane in an epoch, the present one where none is said; ``None`` if it never was."""
        if epoch is None:
            return self._lanes[lane]
        return self._lives.get(epoch, {}).get(lane)

    def status(self) -> SpoolStatus:
        """How it stands now."""
        now = self._loop.time()
        past = [lanes for epoch, lanes in self._lives.items() if epoch != self.epoch]
        lanes = {
            lane: state.status(now, [life[lane] for life in past if lane in life])
            for lane, state in self._lanes.items()
        }
        used, allowed = self._chores.used_bytes(), self._chores.bytes_max()
        growth = sum(status.bytes_per_second for status in lanes.values())
        left = max(0, allowed - used)
        return SpoolStatus(
            self.epoch,
            self.degraded,
            used,
            allowed,
            left / growth / 3600 if growth > 0 else None,
            lanes,
            tuple(
                lane for lane in first_to_go(self._settings.lanes) if lanes[lane].pending_records
            ),
            self.epochs,
            self._chores.retained.bytes,
        )

    def retained(self, lane: Lane, epoch: Epoch | None = None) -> Ranges:
        """What was released of a lane and is still here: a holder that lost it gets it back."""
        state = self._lane(lane, epoch)
        if state is None:
            return Ranges()
        backlog = state.backlog
        shelved = self._chores.retained.numbers(epoch or self.epoch, lane)
        return (shelved | backlog.kept.numbers | backlog.spans) & backlog.released

    # --- appending ---------------------------------------------------------------------------

    def append(self, lane: Lane, records: list[bytes], *, awaited: bool = True) -> Appended:
        """Numbers records now, and makes them durable soon. Never waits.

        Args:
            lane: which lane.
            records: canonical bytes of at least one record.
            awaited: whether somebody waits for ``settled``; otherwise they may linger for others.

        Raises:
            Refused: ``too_large``: a record is larger than ``RECORD_BYTES_MAX``. None was taken.
            Overloaded: more waits than may wait, or the lane is full, or switched off. None was
                taken.
            DiskFailed: the spool is degraded. None was taken.
        """
        return self._pump.append(lane, records, awaited=awaited)

    def forgo(self, lane: Lane, count: int) -> Identity:
        """Numbers for records that the spool could not take: of an epoch that is never recorded.

        They are unique, and the next account states them all as ``shed``.
        """
        state = self._lanes[lane]
        first = state.unrecorded
        state.unrecorded += count
        return Identity(self._settings.labels.node, self._unrecorded, lane, first)

    async def commit(self) -> bool:
        """Commits what waits now; whether that succeeded."""
        return await self._pump.commit()

    async def state_accounts(self, *, past: bool = False) -> None:
        """Appends a full statement of each lane that ever had a number; later, while degraded.

        Args:
            past: whether to state past epochs too, of which little changes.
        """
        lives = self._lives if past else {self.epoch: self._lanes}
        try:
            await self._state(lives)
        except Overloaded:
            # More statements than numbers were reserved: the commit reserves as many as fell short.
            await self.commit()
            try:
                await self._state(lives)
            except (Overloaded, DiskFailed, Refused) as refused:
                self._observe(events.AccountDelayed(str(refused)))
        except (DiskFailed, Refused) as refused:
            self._observe(events.AccountDelayed(str(refused)))

    async def _state(self, lives: Lives) -> None:
        accounts = statements(
            self._resources.clock.now(), lives, self._unrecorded, self._chores.releases.holders
        )
        records = [wire.encode(account) for account in accounts]
        # Others wait for the same group: who is cancelled here must not take it from them.
        await asyncio.shield(self.append(Lane.ACCOUNT, records).settled)

    # --- forwarding --------------------------------------------------------------------------

    async def wait_grown(self) -> None:
        """Returns once something has become durable since the last call."""
        await self._grown.wait()
        self._grown.clear()

    async def next_batch(self, lane: Lane, start: int, epoch: Epoch | None = None) -> Batch | None:
        """The first pending batch that holds a number at or above ``start``.

        What turns out damaged is stated and passed over.

        Args:
            lane: which lane.
            start: the least number that is wanted.
            epoch: of which life; the present one where none is said.

        Returns:
            ``None`` when there is none.

        Raises:
            DiskFailed: it cannot be read now.
        """
        state = self._lane(lane, epoch)
        if state is not None:
            for number in state.backlog.kept.wanted_from(start):
                await self._chores.reclaims.read_back(number)
        while state is not None and (piece := state.backlog.next_piece(start)) is not None:
            if isinstance(piece, Sealed):
                found = await self._read_sealed(lane, epoch or self.epoch, piece)
            else:
                found = await self._read_fresh(lane, piece)
            if found is not None:
                return found
        return None

    def has_pending(self, lane: Lane, start: int, epoch: Epoch | None = None) -> bool:
        """Whether a number at or above ``start`` is pending."""
        state = self._lane(lane, epoch)
        return state is not None and state.backlog.has_from(start)

    async def _read_sealed(self, lane: Lane, epoch: Epoch, piece: Sealed) -> Batch | None:
        try:
            found = await self._ahead.take((lane, epoch), piece)
        except (Damaged, FileNotFoundError) as damage:
            self._chores.losses.note_damaged_batch(epoch, lane, piece, str(damage))
            self._chores.wake()
            return None
        if self._ahead.wants((lane, epoch)):
            backlog = self._lives[epoch][lane].backlog
            pieces = backlog.shelved_from(piece.stop, READ_AHEAD_BATCHES_MAX)
            self._ahead.prepare((lane, epoch), pieces)
        return found

    async def _read_fresh(self, lane: Lane, piece: tuple[Located, ...]) -> Batch | None:
        packed = await self._in_worker(
            sealing.pack,
            *(self._resources.disk, self._settings.labels, piece, self._resources.packer),
        )
        if piece[0].journal == self._pump.journal:
            self._chores.losses.note_damaged_frames(lane, packed.damaged)
        elif not packed.batches:
            # It may be under way to the shelf at this moment: two judges could differ.
            raise DiskFailed(
                f"lane {lane}: journal {piece[0].journal} does not give back its frames now; "
                "sealing it will judge"
            )
        return packed.batches[0] if packed.batches else None

    def release(self, lane: Lane, numbers: Ranges, holder: str, epoch: Epoch | None = None) -> None:
        """Takes what a receipt said: the next holder has these numbers durably, or knows why not.

        Args:
            lane: which lane.
            numbers: which numbers.
            holder: who said so.
            epoch: of which life; the present one where none is said.

        Raises:
            Refused: ``beyond_sent``: a number was never made durable. Nothing was released.
        """
        state, durable = self._lane(lane, epoch), self.durable(lane, epoch)
        if numbers.end > durable:
            raise Refused(
                RefusedBecause.BEYOND_SENT,
                f"{holder} says {lane} below {numbers.end}, but only {durable} were ever written",
            )
        if state is None:
            return
        gone = state.backlog.release(numbers)
        self._chores.note_release(epoch or self.epoch, lane, gone, holder)

    def reclaim(
        self, lane: Lane, numbers: Ranges, holder: str, epoch: Epoch | None = None
    ) -> Ranges:
        """The next holder has lost these numbers, which it had.

        What is retained of them is pending from now on, and offered again; the rest is stated as
        ``forgotten``. Numbers that were not released, or were given up before they were, stay what
        they are. Durable soon; until the event ``Reclaimed`` a crash may undo it, and the holder
        has to say it again, as it does with each receipt.

        Args:
            lane: which lane.
            numbers: which numbers.
            holder: who lost them.
            epoch: of which life; the present one where none is said.

        Returns:
            Those that are pending again. None of a life that is no longer known here.
        """
        if self._lane(lane, epoch) is None:
            return Ranges()
        back = self._chores.reclaims.reclaim(epoch or self.epoch, lane, numbers, holder)
        self._chores.wake()
        if back:
            self._grown.set()
        return back

    def set_linked(self, *, up: bool) -> None:
        """Tells whether a link is up: then what is fresh is sent before it is sealed."""
        if self._chores.linked != up:
            self._chores.linked = up
            self._ahead.drop()
            self._chores.wake()

    async def give_up_epoch(self, reason: str) -> None:
        """Upstream holds more than was ever written here: this store is an older copy of another.

        Its numbers are no longer safe to go on with. Marks it, so that the next opening begins a
        new life; until then it takes records as before.

        Raises:
            DiskFailed: it is not marked.
        """
        await self._chores.losses.mark(OUTDATED)
        self._observe(events.StoreOutdated(reason))

    # --- chores ------------------------------------------------------------------------------

    async def maintain(self) -> None:
        """Seals, writes the cursor, evicts, as the need arises. Runs until cancelled."""
        await self._chores.run()

    async def _in_worker(self, job: Callable[..., _T], *arguments: object) -> _T:
        return await self._loop.run_in_executor(self._resources.worker, job, *arguments)

    def _observe(self, event: object) -> None:
        self._resources.observer.observe(event)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What an opening found, and what the spool goes on with.

    Args:
        identity: who the store is.
        survey: what it holds.
        told: events.
        running_offset_ns: what to add to the monotonic clock for the running time.
        spares: the spares that lie ready, and their sizes.
        highest: the highest number of a journal that stands in one.
    """

    identity: StoreIdentity
    survey: store.Survey
    told: list[object]
    running_offset_ns: int
    spares: dict[str, int]
    highest: int


def _open_files(resources: Resources, settings: SpoolSettings) -> _Opened:
    """Locks, identifies and reads a store; makes one where there is none. Runs in the worker."""
    try:
        resources.disk.make_directory("")
    except DiskFailed as refused:
        problem = StoreUnusable(f"the folder of the spool cannot be made: {refused}")
        if isinstance(refused, DiskReadOnly):
            problem.exit_code = refused.exit_code
        raise problem from refused
    resources.disk.lock(store.LOCK)
    try:
        return _open_locked(resources, settings)
    except BaseException:
        resources.disk.unlock(store.LOCK)
        raise


def _open_locked(resources: Resources, settings: SpoolSettings) -> _Opened:
    disk, labels, machine = resources.disk, settings.labels, resources.machine
    identity, made, lost = epochs.identify(disk, labels, machine, resources.entropy)
    told: list[object] = [events.DamageFound(Lane.ACCOUNT, "none", lost)] if lost else []
    store.prepare(disk)
    _tidy(disk, identity)
    survey = store.survey(disk, identity, keep_data=False)
    kept = [name for content in survey.journals for name in store.quarantine(disk, content)]
    told += map(events.Quarantined, kept)
    # A new life goes on with the running time of the old one, by which its records age.
    offset_ns = running_offset_ns(survey.journals, resources.clock.now(), resources.boot)
    why = "" if made else epochs.reason_to_begin(disk, identity, survey, machine)
    if why:
        identity = epochs.begin(disk, labels, machine, resources.entropy, identity, survey)
        survey = store.survey(disk, identity, keep_data=False)
        told.append(events.EpochBegun(str(identity.epoch), why))
    spares, highest = journal.spares(disk)
    return _Opened(identity, survey, told, offset_ns, spares, highest)


def _read_sealed(disk: Disk, place: tuple[Lane, Epoch], piece: Sealed) -> Batch:
    return shelf.read(disk, *place, piece)


def _tidy(disk: Disk, identity: StoreIdentity) -> None:
    """Finishes what a crash left: batches half written, journals of a life that is over."""
    past = {life.epoch for life in identity.past}
    for number in journal.numbers(disk):
        header = journal.read_header(disk, number)
        if header is not None and header.epoch in past:
            disk.unlink(journal.journal_path(number))
    for epoch in (*past, identity.epoch):
        for lane in Lane:
            shelf.tidy(disk, lane, epoch)


def _random(resources: Resources) -> int:
    return int.from_bytes(resources.entropy(8), "little")
